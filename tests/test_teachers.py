"""Reward models of other tokenizers, and scores that the data has, as teachers and as oracles."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import PLAIN, RHO, Tiny, manifest, pairs_of, weights
from foreign import model_of, plainly
from preparing import TOOLS, WORDS
from published import write_jsonl
from transformers import AutoTokenizer
from worlds import Plain, reward

from rpo_cli.artifacts import Stage, Workspace, job_of
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.runs.work import run_job
from rpo_cli.stages.reading import as_turns, reading_of

SETTINGS = "max_length: 400\n"
SUITE = {
    "data.yaml": "stage: data\nsource: preference\ndataset: ./pairs.jsonl\ntokenizer: ./base\n"
    "validation_share: 0.2\nkeep_columns: [score_chosen, score_rejected, other_chosen, other_rejected]\n",
    "splits.yaml": "stage: splits\ndata: data.yaml\ntokenizer: ./base\nheld_out: 8\nensemble: []\n",
    "policy.yaml": "stage: policy\nobjective: d-dpo\ndata: splits.yaml\nmodel_name_or_path: ./base\n"
    f"max_steps: 2\nlearning_rate: 1e-3\nper_device_train_batch_size: 8\nreward_model: ./judge\n{SETTINGS}",
    "relabel.yaml": f"stage: relabel\nreward_model: ./judge\n{SETTINGS}",
    "evaluate.yaml": f"stage: evaluate\noracle: ./judge\nbaseline: ./base\nmax_new_tokens: 8\n{SETTINGS}",
}


def talk(draw: random.Random, number: int) -> dict[str, Any]:
    """A row of messages with scores; every fourth has several turns and begins with a system's."""

    def say(role: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(draw.choices(WORDS, k=draw.randint(2, 12)))}

    prompt = [say("user")]
    if number % 4 == 0:
        prompt = [say("system"), *prompt, say("assistant"), say("user")]
    prompt[-1]["content"] += f" {number}"
    scores = {
        f"{name}_{side}": draw.gauss(0, 1) for name in ("score", "other") for side in ("chosen", "rejected")
    }
    return {"prompt": prompt, "chosen": [say("assistant")], "rejected": [say("assistant")], **scores}


def write(folder: Path) -> Tiny:
    """A suite of conversations: a policy that speaks ChatML, and a judge that speaks Llama 3."""
    suite = folder / "talks"
    suite.mkdir()
    draw = random.Random(0)
    write_jsonl(suite / "pairs.jsonl", [talk(draw, number) for number in range(60)])
    for name, text in SUITE.items():
        (suite / name).write_text(PLAIN + text)
    model_of(suite / "base", "llama", "ChatML", reward=False)
    model_of(suite / "judge", "llama", "Llama 3", pad=False)
    return Tiny(suite, folder / "runs")


@pytest.fixture
def talks(tmp_path: Path) -> Tiny:
    return write(tmp_path)


def rows_of(world: Tiny) -> dict[str, dict[str, Any]]:
    """The rows as they were given, by their ids in the workspace."""
    given = [json.loads(line) for line in (world.suite / "pairs.jsonl").read_text().splitlines()]
    by_last = {row["prompt"][-1]["content"]: row for row in given}
    table = pd.read_parquet(world.root / "seed-0/data/pairs.parquet")
    return {row.id: by_last[json.loads(row.messages)["prompt"][-1]["content"]] for row in table.itertuples()}


def scores_of(world: Tiny, table: str = "train") -> pd.DataFrame:
    (file,) = (world.root / "seed-0/unbiased/scores").glob(f"*/{table}.parquet")
    return pd.read_parquet(file)


@pytest.mark.slow
def test_a_foreign_reward_model_reads_conversations_by_its_own_template_and_gives_the_label_named(
    talks: Tiny,
) -> None:
    names = {"id2label": {0: "harmless", 1: "helpful"}, "label2id": {"harmless": 0, "helpful": 1}}
    model_of(talks.suite / "judge", "llama", "Llama 3", pad=False, **names)
    for recipe in ("policy.yaml", "evaluate.yaml"):
        lines = talks.run("evaluate", "policy.yaml", "--dry-run", code=2).stderr.splitlines()
        assert all("judge has 2 labels; a reward model has one; reward_label: says" in line for line in lines)
        assert lines[0].startswith(str(talks.suite / recipe))
        talks.edit(recipe, "reward_label: helpful")
    talks.run("evaluate", "policy.yaml")
    rows, scores = rows_of(talks), scores_of(talks)

    def said(conversations: list[list[dict[str, str]]]) -> list[float]:
        return pytest.approx(plainly(talks.suite / "judge", conversations, label=1), abs=1e-4)

    for side in ("chosen", "rejected"):
        assert scores[side].to_list() == said(
            [rows[name]["prompt"] + rows[name][side] for name in scores["id"]]
        )
    (file,) = (talks.root / "seed-0/unbiased/evaluations").glob("**/samples.parquet")
    samples, prompts = pd.read_parquet(file), pd.read_parquet(talks.root / "seed-0/data/prompts_test.parquet")
    told = {row.prompt: json.loads(row.messages)["prompt"] for row in prompts.itertuples()}
    answers = [{"role": "assistant", "content": text.strip()} for text in samples["response"]]
    asked = [[*told[prompt], answer] for prompt, answer in zip(samples["prompt"], answers, strict=True)]
    assert samples["reward"].to_list() == said(asked)


@pytest.mark.slow
def test_a_reward_model_of_the_policys_tokens_reads_conversations_by_its_own_template(
    talks: Tiny,
) -> None:
    model_of(talks.suite / "judge", "llama", "ChatML", pad=True)
    judge, policy = (AutoTokenizer.from_pretrained(talks.suite / name) for name in ("judge", "base"))
    assert judge.get_vocab() == policy.get_vocab() and judge.pad_token_id == policy.pad_token_id
    talks.run("train-policy", "policy.yaml")
    rows, scores = rows_of(talks), scores_of(talks)
    for side in ("chosen", "rejected"):
        asked = [rows[name]["prompt"] + rows[name][side] for name in scores["id"]]
        found = plainly(talks.suite / "judge", asked)
        assert scores[side].to_list() == pytest.approx(found, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["Llama 3", "ChatML"])
def test_a_teacher_an_oracle_and_a_relabelling_read_at_the_last_token_that_is_no_padding(
    tokenizer: str, talks: Tiny
) -> None:
    """As text, a teacher of the policy's tokens reads prompt, response and EOS: its padding."""
    judge = model_of(talks.suite / "judge", "llama", tokenizer, pad="eos")
    ours = tokenizer == "ChatML"
    if ours:
        model_of(talks.suite / "base", "llama", "ChatML", reward=False, pad="eos")
        given = [json.loads(line) for line in (talks.suite / "pairs.jsonl").read_text().splitlines()]
        sides = ("prompt", "chosen", "rejected")
        texts = [row | {name: f" {row[name][-1]['content']}" for name in sides} for row in given]
        write_jsonl(talks.suite / "pairs.jsonl", texts)
    talks.run("evaluate", "policy.yaml")
    scores, read = scores_of(talks), AutoTokenizer.from_pretrained(judge)
    table = pd.read_parquet(talks.root / "seed-0/data/pairs.parquet").set_index("id").loc[scores["id"]]
    (file,) = (talks.root / "seed-0/unbiased/evaluations").glob("**/samples.parquet")
    samples = pd.read_parquet(file)
    samples = samples[samples["response"].str.strip() != ""]
    prompts = pd.read_parquet(talks.root / "seed-0/data/prompts_test.parquet").set_index("prompt")

    def asked(prompts: Any, answers: Any) -> list[Any]:
        if ours:
            return [one + other + read.eos_token for one, other in zip(prompts, answers, strict=True)]
        return [
            [*json.loads(one)["prompt"], {"role": "assistant", "content": other.strip()}]
            for one, other in zip(prompts, answers, strict=True)
        ]

    for side in ("chosen", "rejected"):
        texts = asked(table["prompt" if ours else "messages"], table[side])
        assert scores[side].to_list() == pytest.approx(plainly(judge, texts), abs=1e-4)
    told = samples["prompt"] if ours else prompts.loc[samples["prompt"], "messages"]
    if not ours:
        found = plainly(judge, asked(told, samples["response"]))
        assert samples["reward"].to_list() == pytest.approx(found, abs=1e-4)
    talks.run("relabel", "relabel.yaml")
    labels = pd.read_parquet(talks.root / "seed-0/relabel/pairs.parquet").set_index("id").loc[scores["id"]]
    if not ours:
        low, high = (scores[["chosen", "rejected"]].agg(how, axis=1).to_list() for how in ("min", "max"))
        assert labels["rejected_score"].to_list() == pytest.approx(low, abs=1e-4)
        assert labels["chosen_score"].to_list() == pytest.approx(high, abs=1e-4)


def test_rewards_that_may_have_been_read_at_padding_are_made_again(talks: Tiny) -> None:
    def options(**settings: Any) -> dict[str, Any]:
        shutil.rmtree(talks.suite / "judge")
        model_of(talks.suite / "judge", "llama", "Llama 3", **settings)
        return dict(talks.stage("policy.yaml").inputs["scores/rm"].options)

    again = {"reward_at": "last token but padding"}
    assert options(pad="eos") == options(pad=False) == again
    assert options(pad=True) == {}
    assert options(pad="eos") == again
    (talks.suite / "judge" / "rpo_recipe.yaml").touch()
    assert talks.stage("policy.yaml").inputs["scores/rm"].options == {}


COLUMNS = ("score", "other")
ASKED = "score_chosen, score_rejected"


@pytest.mark.slow
def test_without_an_oracle_the_teacher_says_what_it_makes_of_the_samples(talks: Tiny) -> None:
    talks.edit("evaluate.yaml", "oracle: null")
    said = talks.run("evaluate", "policy.yaml")
    assert re.search(r"teacher's reward [+-]\d.*of the baseline.*not independent", said.output)
    folder = talks.root / "seed-0/unbiased"
    (file,) = (folder / "taught").glob("**/rewards.parquet")
    (sampled,) = (folder / "evaluations").glob("**/samples.parquet")
    samples, rewards = pd.read_parquet(sampled), pd.read_parquet(file).set_index("prompt_id")
    prompts = pd.read_parquet(talks.root / "seed-0/data/prompts_test.parquet")
    told = {row.prompt: json.loads(row.messages)["prompt"] for row in prompts.itertuples()}
    answers = [{"role": "assistant", "content": text.strip()} for text in samples["response"]]
    asked = [[*told[prompt], answer] for prompt, answer in zip(samples["prompt"], answers, strict=True)]
    expected = plainly(talks.suite / "judge", asked)
    assert rewards.loc[samples["prompt_id"], "reward"].to_list() == pytest.approx(expected, abs=1e-4)


def write_scores(talks: Tiny) -> None:
    """Write what reward models said of the pairs into the data, those of each in columns of their own."""
    said: dict[tuple[str, str], dict[str, float]] = {}
    folders = sorted((talks.root / "seed-0/unbiased/scores").iterdir())
    rows = rows_of(talks)
    for folder, name in zip(folders, COLUMNS, strict=True):
        for part in ("train", "held_out"):
            for row in pd.read_parquet(folder / f"{part}.parquet").itertuples():
                scores = {f"{name}_chosen": float(row.chosen), f"{name}_rejected": float(row.rejected)}
                said.setdefault(rows[row.id]["prompt"][-1]["content"], {}).update(scores)
    given = [json.loads(line) for line in (talks.suite / "pairs.jsonl").read_text().splitlines()]
    write_jsonl(
        talks.suite / "pairs.jsonl",
        [row | said.get(row["prompt"][-1]["content"], {}) for row in given],
    )


@pytest.mark.slow
def test_margins_of_columns_make_the_policy_that_reward_models_of_the_same_margins_make(
    talks: Tiny, tmp_path: Path
) -> None:
    other = model_of(tmp_path / "other", "llama", "turns without EOS")
    talks.edit("policy.yaml", f"objective: e-dpo\nensemble: [./judge, {other}]\ncalibration_mix: data")
    talks.run("train-policy", "policy.yaml")
    policies = talks.root / "seed-0/unbiased/policies/policy"
    by_models = {file.parent.name: weights(file.parent) for file in policies.glob("*/model.safetensors")}
    assert len(by_models) == 1
    write_scores(talks)
    columns = ", ".join(f"[{name}_chosen, {name}_rejected]" for name in COLUMNS)
    talks.edit("policy.yaml", f"margin_columns: [{columns}]")
    talks.run("train-policy", "policy.yaml")
    assert {
        file.parent.name: weights(file.parent) for file in policies.glob("*/model.safetensors")
    } == by_models
    assert (
        "margin_columns"
        in json.loads((policies / next(iter(by_models)) / "manifest.json").read_text())["recipe"]
    )


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"


def with_template(folder: Path, before: str) -> None:
    """Have a tokenizer's chat template begin with this."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = before + tokenizer.chat_template
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_rows_that_a_template_refuses_are_left_out_and_scores_are_turned_with_their_responses(
    talks: Tiny,
) -> None:
    with_template(talks.suite / "judge", NO_SYSTEM)
    talks.edit("splits.yaml", "data: relabel.yaml")
    talks.edit(
        "policy.yaml", f"objective: e-dpo\nensemble: [./judge, {{columns: [{ASKED}]}}]\ncalibration: none"
    )
    said = talks.run("train-policy", "policy.yaml").stderr
    relabelled = pd.read_parquet(talks.root / "seed-0/relabel/pairs.parquet")
    rows = rows_of(talks)
    kept = {name: row for name, row in rows.items() if row["prompt"][0]["role"] != "system"}
    assert set(relabelled["id"]) == set(kept) < set(rows)
    refused = f"{len(rows) - len(kept)} of {len(rows)} rows are left out: the chat template of "
    assert refused in said and "refuses them (row " in said and "no system prompt" in said
    swapped = dict(zip(relabelled["id"], relabelled["swapped"], strict=True))
    assert len(set(swapped.values())) == 2
    by_judge = dict(zip(relabelled["id"], relabelled["chosen_score"], strict=True))
    sides = {False: ("chosen", "rejected"), True: ("rejected", "chosen")}
    seen = set()
    for file in (talks.root / "seed-0/unbiased/scores").glob("*/train.parquet"):
        scores = pd.read_parquet(file)
        given = [tuple(rows[row]["score_" + side] for side in sides[swapped[row]]) for row in scores["id"]]
        of_columns = given == list(zip(scores["chosen"], scores["rejected"], strict=True))
        seen.add(of_columns)
        if not of_columns:
            assert scores["chosen"].to_list() == pytest.approx(
                [by_judge[row] for row in scores["id"]], abs=1e-4
            )
    assert seen == {True, False}


def test_conversations_that_the_tokenizers_template_refuses_are_left_out_and_counted(talks: Tiny) -> None:
    with_template(talks.suite / "base", NO_SYSTEM)
    said = talks.run("data inspect", "data.yaml", "--rows", 0).output
    assert "the chat template refuses it: no system prompt" in said
    metrics = manifest(talks.root, "seed-0/data")["metrics"]
    assert metrics["pairs/refused"] == 15 and metrics["records/pairs"] == 60


@pytest.mark.parametrize(
    ("recipe", "change", "says"),
    [
        ("policy.yaml", "teacher: columns", "margin_columns: teacher: columns distils one pair of columns"),
        ("policy.yaml", "teacher: columns\nmargin_columns: [[a, b], [c, d]]", "teacher: mean or lcb makes"),
        ("policy.yaml", "margin_columns: [[a, b]]", "margin_columns: no effect with teacher: one; set"),
        ("policy.yaml", "teacher: columns\nmargin_columns: [[a, score_rejected]]",
         "margin_columns: {data} keeps no column a; add keep_columns: [a, score_rejected] to it"),
        ("policy.yaml", "objective: e-dpo\nensemble: [./judge, {columns: [a, b]}]\ncalibration: none",
         "ensemble[1]: {data} keeps no column a"),
        ("policy.yaml", "teacher: columns\nmargin_columns: [[a]]", "margin_columns[0]: needs at least 2"),
        ("policy.yaml", f"teacher: mean\nmargin_columns: [[{ASKED}]]",
         "margin_columns: models and columns in a list have no bias b of their own"),
        ("policy.yaml", "reward_label: help", None),
        ("data.yaml", "keep_columns: [prompt]", "keep_columns: prompt: rpo has columns of this name"),
        ("data.yaml", "source: hh-rlhf", "keep_columns: no effect with source: hh-rlhf"),
    ],
)  # fmt: skip
def test_what_columns_cannot_mean_is_said_with_the_recipe(
    talks: Tiny, recipe: str, change: str, says: str | None
) -> None:
    talks.edit(recipe, change)
    found = talks.run("train-policy", "policy.yaml", "--dry-run", code=0 if says is None else 2).stderr
    if says is not None:
        (line,) = found.splitlines()
        assert line.startswith(f"{talks.suite / recipe}:")
        assert says.format(data=talks.suite / "data.yaml") in line


def test_conversations_need_a_template_and_the_plan_says_so(talks: Tiny, tmp_path: Path) -> None:
    plain = model_of(tmp_path / "plain", "gpt2", "bytes")
    for recipe, key in (("policy.yaml", "reward_model"), ("evaluate.yaml", "oracle")):
        before = (talks.suite / recipe).read_text()
        talks.edit(recipe, f"{key}: {plain}")
        lines = talks.run("evaluate", "policy.yaml", "--dry-run", code=2).stderr.splitlines()
        says = f"{key}: {plain} has no chat template, and the rows are conversations"
        assert len(lines) == 1 and lines[0].startswith(f"{talks.suite / recipe}:") and lines[0].endswith(says)
        (talks.suite / recipe).write_text(before)


def test_a_column_of_text_is_no_score(talks: Tiny) -> None:
    file = talks.suite / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for value, says in (
        ("high", "score_chosen: expected a finite number, got text"),
        (None, "score_chosen: expected a finite number, got null"),
    ):
        write_jsonl(file, [*rows[:3], rows[3] | {"score_chosen": value}, *rows[4:]])
        found = talks.run("data inspect", "data.yaml", code=2).stderr
        assert f"{file}:4: {says}" in found


def test_prompts_that_another_template_wrote_and_a_template_with_a_date_are_said(tmp_path: Path) -> None:
    judge = model_of(tmp_path / "judge", "llama", "Llama 3")
    asked: list[dict[str, Any]] = [{"prompt": "the cat", "chosen": "on a mat"}]
    said: list[str] = []
    recipe = ScoringRecipe(stage="scores", device="cpu")
    reading_of(judge, recipe, None).rows(["a"], asked, ["chosen"], "here", said.append)
    assert said == []
    asked[0]["prompt"] = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    with_template(judge, "{% if false %}{{ strftime_now('%d %b %Y') }}{% endif %}")
    reading_of(judge, recipe, None).rows(["a"], asked, ["chosen"], "here", said.append)
    assert said == [
        f"1 of 1 prompts (row a) were written by a chat template; {judge} reads its signs as words; "
        "data that are made anew from messages keep those, for its own template",
        f"the chat template of {judge} writes the date: its rewards depend on the day",
    ]


def test_a_dialogue_of_hh_rlhf_is_its_turns_and_other_text_is_one() -> None:
    dialogue = "\n\nHuman: the cat\n\nAssistant: sat\n\nHuman: on a mat?\n\nAssistant:"
    turns = [("user", "the cat"), ("assistant", "sat"), ("user", "on a mat?"), ("assistant", "yes")]
    found = as_turns(dialogue, " yes")
    assert [(turn["role"], turn["content"]) for turn in found] == turns
    found = as_turns("the cat\n\nTL;DR:", " yes")
    assert [(turn["role"], turn["content"]) for turn in found] == [("user", "the cat\n\nTL;DR:"), turns[-1]]


@pytest.mark.parametrize("table", ["prompts_test", "sft_train"])
def test_pairs_that_are_made_of_prompts_keep_their_conversations_with_all_that_the_template_was_given(
    talks: Tiny, table: str
) -> None:
    given = {"tools": json.loads(TOOLS), "chat_template_kwargs": {"enable_thinking": True}}
    rows = [json.loads(line) for line in (talks.suite / "pairs.jsonl").read_text().splitlines()]
    write_jsonl(talks.suite / "pairs.jsonl", [row | given for row in rows])
    (talks.suite / "pairs.yaml").write_text(
        f"{PLAIN}stage: pairs\nmodel_name_or_path: ./base\ntable: {table}\nvalidation_table: null\n"
        f"contrasts: [written-others]\nnum_prompts: 8\n{SETTINGS}"
    )
    talks.run("sample-pairs", "pairs.yaml")
    prompts = pd.read_parquet(talks.root / f"seed-0/data/{table}.parquet").set_index("prompt")
    made = pd.read_parquet(talks.root / "seed-0/pairs/pairs.parquet")
    tokenizer = AutoTokenizer.from_pretrained(talks.suite / "base")
    assert len(made) > 3
    for row in made.itertuples():
        told = json.loads(row.messages)
        asked = told.pop("prompt")
        assert asked == json.loads(prompts["messages"][row.prompt])["prompt"]
        answers = {
            side: [{"role": "assistant", "content": getattr(row, side)}] for side in ("chosen", "rejected")
        }
        assert told == {**answers, **given}
        again = tokenizer.apply_chat_template(
            asked, tools=told["tools"], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        assert again == row.prompt


def test_prompts_of_written_responses_keep_what_their_template_was_given(talks: Tiny) -> None:
    """The oracle of an evaluation reads them by its own template."""
    given = {"tools": json.loads(TOOLS), "chat_template_kwargs": {"enable_thinking": True}}
    pairs = [json.loads(line) for line in (talks.suite / "pairs.jsonl").read_text().splitlines()]
    rows = [{"prompt": row["prompt"], "completion": row["chosen"], **given} for row in pairs]
    write_jsonl(talks.suite / "written/train.jsonl", rows[:40])
    write_jsonl(talks.suite / "written/test.jsonl", rows[40:])
    talks.edit("data.yaml", "sft_dataset: ./written")
    talks.run("data inspect", "data.yaml")
    for table in ("sft_train", "prompts_test"):
        kept = pd.read_parquet(talks.root / f"seed-0/data/{table}.parquet")["messages"]
        assert len(kept) > 0 and all({n: json.loads(each)[n] for n in given} == given for each in kept)


def test_a_reward_model_trained_here_on_other_tokens_reads_the_texts_with_its_own(tiny: Tiny) -> None:
    folder = tiny.root / RHO / "rm/b-0.2"
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    one, two = list(words)[-2:]
    words[one], words[two] = words[two], words[one]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    stage = tiny.stage("e-dpo.yaml").inputs["scores/0.2"]
    assert isinstance(stage, Stage)
    run_job(job_of(stage, Workspace(tiny.root, tiny.suite.name), {}, force=True), lambda step, of: None)
    scores = pd.read_parquet(tiny.root / stage.path / "train.parquet")
    texts = {row["id"]: row for row in pairs_of(tiny.root, f"{RHO}/splits", "train")}
    plain, tokenizer = Plain(tiny.root), AutoTokenizer.from_pretrained(folder)
    plain.__dict__["tokenizer"] = tokenizer
    model = plain.reward_model(folder)
    for side in ("chosen", "rejected"):
        asked = [
            (plain.prompt(texts[row]["prompt"]), plain.response(texts[row][side])) for row in scores["id"]
        ]
        found = [reward(model, *each) for each in asked]
        assert scores[side].to_list() == pytest.approx(found, abs=1e-4)


def test_prompts_that_leave_an_oracle_no_room_for_the_answer_are_left_out_before_it_is_sampled(
    tmp_path: Path,
) -> None:
    judge = model_of(tmp_path / "judge", "gpt2", "bytes")
    asked: list[dict[str, Any]] = [{"prompt": "a" * length, "response": "."} for length in (200, 240)]
    recipe = ScoringRecipe(stage="scores", device="cpu", overlong="drop")
    reading, said = reading_of(judge, recipe, None), list[str]()
    room = reading.most - max(len(reading.tokens([row["prompt"]])[0]) for row in asked) - 1
    for to_come, kept in ((room - 1, ["a", "b"]), (room + 1, ["a"])):
        rows = reading.rows(["a", "b"], asked, ["response"], "here", said.append, to_come=to_come)
        assert [row.id for row in rows] == kept
    assert len(said) == 1 and f"beside {room + 1} that are to come" in said[0]
