"""`rpo init`: from somebody's own pairs to a suite in one file that runs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import RHO, SEED, Tiny, rpo
from transformers import T5Config

from rpo_cli.models import load_tokenizer
from rpo_cli.recipes import load
from rpo_cli.recipes.schema import PolicyRecipe
from rpo_cli.runs.init import _unknown
from rpo_cli.stages.data.miniature import build_tokenizer

PAIRS = 240


@pytest.fixture
def here(built: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with `pairs.jsonl`, of which some rows are of no use, and the tiny model's path."""
    monkeypatch.chdir(tmp_path)
    rows = pd.read_parquet(built.root / SEED / "data/pairs.parquet").head(PAIRS).to_dict("records")
    texts = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    texts += [texts[0], {**texts[1], "rejected": texts[1]["chosen"]}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return built.root / SEED / "sft"


def suite(name: str = "mine") -> dict[str, dict[str, Any]]:
    recipes: dict[str, dict[str, Any]] = yaml.safe_load(Path(f"{name}.yaml").read_text())["recipes"]
    return recipes


def init(model: Path, *more: object, code: int = 0) -> Any:
    return rpo("init", "mine", "--pairs", "pairs.jsonl", "--model", model, *more, code=code)


@pytest.mark.slow
def test_init_writes_a_suite_from_the_data_and_the_command_it_prints_runs(here: Path) -> None:
    result = init(here)
    assert result.stdout.splitlines()[-1] == "mine.yaml"
    said = result.stderr
    assert f"pairs.jsonl: {PAIRS + 2} rows read\n" in said
    assert "  1 of 242 left out: chosen and rejected are the same text" in said
    assert "  1 of 242 left out: the same row again" in said
    recipes = suite()
    pairs = pd.read_parquet(f"runs/mine/{SEED}/data/pairs.parquet")
    held_out, training = recipes["splits"]["held_out"], recipes["training"]
    batch = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    assert held_out == len(pairs) // 5 and batch == 8
    assert f"  {held_out} pairs are held out, about half of them reported" in said
    assert f"  {held_out // 2} held-out pairs are too few to tell policies apart: an accuracy on" in said
    assert "use_peft" not in training and recipes["evaluate"]["oracle"] is None
    steps = (len(pairs) - held_out) // batch
    assert f"num_train_epochs: 1             # about {steps} steps" in Path("mine.yaml").read_text().replace(
        "    num", "num"
    )
    assert rpo("recipe", "check", "mine.yaml").stdout == "6 recipes, no problems\n"
    command = said.splitlines()[-1].removeprefix("next: rpo ").split()
    assert command == ["compare", "mine.yaml"]
    plan = rpo(*command, "--dry-run").stdout
    assert "policies/d-dpo" in plan and "policies/dpo" in plan and "seed-0/data " not in plan
    rpo("train-policy", "mine.yaml:dpo")
    made = json.loads(Path(f"runs/mine/{SEED}/unbiased/policies/dpo/beta-0.1/manifest.json").read_text())
    assert made["metrics"]["steps"] == steps and made["metrics"]["first_loss"] == pytest.approx(
        0.6931, abs=1e-3
    )


@pytest.mark.slow
def test_a_sweep_writes_its_choice_into_the_recipe_of_a_suite_without_resampling(here: Path) -> None:
    init(here, "--objective", "dpo")
    before = Path("mine.yaml").read_text()
    said = rpo("sweep", "mine.yaml:dpo", "--set", "max_steps=1", "--grid-size", "2")
    assert said.stderr.endswith("wrote beta of mine.yaml:dpo\n") and "chosen on held-out pairs" in said.stdout
    recipe = load("mine.yaml:dpo").recipe
    assert isinstance(recipe, PolicyRecipe)
    chosen = recipe.beta
    line = "    beta: 0.1                       # smaller strays"
    assert chosen in (0.03, 0.3) and line in before
    assert "chosen by accuracy on held-out pairs, which have the training pairs' bias" in said.stderr
    assert Path("mine.yaml").read_text() == before.replace(line, line.replace("0.1 ", f"{chosen:g}".ljust(4)))


def test_init_holds_out_the_same_prompts_whatever_else_is_asked_for(here: Path) -> None:
    tables = {}
    for name, more in (("one", ()), ("two", ("--objective", "ipo", "--epochs", "2"))):
        rpo("init", name, "--pairs", "pairs.jsonl", "--model", here, *more)
        folder = Path(f"runs/{name}/{SEED}/data")
        tables[name] = {file.name: file.read_bytes() for file in folder.glob("*.parquet")}
        prompts = {file.stem: set(pd.read_parquet(file)["prompt"]) for file in folder.glob("*.parquet")}
        assert not prompts["pairs"] & (prompts["prompts_test"] | prompts["prompts_validation"])
        assert len(prompts["prompts_test"]) > 10 < len(prompts["prompts_validation"])
    assert tables["one"] == tables["two"] and suite("two")["training"]["num_train_epochs"] == 2


def test_init_holds_out_the_same_prompts_under_every_seed(here: Path) -> None:
    """Else a prompt that reports under one seed chooses, or teaches, under another."""
    init(here)
    assert "so always the same" in init(here, "--force").stderr
    tables = []
    for seed in (0, 1):
        rpo("data", "inspect", "mine.yaml:data", "--set", f"seed={seed}")
        folder = Path(f"runs/mine/seed-{seed}/data")
        tables.append({file.name: file.read_bytes() for file in folder.glob("*.parquet")})
    assert len(tables[0]) > 3 and tables[0] == tables[1]


@pytest.mark.parametrize(
    ("names", "who"),
    [
        (("test",), "those for test are a file's own, a hash of the prompt chooses those for validation"),
        (("test", "validation"), "the files' own"),
    ],
)
def test_init_says_that_files_hold_prompts_out(here: Path, names: Sequence[str], who: str) -> None:
    assert "for test; a hash of the prompt chooses, so always the same\n" in init(here).stderr
    lines = Path("pairs.jsonl").read_text().splitlines(keepends=True)
    Path("pairs").mkdir()
    for number, name in enumerate(names):
        Path(f"pairs/{name}.jsonl").write_text("".join(lines[40 * number : 40 * (number + 1)]))
    Path("pairs/train.jsonl").write_text("".join(lines[80:240]))
    assert f"for test; {who}\n" in rpo("init", "own", "--pairs", "pairs", "--model", here).stderr


def test_init_takes_teachers_and_a_judge_where_they_are_named(here: Path, built: Tiny) -> None:
    members = [built.root / RHO / "rm" / name for name in ("b-0.2", "b-0.8")]
    oracle = built.root / SEED / "oracle"
    teachers = [part for member in members for part in ("--reward-model", member)]
    init(here, *teachers, "--oracle", oracle, "--objective", "d-dpo,e-dpo,ipo", "--lora")
    recipes = suite()
    assert recipes["d-dpo"]["reward_model"] == str(members[0]) and recipes["ipo"]["tau"] == 0.1
    assert recipes["e-dpo"]["ensemble"] == [str(member) for member in members] and "rm" not in recipes
    assert recipes["e-dpo"]["calibration"] == "temperature"
    assert recipes["evaluate"]["oracle"] == str(oracle) and recipes["training"]["use_peft"] is True
    assert "policies/e-dpo" in rpo("train-policy", "mine.yaml:e-dpo", "--dry-run").stdout
    assert load("mine.yaml:ipo").recipe.learning_rate == 5e-5  # type: ignore[attr-defined]


def test_init_warns_of_a_tokenizer_that_does_not_know_the_words(here: Path) -> None:
    assert "does not know" not in init(here).stderr
    lines = Path("pairs.jsonl").read_text().splitlines()
    strange = [json.loads(line) for line in lines]
    strange = [{**row, "chosen": "eine Antwort", "rejected": f"keine {n}"} for n, row in enumerate(strange)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in strange))
    said = init(here, "--force").stderr
    assert f"warning: --model {here}: " in said
    assert "its tokenizer does not know" in said and "% of the responses' tokens; another model may" in said


def test_a_tokenizer_that_calls_its_end_unknown_too_knows_all_words() -> None:
    tokenizer = build_tokenizer()
    said = np.array([5, tokenizer.unk_token_id, 7, tokenizer.eos_token_id])
    assert _unknown(said, tokenizer) == 0.25
    tokenizer.unk_token = tokenizer.eos_token  # as GPT-2's and SmolLM2's
    assert _unknown(said, tokenizer) == 0


def test_init_says_which_extra_an_adapter_needs_before_anything_is_trained(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "needs the extra" not in init(here, "--lora").stderr
    monkeypatch.setattr("rpo_cli.runs.preflight._installed", lambda package: package != "peft")
    said = init(here, "--lora", "--force").stderr
    assert "warning: use_peft needs the extra `lora`: pip install 'rpo-cli[lora]'\n" in said


def test_init_takes_scores_beside_the_pairs_for_teachers(here: Path) -> None:
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    scored = [{**row, "a": n % 7, "b": 1.5, "c": 0, "d": n % 3} for n, row in enumerate(pairs)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    said = init(here, "--scores", "a,b", "--scores", "c,d", "--objective", "d-dpo,e-dpo").stderr
    recipes = suite()
    assert recipes["data"]["keep_columns"] == ["a", "b", "c", "d"] and "rm" not in recipes
    assert recipes["d-dpo"]["teacher"] == "columns" and recipes["d-dpo"]["margin_columns"] == [["a", "b"]]
    assert recipes["e-dpo"]["margin_columns"] == [["a", "b"], ["c", "d"]]
    assert "  a, b: contradict the label in " in said
    rpo("train-policy", "mine.yaml:e-dpo", "--dry-run")
    both = init(here, "--scores", "a,b", "--reward-model", here, "--force", code=2).stderr
    assert both.startswith("--reward-model and --scores: the teachers are models or columns")


@pytest.mark.slow
def test_one_pair_of_columns_is_calibrated_to_the_labels_whatever_its_scale(here: Path) -> None:
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    better = np.random.default_rng(0).normal(1, 1, len(pairs))
    scored = [
        {**row, "a": 5 + value, "b": 5, "c": 50 * value, "d": 0}
        for row, value in zip(pairs, better, strict=True)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    found = []
    for columns in ("a,b", "c,d"):
        said = init(here, "--scores", columns, "--force").stderr
        assert "calibrate_one: true brings them to the labels' scale" in said
        assert suite()["d-dpo"]["calibrate_one"] is True
        rpo("train-policy", "mine.yaml:d-dpo", "--set", "max_steps=1")
        (file,) = Path(f"runs/mine/{SEED}/unbiased/policies/d-dpo").glob("*/manifest.json")
        found.append(json.loads(file.read_text())["metrics"])
    one, other = (metrics["temperature/rm"] for metrics in found)
    assert one != 1 and other == pytest.approx(50 * one, rel=1e-4)
    assert found[0]["first_loss"] == pytest.approx(found[1]["first_loss"], rel=1e-4)


def test_init_trains_an_ensemble_on_the_pairs_where_none_is_named(here: Path) -> None:
    init(here, "--objective", "e-dpo")
    assert suite()["rm"]["ensemble"] == suite()["splits"]["ensemble"] == [0.2, 0.5, 0.8]
    assert "rm/b-0.8" in rpo("train-policy", "mine.yaml:e-dpo", "--dry-run").stdout


def test_init_starts_from_written_answers_and_evaluates_on_prompts_that_are_given(here: Path) -> None:
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    written = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    Path("sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{n} up"}) + "\n" for n in range(9)))
    init(here, "--sft", "sft.jsonl", "--prompts", "./prompts.jsonl")
    recipes = suite()
    assert recipes["policy"]["model_name_or_path"] == recipes["evaluate"]["baseline"] == "sft.yaml"
    assert recipes["prompts"]["files"]["prompts_test"] == "./prompts.jsonl"
    plan = rpo("train-policy", "mine.yaml:dpo", "--dry-run").stdout
    assert "sft       seed-0/sft  (missing)" in plan


def test_prompts_alone_are_shown_in_the_tokens_of_the_model_that_answers_them(here: Path) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "up"}\n')
    init(here, "--prompts", "./prompts.jsonl")
    seen = rpo("data", "inspect", "mine.yaml:prompts").stdout
    assert "(base model of dpo.yaml)" in seen and "prompts_test, row 1:" in seen


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--pairs", "none.jsonl"), "--pairs none.jsonl: no such file or directory"),
        (("--model", "./nowhere"), "--model ./nowhere: no such file or directory"),
        (("--reward-model", "/no/rm"), "--reward-model /no/rm: no such file or directory"),
        (("--objective", "dop"), "--objective dop: no such objective, did you mean dpo?"),
        (("--model", "no/such"), "no/such: "),
        (
            ("--columns", "prompt=q,chosen"),
            "--columns prompt=q,chosen: expected names with =, such as prompt=",
        ),
        (
            ("--columns", "choosen=q"),
            "--columns choosen=q: choosen is no column that is read, did you mean ch",
        ),
        (
            ("--columns", "completion=q"),
            "--columns completion=q: completion is no column that is read; there ",
        ),
        (("--columns", "prompt=q,prompt=a"), "--columns prompt=q,prompt=a: names prompt twice"),
        (("--columns", "prompt=q,chosen=q"), "--columns prompt=q,chosen=q: names q twice"),
        (("--scores", "good,good"), "--scores good,good: expected two columns, such as score_chosen,"),
        (("--scores", "good,prompt"), "--scores good,prompt: prompt is no score: rpo has a column of"),
    ],
)
def test_init_refuses_what_it_cannot_use_in_one_line_and_writes_nothing(
    here: Path, more: tuple[str, str], line: str
) -> None:
    said = init(here, *more, code=2).stderr.splitlines()
    assert said[-1].startswith(line) and len(said) == 1
    assert not Path("mine.yaml").exists() and not Path("runs").exists()


def test_the_first_lines_count_one_stage_as_one_and_say_the_threads_that_torch_has(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    said = init(here, "--columns", "prompt=question", code=2).stderr
    assert "workspace runs/mine: 1 stage to build, 0 up to date" in said and "; threads: 3\n" in said


def test_a_column_that_is_named_and_that_no_row_has_is_refused(here: Path) -> None:
    said = init(here, "--columns", "prompt=question", code=2).stderr.splitlines()[-1]
    assert said == "--columns prompt=question: no row has a column question (has: chosen, prompt, rejected)"
    assert not Path("mine.yaml").exists()


def test_a_name_with_a_colon_is_refused_and_one_with_a_blank_is_quoted(here: Path) -> None:
    more = ("--pairs", "pairs.jsonl", "--model", here)
    (said,) = rpo("init", "a:b", *more, code=2).stderr.splitlines()
    assert said.startswith("'a:b': a colon stands between a suite and its recipe")
    said = rpo("init", "my pairs", *more).stderr
    assert "rpo train-policy 'my pairs.yaml:d-dpo'\n" in said and said.endswith(
        "rpo compare 'my pairs.yaml'\n"
    )
    head = Path("my pairs.yaml").read_text().splitlines()[1:4]
    assert [shlex.split(line)[-1] for line in head] == [
        "my pairs.yaml", "my pairs.yaml:d-dpo", "my pairs.yaml"
    ]  # fmt: skip


def test_the_commands_that_init_prints_work_where_it_did(here: Path) -> None:
    """Typed as they stand they find its data; without the workspace they would read them again."""
    said = init(here, "--objective", "dpo", "--workspace", "my work").stderr.splitlines()[-2:]
    for line in said:
        command = shlex.split(line.partition(": rpo ")[2])
        plan = rpo(*command, "--dry-run")
        assert command[-2:] == ["--workspace", "my work"] and "seed-0/data  " not in plan.stdout


def test_init_leaves_no_file_whose_plan_cannot_be_made(here: Path) -> None:
    said = init(here, "--reward-model", here, code=2).stderr
    assert re.search(r"^--reward-model: .*no reward model", said, re.MULTILINE)
    assert "mine.yaml" not in said.splitlines()[-1] and not Path("mine.yaml").exists()


def test_init_writes_over_no_file_unless_it_is_told_to(here: Path) -> None:
    Path("mine.yaml").write_text("dear: to me\n")
    assert init(here, code=2).stderr == "mine.yaml: is there already; --force writes it anew\n"
    assert Path("mine.yaml").read_text() == "dear: to me\n"
    init(here, "--force")
    assert "dpo" in suite()


def test_init_begins_with_an_adapter_as_with_the_model_below_it(here: Path) -> None:
    Path("adapter").mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(here)}
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    said = init(Path("adapter")).stderr
    assert "memory: all weights, 8 pairs at a time" in said
    assert suite()["policy"]["model_name_or_path"] == "./adapter"
    assert rpo("recipe", "check", "mine.yaml").stdout == "6 recipes, no problems\n"
    told = rpo("train-policy", "mine.yaml:dpo", "--dry-run", "--estimate").stdout
    whole = rpo(
        "train-policy", "mine.yaml:dpo", "--dry-run", "--estimate", "--set", f"model_name_or_path={here}"
    ).stdout
    (size,) = (line for line in told.splitlines() if line.startswith("model "))
    assert size in whole.splitlines() and f"{here} (language model)" in size


def test_init_names_no_option_that_it_lacks_where_a_model_has_no_size(here: Path) -> None:
    T5Config(vocab_size=64, d_model=8, num_layers=1).save_pretrained("t5")
    load_tokenizer(here).save_pretrained("t5")
    said = init(Path("t5"), code=2).stderr
    assert "t5: its config cannot be read" in said and "--params" not in said


def test_init_is_told_what_the_pairs_call_their_columns_and_asks_for_it_by_its_option(here: Path) -> None:
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    theirs = {"prompt": "instruction", "chosen": "good one", "rejected": "bad"}
    named = [{theirs[name]: text for name, text in row.items()} for row in rows]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    said = init(here, code=2).stderr.splitlines()[-1]
    assert "; --columns chosen=… says what the data calls it" in said and "recipe" not in said
    given = "chosen=good one,rejected=bad"
    said = init(here, "--columns", given, code=2).stderr.splitlines()[-1]
    assert f"set --columns {shlex.quote(f'{given},prompt=instruction')} (or" in said
    said = init(here, "--columns", f"{given},prompt=question", code=2).stderr.splitlines()[-1]
    assert "no column 'question', which --columns has for prompt" in said
    init(here, "--columns", f"prompt=instruction, {given}")
    assert suite()["data"]["columns"] == theirs
    assert rpo("recipe", "check", "mine.yaml").stdout == "6 recipes, no problems\n"
    texts = pd.read_parquet(f"runs/mine/{SEED}/data/pairs.parquet")
    assert set(texts["chosen"]) <= {row["chosen"] for row in rows}
