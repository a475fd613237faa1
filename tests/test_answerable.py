"""Prompts that no model of a plan could answer are told of before anything is trained for them."""

from __future__ import annotations

import pytest
from conftest import RHO, SEED, Tiny

from rpo_cli.artifacts import Workspace, walk
from rpo_cli.errors import BadInput
from rpo_cli.recipes import load
from rpo_cli.runs.answerable import before_training
from rpo_cli.runs.planner import Planner

STOPS = "; the evaluation would stop there, so nothing is trained for it"
LONG = {
    "max_length: 2\noverlong: drop": "evaluate.yaml: prompts_test: no rows of at most 2 tokens; raise",
    "max_length: 2": "max_length is 2; raise max_length, shorten the text, or set overlong: drop",
    "oracle: null\nmax_new_tokens: 60": "max_new_tokens 60 exceed the model's 64 positions",
}


@pytest.mark.parametrize(
    ("keys", "jobs"),
    [*((keys, 1) for keys in LONG), pytest.param(next(iter(LONG)), 2, marks=pytest.mark.slow)],
)
def test_an_evaluation_whose_prompts_do_not_fit_stops_before_anything_is_trained(
    empty: Tiny, keys: str, jobs: int
) -> None:
    empty.edit("evaluate.yaml", keys)
    said = empty.run("evaluate", "dpo.yaml", "--jobs", jobs, code=2).stderr
    assert LONG[keys] in said and STOPS in said
    assert (empty.root / SEED / "data" / "manifest.json").is_file()
    assert not any((empty.root / SEED / name / "manifest.json").exists() for name in ("sft", "oracle"))


def test_what_is_trained_for_no_evaluation_is_trained_and_no_policy_after_it(empty: Tiny) -> None:
    empty.edit("evaluate.yaml", "max_length: 2\noverlong: drop")
    empty.run("train-sft", "sft.yaml")
    said = empty.run("evaluate", "dpo.yaml", code=2).stderr
    assert STOPS in said and not (empty.root / RHO / "policies").exists()


@pytest.mark.parametrize("error", [KeyError("merges"), ImportError("sentencepiece"), OSError("no disk")])
def test_a_tokenizer_that_cannot_be_loaded_is_left_to_the_stage_that_needs_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise error

    tiny.edit("evaluate.yaml", "max_length: 2")
    planned = walk([Planner(0).evaluation(load(str(tiny.suite / "dpo.yaml")), "test")])
    check = before_training(planned, Workspace(tiny.root, tiny.suite.name))
    (warm_up,) = (stage for stage in planned if stage.kind == "sft")
    with monkeypatch.context() as patch:
        patch.setattr("rpo_cli.models.load_tokenizer", cannot)
        before_training(planned, Workspace(tiny.root, tiny.suite.name))(warm_up)
    with pytest.raises(BadInput, match="max_length is 2"):
        check(warm_up)
