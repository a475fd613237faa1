"""`rpo score` and `rpo sample`: plain files in, plain files out."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import RHO, Tiny, pairs_of, rpo
from foreign import model_of, plainly
from preparing import WORDS
from published import write_jsonl, write_parquet
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rpo_cli.errors import BadInput
from rpo_cli.models import encode
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.stages import files
from rpo_cli.stages.files import table as table_of

CPU, CHAT = ("--device", "cpu"), ("--prompt-format", "chat")


def words(draw: random.Random, most: int = 12) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(2, most)))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def pairs(count: int = 7) -> list[dict[str, Any]]:
    draw = random.Random(1)
    return [
        {"n": n, "prompt": words(draw), "chosen": words(draw, 40), "rejected": words(draw, 3)}
        for n in range(count)
    ]


def told(prompt: str, answer: str) -> list[dict[str, str]]:
    return [turn("user", prompt), turn("assistant", answer)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tokenizer", "pad"),
    [("llama", "Llama 3", False), ("gpt2", "bytes", False), ("bert", "WordPiece", True)],
)
def test_rewards_are_those_of_each_text_alone_at_any_batch_size(
    kind: str, tokenizer: str, pad: bool, tmp_path: Path
) -> None:
    judge = model_of(tmp_path / "judge", kind, tokenizer, pad=pad)
    rows = pairs()
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    for size in (1, 64):
        rpo("score", file, "--model", judge, "--batch-size", size, "--out", tmp_path / f"{size}.jsonl", *CPU)
    found = lines(tmp_path / "64.jsonl")
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    talks = tokenizer == "Llama 3"
    for side in ("chosen", "rejected"):
        texts = [told(row["prompt"], row[side]) if talks else row["prompt"] + row[side] for row in rows]
        rewards = [row[f"reward_{side}"] for row in found]
        assert rewards == pytest.approx(plainly(judge, texts), abs=1e-4)  # type: ignore[arg-type]
        assert [row[f"reward_{side}"] for row in lines(tmp_path / "1.jsonl")] == pytest.approx(
            rewards, abs=1e-4
        )


@pytest.mark.parametrize(("kind", "tokenizer"), [("llama", "Llama 3"), ("bert", "WordPiece")])
def test_equal_responses_have_equal_rewards(kind: str, tokenizer: str, tmp_path: Path) -> None:
    judge = model_of(tmp_path / "judge", kind, tokenizer, pad=True)
    texts = [row["chosen"] for row in pairs()]
    twins = [
        {"prompt": f"post {number}", "chosen": each, "rejected": each} for number, each in enumerate(texts)
    ]
    said = rpo("score", write_jsonl(tmp_path / "twins.jsonl", twins), "--model", judge, *CPU).stdout
    assert all(
        row["reward_chosen"] == row["reward_rejected"] for row in lines(tmp_path / "twins.scored.jsonl")
    )
    assert f"both the same in {len(texts)}" in said
    lists = [{"prompt": "post", "responses": [each, "an answer", each, each]} for each in texts]
    rpo("score", write_jsonl(tmp_path / "lists.jsonl", lists), "--model", judge, *CPU)
    for row in lines(tmp_path / "lists.scored.jsonl"):
        one, other, *again = row["rewards"]
        assert again == [one, one] and other != one


def test_rows_longer_than_a_rotary_model_was_trained_on_are_scored_and_counted(tmp_path: Path) -> None:
    judge = model_of(tmp_path / "judge", "llama", "bytes")
    config = json.loads((judge / "config.json").read_text())
    (judge / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    rows = [{"prompt": "a", "response": "b " * count} for count in (5, 50, 100)]
    said = rpo("score", write_jsonl(tmp_path / "r.jsonl", rows), "--model", judge, *CPU).stderr
    assert all(row["reward"] is not None for row in lines(tmp_path / "r.scored.jsonl"))
    assert "warning: 2 of 3 rows have more tokens, up to 20" in said and "max_position_embeddings" in said


@pytest.mark.parametrize(
    ("kind", "tokenizer"), [("llama", "Llama 3"), ("gpt2", "bytes, BOS and EOS"), ("bert", "WordPiece, EOS")]
)
def test_a_reward_model_that_pads_with_its_eos_is_read_where_transformers_read_it(
    kind: str, tokenizer: str, tmp_path: Path
) -> None:
    judge = model_of(tmp_path / "judge", kind, tokenizer, pad="eos")
    rows = [*pairs(3), {"n": 3, "prompt": "the cat", "chosen": "sat", "rejected": "sat on"}]
    rpo("score", write_jsonl(tmp_path / "pairs.jsonl", rows), "--model", judge, *CPU)
    found, talks = lines(tmp_path / "pairs.scored.jsonl"), tokenizer == "Llama 3"
    read = AutoTokenizer.from_pretrained(judge)
    for side in ("chosen", "rejected"):
        texts = [told(row["prompt"], row[side]) if talks else row["prompt"] + row[side] for row in rows]
        ids = [
            read.apply_chat_template(text, return_dict=True)["input_ids"]
            if talks
            else read(text)["input_ids"]
            for text in texts
        ]
        assert all(tokens[-1] == read.eos_token_id == read.pad_token_id for tokens in ids)
        assert [row[f"reward_{side}"] for row in found] == pytest.approx(plainly(judge, texts), abs=1e-4)


def test_every_form_of_rows_gets_rewards_in_columns_of_its_own(tmp_path: Path) -> None:
    judge = model_of(tmp_path / "judge", "llama", "Llama 3", pad=False)
    (row,) = pairs(1)
    ask, one, two = row["prompt"], row["chosen"], row["rejected"]
    whole = {"chosen": told(ask, one), "rejected": told(ask, two)}
    human = {
        "chosen": f"\n\nHuman: {ask}\n\nAssistant: {one}",
        "rejected": f"\n\nHuman: {ask}\n\nAssistant: {two}",
    }
    shared = {"chosen": f"{ask}\n\nAssistant: {one}", "rejected": f"{ask}\n\nAssistant: {two}"}
    first, second = plainly(judge, [told(ask, one), told(ask, two)])
    begun = plainly(judge, [told(f"{ask}\n\nAssistant:", answer) for answer in (one, two)])
    both = ("reward_chosen", "reward_rejected")
    for given, names, expected in (
        (whole, both, [first, second]),
        ({"prompt": told(ask, "")[:1], "chosen": one, "rejected": told(ask, two)[1:]}, both, [first, second]),
        (human, both, [first, second]),
        (shared, both, begun),
        ({"messages": told(ask, one)}, ("reward",), [first]),
        ({"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": one}]},
         ("reward",), [first]),
        ({"prompt": ask, "completion": one}, ("reward",), [first]),
        ({"prompt": ask, "response": two}, ("reward",), [second]),
        ({"prompt": ask, "responses": [one, two]}, ("rewards",), [first, second]),
    ):  # fmt: skip
        file = write_jsonl(tmp_path / "rows.jsonl.gz", [given])
        rpo("score", file, "--model", judge, "--out", tmp_path / "out.jsonl", *CPU)
        (found,) = lines(tmp_path / "out.jsonl")
        values = found["rewards"] if names == ("rewards",) else [found[name] for name in names]
        assert values == pytest.approx(expected, abs=1e-4) and found.items() >= given.items(), given


def test_parquet_keeps_its_columns_and_their_types(tmp_path: Path) -> None:
    judge = model_of(tmp_path / "judge", "gpt2", "bytes")
    rows = [row | {"a_label": 3, "when": pd.Timestamp("2024-01-01")} for row in pairs(3)]
    file = write_parquet(tmp_path / "pairs.parquet", rows)
    rpo("score", file, "--model", judge, *CPU)
    before, after = pq.read_table(file), pq.read_table(tmp_path / "pairs.scored.parquet")
    assert after.select(before.column_names).equals(before)
    assert after.column_names == [*before.column_names, "reward_chosen", "reward_rejected"]


def test_a_run_that_was_interrupted_goes_on_with_the_parts_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_of, "PART", 2)
    table, out = (
        files.Table([write_jsonl(tmp_path / "rows.jsonl", [{"n": n} for n in range(5)])]),
        tmp_path / "o.jsonl",
    )
    asked: list[int] = []

    def make(rows: Any, done: Any, until: int = 9) -> list[dict[str, Any]]:
        asked.extend(row["n"] for _, row in rows)
        if asked[-1] >= until:
            raise KeyboardInterrupt
        return [{"twice": 2 * row["n"]} for _, row in rows]

    with pytest.raises(KeyboardInterrupt):
        files.extend(table, out, lambda rows, done: make(rows, done, 3), {"model": 1}, print)
    assert asked == [0, 1, 2, 3] and not out.exists()
    asked.clear()
    files.extend(table, out, make, {"model": 1}, print)
    assert asked == [2, 3, 4] and not list(tmp_path.glob("*.parts"))
    assert lines(out) == [{"n": n, "twice": 2 * n} for n in range(5)]
    with pytest.raises(KeyboardInterrupt):
        files.extend(table, out, lambda rows, done: make(rows, done, 3), {"model": 1}, print)
    asked.clear()
    files.extend(table, out, make, {"model": 2}, print)  # parts of another model are no part of it
    assert asked == [0, 1, 2, 3, 4]
    (tmp_path / "o.jsonl.parts").mkdir()
    (tmp_path / "o.jsonl.parts" / "mine.txt").touch()
    with pytest.raises(BadInput, match=r"mine\.txt: the folder is for the parts of o\.jsonl"):
        files.extend(table, out, make, {"model": 3}, print)
    assert list((tmp_path / "o.jsonl.parts").iterdir())


def test_what_cannot_be_scored_is_said_in_a_line_before_a_model_is_loaded(tmp_path: Path) -> None:
    plain = model_of(tmp_path / "plain", "gpt2", "bytes")
    language = model_of(tmp_path / "language", "llama", "Llama 3", reward=False)
    several = model_of(tmp_path / "several", "llama", "Llama 3", id2label={0: "help", 1: "harm"}, label2id={})
    pickled = model_of(tmp_path / "pickled", "llama", "Llama 3")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    talk = {"messages": told("a", "b")}
    for rows, model, more, says in (
        ([talk], plain, (), "plain: its tokenizer has no chat template, and the rows are conversations"),
        ([talk], language, (), "--model: .*language is a LlamaForCausalLM, no reward model"),
        ([talk], several, (), "several has 2 labels; a reward model has one; --label says .*: help, harm"),
        ([talk], several, ("--label", "x"), "several has no label 'x'; --label says which .*: help, harm"),
        ([talk, {"prompt": "a", "response": "b"}], several, ("--label", "harm"),
         "rows.jsonl:2: has response, and the first row messages"),
        ([talk | {"reward": 1}], several, ("--label", "harm"), "rows.jsonl:1: has a column reward already"),
        ([{"text": "a"}], plain, (), r"rows.jsonl:1: expected chosen and rejected.* \(has: text\)"),
        ([{"prompt": "a", "response": 3}], plain, (), "rows.jsonl:1: response: expected text or messages"),
        ([talk], tmp_path / "none", (), "none: no such folder"),
        ([talk], pickled, (), "pickled: has no weights in safetensors, and no others are read"),
        ([talk], "no-such/model", (), "no-such/model: .*HF_HUB_OFFLINE is set"),
    ):  # fmt: skip
        file = write_jsonl(tmp_path / "rows.jsonl", rows)
        found = rpo("score", file, "--model", model, *more, *CPU, code=2).stderr
        (line,) = found.splitlines()
        assert re.search(says, line), line
    assert not list(tmp_path.glob("*scored*"))


def test_a_named_label_is_the_reward(tmp_path: Path) -> None:
    names = {"help": 0, "harm": 1, "style": 2}
    labels = {"id2label": {n: name for name, n in names.items()}, "label2id": names}
    for kind, tokenizer in (("llama", "Llama 3"), ("bert", "WordPiece")):
        judge = model_of(tmp_path / kind, kind, tokenizer, **labels)
        file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "the cat", "response": "on a mat"}])
        rpo("score", file, "--model", judge, "--label", "style", "--out", tmp_path / "out.jsonl", *CPU)
        text: Any = told("the cat", "on a mat") if kind == "llama" else "the caton a mat"
        assert lines(tmp_path / "out.jsonl")[0]["reward"] == pytest.approx(
            plainly(judge, [text], 2)[0], abs=1e-4
        )


def test_a_prompt_has_the_same_samples_wherever_it_stands_and_they_can_be_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tmp_path / "model", "llama", "Llama 3", reward=False)
    judge = model_of(tmp_path / "judge", "llama", "Llama 3")
    asked = [{"prompt": told(text, "")[:1]} for text in ("the cat", "rain fell", "the cat", "a mat")]
    drawn = ("--model", model, "--num-samples", 2, "--max-new-tokens", 5, *CPU)
    rpo("sample", write_jsonl(tmp_path / "prompts.jsonl", asked), *drawn)
    found = lines(tmp_path / "prompts.sampled.jsonl")
    assert [row["prompt"] for row in found] == [row["prompt"] for row in asked]
    assert all(len(set(row["responses"])) == 2 for row in found)
    assert found[0] == found[2] != found[1]
    monkeypatch.setattr(table_of, "PART", 1)
    rpo("sample", write_jsonl(tmp_path / "again.jsonl", asked[::-1]), *drawn, "--batch-size", 1)
    assert lines(tmp_path / "again.sampled.jsonl")[::-1] == found
    rpo("score", tmp_path / "prompts.sampled.jsonl", "--model", judge, *CPU)
    (scored,) = tmp_path.glob("*.scored.jsonl")
    assert all(len(row["rewards"]) == 2 for row in lines(scored))


def test_a_file_is_read_with_what_its_rows_give_the_chat_template(tmp_path: Path) -> None:
    (row,) = pairs(1)
    ask, one = row["prompt"], row["chosen"]
    judge = model_of(tmp_path / "judge", "llama", "ChatML")
    model = model_of(tmp_path / "model", "llama", "ChatML", reward=False)
    for folder in (judge, model):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = "{{ tools | tojson if tools else '' }}{{ mood }}" + tokenizer.chat_template
        tokenizer.save_pretrained(folder)
    more = {
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "chat_template_kwargs": {"mood": "gay"},
    }
    read, plain = AutoTokenizer.from_pretrained(judge), told(ask, one)
    text = read.apply_chat_template(plain, tools=more["tools"], mood="gay", tokenize=False)
    assert text.startswith('[{"type"') and "gay" in text
    rpo("score", write_jsonl(tmp_path / "r.jsonl", [{"messages": plain} | more]), "--model", judge, *CPU)
    (found,) = lines(tmp_path / "r.scored.jsonl")
    assert found["reward"] == pytest.approx(plainly(judge, [text])[0], abs=1e-4)
    asked = [{"prompt": plain[:1]}, {"prompt": plain[:1]} | more]
    file = write_jsonl(tmp_path / "p.jsonl", asked)
    recipe = ScoringRecipe(stage="scores", device="cpu")
    sampler = files.Sampler(model, None, recipe, 1)
    bare, given = (sampler.prompt("here", row) for row in lines(file))
    assert bare != given and str(given).startswith('[{"type"')


@pytest.mark.parametrize("exported", [False, True])
def test_a_reward_model_of_this_pipeline_reads_files_as_it_read_its_pairs(
    exported: bool, built: Tiny, tmp_path: Path
) -> None:
    judge = Path(shutil.copytree(built.root / RHO / "rm/b-0.5", tmp_path / "judge"))
    if exported:
        (judge / "manifest.json").rename(judge / "rpo_recipe.yaml")
    scores = pd.read_parquet(built.root / RHO / "scores/rm/b-0.5/train.parquet").set_index("id")
    rows = [row for row in pairs_of(built.root, f"{RHO}/splits", "train") if row["id"] in scores.index]
    texts = [{name: row[name] for name in ("id", "prompt", "chosen", "rejected")} for row in rows]
    file = write_jsonl(tmp_path / "pairs.jsonl", texts)
    rpo("score", file, "--model", judge, *CPU)
    found = pd.DataFrame(lines(tmp_path / "pairs.scored.jsonl")).set_index("id").loc[scores.index]
    model, tokenizer = (
        auto.from_pretrained(judge) for auto in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    for side in ("chosen", "rejected"):
        assert found[f"reward_{side}"].to_list() == pytest.approx(scores[side].to_list(), abs=1e-5)
        sides = [encode(name, [texts[0][name]], tokenizer).to_pylist()[0] for name in ("prompt", side)]
        tokens = torch.tensor([[*sides[0], *sides[1]]])
        assert float(model(tokens).logits.detach()) == pytest.approx(
            found[f"reward_{side}"][texts[0]["id"]], abs=1e-5
        )


def test_rows_that_a_model_cannot_read_get_nothing_and_the_others_theirs(tmp_path: Path) -> None:
    judge = model_of(tmp_path / "judge", "gpt2", "bytes")
    rows = [
        {"prompt": "a", "responses": None},  # as `rpo sample` writes a prompt that it cannot answer
        {"prompt": "", "responses": ["c"]},  # one token, of which nothing is the prompt
        {"prompt": "a", "responses": []},
        {"prompt": "a", "responses": ["b " * 400]},
        {"prompt": "a", "responses": ["yes", "no"]},
    ]
    said = rpo("score", write_jsonl(tmp_path / "r.jsonl", rows), "--model", judge, *CPU).stderr
    null, one, none, long, both = (row["rewards"] for row in lines(tmp_path / "r.scored.jsonl"))
    assert (null, one, none, long) == (None, None, [], None) and len(both) == 2
    assert "warning: 3 rows have no reward: no response, too long, without a token to read" in said
    model, few = model_of(tmp_path / "model", "gpt2", "bytes", reward=False), ("--max-new-tokens", 5)
    file = write_jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in ("the cat", "w " * 400)])
    said = rpo("sample", file, "--model", model, *few, *CPU).stderr
    short, long = (row["responses"] for row in lines(tmp_path / "p.sampled.jsonl"))
    assert len(short) == 1 and long is None and "warning: 1 row has no responses: too long" in said
    write_jsonl(file, [{"prompt": "the cat"}, {"prompt": ""}])
    said = rpo("sample", file, "--model", model, *few, *CPU, code=2).stderr
    assert said == f"{file}:2: prompt: empty, and the tokenizer puts nothing before a text\n"


def test_responses_get_the_room_that_the_longest_prompt_leaves(tmp_path: Path) -> None:
    model = model_of(
        tmp_path / "model", "gpt2", "bytes", reward=False
    )  # 256 positions, a token for each letter
    file = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a" * count} for count in (40, 60, 20)])
    dry = ("sample", file, "--model", model, "--dry-run", *CPU)
    of = f"the model has 256 positions, and the longest prompt ({file}:2) 60 tokens"
    assert f"note: --max-new-tokens 196, not 256: {of}\n" in rpo(*dry).stderr
    said = rpo("sample", file, "--model", model, "--max-new-tokens", 240, *CPU, code=2).stderr
    exceed = "exceed the model's 256 positions; give at most 196, which leaves room for all"
    assert said == f"the shortest prompt of 20 tokens ({file}:3) and --max-new-tokens 240 {exceed}\n"
    assert sorted(tmp_path.iterdir()) == [model, file]
    assert "note" not in rpo(*dry, "--max-new-tokens", 230).stderr  # which leaves one of them room
    write_jsonl(file, [{"prompt": "a" * count} for count in (40, 255)])
    assert "note: --max-new-tokens 64, not 256: " in rpo(*dry).stderr  # a quarter; the other has no response
    write_jsonl(file, [{"prompt": "a" * count} for count in (300, 40, 256)])
    said = rpo(*dry, "--max-new-tokens", 240, code=2).stderr
    exceed = "exceed the model's 256 positions; give at most 216; 2 longer ones get no response"
    assert said == f"the shortest prompt of 40 tokens ({file}:2) and --max-new-tokens 240 {exceed}\n"
    assert "note" not in rpo(*dry, "--max-new-tokens", 216).stderr
    write_jsonl(file, [{"prompt": "a" * 255}])
    assert "256 positions; no prompt is short enough\n" in rpo(*dry, code=2).stderr


def test_a_folder_of_files_keeps_the_columns_of_all_and_its_numbers(tmp_path: Path) -> None:
    judge, folder = model_of(tmp_path / "judge", "gpt2", "bytes"), tmp_path / "set"
    write_parquet(folder / "train-00000-of-00002.parquet", pairs(2))
    more = [{**row, "n": row["n"] + 0.5, "kind": "late"} for row in pairs(1)]
    write_parquet(folder / "train-00001-of-00002.parquet", more)
    rpo("score", folder, "--model", judge, "--out", tmp_path / "out.parquet", *CPU)
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["n"], row["kind"]) for row in found] == [(0, None), (1, None), (0.5, "late")]
    assert all(row["reward_chosen"] is not None for row in found)


def test_where_nothing_can_be_written_is_said_before_anything_is_read(tmp_path: Path) -> None:
    judge = model_of(tmp_path / "judge", "gpt2", "bytes")
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(2))
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "taken.jsonl.parts").touch()
    for name, says in (
        ("folder.jsonl", "--out {}: is a folder; name a file"),
        ("taken.jsonl", "{}.parts: a folder of this name is for the parts of taken.jsonl; move the file"),
    ):
        said = rpo("score", file, "--model", judge, "--out", tmp_path / name, *CPU, code=2).stderr
        assert said == says.format(tmp_path / name) + "\n"
    talks = {side: json.dumps(told("a", side)) for side in ("chosen", "rejected")}
    said = rpo("score", write_jsonl(file, [talks]), "--model", judge, *CPU, code=2).stderr
    assert said == f"{file}:1: chosen, rejected: messages as text; write a list of them, not in quotes\n"


def test_pairs_of_equal_rewards_are_said_beside_the_share(tmp_path: Path) -> None:
    judge = model_of(tmp_path / "judge", "llama", "bytes")
    rows = [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    said = rpo("score", file, "--model", judge, *CPU).stdout
    share = r"chosen has the higher reward in (0 % \[0, 66\]|50 % \[9, 91\]) of 2 pairs, both the same in 1\n"
    assert re.search(f"2 rows; {share}", said)
    found = rpo("score", file, "--model", judge, "--json", *CPU).stdout
    assert json.loads(found)["equal_rewards"] == 1


def test_samples_that_were_scored_are_pairs_to_begin_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = model_of(tmp_path / "model", "llama", "Llama 3", reward=False)
    judge = model_of(tmp_path / "judge", "llama", "Llama 3")
    draw = random.Random(3)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"{words(draw)} {n}"} for n in range(90)])
    drawn = ("--num-samples", 3, "--max-new-tokens", 8)
    rpo("sample", "prompts.jsonl", "--model", model, *drawn, "--out", "s.jsonl", *CPU)
    rpo("score", "s.jsonl", "--model", judge, "--out", "scored.jsonl", *CPU)
    teacher = ("--scores", "reward_chosen,reward_rejected", "--objective", "d-dpo", "--prompt-format", "raw")
    said = rpo("init", "mine", "--pairs", "scored.jsonl", "--model", model, *teacher).stderr
    assert "scored.jsonl: 90 rows read\n" in said and "next: rpo compare mine.yaml" in said
    assert rpo("recipe", "check", "mine.yaml").stdout.endswith("recipes, no problems\n")
    rows = {row["prompt"]: row for row in lines(tmp_path / "scored.jsonl")}
    made = pd.read_parquet("runs/mine/seed-0/data/pairs.parquet").to_dict("records")
    assert len(made) > 50
    for pair in made:
        row = rows[pair["prompt"]]
        numbers = dict(zip(row["rewards"], row["responses"], strict=True))
        assert (pair["reward_chosen"], pair["reward_rejected"]) == (max(numbers), min(numbers))
        assert [pair[name].strip() for name in ("chosen", "rejected")] == [
            numbers[pair[f"reward_{name}"]].strip() for name in ("chosen", "rejected")
        ]
    plan = rpo("train-policy", "mine.yaml:d-dpo", "--dry-run").stdout
    assert "policies/d-dpo" in plan and "seed-0/data  " not in plan


def test_a_model_may_be_named_by_the_recipe_that_trained_it(
    built: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_jsonl(tmp_path / "p.jsonl", pairs(2))
    policy, rm, here = built.suite / "e-dpo.yaml", built.suite / "rm.yaml", ("--workspace", built.root)
    few = ("--max-new-tokens", 5, *CPU)
    by_folder, by_recipe = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    folder = built.root / RHO / "policies/e-dpo/beta-0.2"
    rpo("sample", file, "--model", folder, *few, "--seed", 3, "--out", by_folder)
    rpo("sample", file, "--model", policy, *here, *few, "--seed", 3, "--out", by_recipe)
    assert by_folder.read_bytes() == by_recipe.read_bytes()
    said = rpo("sample", file, "--model", policy, *here, "--rho", 0.2, code=2).stderr
    missing = built.root / "seed-0/rho-0.2/policies/e-dpo/beta-0.2"
    options = f"--rho 0.2 --workspace {built.root}"
    first = f"first rpo train-policy {policy} {options}"
    assert said == f"--model {policy}: {missing}: missing; {first}\n"
    said = rpo("score", file, "--model", rm, code=2).stderr
    assert said.endswith(f"runs/tiny/{RHO}/rm/all: missing; first rpo train-rm {rm}\n")
    for model, takes in ((rm, "sft or policy"), (built.suite / "data.yaml", "sft or policy")):
        said = rpo("sample", file, "--model", model, code=2).stderr
        assert said.endswith(f" recipe; --model takes the recipe of a model: {takes}\n")
    for model, what in (("my model", "no folder, no recipe ("), ("./nowhere", "no such folder\n")):
        said = rpo("sample", file, "--model", model, code=2).stderr
        assert said.startswith(f"--model {model}: {what}") and said.count("\n") == 1
    said = rpo("sample", file, "--model", folder, "--rho", 0.2, code=2).stderr
    assert said == f"--rho: has no effect, --model {folder} is no recipe\n"
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
