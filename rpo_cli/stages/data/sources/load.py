"""The tables of a data recipe whose source is a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from importlib import import_module
from itertools import starmap
from pathlib import Path

from rpo_cli.artifacts import Job, Report, snapshots
from rpo_cli.errors import BadInput
from rpo_cli.models import Row, load_tokenizer
from rpo_cli.recipes.schema import DataRecipe, seed_of
from rpo_cli.stages.data.ledger import Ledger, losses
from rpo_cli.stages.data.problems import to_the_end
from rpo_cli.stages.data.sources.assemble import table_rows, tables, tables_of_written
from rpo_cli.stages.data.sources.base import Pair, Records, Sets, Written
from rpo_cli.stages.data.sources.records import SPLITS, data_files, one_name, published_split, records

FEW_PROMPTS = 20  # so few may leave a table without rows
SPARE = ("sft_validation", "pairs_validation")  # a set may leave them without rows
KINDS = {"dataset": "pairs", "sft_dataset": "sft"}
USES = {"pairs": "prefs", "sft": "sft"}  # of UltraFeedback's splits: train_prefs, train_sft, and train_gen
COLUMNS = {
    "pairs": {"prompt", "chosen", "rejected", "label", "score"},
    "sft": {"prompt", "completion", "messages"},
}
Reader = Callable[[Sets], tuple[Iterator[Pair], Iterator[Written]]]


def load(job: Job[DataRecipe], report: Report, ledger: Ledger) -> dict[str, Iterator[Row]]:
    """Every table's rows; the ledger is told of what is left out.

    Raises:
        BadInput: the set cannot be read, is of another kind, or leaves a table without rows.
    """
    recipe: DataRecipe = job.recipe
    tokenizer = None
    if "tokenizer" in job.inputs:
        revision = job.revisions.get("tokenizer")
        tokenizer = load_tokenizer(job.inputs["tokenizer"], revision=revision, need_pad=False)
    kinds = {"dataset": "sft"} if recipe.of.written else KINDS
    sets = {kind: _records(job, name, kind, report, ledger) for name, kind in kinds.items()}
    read, given = _reader(recipe), Sets(recipe, tokenizer, sets.get("pairs", ()), sets["sft"], ledger)
    pairs, written = read(given)
    pairs = to_the_end(pairs, lambda: read(given)[0], job.path, ledger)
    written = to_the_end(written, lambda: read(given)[1], job.path, ledger)
    sizes = {str(table): size for table, size in recipe.rows.items()}
    share, seed = recipe.validation_share, seed_of(recipe, "data")
    found = (
        tables_of_written(written, sizes, share, recipe.sft_share, seed, ledger)
        if recipe.of.written
        else tables(pairs, written, sizes, share, seed, ledger)
    )
    for table in recipe.of.tables:
        if table in SPARE:
            continue
        if not found[table]:
            left = ", ".join(f"{name} {count}" for name, count in sorted(ledger.counts.items()) if count)
            splits = ", ".join(sorted(set(_files(job, "dataset").values())))
            nothing = f"nothing was read of {', '.join(map(str, _files(job, 'dataset')))}"
            raise BadInput(
                f"{job.path}: no rows for {table} ({left or nothing}; splits found: {splits})"
                + _all_of(ledger)
                + (_too_few_prompts(found) or _no_training(recipe, set(_files(job, "dataset").values())))
            )
    return {table: _rows(items, table, ledger) for table, items in found.items() if items}


def _all_of(ledger: Ledger) -> str:
    """What took every row of a kind, in words."""
    whole = [loss for loss in losses(ledger.metrics()) if loss.count == loss.read]
    return "".join(f"; all {loss.read} rows of {loss.kind} are {loss.why}" for loss in whole)


def _no_training(recipe: DataRecipe, splits: Set[str]) -> str:
    """What to do where files are, by their names, for something else than training."""
    if not splits or "train" in splits or recipe.split:
        return ""
    other = sorted(splits)[0]
    instead = f"`split: {{train: {other}}}` in the data recipe"
    return f"; splits are known by the files' names: rename a file, or write {instead}"


def _too_few_prompts(found: Mapping[str, Sequence[Pair] | Sequence[Written]]) -> str:
    """That a table is empty for want of prompts, where there are few."""
    count = len({item.posts[0] for items in found.values() for item in items})
    if not 0 < count <= FEW_PROMPTS:
        return ""
    prompts = (
        "1 distinct prompt, which goes" if count == 1 else f"{count} distinct prompts, each of which goes"
    )
    return f"; the rows have {prompts} whole into training, validation or test: add rows of other prompts"


def _rows(items: Sequence[Pair | Written], table: str, ledger: Ledger) -> Iterator[Row]:
    """A table's rows; the ledger knows the place of each while it stands."""
    for item, row in zip(items, table_rows(items, table), strict=True):
        ledger.place = item.place
        yield row


def _reader(recipe: DataRecipe) -> Reader:
    """The function that the source's row names."""
    module, _, function = (recipe.of.reads or "").partition(":")
    reader: Reader = getattr(import_module(f"rpo_cli.stages.data.sources.{module}"), function)
    return reader


def _files(job: Job[DataRecipe], name: str) -> dict[Path, str]:
    """The files of one of the job's data sets, on disk or in the hub's cache, and the split of each."""
    folders = job.recipe.folders if name == "dataset" else []
    place = snapshots.dataset_folder(str(job.inputs[name]), job.revisions.get(name), folders)
    return {file: published_split(file) or "train" for file in data_files(Path(place), folders)}


def _records(job: Job[DataRecipe], name: str, kind: str, report: Report, ledger: Ledger) -> Records:
    """Records of one of the job's data sets; none where it has no such set."""
    if name not in job.inputs:
        return ()
    recipe = job.recipe
    files = _of_splits(_files(job, name), name, kind, job, ledger)
    columns: dict[str, str] = {
        ours: theirs for ours, theirs in recipe.columns.items() if ours in COLUMNS[kind]
    }

    def told(number: int, record: tuple[str, str | None, Row]) -> tuple[str, str | None, Row]:
        where, published, row = record
        if number % 1000 == 999:
            report(number + 1, number + 1001)
        untold = published is None and not recipe.split  # tldr.py knows it from the row
        return where, None if untold else _split(published or "train", name, kind, recipe), row

    return starmap(told, enumerate(records(files, kind, ledger, columns)))


def _split(published: str, name: str, kind: str, recipe: DataRecipe) -> str | None:
    """The split that a published one is read as; None: it is not read."""
    for ours, theirs in recipe.split.items():
        if published == one_name(theirs):
            return ours
    if recipe.split and name == "dataset":
        return None
    base, _, use = published.partition("_")
    known = base in SPLITS and use in ("", USES[kind], "cnndm")  # cnndm: tldr.py leaves it out, and counts it
    return (published if use == "cnndm" else SPLITS[base]) if known else None


def _of_splits(
    files: dict[Path, str], name: str, kind: str, job: Job[DataRecipe], ledger: Ledger
) -> list[Path]:
    """The files of splits that are read; those that are not are noted, unless the recipe says which are.

    Raises:
        BadInput: the recipe names a split that is not there, or none is read.
    """
    recipe = job.recipe
    found = ", ".join(sorted(set(files.values())))
    for theirs in recipe.split.values() if name == "dataset" else ():
        if one_name(theirs) not in files.values():
            raise BadInput(f"{job.path}: split: {name} has no split {theirs} (splits found: {found})")
    read = [file for file, split in files.items() if _split(split, name, kind, recipe)]
    others = sorted({split for file, split in files.items() if file not in read})
    likely = sorted(others, key=lambda split: "train" not in split)[:1]
    which = f"(splits found: {found}); `split: {{train: {', '.join(likely)}, …}}` names those to read"
    if not read:
        raise BadInput(f"{job.path}: no split of {name} is known {which}")
    if others and not recipe.split:
        ledger.notes.append(f"{name}: not read: {', '.join(others)} {which}")
    return read
