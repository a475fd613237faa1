"""`rpo score` and `rpo sample`: plain text, messages, and what a chat template makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import rpo
from foreign import model_of, plainly
from published import write_jsonl
from test_files import CHAT, CPU, lines, pairs, told, turn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.stages import files
from rpo_cli.stages.files import table as table_of

TALK = "\n\nHuman: the cat\n\nAssistant: on a mat\n\nHuman: rain\n\nAssistant:"
MESSAGES = [*told("the cat", "on a mat"), turn("user", "rain")]
MARKED = "has marks of a chat template or a transcript already, which would be written twice"


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def sampled(model: Path, rows: list[dict[str, Any]], *more: str, code: int = 0) -> tuple[list[Any], str]:
    """The responses to the prompts of rows, and what was said."""
    file = write_jsonl(model.parent / "asked.jsonl", rows)
    out = model.parent / "answered.jsonl"
    options = ("--model", model, "--max-new-tokens", 5, "--out", out, *CPU)
    said = rpo("sample", file, *options, *more, code=code).stderr
    return [row["responses"] for row in lines(out)] if code == 0 else [], said


def test_a_plain_prompt_has_the_samples_of_the_users_message_where_that_is_asked_for(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "llama", "ChatML", reward=False)
    plain = [{"prompt": "the cat "}, {"prompt": "rain fell", "system": "be kind"}, {"prompt": TALK}]
    system = turn("system", "be kind")
    asked = [[turn("user", "the cat ")], [system, turn("user", "rain fell")], MESSAGES]
    as_messages, silent = sampled(model, [{"prompt": prompt} for prompt in asked])
    found, said = sampled(model, plain, *CHAT)
    assert found == as_messages and "note" not in silent
    (note,) = [line for line in said.splitlines() if line.startswith("note")]
    assert note.startswith("note: in 1 of 3 rows plain text is a dialogue")


def test_plain_prompts_of_a_chat_model_are_sampled_as_they_stand_and_said(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "llama", "ChatML", reward=False)
    rows = [{"prompt": "the cat", "system": "be kind"}, {"prompt": "rain fell"}, {"prompt": TALK}]
    default, said = sampled(model, rows)
    plain, beside = [line for line in said.splitlines() if line.startswith("note")]
    how = "--prompt-format chat writes it with that, raw says that this is meant"
    stands = f"2 of 3 rows are plain text, taken as it stands, and {model} has a chat template"
    assert plain == f"note: {stands}; {how}"
    left_out = "in 1 of 3 rows `system` beside a plain prompt is left out"
    assert beside == f"note: {left_out}; --prompt-format chat makes a message of it"
    raw, meant = sampled(model, rows, "--prompt-format", "raw")
    assert raw == default and stands not in meant and left_out in meant
    assert raw != sampled(model, rows, *CHAT)[0]
    sampler = files.Sampler(model, None, ScoringRecipe(stage="scores"), 1)
    assert [sampler.prompt("here", row) for row in rows] == [row["prompt"] for row in rows]


@pytest.mark.parametrize("command", ["sample", "score"])
def test_what_a_template_wrote_already_and_a_model_without_one_are_refused(
    command: str, tmp_path: Path
) -> None:
    reward = command == "score"
    model = model_of(tmp_path / "model", "llama", "ChatML", reward=reward)
    bare = model_of(tmp_path / "bare", "gpt2", "bytes", reward=reward)
    for prompt in ("<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n", "Human: rain"):
        rows = [{"prompt": "rain", "response": "fell"}, {"prompt": prompt, "response": "fell"}]
        file = write_jsonl(tmp_path / "rows.jsonl", rows)
        said = rpo(command, file, "--model", model, *CHAT, *CPU, code=2).stderr
        assert said == f"{file}:2: prompt: {MARKED}; --prompt-format raw takes it as it stands\n"
        rpo(command, file, "--model", model, "--prompt-format", "raw", "--dry-run", *CPU)
    said = rpo(command, file, "--model", bare, *CHAT, *CPU, code=2).stderr
    assert said == f"--prompt-format chat: --model {bare} has no chat template\n"


def rewarded(judge: Path, rows: list[dict[str, Any]], *more: object) -> tuple[list[list[float]], str]:
    """The rewards of rows, and what was said."""
    file = write_jsonl(judge.parent / "rows.jsonl", rows)
    out = judge.parent / "rewarded.jsonl"
    said = rpo("score", file, "--model", judge, "--out", out, *more, *CPU).stderr
    return [
        row.get("rewards", [row[name] for name in row if name.startswith("reward")]) for row in lines(out)
    ], said


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        ({"prompt": "the cat ", "responses": [" a", "b "]}, [turn("user", "the cat ")], [" a", "b "]),
        ({"prompt": "the cat", "chosen": "a", "rejected": "b", "system": "be kind"},
         [turn("system", "be kind"), turn("user", "the cat")], ["a", "b"]),
        ({"prompt": TALK, "response": " a"}, MESSAGES, ["a"]),
        ({"chosen": f"{TALK} a", "rejected": f"{TALK} b"}, MESSAGES, ["a", "b"]),
        ({"chosen": "the cat? a", "rejected": "the cat? b"}, [turn("user", "the cat?")], ["a", "b"]),
    ],
)  # fmt: skip
def test_plain_rows_have_the_rewards_of_the_same_rows_in_messages(
    row: dict[str, Any], prompt: list[Any], answers: list[str], tmp_path: Path
) -> None:
    judge = model_of(tmp_path / "judge", "llama", "ChatML")
    ((*found,),), _ = rewarded(judge, [row], *CHAT)
    whole = [[*prompt, turn("assistant", text)] for text in answers]
    assert found == pytest.approx(plainly(judge, whole), abs=1e-4)


def test_a_reward_model_with_a_template_reads_text_as_it_stands_where_it_is_told_to(tmp_path: Path) -> None:
    judge = model_of(tmp_path / "judge", "llama", "Llama 3")
    rows = [{"chosen": f"{TALK} a", "rejected": f"{TALK} b"},
            {"prompt": "the cat", "chosen": " a", "rejected": " b", "system": "be kind"}]  # fmt: skip
    found, said = rewarded(judge, rows, "--prompt-format", "raw")
    reads = AutoTokenizer.from_pretrained(judge)
    texts = [[f"{TALK} a", f"{TALK} b"], ["the cat a", "the cat b"]]
    model = AutoModelForSequenceClassification.from_pretrained(judge)
    for rewards, both in zip(found, texts, strict=True):
        ids = [reads(text, return_tensors="pt")["input_ids"] for text in both]
        assert rewards == pytest.approx([model(each).logits[0, 0].item() for each in ids], abs=1e-4)
    assert "system` beside a plain prompt is left out" in said and "makes messages" not in said
    rows[0] = {"prompt": "[INST] the cat [/INST]", "chosen": " a", "rejected": " b"}
    _, said = rewarded(judge, rows)
    how = "it writes 1 with marks of a template or a transcript once more; --prompt-format raw takes it as it"
    plain = f"note: 2 of 2 rows are plain text, of which the chat template of {judge} makes messages; {how}"
    assert plain in said
    (one, *_), _ = rewarded(judge, [rows[1] | {"system": ""}])
    assert one == pytest.approx(plainly(judge, [told("the cat", text) for text in "ab"]), abs=1e-4)


def test_a_reward_model_that_rpo_trained_reads_text_as_it_stands_unless_it_is_told_otherwise(
    tmp_path: Path,
) -> None:
    judge = model_of(tmp_path / "judge", "llama", "ChatML")
    (judge / "manifest.json").write_text("{}")
    plain = [{"prompt": "the cat", "response": " a"}]
    found, said = rewarded(judge, plain)
    assert f"note: 1 of 1 rows are plain text, taken as it stands, and {judge} has a chat template; " in said
    as_messages = [{"prompt": [turn("user", "the cat")], "response": [turn("assistant", " a")]}]
    (asked, silent), (told_so, _) = rewarded(judge, as_messages), rewarded(judge, plain, *CHAT)
    assert told_so == asked != found and "note" not in silent
    assert rewarded(judge, plain, "--prompt-format", "raw")[0] == found


def test_a_run_that_was_interrupted_in_another_form_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tmp_path / "model", "llama", "ChatML", reward=False)
    rows = [{"prompt": "the cat"}]
    expected, _ = sampled(model, rows, *CHAT)
    with monkeypatch.context() as patch:
        patch.setattr(table_of, "_write", interrupt)
        sampled(model, rows, code=130)
    assert list(tmp_path.glob("*.parts"))
    assert sampled(model, rows, *CHAT)[0] == expected


def test_what_stands_before_whole_conversations_is_scored_with_them(tmp_path: Path) -> None:
    (row,) = pairs(1)
    ask, one, two = row["prompt"], row["chosen"], row["rejected"]
    judge = model_of(tmp_path / "judge", "llama", "Llama 3", pad=False)
    before = [turn("system", "be kind"), *told("who", "me")]
    sides = {"chosen": told(ask, one), "rejected": told(ask, two)}
    expected = plainly(judge, [[*before, *side] for side in sides.values()])
    for more in ({"prompt": before}, {"prompt": before[1:], "system": "be kind"}):
        file = write_jsonl(tmp_path / "rows.jsonl", [sides | more])
        rpo("score", file, "--model", judge, "--out", tmp_path / "out.jsonl", *CPU)
        (found,) = lines(tmp_path / "out.jsonl")
        assert [found["reward_chosen"], found["reward_rejected"]] == pytest.approx(expected, abs=1e-4)
