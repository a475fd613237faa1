"""Listed files in a model's chat format: the same texts as pairs of messages have, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import published
import pytest
import yaml
from conftest import SEED, Tiny, manifest, rpo
from transformers import AutoModelForCausalLM, AutoTokenizer

from rpo_cli.recipes.schema import DataRecipe

ASKED = [{"role": "user", "content": "train"}]
ANSWERS = {
    "chosen": [{"role": "assistant", "content": "1 2"}],
    "rejected": [{"role": "assistant", "content": "3"}],
}
CHAT = "\nprompt_format: chat\ntokenizer: ./chat\n"
RAW = ("--prompt-format", "raw")


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(suite: Tiny, name: str) -> pd.DataFrame:
    return pd.read_parquet(suite.root / SEED / "data" / f"{name}.parquet")


def read(
    suite: Tiny,
    name: str,
    rows: list[dict[str, Any]],
    more: str = CHAT,
    code: int = 0,
    template: str = published.CHAT,
) -> str:
    """What is said of a data recipe with one table of these rows."""
    published.word_tokenizer(suite.suite / "chat", template)
    write(suite.suite / "rows.jsonl", rows)
    (suite.suite / "data.yaml").write_text(f"stage: data\nfiles: {{{name}: rows.jsonl}}\n{more}")
    return str(suite.run("data inspect", "data.yaml", "--json", code=code).stderr)


def test_messages_and_a_question_of_plain_text_are_the_prompt_that_pairs_of_messages_have(
    empty: Tiny,
) -> None:
    pairs = [{"prompt": ASKED, **ANSWERS}, {"prompt": "train", **ANSWERS, "rejected": "4"}]
    read(empty, "pairs", pairs)
    found = table(empty, "pairs")
    prompt = found["prompt"][0]
    assert set(found["prompt"]) == {prompt} and prompt != "train" and "train" in prompt
    assert json.loads(found["messages"][0]) == {"prompt": ASKED, **ANSWERS}
    asked = [{"prompt": ASKED}, {"prompt": "test"}, {"messages": [{"role": "user", "content": "valid"}]}]
    read(empty, "prompts_test", asked)
    found = table(empty, "prompts_test")
    assert list(found["prompt"]) == [prompt, *(prompt.replace("train", other) for other in ("test", "valid"))]
    assert json.loads(found["messages"][1]) == {"prompt": [{"role": "user", "content": "test"}]}


def test_whole_conversations_are_a_prompt_and_answers_as_pairs_of_messages_are(empty: Tiny) -> None:
    whole = {side: [*ASKED, *answer] for side, answer in ANSWERS.items()}
    given: list[dict[str, Any]] = [{"prompt": ASKED, **ANSWERS}]
    given += [{"prompt": ASKED, **whole}, {"prompt": "train", **whole}, whole]
    for row in given:
        read(empty, "pairs", [row])
        (found,) = table(empty, "pairs").to_dict("records")
        assert (found["chosen"], found["rejected"]) == ("1 2", "3") and found["prompt"].count("train") == 1
        assert json.loads(found["messages"]) == {"prompt": ASKED, **ANSWERS}


def test_a_conversation_of_no_use_is_left_out_and_the_others_are_read(empty: Tiny) -> None:
    whole = {side: [*ASKED, *answer] for side, answer in ANSWERS.items()}
    strange = [{"role": "user", "content": "valid"}, {"role": "user", "content": "test"}]
    refusing = (
        "{% if messages[1:] and messages[1].role == 'user' %}{{ raise_exception('alternate') }}{% endif %}"
    )
    rows = [
        {"prompt": "be kind", **whole},
        {"prompt": ASKED, **ANSWERS},
        {"prompt": strange, **ANSWERS},
        {"prompt": ASKED, "chosen": whole["chosen"], "rejected": whole["chosen"]},
    ]
    read(empty, "pairs", rows, template=refusing + published.CHAT)
    found = manifest(empty.root, f"{SEED}/data")["metrics"]
    assert len(table(empty, "pairs")) == 1
    assert [found[f"pairs/{why}"] for why in ("prompt_elsewhere", "refused", "ties")] == [1, 1, 1]


def test_a_whole_conversation_where_an_answer_is_expected_leaves_its_row_out(empty: Tiny) -> None:
    whole = [*ASKED, *ANSWERS["chosen"]]
    read(
        empty, "pairs", [{"prompt": "train", "chosen": whole, "rejected": "3"}, {"prompt": ASKED, **ANSWERS}]
    )
    assert manifest(empty.root, f"{SEED}/data")["metrics"]["pairs/part_early"] == 1
    assert list(table(empty, "pairs")["chosen"]) == ["1 2"]


def test_a_reference_answer_beside_a_prompt_is_the_assistants(empty: Tiny) -> None:
    read(empty, "prompts_test", [{"prompt": "train", "completion": "1 2"}])
    (found,) = table(empty, "prompts_test").to_dict("records")
    assert "1 2" in found["completion"] and json.loads(found["messages"]) == {"prompt": ASKED}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": 3}, "prompt: expected text or messages with role and content, got a number"),
        ({"prompt": json.dumps(ASKED)}, "prompt: messages as text"),
        ({"question": "q"}, "no column 'prompt' (has: question)"),
        ({"prompt": ASKED, "tools": [{}]}, "tools: the chat template does not read it; leave it out"),
    ],
)
def test_what_no_template_makes_text_of_is_refused_with_its_line(
    empty: Tiny, row: dict[str, Any], says: str
) -> None:
    said = read(empty, "prompts_test", [{"prompt": "train"}, row], code=2)
    assert f"rows.jsonl:2: {says}" in said


def test_without_it_messages_are_refused_with_what_to_write(empty: Tiny) -> None:
    said = read(empty, "prompts_test", [{"prompt": ASKED}], more="", code=2)
    assert "rows.jsonl:1: prompt: expected text, got a conversation; `prompt_format: chat` with" in said


def test_keys_of_files_without_it_are_as_before() -> None:
    plain = DataRecipe.model_validate({"stage": "data", "files": {"pairs": "x.jsonl"}})
    assert {"tokenizer", "prompt_format"} <= plain.unused()
    chat = plain.model_validate({**plain.model_dump(), "prompt_format": "chat", "tokenizer": "./chat"})
    assert not {"tokenizer", "prompt_format"} & chat.unused()
    with pytest.raises(ValueError, match="tokenizer: no effect with source: files"):
        DataRecipe.model_validate({"stage": "data", "files": {"pairs": "x.jsonl"}, "tokenizer": "./chat"})


@pytest.fixture
def talking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Tiny) -> Path:
    """A folder with pairs of messages and a tiny model whose tokenizer has a chat template."""
    monkeypatch.chdir(tmp_path)
    words = ["1", "2", "3", "4"]
    tokenizer = published.word_tokenizer(tmp_path / "model", published.CHAT, words)
    model = AutoModelForCausalLM.from_pretrained(built.root / SEED / "sft")
    model.resize_token_embeddings(len(tokenizer))
    model.config.max_position_embeddings = 48
    model.save_pretrained(tmp_path / "model")
    rows = [{"prompt": [{"role": "user", "content": f"{n} 1"}], **ANSWERS} for n in range(99)]
    write(tmp_path / "pairs.jsonl", rows)
    return tmp_path / "model"


def init(model: Path, *more: object, code: int = 0) -> Any:
    return rpo(
        "init", "mine", "--pairs", "pairs.jsonl", "--model", model, "--objective", "dpo", *more, code=code
    )


def test_init_has_prompts_answered_in_the_form_of_the_pairs(talking: Path) -> None:
    asked = [{"prompt": "1 " * 20}, {"prompt": "5 1"}, {"prompt": [{"role": "user", "content": "6 1"}]}]
    write(Path("prompts.jsonl"), asked)
    said = init(talking, "--prompts", "prompts.jsonl").stderr
    assert "prompts.jsonl: 3 prompts to evaluate on, the longest of " in said and "leak" not in said
    found = pd.read_parquet("runs/mine/seed-0/prompts/prompts_test.parquet")["prompt"]
    tables = [file for file in Path("runs/mine/seed-0/data").glob("p*.parquet")]
    theirs = {prompt for file in tables for prompt in pd.read_parquet(file)["prompt"]}
    assert set(found[1:]) <= theirs and "5 1" not in theirs
    evaluate = yaml.safe_load(Path("mine.yaml").read_text())["recipes"]["evaluate"]
    longest = len(AutoTokenizer.from_pretrained(talking)(found[0])["input_ids"])
    assert evaluate["max_length"] >= longest and evaluate["max_length"] + evaluate["max_new_tokens"] <= 48
    plan = rpo("compare", "mine.yaml", "--dry-run").stdout
    assert "seed-0/prompts " not in plan, "made already"


def test_init_leaves_room_for_answers_in_a_model_of_few_positions(talking: Path) -> None:
    long = [{"prompt": f"{n} " * 30, "chosen": " 1" * 16, "rejected": " 3"} for n in range(99)]
    write(Path("pairs.jsonl"), long)
    init(talking, *RAW)
    recipes = yaml.safe_load(Path("mine.yaml").read_text())["recipes"]
    evaluate = recipes["evaluate"]
    assert 16 <= evaluate["max_new_tokens"] == recipes["policy"]["max_new_tokens"] < 24
    assert 30 <= evaluate["max_length"] == 48 - evaluate["max_new_tokens"]


def test_init_says_how_many_pairs_the_model_has_no_positions_for(talking: Path) -> None:
    """Before anything is trained; what it counts on is the others."""
    rows = [{"prompt": f"{n} " * (99 if n % 2 else 9), "chosen": " 1", "rejected": " 3"} for n in range(99)]
    write(Path("pairs.jsonl"), rows)
    said = init(talking, *RAW).stderr
    tokens = pd.read_parquet("runs/mine/seed-0/data/pairs.parquet")["prompt"].str.split().str.len()
    left = f"{(tokens > 48).sum()} of {len(tokens)} pairs are longer than 48 tokens, and are left out of all"
    assert f"warning: --model {talking}: {left} training" in said
    fits = int((tokens <= 48).sum())
    assert f"# of {fits};" in Path("mine.yaml").read_text()
    assert yaml.safe_load(Path("mine.yaml").read_text())["recipes"]["splits"]["held_out"] == fits // 5
    Path("mine.yaml").unlink()
    write(Path("pairs.jsonl"), [row for n, row in enumerate(rows) if n % 2])
    said = init(talking, *RAW, code=2).stderr.splitlines()[-1]
    none = "none of [0-9]+ pairs fits: the shortest has [0-9]+ tokens with its longer response"
    assert re.search(f"--model {talking}: reads 48 tokens, and {none}", said)
    assert not Path("mine.yaml").exists()


def test_a_judge_that_teaches_is_told_of(talking: Path, built: Tiny) -> None:
    write(Path("pairs.jsonl"), [{"prompt": f"{n} 1", "chosen": " 1 2", "rejected": " 3"} for n in range(99)])
    oracle = built.root / SEED / "oracle"
    said = init(talking, "--reward-model", oracle, "--oracle", oracle, *RAW).stderr
    assert f"warning: --oracle {oracle}: a teacher too, so it judges what learnt from it" in said


def test_init_refuses_messages_to_answer_where_the_pairs_are_plain_text(talking: Path) -> None:
    write(Path("pairs.jsonl"), [{"prompt": f"{n} 1", "chosen": " 1 2", "rejected": " 3"} for n in range(99)])
    write(Path("prompts.jsonl"), [{"prompt": ASKED}])
    said = init(talking, "--prompts", "prompts.jsonl", *RAW, code=2).stderr.splitlines()[-1]
    assert (
        said == "--prompts ./prompts.jsonl: messages, where the pairs are plain text: give both in one form"
    )
    assert not Path("mine.yaml").exists()


def test_written_answers_of_another_form_than_the_pairs_are_told_of(talking: Path) -> None:
    write(Path("sft.jsonl"), [{"prompt": f"{n} 2", "completion": " 1"} for n in range(99)])
    said = init(talking, "--sft", "sft.jsonl").stderr
    assert "warning: seed-0/data: sft: 99 rows are plain text and 99 pairs are messages" in said
