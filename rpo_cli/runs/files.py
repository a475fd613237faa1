"""`rpo score` and `rpo sample`: a plain file in, the same rows with new columns out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from rpo_cli import devices
from rpo_cli.artifacts import External, Stage, look_for, snapshots, unreachable
from rpo_cli.errors import BadInput
from rpo_cli.recipes.draft import stands
from rpo_cli.recipes.schema import DataRecipe, ScoringRecipe, is_recipe
from rpo_cli.runs import local_models
from rpo_cli.runs.export import maker, model_of, not_there
from rpo_cli.runs.first_rows import data_below
from rpo_cli.runs.options import OnRows
from rpo_cli.runs.planner import planner_for
from rpo_cli.runs.progress import PlanProgress
from rpo_cli.runs.results import share_of
from rpo_cli.runs.session import Session
from rpo_cli.runs.work import QUIET_ENVIRONMENT
from rpo_cli.text import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rpo_cli.stages.files import Columns, Make, Table

UNLIMITED = 2**31 - 1


class Drawn(TypedDict):
    """How many responses to each prompt, and how they are drawn."""

    count: int
    temperature: float
    top_p: float
    seed: int


def score(session: Session, rows: OnRows, model: str, label: str | None, max_length: int | None) -> None:
    """Write a file's rows with the rewards of what they hold, and say what came out.

    Raises:
        BadInput: what cannot be read, before anything heavy is loaded.
    """
    os.environ.update(QUIET_ENVIRONMENT)
    target = _target(rows.file, rows.out, "scored")
    recipe = _recipe(session, rows, overlong="drop", reward_label=label, max_length=max_length)
    node, rows = _model(session, rows, model, ["reward"])
    if (why := local_models.no_reward(node, label, "--label")) is not None:
        raise BadInput(f"--model: {why}")
    _need_weights(node)
    from rpo_cli.stages.files import FORMS, Scorer, form_in, unanswered
    from rpo_cli.stages.reading import reading_of

    table = _table(rows.file, rows.split, target)
    answered = ((place, row) for place, row in table.rows() if not unanswered(row))
    place, first = next(answered, ("", None))
    if first is None:
        raise BadInput(f"{rows.file}: no rows with a response")
    form = form_in(place, first)
    scorer = Scorer(reading_of(Path(node.reference), recipe, node.revision), form, rows.prompt_format)
    _need_template(rows, model, scorer.reading.tokenizer)
    count = table.check(FORMS[form], scorer.check)
    _note(session, scorer.notes())
    identity = {"model": node.key, "label": label, "max_length": recipe.max_length, "reads": 3}
    identity |= _form(rows)
    made = _extended(session, table, target, scorer.rewards, identity, recipe, count)
    if made is None:
        return
    read = [row for row in made if None not in row.values()]
    result: dict[str, Any] = {"file": str(target), "rows": count, "without_reward": count - len(read)}
    if form == ("chosen", "rejected") and read:
        both = [tuple(row.values()) for row in read]
        result["accuracy"] = sum(one > two for one, two in both) / len(read)
        result["equal_rewards"] = sum(one == two for one, two in both)
    if result["without_reward"]:
        why = "no response, too long, without a token to read, or refused by the chat template"
        session.say(f"warning: {counted(result['without_reward'], 'row has', 'rows have')} no reward: {why}")
    if (line := scorer.reading.beyond(scorer.lengths)) is not None:
        session.say(f"warning: {line}")
    _say(session, result)


def sample(session: Session, rows: OnRows, model: str, max_new_tokens: int | None, drawn: Drawn) -> None:
    """Write a file's rows with responses of a model to their prompts.

    Raises:
        BadInput: what cannot be read, before anything heavy is loaded.
    """
    os.environ.update(QUIET_ENVIRONMENT)
    target = _target(rows.file, rows.out, "sampled")
    node, rows = _model(session, rows, model, ["sft", "policy"])
    _need_weights(node)
    recipe = _recipe(session, rows)
    from rpo_cli.models import Sampling
    from rpo_cli.stages.files import Sampler, Table

    table = _table(rows.file, rows.split, target)
    sampler = Sampler(Path(node.reference), node.revision, recipe, drawn["count"], rows.prompt_format)
    _need_template(rows, model, sampler.tokenizer)
    count = table.check(["responses"], sampler.check)
    most, said = sampler.fit(Table(table.files).rows(), max_new_tokens)
    _note(session, [*sampler.notes(), *([] if said is None else [said])])
    identity = {**drawn, "model": node.key, "max_new_tokens": most, **_form(rows)}
    how = Sampling(drawn["temperature"], drawn["top_p"], most, rows.batch_size, drawn["seed"])
    make = partial(sampler.responses, how)
    made = _extended(session, table, target, make, identity, recipe, count)
    if made is None:
        return
    result = {"file": str(target), "rows": count}
    if left := sum(row["responses"] is None for row in made):
        result["without_responses"] = left
        why = "too long for the model, or refused by the chat template"
        session.say(f"warning: {counted(left, 'row has', 'rows have')} no responses: {why}")
    _say(session, result)


def _model(session: Session, rows: OnRows, name: str, kinds: Sequence[str]) -> tuple[External, OnRows]:
    """The model of this name: a folder, what a recipe of these kinds trained, or one of the hub.

    The rows are to be taken as it learnt its own, as far as its recipe says how and the options do not.
    Whether the hub can be reached is asked once, its client tries for minutes.

    Raises:
        BadInput: it can be none of these, or was not trained yet.
    """
    node = External.named(name)
    if (is_recipe(name) or ":" in name) and not Path(name).is_dir():
        folder, stage = _trained(session, name, kinds)
        return External(str(folder)), _as_learnt(session, rows, stage)
    for option in ("rho", "workspace"):
        if getattr(session, option) is not None:
            raise BadInput(f"--{option}: has no effect, --model {name} is no recipe")
    if not node.on_hub:
        return node, rows
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(node.reference)
    except HFValidationError:
        what = "no folder, no recipe (FILE.yaml, or FILE.yaml:NAME) and no possible name of the hub"
        what = "no such folder" if name.startswith((".", "/", "~")) else what
        raise BadInput(f"--model {name}: {what}") from None
    unreachable()
    return node, rows


def _trained(session: Session, name: str, kinds: Sequence[str]) -> tuple[Path, Stage]:
    """A recipe's model and its folder, as its own command makes it: by the recipe's seed, on its device."""
    session = replace(session, recipe=name, seed=None, device=None)
    loaded = model_of(session, "--model", kinds)
    workspace, stage = session.open(loaded.recipe.suite), planner_for(loaded).build(loaded)
    if (why := not_there(stage, workspace)) is not None:
        folder, first = workspace.root / stage.path, maker(session, loaded, stage)
        raise BadInput(f"--model {name}: {folder}: {why}; first {first}")
    return workspace.root / stage.path, stage


def _as_learnt(session: Session, rows: OnRows, stage: Stage) -> OnRows:
    """The rows in the form that a model's data recipe gives its texts, which is said; else as they are."""
    data = data_below(stage)
    if rows.prompt_format is not None or data is None or ("prompt_format",) not in data.places:
        return rows
    assert isinstance(data.recipe, DataRecipe)
    form, at = data.recipe.prompt_format, stands(data.places, data.source, ("prompt_format",))
    session.say(f"note: {at}: {form}, so these rows are taken as {form}, too; --prompt-format says otherwise")
    return replace(rows, prompt_format=form)


def _need_template(rows: OnRows, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """BadInput where plain text is to go through a chat template, and there is none."""
    if rows.prompt_format == "chat" and tokenizer.chat_template is None:
        raise BadInput(f"--prompt-format chat: --model {model} has no chat template")


def _form(rows: OnRows) -> dict[str, str]:
    """What tells parts that were made in a form that was asked for from others."""
    return {} if rows.prompt_format is None else {"prompt_format": rows.prompt_format}


def _note(session: Session, lines: Iterable[str]) -> None:
    for line in lines:
        session.say(f"note: {line}")


def _need_weights(model: External) -> None:
    """BadInput where a folder has no weights that are read, or an adapter without its base."""
    folder = Path(model.reference)
    if (why := local_models.no_merge(folder)) is not None:
        raise BadInput(f"--model: {why}")
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise BadInput(f"--model {folder}: has no weights in safetensors, and no others are read")


def _recipe(session: Session, rows: OnRows, **options: object) -> ScoringRecipe:
    """What a stage would be told that reads or samples as these options say."""
    given = {name: value for name, value in options.items() if value is not None}
    given |= {} if session.device is None else {"device": session.device}
    given |= {"dtype": rows.dtype, "per_device_eval_batch_size": rows.batch_size}
    return ScoringRecipe.model_validate({"stage": "scores", "max_length": UNLIMITED, **given})


def _target(file: str, out: Path | None, how: str) -> Path:
    """Where the rows go: beside the file, or for a set of the hub here, unless it is said."""
    if out is not None:
        if not out.parent.is_dir():
            raise BadInput(f"--out {out}: no such folder: {out.parent}")
        return out
    place = Path(file)
    name = place.name.split(".")[0] or place.resolve().name
    suffix = ".parquet" if place.suffix == ".parquet" else ".jsonl"
    return (place.parent if place.exists() else Path()) / f"{name}.{how}{suffix}"


def _table(file: str, split: str | None, out: Path) -> Table:
    """The files with the rows; BadInput where they are not to be had, or cannot be written as is asked."""
    from rpo_cli.stages.data.sources.records import data_files, form_of, published_split
    from rpo_cli.stages.files import Table

    place = Path(file)
    if not place.exists():
        if place.is_absolute() or form_of(place) or file.startswith("."):
            raise BadInput(f"{file}: no such file")
        try:
            place = Path(snapshots.snapshot(External.named(file, use="dataset")))
        except BadInput as error:
            raise BadInput(f"{error}{look_for(file)}") from error
    files = data_files(place)
    if split is not None:
        splits = sorted({published_split(each) or "train" for each in files})
        files = [each for each in files if (published_split(each) or "train") == split]
        if not files:
            raise BadInput(f"--split {split}: {file} has {', '.join(splits)}")
    table = Table(files)
    if out.is_dir():
        raise BadInput(f"--out {out}: is a folder; name a file")
    if (parts := out.with_name(f"{out.name}.parts")).is_file():
        raise BadInput(f"{parts}: a folder of this name is for the parts of {out.name}; move the file")
    if out.suffix not in (".jsonl", ".parquet") or (out.suffix == ".parquet" != table.suffix):
        may = ".jsonl" if table.suffix == ".jsonl" else ".jsonl or .parquet"
        raise BadInput(f"--out {out}: rows of {file} are written as {may}")
    if out.exists() and any(out.samefile(each) for each in files):
        raise BadInput(f"--out {out}: is the file that is read")
    return table


def _extended(
    session: Session,
    table: Table,
    out: Path,
    make: Make,
    identity: Mapping[str, object],
    recipe: ScoringRecipe,
    count: int,
) -> list[Columns] | None:
    """The new columns of all rows, once the file is written; None on a dry run."""
    from rpo_cli.stages.files import extend

    if left := table.ledger.counts["rows/repeated_key"]:
        session.say(f"warning: {left} rows are left out: a key stands twice in them")
    device = devices.choose(recipe)
    identity = {**identity, "device": device.name, "dtype": device.dtype_name}
    session.say(f"{counted(count, 'row')} to {out}; device: {device}")
    if session.dry_run:
        return None
    devices.prepare(recipe.threads, device.repeats)
    devices.quiet()
    progress = PlanProgress(session.err, {out.name: 10.0}, 1)
    progress.start(out.name)
    try:
        with device.autocast():
            return extend(table, out, make, identity, lambda done: progress.step(out.name, done, count))
    finally:
        progress.close()


def _say(session: Session, result: dict[str, Any]) -> None:
    if session.as_json:
        session.print_json(result)
        return
    share = ""
    if "accuracy" in result:
        pairs = result["rows"] - result["without_reward"]
        share = f"; chosen has the higher reward in {share_of(result['accuracy'], pairs)} of {pairs} pairs"
        share += f", both the same in {result['equal_rewards']}" if result["equal_rewards"] else ""
    print(f"{result['file']}: {counted(result['rows'], 'row')}{share}")
