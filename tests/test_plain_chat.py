"""Plain pairs for a chat model: the tokens of the same pairs as messages, and nothing written twice."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import published
import pytest
import yaml
from conftest import SEED, Tiny, manifest, rpo
from preparing import tokenizer_of
from transformers import AutoModelForCausalLM

from rpo_cli.artifacts import walk
from rpo_cli.recipes import load
from rpo_cli.recipes.schema import DataRecipe
from rpo_cli.runs import files, first_rows, preflight
from rpo_cli.runs.planner import Planner
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.sources import preference
from rpo_cli.stages.data.sources.transcripts import is_transcript

COLUMNS = ("prompt", "chosen", "rejected")
Row = dict[str, Any]


def told(role: str, content: str) -> list[Row]:
    return [{"role": role, "content": content}]


def in_messages(row: Row) -> Row:
    """A plain row as a conversational set has it."""
    return {
        name: told("user" if name == "prompt" else "assistant", text)
        if name in (*COLUMNS, "completion")
        else text
        for name, text in row.items()
    }


def write(file: str, rows: list[Row]) -> None:
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def plain(count: int = 99) -> list[Row]:
    return [{"prompt": f"{n} 1", "chosen": "1 2", "rejected": "3 4"} for n in range(count)]


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Tiny) -> Path:
    """A folder with plain pairs and a tiny model whose tokenizer has a chat template."""
    monkeypatch.chdir(tmp_path)
    words = ["1", "2", "3", "4", "<user>", "<assistant>", "0"]
    tokenizer = published.word_tokenizer(tmp_path / "model", published.CHAT, words)
    model = AutoModelForCausalLM.from_pretrained(built.root / SEED / "sft")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    write("pairs.jsonl", plain())
    return tmp_path / "model"


def init(model: Path, *more: object, code: int = 0) -> str:
    options = ("--pairs", "pairs.jsonl", "--model", model, "--objective", "dpo", *more)
    return str(rpo("init", "mine", *options, code=code).stderr)


def data() -> Row:
    recipe: Row = yaml.safe_load(Path("mine.yaml").read_text())["recipes"]["data"]
    return recipe


@pytest.mark.parametrize("name", ["Llama 3", "ChatML", "SentencePiece", "turns without EOS"])
def test_plain_pairs_have_the_tokens_of_the_same_pairs_in_messages(name: str) -> None:
    tokenizer = tokenizer_of(name)
    texts = [
        {"prompt": "what is that ", "chosen": " a river\n", "rejected": "an old\nhouse"},
        {"prompt": "say 😀", "chosen": "def f():\n    return 1", "rejected": ""},
    ]

    def pairs(rows: list[Row], wraps: bool) -> tuple[list[Any], dict[str, object]]:
        ledger, templated = Ledger(), preference.Templated(tokenizer, None, wraps)
        found = list(preference.pairs([("here:1", None, row) for row in rows], templated, ledger))
        ids = [[tokenizer(getattr(pair, column))["input_ids"] for column in COLUMNS] for pair in found]
        return [found, ids], ledger.metrics()

    messages = [in_messages(row) for row in texts]
    assert pairs(texts, True) == pairs(messages, False) == pairs(messages, True)
    assert pairs(texts, False) != pairs(texts, True)


def test_written_answers_are_wrapped_like_pairs_and_a_prompt_cut_off_is_too() -> None:
    tokenizer = tokenizer_of("ChatML")

    def written(row: Row, wraps: bool) -> list[Any]:
        templated = preference.Templated(tokenizer, None, wraps)
        return list(preference.written([("here:1", None, row)], templated, Ledger()))

    row = {"prompt": "what is that", "completion": "a river"}
    assert written(row, True) == written(in_messages(row), False) != written(row, False)
    implicit = {"chosen": "what is that? a river", "rejected": "what is that? old"}
    templated = preference.Templated(tokenizer, None, True)
    (pair,) = preference.pairs([("here:1", None, implicit)], templated, Ledger())
    asked = {"prompt": "what is that?", "chosen": "a river", "rejected": "old"}
    assert json.loads(pair.messages or "") == in_messages(asked)


@pytest.mark.parametrize(
    ("prompt", "marked"),
    [
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", True),
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>", True),
        ("<s>[INST] hi [/INST]", True),
        ("[INST] hi [/INST]", True),
        ("<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n", True),
        ("<｜User｜>hi<｜Assistant｜>", True),
        ("hi<|assistant|>\n", True),
        ("\n\nHuman: hi\n\nAssistant:", True),
        ("Be kind. USER: hi ASSISTANT:", True),
        ("### Instruction:\nhi\n\n### Response:\n", True),
        ("hi", False),
        ("Question: 2 + 2?\nAnswer:", False),
        ("POST: I left.\nTL;DR:", False),
        ("What does [INST] mean in <|im_start|>user?", False),
        ("<b>Human</b>: an HTML question", False),
        ("Is a teaching assistant: yes or no?", False),
    ],
)
def test_a_prompt_that_a_template_or_a_transcript_wrote_is_known(prompt: str, marked: bool) -> None:
    assert is_transcript(prompt) is marked


def test_transcripts_are_left_out_rather_than_written_twice(chat: Path) -> None:
    rows = plain()
    rows[3]["prompt"] = "### Human: 3\n### Assistant:"
    write("pairs.jsonl", rows)
    Path("data.yaml").write_text(
        f"stage: data\nsource: preference\ndataset: ./pairs.jsonl\nprompt_format: chat\ntokenizer: {chat}\n"
    )
    rpo("data", "inspect", "data.yaml")
    assert manifest(Path("runs") / Path.cwd().name, f"{SEED}/data")["metrics"]["pairs/transcript"] == 1
    write("pairs.jsonl", [{**row, "prompt": f"[INST] {row['prompt']} [/INST]"} for row in rows])
    said = rpo("data", "inspect", "data.yaml", code=2).stderr
    assert "all 99 rows of pairs are left out: a plain prompt that a chat template or a transcript's" in said
    write("prompts.jsonl", [{"prompt": "1"}, {"prompt": "Human: 3"}])
    Path("data.yaml").write_text(
        f"stage: data\nfiles: {{prompts_test: prompts.jsonl}}\nprompt_format: chat\ntokenizer: {chat}\n"
    )
    rpo("data", "inspect", "data.yaml")
    found = manifest(Path("runs") / Path.cwd().name, f"{SEED}/data")["metrics"]
    assert found["prompts_test/transcript"] == 1 == found["rows/prompts_test"]


DIALOGUE = "\n\nHuman: what is that\n\nAssistant: a river\n\nHuman: old\n\nAssistant:"
TURNS = [*told("user", "what is that"), *told("assistant", "a river"), *told("user", "old")]


def read_in_chat(rows: list[Row]) -> tuple[list[Row], Ledger]:
    """The messages that are made of pairs."""
    ledger = Ledger(records=Counter(pairs=len(rows)))
    templated = preference.Templated(tokenizer_of("ChatML"), None, True)
    found = preference.pairs([("here:1", None, row) for row in rows], templated, ledger)
    return [json.loads(pair.messages or "") for pair in found], ledger


@pytest.mark.parametrize("begin", ["\n\nHuman:", "Human:"])
@pytest.mark.parametrize("own", [True, False])
def test_dialogues_become_messages_of_their_turns_and_are_counted(begin: str, own: bool) -> None:
    prompt = DIALOGUE.replace("\n\nHuman:", begin, 1)
    answers = {"chosen": " house", "rejected": " an"}
    row: Row = {name: prompt + text for name, text in answers.items()}
    if own:
        row = {"prompt": prompt, **answers}
    found, ledger = read_in_chat([row, {"prompt": "what", "chosen": "a", "rejected": "an"}])
    as_messages = {"prompt": TURNS, "chosen": told("assistant", "house"), "rejected": told("assistant", "an")}
    assert found[0] == as_messages and found[1]["prompt"] == told("user", "what")
    (line,) = ledger.read_as
    assert line.startswith("pairs: in 1 of 2 rows plain text is a dialogue") and not [*ledger.warnings()]


def test_a_prompt_that_ends_in_a_humans_words_is_a_dialogue_too() -> None:
    row = {"prompt": DIALOGUE.removesuffix("\n\nAssistant:"), "chosen": "a", "rejected": "an"}
    (found,), _ = read_in_chat([row])
    assert found["prompt"] == TURNS


@pytest.mark.parametrize(
    "prompt",
    [
        "Human: an old house",  # nobody answers
        "\n\nHuman: what\n\nHuman: is\n\nAssistant:",
        "\n\nHuman: what\n\nAssistant: a\n\nAssistant:",
        "\n\nHuman:\n\nAssistant:",
        "\n\nHuman: what\n\nAssistant: a riv",  # an answer that was begun
        "what\n\nHuman: is\n\nAssistant:",
        "\n\nAssistant: what\n\nHuman: is\n\nAssistant:",
    ],
)
def test_what_does_not_alternate_is_no_dialogue(prompt: str) -> None:
    row = {"prompt": prompt, "chosen": "a", "rejected": "an"}
    found, ledger = read_in_chat([row])
    assert not ledger.counts["pairs/dialogues"] and not ledger.read_as
    assert ledger.counts["pairs/transcript"] == is_transcript(prompt) == (not found)


def test_an_answer_in_which_the_human_speaks_on_makes_no_dialogue() -> None:
    row = {"prompt": DIALOGUE, "chosen": " a\n\nHuman: what", "rejected": " an"}
    found, ledger = read_in_chat([row])
    assert not found and ledger.counts["pairs/transcript"] == 1


def test_a_dialogue_as_it_stands_is_what_it_was() -> None:
    row = {"prompt": DIALOGUE, "chosen": " house", "rejected": " an"}
    ledger = Ledger(records=Counter(pairs=1))
    templated = preference.Templated(tokenizer_of("ChatML"), None)
    (pair,) = preference.pairs([("here:1", None, row)], templated, ledger)
    assert (pair.prompt, pair.chosen, pair.messages) == (DIALOGUE, " house", None)
    (line,) = ledger.read_as
    assert line.startswith("pairs: in 1 of 1 rows plain text is a dialogue") and "taken as it stands" in line


def test_a_system_column_beside_a_plain_prompt_is_its_system_message() -> None:
    row = {"prompt": "what", "chosen": "a", "rejected": "an", "system": "be kind"}
    dialogue = row | {"prompt": DIALOGUE}
    nothing = row | {"system": " ", "chosen": "old"}
    unseen = row | {"prompt": " "}
    found, ledger = read_in_chat([row, dialogue, nothing, unseen])
    kind = told("system", "be kind")
    asked = [each["prompt"] for each in found]
    assert asked == [[*kind, *told("user", "what")], [*kind, *TURNS], told("user", "what")]
    assert ledger.counts["pairs/no_prompt"] == 1 and not ledger.notes
    templated = preference.Templated(tokenizer_of("ChatML"), None, True)
    written = {"prompt": "what", "completion": "a", "system": "be kind"}
    (one,) = preference.written([("here:1", None, written)], templated, Ledger())
    assert json.loads(one.messages or "")["prompt"] == [*kind, *told("user", "what")]


def test_a_system_column_beside_text_as_it_stands_is_said_with_how_many() -> None:
    rows = [{"prompt": f"{n}", "chosen": "a", "rejected": "an", "system": "be kind"} for n in range(3)]
    rows[2]["system"] = ""
    ledger, templated = Ledger(), preference.Templated(tokenizer_of("ChatML"), None)
    list(preference.pairs([("here:1", None, row) for row in rows], templated, ledger))
    left_out = "which is not read; put it into the prompt if it belongs there"
    how = "`prompt_format: chat` makes a message of `system`"
    assert ledger.notes == [f"pairs: beside prompt, rows have system (in 2), {left_out}; {how}"]
    answered = [("here:1", None, {"prompt": "1", "completion": "a", "system": "be kind"})]
    ledger = Ledger()
    list(preference.written(answered, templated, ledger))
    assert ledger.notes == [f"sft: beside prompt, rows have system (in 1), {left_out}; {how}"]


def test_files_of_text_as_it_stands_say_what_a_template_would_make_of_dialogues_and_system(
    chat: Path,
) -> None:
    asked = [{"prompt": "1", "system": "2"}, {"prompt": "\n\nHuman: 1\n\nAssistant: 3\n\nHuman: 2"}]
    write("prompts.jsonl", [*asked, {"prompt": "in 2", "system": "2"}])
    Path("data.yaml").write_text("stage: data\nfiles: {prompts_test: prompts.jsonl}\n")
    said = rpo("data", "inspect", "data.yaml", code=2).stderr  # no tokenizer
    folder = Path("runs") / Path.cwd().name
    found = manifest(folder, f"{SEED}/data")
    texts = pd.read_parquet(folder / SEED / "data" / "prompts_test.parquet")["prompt"]
    assert list(texts) == [row["prompt"] for row in asked] + ["in 2"]
    (line,) = found["metrics"]["read_as"]
    assert line.startswith("prompts_test: in 1 of 3 rows plain text is a dialogue") and line in said
    assert "taken as it stands; `prompt_format: chat` in the data recipe" in line
    (unread,) = found["warnings"]
    assert unread.startswith("prompts_test: beside prompt, rows have system (in 1), which is not read")


@pytest.mark.parametrize("form", ["raw", "chat"])
def test_published_dialogues_say_once_in_which_form_they_were_read(form: str, tmp_path: Path) -> None:
    dialogue = published.dialogue("hello", "hi", "who")
    row = {side: f"{dialogue}\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    ledger = Ledger(records=Counter(pairs=2))
    templated = preference.Templated(tokenizer_of("ChatML"), None)
    assert len(list(preference.hh_pairs([("here:1", None, row)] * 2, templated, form == "chat", ledger))) == 2
    told = [line.split("; ")[0] for line in ledger.read_as]
    form_of = "\\n\\nHuman: … \\n\\nAssistant: …"
    assert told == [f"pairs: in 2 of 2 rows plain text is a dialogue ({form_of}), taken as it stands"] * (
        form == "raw"
    )


def test_files_in_chat_form_have_dialogues_and_system_messages_too(chat: Path) -> None:
    asked = [{"prompt": "1", "system": "2"}, {"prompt": "\n\nHuman: 1\n\nAssistant: 3\n\nHuman: 2"}]
    write("prompts.jsonl", asked)
    Path("data.yaml").write_text(
        f"stage: data\nfiles: {{prompts_test: prompts.jsonl}}\nprompt_format: chat\ntokenizer: {chat}\n"
    )
    rpo("data", "inspect", "data.yaml")
    folder = Path("runs") / Path.cwd().name
    texts = pd.read_parquet(folder / SEED / "data" / "prompts_test.parquet")["prompt"]
    assert list(texts) == [
        "<system>2</s><user>1</s><assistant>",
        "<user>1</s><assistant>3</s><user>2</s><assistant>",
    ]
    (line,) = manifest(folder, f"{SEED}/data")["metrics"]["read_as"]
    assert line.startswith("prompts_test: in 1 of 2 rows plain text is a dialogue")


def test_init_has_dialogues_read_as_the_messages_of_their_turns(chat: Path) -> None:
    rows = [{**row, "prompt": f"\n\nHuman: {row['prompt']}\n\nAssistant:"} for row in plain()]
    write("pairs.jsonl", rows)
    said = init(chat)
    assert data()["prompt_format"] == "chat" and "marks of a template" not in said
    first = pd.read_parquet("runs/mine/seed-0/data/pairs.parquet")["prompt"][0]
    assert first.startswith("<user>") and "Human" not in first


@pytest.mark.parametrize("wraps", [True, False])
def test_white_space_that_joined_responses_to_a_prompt_is_told_of(wraps: bool) -> None:
    rows = [("here:1", None, {"prompt": f"{n}", "chosen": " a", "rejected": "\nb"}) for n in range(9)]
    answers = [("here:1", None, {"prompt": f"{n}", "completion": " a"}) for n in range(7)]
    ledger = Ledger(records=Counter(pairs=9, sft=7))
    templated = preference.Templated(tokenizer_of("ChatML"), None, wraps)
    list(preference.pairs(rows, templated, ledger))
    list(preference.written(answers, templated, ledger))
    said = [line.split(" begin with")[0] for line in ledger.warnings() if " begin with white" in line]
    assert said == ["pairs: in 9 rows responses", "sft: in 7 rows responses"] * wraps


def test_init_has_a_chat_model_read_plain_pairs_with_its_template_and_says_so(chat: Path) -> None:
    write("prompts.jsonl", [{"prompt": "5 2"}, {"prompt": "6 2"}])
    said = init(chat, "--prompts", "prompts.jsonl")
    how = "--prompt-format raw takes it as it stands"
    assert f"pairs.jsonl: plain text, which the model's chat template makes messages of; {how}\n" in said
    assert data()["prompt_format"] == "chat"
    assert rpo("recipe", "check", "mine.yaml").stdout.endswith("recipes, no problems\n")
    first = pd.read_parquet("runs/mine/seed-0/data/pairs.parquet").to_dict("records")
    assert all(row["prompt"].startswith("<user>") and row["prompt"].endswith("<assistant>") for row in first)
    asked = pd.read_parquet("runs/mine/seed-0/prompts/prompts_test.parquet")["prompt"]
    assert list(asked) == ["<user>5 2</s><assistant>", "<user>6 2</s><assistant>"]
    # The same as messages: the same tables.
    write("pairs.jsonl", [in_messages(row) for row in plain()])
    assert "plain text" not in init(chat, "--force") and "prompt_format" not in data()
    assert pd.read_parquet("runs/mine/seed-0/data/pairs.parquet").to_dict("records") == first


def test_files_are_read_in_the_form_that_a_recipes_model_learnt(
    chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init(chat, "--objective", "d-dpo")
    rpo("train-policy", "mine.yaml:d-dpo")
    write("rows.jsonl", plain(3))
    asked: list[tuple[object, bytes]] = []
    extended = files._extended

    def seen(*given: Any) -> Any:
        made = extended(*given)
        asked.append((given[4], given[2].read_bytes()))
        return made

    monkeypatch.setattr(files, "_extended", seen)
    for command, kind, more in (("sample", "policies/d-dpo", ["--max-new-tokens", 4]), ("score", "rm", [])):
        asked.clear()
        recipe = "mine.yaml:d-dpo" if command == "sample" else "mine.yaml:rm"
        (weights,) = {file.parent for file in Path("runs/mine/seed-0").rglob(f"{kind}/*/model.safetensors")}
        how = (command, "rows.jsonl", *more, "--out", f"{command}.jsonl", "--device", "cpu", "--model")
        said = rpo(*how, recipe).stderr
        taken = "prompt_format: chat, so these rows are taken as chat, too; --prompt-format says otherwise"
        assert [line for line in said.splitlines() if line.endswith(taken)]
        assert taken not in rpo(*how, recipe, "--prompt-format", "raw").stderr
        assert "taken as chat" not in rpo(*how, weights, "--prompt-format", "chat").stderr
        told, raw, by_hand = asked
        assert told == by_hand and told[0]["prompt_format"] == "chat" and told[1] != raw[1]


@pytest.mark.parametrize("prompt", ["[INST] {} [/INST]", "### Human: {}\n### Assistant:"])
def test_init_takes_prompts_with_marks_as_they_stand_and_warns(chat: Path, prompt: str) -> None:
    write("pairs.jsonl", [{**row, "prompt": prompt.format(row["prompt"])} for row in plain()])
    said = init(chat)
    assert "warning: --pairs pairs.jsonl: prompts have marks of a template or a transcript: " in said
    assert data()["prompt_format"] == "raw"
    assert rpo("recipe", "check", "mine.yaml").stdout.endswith("recipes, no problems\n"), "no note"


def test_init_leaves_plain_pairs_of_a_model_without_a_template_alone(chat: Path) -> None:
    published.word_tokenizer(chat, None, ["1", "2", "3", "4"])
    (chat / "chat_template.jinja").unlink(missing_ok=True)
    assert "chat" not in init(chat) and "prompt_format" not in data()


@pytest.mark.parametrize("form", ["jsonl", "parquet", "files", "dialogues", "dialogues apart"])
def test_a_chat_model_that_learns_from_plain_text_is_noted_unless_that_is_meant(
    chat: Path, form: str
) -> None:
    init(chat)
    whole = yaml.safe_load(Path("mine.yaml").read_text())
    del whole["recipes"]["data"]["prompt_format"]
    if form == "parquet":
        pd.DataFrame(plain()).to_parquet("pairs.parquet")
        whole["recipes"]["data"]["dataset"] = "./pairs.parquet"
    elif form.startswith("dialogues"):
        asked = published.dialogue("hello", "hi", "who") + "\n\nAssistant:"
        row = {"prompt": asked, "chosen": " a", "rejected": " b"}
        apart = {side: asked + row[side] for side in ("chosen", "rejected")}
        write("pairs.jsonl", [row if form == "dialogues" else apart])
    elif form == "files":
        tables = ("pairs", "prompts_validation", "prompts_test")
        whole["recipes"]["data"] = {"stage": "data", "files": dict.fromkeys(tables, "./pairs.jsonl")}
    Path("mine.yaml").write_text(yaml.safe_dump(whole))
    note = "plain text, learnt as it stands, and ./model has a chat template; `prompt_format: chat` writes it"
    planned = rpo("train-policy", "mine.yaml:dpo", "--dry-run").stderr.replace(str(chat), "./model")
    assert planned.count(note) == 1 == planned.count(" plain text, ")
    if form == "jsonl":
        checked = rpo("recipe", "check", "mine.yaml")
        assert checked.stdout.endswith("no problems, 1 note\n")
        assert note in checked.stderr.replace(str(chat), "./model")
    whole["recipes"]["data"]["prompt_format"] = "raw"
    Path("mine.yaml").write_text(yaml.safe_dump(whole))
    assert "plain text" not in rpo("train-policy", "mine.yaml:dpo", "--dry-run").stderr


def test_a_plan_reads_the_first_row_of_its_pairs_once(chat: Path) -> None:
    init(chat)
    whole = yaml.safe_load(Path("mine.yaml").read_text())
    del whole["recipes"]["data"]["prompt_format"]
    Path("mine.yaml").write_text(yaml.safe_dump(whole))
    loads = [load(f"mine.yaml:{name}") for name in ("dpo", "dpo")]
    stages = walk([Planner(seed).build(loaded) for seed, loaded in enumerate(loads)])
    first_rows._first_in.cache_clear()
    assert len(preflight.notes(stages)) == 1
    seen = first_rows._first_in.cache_info()
    assert seen.misses == 1 < seen.hits + seen.misses, "two policies"
    write("pairs.jsonl", [in_messages(row) for row in plain()])
    os.utime("pairs.jsonl", ns=(1, 1))
    assert not preflight.notes(stages), "a file that was changed is read anew"


def test_init_takes_text_as_it_stands_where_it_is_told_to(chat: Path) -> None:
    said = init(chat, "--prompt-format", "raw")
    assert data()["prompt_format"] == "raw" and "chat template" not in said
    assert not any(
        "<user>" in row for row in pd.read_parquet("runs/mine/seed-0/data/pairs.parquet")["prompt"]
    )


def test_init_says_what_is_in_the_way_of_the_template(chat: Path, built: Tiny) -> None:
    oracle = built.root / SEED / "oracle"
    (*_, line) = init(chat, "--oracle", oracle, code=2).splitlines()
    lacks = "has no chat template, and the rows are conversations"
    assert line == f"--oracle: {oracle} {lacks}; prompt_format: raw takes plain text as it stands"
    assert not Path("mine.yaml").exists()
    model = built.root / SEED / "sft"
    assert init(model, "--prompt-format", "chat", code=2) == (
        f"--prompt-format chat: --model {model} has no chat template\n"
    )


def test_a_template_is_asked_for_before_anything_is_made(chat: Path, built: Tiny) -> None:
    init(chat)
    Path("mine.yaml").write_text(
        Path("mine.yaml").read_text().replace(str(chat), str(built.root / SEED / "sft"))
    )
    (line,) = rpo("train-policy", "mine.yaml:dpo", code=2).stderr.splitlines()
    assert line.startswith("mine.yaml:") and line.endswith(
        "has no chat template, which prompt_format: chat needs"
    )


def test_the_key_is_part_of_an_artifacts_name_only_where_it_is_chat() -> None:
    for source in ("preference", "written"):
        values = {"stage": "data", "source": source, "dataset": "x", "tokenizer": "./chat"}
        raw = DataRecipe.model_validate(values)
        assert "prompt_format" in raw.unused()
        assert "prompt_format" not in DataRecipe.model_validate({**values, "prompt_format": "chat"}).unused()
        with pytest.raises(ValueError, match="prompt_format: chat needs a tokenizer"):
            DataRecipe.model_validate({**values, "tokenizer": None, "prompt_format": "chat"})


@pytest.mark.slow
def test_samples_of_a_policy_of_plain_pairs_answer_in_the_template(chat: Path) -> None:
    init(chat)
    rpo("evaluate", "mine.yaml:dpo", "--set", "num_train_epochs=null", "--set", "max_steps=2")
    found = [pd.read_parquet(file) for file in Path("runs/mine").rglob("samples.parquet")]
    asked = [prompt for samples in found for prompt in samples["prompt"]]
    assert asked and all(prompt.startswith("<user>") and prompt.endswith("<assistant>") for prompt in asked)
