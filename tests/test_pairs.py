"""Pairs once: texts in the data stage's tables, everything else by id; tokens once for each tokenizer."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import RHO, SEED, Tiny, manifest, pairs_of, tokenise, weights
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rpo_cli.artifacts import Workspace, job_of
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.models import fingerprint
from rpo_cli.runs.todo import what_to_run
from rpo_cli.runs.work import run_job
from rpo_cli.stages.data.rows import PAIR, TEXTS, find_rows, write_rows
from rpo_cli.stages.data.token_cache import FOLDER, TokenCache

SPLITS, RELABEL, DATA = f"{RHO}/splits", f"{SEED}/relabel", f"{SEED}/data"
POINTING = (SPLITS, RELABEL, f"{SEED}/reference-samples/relabel", f"{SEED}/reference-logps/relabel")


def todo(tiny: Tiny, recipe: str) -> dict[str, str]:
    """What a recipe lacks, and why."""
    items = what_to_run([tiny.stage(recipe)], Workspace(tiny.root, tiny.suite.name))
    return {item.stage.path: item.reason for item in items}


def delete(tiny: Tiny, path: str) -> None:
    """An artifact's tables and manifest; the rest of its directory stays."""
    for file in (tiny.root / path).glob("*.*"):
        file.unlink()


def as_older_versions_wrote_it(tiny: Tiny) -> None:
    """Give the relabelled pairs and the splits texts of their own, and the samples their prompts."""
    prompts = {row["id"]: row["prompt"] for row in pairs_of(tiny.root, RELABEL)}
    old = {(SPLITS, file.stem): file for file in (tiny.root / SPLITS).glob("*.parquet")}
    old[RELABEL, "pairs"] = tiny.root / RELABEL / "pairs.parquet"
    for file, rows in [(file, pairs_of(tiny.root, *place)) for place, file in old.items()]:
        write_rows(rows, file)
    samples = tiny.root / SEED / "reference-samples/relabel/samples.parquet"
    write_rows(
        [{"prompt": prompts[row.pop("id")]} | row for row in pq.read_table(samples).to_pylist()], samples
    )
    for path in POINTING:
        file = tiny.root / path / "manifest.json"
        found = json.loads(file.read_text())
        found.pop("rows_of", None)
        file.write_text(json.dumps(found))


# ── Texts ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_the_data_stage_stores_texts_of_pairs(built: Tiny) -> None:
    for path in POINTING:
        for file in (built.root / path).glob("*.parquet"):
            assert not set(pq.read_schema(file).names) & set(TEXTS), file


@pytest.mark.slow
def test_an_older_workspace_is_read_as_it_is_and_trains_the_same_model_without_the_data(tiny: Tiny) -> None:
    before = {name: pairs_of(tiny.root, SPLITS, name) for name in ("train", "held_out", "b-0.2")}
    found = {"dp-dpo.yaml": weights(tiny.make("dp-dpo.yaml")[0]), "rm.yaml": weights(tiny.make("rm.yaml")[0])}
    as_older_versions_wrote_it(tiny)
    delete(tiny, DATA)
    delete(tiny, RELABEL)
    assert before == {name: pairs_of(tiny.root, SPLITS, name) for name in before}
    assert todo(tiny, "dp-dpo.yaml") == {}
    assert found == {recipe: weights(tiny.make(recipe)[0]) for recipe in found}


def test_an_older_relabelling_serves_new_splits(tiny: Tiny) -> None:
    before = {name: pairs_of(tiny.root, SPLITS, name) for name in ("train", "held_out", "b-0.2")}
    as_older_versions_wrote_it(tiny)
    delete(tiny, DATA)
    tiny.make("splits.yaml")
    assert manifest(tiny.root, SPLITS)["rows_of"] == "data"
    assert before == {name: pairs_of(tiny.root, SPLITS, name) for name in before}


def test_what_was_said_of_a_pair_before_it_was_relabelled_is_said_of_it_no_more(tiny: Tiny) -> None:
    before = pairs_of(tiny.root, SPLITS, "held_out")
    rated = [row | {"chosen_utility": 1.0} for row in pairs_of(tiny.root, DATA)]
    write_rows(rated, tiny.root / DATA / "pairs.parquet")
    assert pairs_of(tiny.root, DATA) == rated and pairs_of(tiny.root, SPLITS, "held_out") == before


def test_a_row_that_is_not_there_stops_the_run(tiny: Tiny) -> None:
    file = tiny.root / SPLITS / "b-0.2.parquet"
    pq.write_table(pa.table({"id": ["nobody"]}), file)
    with pytest.raises(RunFailed, match=f"{file}: names 1 rows that .*{DATA}/pairs.parquet does not have"):
        pairs_of(tiny.root, SPLITS, "b-0.2")


# ── What rows are named of must be there ───────────────────────────────────────────────────────────────────


def test_splits_whose_texts_are_gone_are_not_enough(tiny: Tiny) -> None:
    delete(tiny, DATA)
    expected = {DATA: f"missing; {RELABEL} names rows of it"}
    assert todo(tiny, "splits.yaml") == todo(tiny, "relabel.yaml") == expected
    assert todo(tiny, "e-dpo.yaml") == {}  # a finished policy needs none
    assert set(todo(tiny, "d-dpo.yaml")) - set(expected) <= {f"{RHO}/scores/rm/all", f"{RHO}/rm/all",
                                                            f"{RHO}/policies/d-dpo/beta-0.2"}  # fmt: skip
    plan = tiny.run("make-biased-splits", "splits.yaml", "--dry-run").stdout
    assert f"data      {DATA}  (missing; {RELABEL} names rows of it)" in plan


@pytest.mark.slow
def test_what_is_rebuilt_below_finished_splits_comes_first(tiny: Tiny) -> None:
    """A member waits for the data that only its splits' relabelling names, though a worker is free."""
    delete(tiny, DATA)
    before = weights(tiny.root / RHO / "rm/b-0.2")
    delete(tiny, f"{RHO}/rm/b-0.2")
    tiny.run("train-rm", "rm.yaml", "--ensemble", "--jobs", "2")
    assert weights(tiny.root / RHO / "rm/b-0.2") == before


def test_data_made_anew_meanwhile_under_finished_splits_is_noticed(tiny: Tiny) -> None:
    workspace = Workspace(tiny.root, tiny.suite.name)
    job = pickle.loads(pickle.dumps(job_of(tiny.stage("dpo.yaml"), workspace, {}, force=True)))
    assert [str(folder.relative_to(tiny.root)) for folder in job.tables] == [SPLITS, RELABEL, DATA]
    file = tiny.root / DATA / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"key": "another"}))
    with pytest.raises(RunFailed, match=f"{DATA} was changed by another command meanwhile"):
        run_job(job, lambda step, of: None)


def test_an_input_that_is_made_anew_while_it_is_learnt_from_is_noticed_before_anything_is_published(
    tiny: Tiny,
) -> None:
    stage, file = tiny.stage("dpo.yaml", "max_steps=2"), tiny.root / SEED / "sft/manifest.json"

    def replace(step: int, of: int) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"key": "another"}))

    with pytest.raises(RunFailed, match="sft was changed by another command meanwhile"):
        run_job(job_of(stage, Workspace(tiny.root, tiny.suite.name), {}), replace)
    assert not (tiny.root / stage.path / "manifest.json").exists()


# ── Tokens ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tokenizer(built: Tiny) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(built.root / "seed-0/sft")
    return found


def plain(rows: list[Any]) -> list[Any]:
    return [(r.id, list(map(int, r.prompt_ids)), [list(map(int, a)) for a in r.responses]) for r in rows]


def test_every_column_of_texts_is_tokenised_once(built: Tiny) -> None:
    """Pairs and validation pairs have three, written responses two, prompts one: by eleven stages."""
    assert len(list((built.root / FOLDER).iterdir())) == 3 + 3 + 2 + 1


def test_kept_tokens_are_those_of_the_texts_in_the_order_of_the_ids(built: Tiny, tokenizer: Any) -> None:
    folders = [built.root / path for path in (SPLITS, RELABEL, DATA)]
    for table in ("train", "b-0.2"):
        kept = find_rows(folders, table, TokenCache(built.root)).tokens(PAIR, tokenizer, "here")
        texts = pairs_of(built.root, SPLITS, table)
        assert plain(kept) == plain(tokenise(texts, PAIR, tokenizer, 1000, "error", "here"))
        assert isinstance(kept[0].prompt_ids, np.ndarray) and kept[0].prompt_ids.dtype == np.int32
        assert not kept[0].prompt_ids.flags.owndata  # a view, of which there is no copy


def one_bit(content: bytes) -> bytes:
    """The content with another bit in its middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_damaged_tokens_are_made_anew(tiny: Tiny, tokenizer: Any) -> None:
    def read() -> list[Any]:
        return plain(
            find_rows([tiny.root / DATA], "pairs", TokenCache(tiny.root)).tokens(PAIR, tokenizer, "here")
        )

    expected, kept = read(), sorted((tiny.root / FOLDER).iterdir())
    content = {file: file.read_bytes() for file in kept}
    for damage in (lambda c: c[:-100], lambda c: b"", one_bit):
        for file in kept:
            file.write_bytes(damage(content[file]))
        assert read() == expected
    used = [file for file in kept if file.read_bytes() == content[file]]
    assert len(used) == 3 and not list((tiny.root / FOLDER).glob(".*"))


def test_tokens_are_known_by_the_texts_and_by_all_that_a_tokenizer_is(tiny: Tiny, tokenizer: Any) -> None:
    own = fingerprint(tokenizer)
    tokenizer(["Rent rose.", "Rent rose. Rent fell."], padding=True, truncation=True, max_length=1)
    assert fingerprint(tokenizer) == own  # how it was last called is no part of it
    tokenizer.save_pretrained(tiny.root / "again")
    assert fingerprint(AutoTokenizer.from_pretrained(tiny.root / "again")) == own
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    assert fingerprint(tokenizer) != own
    rows = find_rows([tiny.root / DATA], "prompts_test", TokenCache(tiny.root))
    before = plain(rows.tokens((), tokenizer, "here"))
    file = tiny.root / DATA / "prompts_test.parquet"
    write_rows(list(reversed(pq.read_table(file).to_pylist())), file)
    after = find_rows([tiny.root / DATA], "prompts_test", TokenCache(tiny.root)).tokens((), tokenizer, "here")
    assert plain(after) == before[::-1]


def test_status_knows_nothing_of_tokens(built: Tiny) -> None:
    found = json.loads(built.run("status", "e-dpo.yaml", "--json").stdout)
    assert all(FOLDER not in artifact["path"] for artifact in found["artifacts"])


def test_a_table_without_rows_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    texts = {name: pa.array([], pa.string()) for name in ("id", "prompt")}
    pq.write_table(pa.table(texts), tmp_path / "prompts_test.parquet")
    with pytest.raises(BadInput, match="here: no rows"):
        find_rows([tmp_path], "prompts_test", TokenCache(tmp_path)).tokens((), tokenizer, "here")
