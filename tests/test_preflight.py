"""What a plan cannot be made with is said before its first stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import PLAIN, SEED, Tiny, rpo, write_suite
from safetensors.torch import save_file

from rpo_cli.artifacts import Stage

CIRCLES = {
    "data that names itself": ({"splits.yaml": "data: splits.yaml"}, "splits.yaml", ["splits.yaml"]),
    "a model that names itself": (
        {"dpo.yaml": "model_name_or_path: dpo.yaml"}, "dpo.yaml", ["dpo.yaml"]
    ),
    "two models that start from each other": (
        {"dpo.yaml": "model_name_or_path: ipo.yaml", "ipo.yaml": "model_name_or_path: dpo.yaml"},
        "dpo.yaml", ["dpo.yaml", "ipo.yaml"],
    ),
    "labels by a reward model that is trained on them": (
        {"relabel.yaml": "reward_model: rm.yaml"}, "relabel.yaml", ["relabel.yaml", "rm.yaml", "splits.yaml"]
    ),
    "a policy on the ensemble that starts from it": (
        {"rm.yaml": "model_name_or_path: e-dpo.yaml"}, "e-dpo.yaml", ["e-dpo.yaml", "rm.yaml"]
    ),
    "a tokenizer of what is trained on the splits": (
        {"splits.yaml": "tokenizer: rm.yaml"}, "splits.yaml", ["rm.yaml", "splits.yaml"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CIRCLES)
def test_recipes_that_need_each_other_are_named_with_the_whole_circle(empty: Tiny, name: str) -> None:
    changes, asked, circle = CIRCLES[name]
    for file, text in changes.items():
        empty.edit(file, text)
    command = {"relabel": "relabel", "splits": "make-biased-splits"}.get(Path(asked).stem, "train-policy")
    for said in (
        empty.run(command, asked, code=2).stderr,
        empty.run(command, asked, "--dry-run", code=2).stderr,
        rpo("recipe", "check", empty.suite / asked, code=2).stderr,
    ):
        (line,) = said.splitlines()
        assert ": goes in a circle: " in line
        way = [place.split(":") for place in line.split(": goes in a circle: ")[1].split(" -> ")]
        assert [Path(place[0]).name for place in way] == [*circle, circle[0]]
        assert all(place[1].isdigit() for place in way)
    (line,) = {
        line for line in rpo("recipe", "check", empty.suite, code=2).stderr.splitlines() if "circle" in line
    }  # once, whichever of its recipes the check comes to first
    assert not empty.root.exists()


@pytest.mark.parametrize(
    ("recipe", "line", "says"),
    [
        ("dpo.yaml", "model_name_or_path: figure.yaml", "sft, policy, got a figure recipe"),
        ("sft.yaml", "model_name_or_path: data.yaml", "sft, policy, got a data recipe"),
        ("dpo.yaml", "model_name_or_path: oracle.yaml", "sft, policy, got a reward recipe"),
        ("oracle.yaml", "model_name_or_path: splits.yaml", "sft, reward, policy, got a splits"),
        ("oracle.yaml", "data: evaluate.yaml", "data, pairs, relabel, splits, got an evaluate"),
        ("dpo.yaml", "data: dpo.yaml", "data, pairs, relabel, splits, got a policy recipe"),
        ("relabel.yaml", "reward_model: sft.yaml", "reward, got an sft recipe"),
        ("splits.yaml", "tokenizer: relabel.yaml", "sft, reward, policy, got a relabel"),
        ("evaluate.yaml", "oracle: figure.yaml", "reward, got a figure recipe"),
        ("evaluate.yaml", "baseline: oracle.yaml", "sft, policy, got a reward recipe"),
    ],
)  # fmt: skip
def test_a_recipe_of_another_kind_is_refused_on_its_line(
    empty: Tiny, recipe: str, line: str, says: str
) -> None:
    (empty.suite / "figure.yaml").write_text("stage: figure\npolicies: [dpo.yaml]\n")
    if recipe == "sft.yaml":
        empty.edit(recipe, "model_config_kwargs: null")
    empty.edit(recipe, line)
    said = rpo("recipe", "check", empty.suite / recipe, code=2).stderr
    number = len((empty.suite / recipe).read_text().splitlines())
    assert said.startswith(
        f"{empty.suite / recipe}:{number}: {line.split(':')[0]}: expected a recipe of {says}"
    )


def test_files_that_extend_the_next_twice_are_each_read_once(tmp_path: Path) -> None:
    """Forty in a row are two to the fortieth ways; a mistake in the last is one mistake."""
    for index in range(40):
        (tmp_path / f"x{index}.yaml").write_text(f"extends: [x{index + 1}.yaml, x{index + 1}.yaml]\n")
    (tmp_path / "x40.yaml").write_text("stage: data\nsource: miniature\nrows: {pears: 1}\n")
    (line,) = rpo("recipe", "check", tmp_path / "x0.yaml", code=2).stderr.splitlines()
    assert line.startswith(f"{tmp_path}/x40.yaml:3: rows.pears: unknown key")


def test_a_row_of_files_or_recipes_without_end_is_refused(tmp_path: Path) -> None:
    for index in range(300):
        (tmp_path / f"x{index}.yaml").write_text(f"extends: x{index + 1}.yaml\nstage: data\n")
        (tmp_path / f"y{index}.yaml").write_text(
            f"{PLAIN}stage: sft\nmodel_name_or_path: y{index + 1}.yaml\n"
        )
    (tmp_path / "data.yaml").write_text(f"{PLAIN}stage: data\nsource: miniature\n")
    said = rpo("recipe", "check", tmp_path / "x0.yaml", code=2).stderr
    assert "x50.yaml:1: extends: more than 50 files, each of which extends the next" in said
    said = rpo("train-sft", "--recipe", tmp_path / "y0.yaml", "--dry-run", code=2).stderr
    assert ": more than 40 recipes, each on the next" in said


DEFAULTS = {
    "data": ("stage: sft\nmodel_config_kwargs: {model_type: llama}\n", "train-sft", "data.yaml"),
    "evaluate": (
        "stage: policy\nobjective: dpo\nmodel_name_or_path: sft.yaml\ndata: splits.yaml\n",
        "evaluate", "evaluate.yaml",
    ),
    "reward_model": (
        "stage: policy\nobjective: d-dpo\nmodel_name_or_path: sft.yaml\ndata: splits.yaml\n",
        "train-policy", "rm.yaml",
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_default_name_is_looked_for_beside_the_recipe_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Else a new folder is completed from the miniature, which packed recipes end in."""
    text, command, absent = DEFAULTS[key]
    suite = write_suite(tmp_path / "mine")
    (suite / "new.yaml").write_text(PLAIN + text)
    rpo(command, "--recipe", suite / "new.yaml", "--dry-run")
    (suite / absent).unlink()
    said = rpo(command, "--recipe", suite / "new.yaml", "--dry-run", code=2).stderr.splitlines()[-1]
    at = f"{suite}/new.yaml:1: {key}: no {absent}, its default, in {suite}; write one, or say which to use"
    assert said == at
    # Named, it is found wherever names are looked up.
    for changed in (f"{key}: miniature/{absent}\nsuite: mine\n", "extends: more.yaml\n"):
        (suite / "more.yaml").write_text(f"{key}: miniature/{absent}\n")
        (suite / "new.yaml").write_text(PLAIN + text + changed)
        rpo("recipe", "show", suite / "new.yaml")


NAMES = [
    "..yaml",
    "...yaml",
    "-x.yaml",
    ".hidden.yaml",
    " x.yaml",
    "a\tb.yaml",
    "a\x1bb.yaml",
    f"{'x' * 120}.yaml",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_whose_name_is_no_plain_word_is_refused_before_anything_is_touched(
    tmp_path: Path, name: str
) -> None:
    suite = write_suite(tmp_path / "tiny")
    (suite / name).write_text((suite / "data.yaml").read_text())
    root = tmp_path / "runs"
    (root / "seed-0/kept").mkdir(parents=True)
    (root / "workspace.json").write_text('{"suite": "tiny"}')
    before = sorted(root.rglob("*"))
    for command in ("data inspect", "train-sft", "relabel", "recipe check", "recipe show", "status"):
        words = [*command.split(), *([] if command.startswith("recipe") else ["--recipe"])]
        where = [] if command.startswith("recipe") else ["--workspace", root]
        (line,) = rpo(*words, suite / name, *where, code=2).stderr.splitlines()
        assert "names its artifacts" in line
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    "suite", ["../../x", "..", ".", "/tmp/x", "a/b", "-x", ".locks", "a\nb", "a\\b", " a"]
)
def test_a_suite_is_a_plain_word(empty: Tiny, suite: str) -> None:
    said = empty.run("train-sft", "sft.yaml", "--set", f"suite={suite!r}".replace("'", '"'), code=2).stderr
    assert said.startswith("--set suite: ") and len(said.splitlines()) == 1
    assert not empty.root.exists()


def test_a_folder_whose_name_is_no_plain_word_asks_for_a_suite(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / ".hidden")
    said = rpo("train-sft", "--recipe", suite / "sft.yaml", "--dry-run", code=2).stderr
    cure = "the name of its folder can be no suite's; set `suite:` to one that can"
    assert said == f"{suite}/sft.yaml: {cure}\n"
    rpo("train-sft", "--recipe", suite / "sft.yaml", "--dry-run", "--set", "suite=seen")


@pytest.mark.parametrize("model", ["..", ".", "../..", "a\nb"])
def test_a_judges_name_cannot_lead_out_of_the_workspace(empty: Tiny, model: str) -> None:
    arguments = ("--model", model, "--base-url", "http://localhost:9/v1", "--dry-run")
    result = empty.run("judge", "dpo.yaml", *arguments, code=2 if set(model) <= set(".") else 0)
    assert not any(part in ("..", ".") for line in result.stdout.splitlines() for part in line.split("/"))


@pytest.mark.parametrize("stem", ["unbiased", "policies", "scores", "rho-0.5", "reference-logps", "judged"])
def test_a_recipe_is_not_called_like_a_folder_of_other_artifacts(empty: Tiny, stem: str) -> None:
    """Made again, its artifact would take those inside it away."""
    (empty.suite / "sft.yaml").rename(empty.suite / f"{stem}.yaml")
    said = empty.run("train-sft", f"{stem}.yaml", code=2).stderr
    assert said.endswith(f"{stem}.yaml: {stem} is a folder of other artifacts; rename the recipe\n")


def test_policies_of_two_models_on_the_same_pairs_have_references_of_their_own(empty: Tiny) -> None:
    (empty.suite / "larger.yaml").write_text("extends: sft.yaml\nstage: sft\nmax_steps: 3\n")
    larger = "model_name_or_path=larger.yaml"
    for recipe in ("dpo.yaml", "p-dpo.yaml", "d-dpo.yaml", "e-dpo.yaml"):
        known, other = empty.stage(recipe), empty.stage(recipe, larger)
        for name, stage in other.inputs.items():
            if name != "data":
                assert cast(Stage, stage).path != cast(Stage, known.inputs[name]).path, name
        assert cast(Stage, known.inputs["reference"]).path == f"{SEED}/reference-logps/relabel"
        assert cast(Stage, other.inputs["reference"]).path == f"{SEED}/reference-logps-from-larger/relabel"
    # What the splits count their tokens with, and what a baseline is of, have the folders that they had.
    empty.edit("splits.yaml", "tokenizer: larger.yaml")
    for overrides in ((), (larger,)):
        reference = empty.stage("dpo.yaml", *overrides).inputs["reference"]
        assert cast(Stage, reference).path == f"{SEED}/reference-logps/relabel"


def test_a_figure_of_policies_of_two_models_on_the_same_pairs_is_planned(empty: Tiny) -> None:
    (empty.suite / "larger.yaml").write_text("extends: sft.yaml\nstage: sft\nmax_steps: 3\n")
    large = "{name: large, recipe: dpo.yaml, set: {model_name_or_path: larger.yaml}}"
    variants = f"[{{name: small, recipe: dpo.yaml}}, {large}]"
    (empty.suite / "sizes.yaml").write_text(f"stage: figure\nvariants: {variants}\nrhos: [0.2]\nseeds: [0]\n")
    planned = empty.run("figure figure2", "sizes.yaml", "--dry-run").stdout
    assert all(f" {SEED}/reference-logps{more}/relabel " in planned for more in ("", "-from-larger"))
    empty.edit("splits.yaml", "tokenizer: larger.yaml")
    said = empty.run("figure figure2", "sizes.yaml", "--dry-run", code=2).stderr
    assert "asks for another seed-0/reference-logps/relabel than " in said
    assert ", of another model; where policies start from several models" in said
    empty.edit("evaluate.yaml", "baseline: larger.yaml")  # one model is both, as the line advises
    planned = empty.run("figure figure2", "sizes.yaml", "--dry-run").stdout
    assert all(f" {SEED}/reference-logps{more}/relabel " in planned for more in ("", "-from-sft"))


def test_a_mistake_in_the_evaluate_recipe_moves_no_reference(empty: Tiny) -> None:
    (empty.suite / "larger.yaml").write_text("extends: sft.yaml\nstage: sft\nmax_steps: 3\n")
    asked = ("train-policy", "dpo.yaml", "--dry-run", "--set", "model_name_or_path=larger.yaml")
    assert f" {SEED}/reference-logps-from-larger/relabel " in empty.run(*asked).stdout
    empty.edit("evaluate.yaml", "oracel: null")
    assert "evaluate.yaml:" in (said := empty.run(*asked, code=2).stderr)
    assert said.endswith(": oracel: unknown key, did you mean oracle?\n")
    (empty.suite / "evaluate.yaml").unlink()  # a policy is trained without one
    assert f" {SEED}/reference-logps/relabel " in empty.run(*asked).stdout


def test_a_changed_value_that_no_folder_can_be_named_after_is_refused(empty: Tiny) -> None:
    for value in ('"a\\nb"', "x" * 300):
        said = empty.run("train-policy", "dpo.yaml", "--set", f"lora_target_modules={value}", code=2).stderr
        assert len(said.splitlines()) == 1 and "Traceback" not in said


def model_folder(folder: Path, tokens: dict[str, Any], **config: Any) -> Path:
    """A folder with what is read of a model before it is loaded; a llama unless the config says otherwise."""
    folder.mkdir(parents=True)
    made = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **config}
    (folder / "config.json").write_text(json.dumps(made))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        **tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    vocabulary = {"type": "WordLevel", "vocab": {"<pad>": 0, "</s>": 1, "a": 2}}
    (folder / "tokenizer.json").write_text(json.dumps({"model": vocabulary, "added_tokens": []}))
    layer = "model.layers.0.self_attn"
    names = [f"{layer}.{name}.weight" for name in ("q_proj", "v_proj")] + ["model.embed_tokens.weight"]
    save_file({name: torch.zeros(1) for name in names}, folder / "model.safetensors")
    return folder


def on(suite: Path, model: Path) -> None:
    """Have pi_SFT start from a folder."""
    text = (suite / "sft.yaml").read_text().splitlines()
    kept = [line for line in text if not line.startswith("model_config_kwargs")]
    (suite / "sft.yaml").write_text("\n".join([*kept, f"model_name_or_path: {model}"]) + "\n")


ORACLE = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
# What is written into which recipe, and what is said of it; {m} is a folder of models.
PLANS = {
    "an optimiser that is misspelt": (
        "sft.yaml", "optim: adamw_torhc",
        "optim: transformers has no optimiser 'adamw_torhc', did you mean adamw_torch?",
    ),
    "an optimiser of a package that is not there": (
        "rm.yaml", "optim: grokadamw", "optim: grokadamw needs grokadamw, which is not installed"
    ),
    "an optimiser that asks for what no recipe has": (
        "rm.yaml", "optim: galore_adamw", "optim: galore_adamw needs optim_target_modules"
    ),
    "an attention that is not there": (
        "dpo.yaml", "device: cuda\nattn_implementation: flash_attention_2",
        "attn_implementation: flash_attention_2 needs flash_attn, which is not installed",
    ),
    "an attention on a CPU": (
        "dpo.yaml", "attn_implementation: flash_attention_3",
        "flash_attention_3 needs a GPU, and device is cpu",
    ),
    "an attention that is misspelt": (
        "dpo.yaml", "attn_implementation: sdap", "transformers has no attention 'sdap', did you mean sdpa?"
    ),
    "modules of an adapter that a model from scratch has not got": (
        "dpo.yaml", "use_peft: true\nlora_target_modules: [q_proj, nosuch]",
        "lora_target_modules: the model has no module nosuch; it has ",
    ),
    "a head that no adapter is trained of": (
        "dpo.yaml", "use_peft: true\nlora_target_modules: [q_proj, lm_head]",
        "lora_target_modules: lm_head: TRL trains no adapter of it",
    ),
    "no module to adapt": (
        "dpo.yaml", "use_peft: true\nlora_target_modules: []",
        "lora_target_modules: needs at least 1 item(s)",
    ),
    "nothing to try": ("dpo.yaml", "grid: {beta: []}", "grid.beta: needs at least 1 item(s)"),
    "a sign of a text for padding": ("dpo.yaml", "pad_token: '!'", "pad_token: '!' is a word or a sign"),
    "a model from scratch of no type": (
        "sft.yaml", "model_config_kwargs: {hidden_size: 16}", "model_config_kwargs: needs a model_type",
    ),
    "what the tokenizer says of a model from scratch": (
        "sft.yaml", "model_config_kwargs: {model_type: llama, vocab_size: 9}",
        "model_config_kwargs: vocab_size: the tokenizer says it",
    ),
    "more tokens than a model from scratch has positions": (
        "sft.yaml", "model_config_kwargs: {model_type: gpt2, n_positions: 40, n_embd: 8, n_head: 2}",
        "max_length: 48 exceeds the model's 40 positions",
    ),
    "a model from scratch whose heads do not share its width": (
        "sft.yaml", "model_config_kwargs: {model_type: llama, hidden_size: 20, num_attention_heads: 3}",
        "model_config_kwargs: ",
    ),
    "a width for as many heads as nobody asked for": (
        "sft.yaml", "model_config_kwargs: {model_type: llama, hidden_size: 16}", "model_config_kwargs: ",
    ),
    "a model from scratch without layers": (
        "sft.yaml", "model_config_kwargs: {model_type: gpt2, n_layer: 0}",
        "model_config_kwargs: num_hidden_layers 0: a model has at least one",
    ),
    "a model from scratch with less than no layers": (
        "sft.yaml", "model_config_kwargs: {model_type: llama, num_hidden_layers: -2}",
        "model_config_kwargs: num_hidden_layers -2: a model has at least one",
    ),
    "a model from scratch with an empty layer": (
        "sft.yaml", "model_config_kwargs: {model_type: llama, intermediate_size: 0}",
        "weight would have no weights: a size is 0",
    ),
    "a model from scratch of a negative size": (
        "sft.yaml", "model_config_kwargs: {model_type: llama, intermediate_size: -4}", "negative dimension",
    ),
    "a type of models that does not exist": (
        "sft.yaml", "model_config_kwargs: {model_type: lama}",
        "model_config_kwargs: Unrecognized model identifier: lama",
    ),
    "a type of models that answers no prompt": (
        "sft.yaml", "model_config_kwargs: {model_type: t5}",
        "model_config_kwargs: Unrecognized configuration class",
    ),
    "a seed that NumPy does not take": ("sft.yaml", f"seed: {10**20}", "seed: must be at most 4294967295"),
    "more threads than any machine has": ("sft.yaml", "threads: 100000", "threads: must be at most 1024"),
    "a rate beyond float32": ("sft.yaml", "learning_rate: 1e300", "learning_rate: must be at most 3.4e+38"),
    "a rate without end": ("sft.yaml", "learning_rate: .inf", "learning_rate: must be finite"),
    "a scheduler that is none": ("sft.yaml", "lr_scheduler_type: poly", "lr_scheduler_type: expected linear"),
    "a warm-up longer than the training": (
        "sft.yaml", "warmup_steps: 6", "warmup_steps: 6 is more than all steps (max_steps: 5)"
    ),
    "one member twice": ("rm.yaml", "ensemble: [0.2, 0.5, 0.20]", "ensemble: lists 0.2 twice"),
    "one teacher twice": ("e-dpo.yaml", "ensemble: [./a, ./b, ./a/]", "ensemble: lists "),
    "one column for both": ("dpo.yaml", "margin_columns: [[s, s]]", "margin_columns[0]: lists s twice"),
    "one strength twice": ("dpo.yaml", "grid: {beta: [0.1, 1e-1]}", "grid.beta: lists 0.1 twice"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_what_would_stop_a_stage_is_said_before_the_first_with_its_line(empty: Tiny, name: str) -> None:
    recipe, text, says = PLANS[name]
    empty.edit(recipe, text)
    line = len((empty.suite / recipe).read_text().splitlines())
    at = f"{empty.suite / recipe}:{line - (says.startswith('max_length'))}: "
    command = {"sft": "train-sft", "rm": "train-rm"}.get(recipe.split(".")[0], "train-policy")
    target = recipe
    for said in (
        empty.run(command, target, code=2).stderr,
        empty.run(command, target, "--dry-run", code=2).stderr,
        rpo("recipe", "check", empty.suite / target, code=2).stderr,
    ):
        (problem,) = said.splitlines()
        assert says in problem
        assert problem.startswith(at) or says.startswith("max_length")
    assert not empty.root.exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("{model_type: gpt2, n_embd: 8, n_head: 2, n_innner: 9}", "GPT2Config has no key n_innner"),
        ("{model_type: llama, hidden_act: nosuch}", "nosuch"),
        ("{model_type: llama, num_key_value_heads: 5}", "num_attention_heads 32 is no multiple of num_key"),
        ("{model_type: gpt2, n_embd: 8, n_head: 2}", "max_length: 2000 exceeds the model's 1024 positions"),
    ],
)  # fmt: skip
def test_every_model_from_scratch_is_built_on_paper_before_the_first_stage(
    empty: Tiny, settings: str, says: str
) -> None:
    """A dry run imports no torch for what looks as it should; a run does anyway."""
    empty.edit("base.yaml", "max_length: 2000")
    empty.edit("sft.yaml", f"model_config_kwargs: {settings}")
    for line in empty.run("train-policy", "dpo.yaml", code=2).stderr.splitlines():
        if line.startswith(str(empty.suite)):
            assert says in line and line.startswith(f"{empty.suite}/")
            break
    else:
        pytest.fail("nothing is said")
    assert not (empty.root / "seed-0").exists()


def test_samples_that_a_model_has_no_room_for_are_refused_before_anything_is_trained(empty: Tiny) -> None:
    empty.edit("evaluate.yaml", "max_new_tokens: 64")
    line = len((empty.suite / "evaluate.yaml").read_text().splitlines())
    (said,) = empty.run("evaluate", "dpo.yaml", code=2).stderr.splitlines()
    assert said.startswith(f"{empty.suite / 'evaluate.yaml'}:{line}: max_new_tokens: 64 leave no room for a ")
    assert not empty.root.exists()
    empty.edit("evaluate.yaml", "max_new_tokens: 63")
    empty.run("evaluate", "dpo.yaml", "--dry-run")


@pytest.mark.slow
def test_a_local_model_is_looked_at_before_the_first_stage(empty: Tiny, tmp_path: Path) -> None:
    """Of each fault the line that names the model, or the key to set."""
    plain = model_folder(tmp_path / "plain", {})
    faults: list[tuple[Path, str, str]] = [
        (plain, "pad_token: </s>", f"pad_token: is the EOS of {plain}; leave the key out"),
        (model_folder(tmp_path / "short", {}, model_type="gpt2", n_positions=40), "",
         "48 exceeds the model's 40 positions"),
        (plain, "use_peft: true\nlora_target_modules: [q_proj, c_attn]",
         "the model has no module c_attn; it has embed_tokens, q_proj, v_proj"),
        (plain, "use_peft: true\nlora_target_modules: '.*(q_proj'", "is no regular expression"),
        (plain, "use_peft: true\nlora_target_modules: 'q_proj'", "the model has no module q_proj"),
    ]  # fmt: skip
    sft = (empty.suite / "sft.yaml").read_text()
    for folder, more, says in faults:
        (empty.suite / "sft.yaml").write_text(sft)
        on(empty.suite, folder)
        with (empty.suite / "sft.yaml").open("a") as file:
            file.write(f"{more}\n")
        for said in (
            empty.run("train-policy", "dpo.yaml", "--dry-run", code=2).stderr,
            rpo("recipe", "check", empty.suite / "dpo.yaml", code=2).stderr,
        ):
            assert says in said.splitlines()[0] and str(empty.suite) in said
    for more in ("lora_target_modules: [q_proj, self_attn.v_proj]", "lora_target_modules: .*_proj"):
        (empty.suite / "sft.yaml").write_text(sft)
        on(empty.suite, plain)
        with (empty.suite / "sft.yaml").open("a") as file:
            file.write(f"use_peft: true\n{more}\n")
        empty.run("train-policy", "dpo.yaml", "--dry-run")


def test_an_adapter_that_cannot_be_merged_is_refused_before_the_first_stage(
    empty: Tiny, tmp_path: Path
) -> None:
    short = model_folder(tmp_path / "short", {}, model_type="gpt2", n_positions=40)
    gone, one, other, whole = (tmp_path / name for name in ("gone", "one", "other", "whole"))
    for folder, base in ((gone, tmp_path / "nowhere"), (one, other), (other, one), (whole, short)):
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
        save_file({"lora_A": torch.zeros(1)}, folder / "adapter_model.safetensors")
    bits = "use_peft: true\nload_in_4bit: true\n"
    sft, relabel = ((empty.suite / name).read_text() for name in ("sft.yaml", "relabel.yaml"))
    for folder, more, says in (
        (gone, "", "is an adapter whose base model"),
        (one, "", "is an adapter on it in turn"),
        (whole, "", "max_length: 48 exceeds the model's 40 positions"),
        (whole, bits, "is an adapter, and cannot be merged into 4 bits"),
    ):
        (empty.suite / "sft.yaml").write_text(sft + more)
        on(empty.suite, folder)
        said = empty.run("train-policy", "dpo.yaml", "--dry-run", code=2).stderr
        assert any(says in line and line.startswith(f"{empty.suite}/") for line in said.splitlines())
    (empty.suite / "sft.yaml").write_text(sft)
    for folder, says in ((gone, "is an adapter whose base model"), (one, "is an adapter on it in turn")):
        (empty.suite / "relabel.yaml").write_text(f"{relabel}reward_model: {folder}\n")
        said = empty.run("make-biased-splits", "splits.yaml", "--dry-run", code=2).stderr
        assert f"{empty.suite}/relabel.yaml:6: reward_model: " in said and says in said
        (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
        assert says in rpo("score", tmp_path / "rows.jsonl", "--model", folder, code=2).stderr
        assert says in rpo("sample", tmp_path / "rows.jsonl", "--model", folder, code=2).stderr


@pytest.mark.slow
def test_a_reward_model_from_elsewhere_has_one_label_or_a_named_one_and_any_tokens(
    empty: Tiny, tmp_path: Path
) -> None:
    base = model_folder(tmp_path / "base", {})
    on(empty.suite, base)
    good = model_folder(tmp_path / "good", {}, **ORACLE)
    two = model_folder(tmp_path / "two", {}, architectures=ORACLE["architectures"])
    own = {"auto_map": {"AutoModelForSequenceClassification": "modeling.Gated"}}
    code = model_folder(tmp_path / "code", {}, architectures=["Gated"], **own)
    eos = model_folder(tmp_path / "eos", {"eos_token": "a"}, **ORACLE)
    words = model_folder(tmp_path / "words", {}, **ORACLE)
    vocabulary = {"model": {"vocab": [["<pad>", 0.0], ["</s>", 0.0], ["b", 0.0]]}, "added_tokens": []}
    (words / "tokenizer.json").write_text(json.dumps(vocabulary))
    for model, says in (
        (good, None),
        (base, "is a LlamaForCausalLM, no reward model"),
        (
            two,
            "has 2 labels; a reward model has one; reward_label: says which is the reward: LABEL_0, LABEL_1",
        ),
        (code, "is a Gated, no reward model, and code of its own (trust_remote_code) is not run"),
        (eos, None),
        (words, None),
    ):
        for recipe, key in (("evaluate.yaml", "oracle"), ("d-dpo.yaml", "reward_model")):
            before = (empty.suite / recipe).read_text()
            empty.edit(recipe, f"{key}: {model}")
            line = len((empty.suite / recipe).read_text().splitlines())
            result = empty.run("evaluate", "d-dpo.yaml", "--dry-run", code=0 if says is None else 2)
            if says is not None:
                (problem,) = result.stderr.splitlines()
                assert problem.startswith(f"{empty.suite / recipe}:{line}: {key}: ") and says in problem
            (empty.suite / recipe).write_text(before)


def test_dialogues_are_rendered_only_with_a_template(empty: Tiny, tmp_path: Path) -> None:
    tokenizer = model_folder(tmp_path / "tokenizer", {})
    (empty.suite / "data.yaml").write_text(
        f"{PLAIN}stage: data\nsource: hh-rlhf\nprompt_format: chat\ntokenizer: {tokenizer}\n"
    )
    said = empty.run("train-sft", "sft.yaml", "--dry-run", code=2).stderr
    assert (
        f"data.yaml:7: tokenizer: {tokenizer} has no chat template, which prompt_format: chat needs" in said
    )
    (tokenizer / "chat_template.jinja").write_text("{{ messages }}")
    empty.run("train-sft", "sft.yaml", "--dry-run")


NO_EFFECT = {
    "checkpoints where the best step is one": (
        "rm.yaml", "stopping: early\neval_steps: 2\nsave_steps: 2",
        "save_steps: no effect with stopping: early"
    ),
    "a teacher without distillation": ("dpo.yaml", "teacher: lcb", "teacher: no effect with objective: dpo"),
    "the weight of a KL that is none": ("dpo.yaml", "gamma: 5", "gamma: no effect with objective: dpo"),
    "the other strength": ("e-dpo.yaml", "tau: 1", "tau: no effect with objective: e-dpo"),
    "a grid of the other strength": (
        "e-dpo.yaml", "grid: {tau: [1, 2]}", "grid.tau: no effect with objective: e-dpo"
    ),
    "the other strength at one rho": (
        "e-dpo.yaml", "by_rho: {0.5: {tau: 1}}", "by_rho.0.5.tau: no effect with objective: e-dpo"
    ),
    "TRL's key of another loss": (
        "dpo.yaml", "label_smoothing: 0.1",
        "label_smoothing: no effect with objective: dpo; DPO with it, as in TRL, is `objective: cdpo`"
    ),
    "another objective's key": ("dpo.yaml", "simpo_gamma: 1", "simpo_gamma: no effect with objective: dpo"),
    "another teacher's key": ("d-dpo.yaml", "lcb_lambda: 2", "lcb_lambda: no effect with teacher: one"),
    "a decay of what is not averaged": (
        "e-dpo.yaml", "ema_decay: 0.5", "ema_decay: no effect with ensemble_min: example"
    ),
    "an adapter's rank without adapter": ("sft.yaml", "lora_r: 4", "lora_r: no effect with use_peft: false"),
    "a warm-up of a constant rate": (
        "rm.yaml", "warmup_steps: 2", "warmup_steps: no effect with lr_scheduler_type: constant"
    ),
    "moments of plain descent": (
        "sft.yaml", "optim: sgd\nadam_beta1: 0.5", "adam_beta1: no effect with optim: sgd"
    ),
    "a seed of another purpose": ("sft.yaml", "rm_seed: 3", "rm_seed: no effect with stage: sft"),
    "a rho of pairs that are not drawn": ("oracle.yaml", "rho: 0.5", "rho: no effect with data: data.yaml"),
    "a model of what loads another": (
        "evaluate.yaml", "model_name_or_path: gpt2", "model_name_or_path: no effect with stage: evaluate"
    ),
    "steps of evaluations that nobody asks for": (
        "rm.yaml", "eval_steps: 2", "eval_steps: no effect with stopping: steps"
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_EFFECT)
def test_a_key_without_effect_is_noted_with_its_line_and_changes_no_key(empty: Tiny, name: str) -> None:
    recipe, text, says = NO_EFFECT[name]
    before = empty.stage(recipe).key if recipe != "evaluate.yaml" else None
    empty.edit(recipe, text)
    line = len((empty.suite / recipe).read_text().splitlines())
    noted = f"note: {empty.suite / recipe}:{line}: {says}\n"
    checked = rpo("recipe", "check", empty.suite / recipe)
    assert noted in checked.stderr and checked.stdout == "1 recipe, no problems, 1 note\n"
    command = {"sft": "train-sft", "rm": "train-rm", "oracle": "train-rm"}.get(
        recipe.split(".")[0], "evaluate"
    )
    assert noted in empty.run(command, recipe, "--dry-run").stderr
    if before is not None and recipe in ("dpo.yaml", "e-dpo.yaml", "d-dpo.yaml"):
        assert empty.stage(recipe).key == before


def test_a_base_may_set_what_some_of_its_recipes_have_no_use_for(empty: Tiny) -> None:
    empty.edit("policy.yaml", "teacher: lcb\ngamma: 5\nlora_r: 4")
    assert rpo("recipe", "check", empty.suite).stdout.endswith("recipes, no problems\n")
    said = empty.run("train-policy", "dpo.yaml", "--set", "gamma=5", "--dry-run").stderr
    assert "note: --set gamma: no effect with objective: dpo\n" in said


def test_a_variant_that_switches_something_off_blames_no_file(empty: Tiny) -> None:
    empty.edit("e-dpo.yaml", "calibration: temperature\ncalibration_mix: own")
    (empty.suite / "figure.yaml").write_text(
        "stage: figure\nkind: ensemble\nrhos: [0.5]\nvariants: "
        "[{name: a, recipe: e-dpo.yaml}, {name: b, recipe: e-dpo.yaml, set: {calibration: none}}]\n"
    )
    assert rpo("recipe", "check", empty.suite / "figure.yaml").stdout == "1 recipe, no problems\n"


def test_a_grid_of_another_strength_is_swept_by_nobody(empty: Tiny) -> None:
    empty.edit("e-dpo.yaml", "grid: {tau: [1, 2]}")
    said = empty.run("sweep", "e-dpo.yaml", code=2).stderr
    line = len((empty.suite / "e-dpo.yaml").read_text().splitlines())
    what = "grid: give one grid, of beta, to sweep over with objective: e-dpo"
    cure = "such as `grid: {beta: [0.03, 0.1, 0.3]}`"
    assert said == f"{empty.suite}/e-dpo.yaml:{line}: {what}, {cure}\n"


def test_a_model_that_an_offline_machine_cannot_get_is_noted_in_a_dry_run(empty: Tiny) -> None:
    on(empty.suite, Path("some/model"))
    said = empty.run("train-sft", "sft.yaml", "--dry-run").stderr
    assert "note: HF_HUB_OFFLINE is set, and the hub's cache lacks some/model\n" in said


@pytest.mark.parametrize("option", ["--rho=0.2,0.5,0.20", "--seeds=1,2,1"])
def test_nothing_is_asked_for_twice_on_the_command_line(empty: Tiny, option: str) -> None:
    said = empty.run("sweep", "dpo.yaml", option, "--dry-run", code=2).stderr
    assert said == f"{option.replace('=', ' ')}: one of them twice\n"


def test_a_next_command_is_named_only_if_it_would_run(tiny: Tiny) -> None:
    at = f"next: rpo train-rm {tiny.suite}/oracle.yaml --workspace {tiny.root}\n"
    oracle = (tiny.suite / "oracle.yaml").read_text()
    for text, runs in (
        (oracle, True),
        (oracle.replace("table: pairs", "data: nowhere.yaml"), False),
        (oracle.replace("max_steps", "max_stps"), False),
        (oracle + "optim: adamw_torhc\n", False),
        ((tiny.suite / "data.yaml").read_text(), False),
    ):
        (tiny.suite / "oracle.yaml").write_text(text)
        said = tiny.run("train-sft", "sft.yaml").stderr
        assert (at in said) == ("next:" in said) == runs


@pytest.mark.slow
def test_a_recipe_with_anything_wrong_is_refused_in_a_line_or_planned(tmp_path: Path) -> None:
    """A slice of `python -m tools.fuzz_recipes`."""
    from tools import fuzz_recipes

    ends, wrong = fuzz_recipes.run(25, 1, tmp_path)
    assert wrong == [] and ends["as it should"] > 25


def test_a_figure_asks_for_its_folder_before_it_trains(empty: Tiny) -> None:
    (empty.suite / "figure.yaml").write_text(
        "stage: figure\nkind: figure2\npolicies: [dpo.yaml]\nrhos: [0.5]\n"
    )
    (empty.root / "seed-0/data").mkdir(parents=True)
    (empty.root / "seed-0/data/manifest.json").touch()
    for out, says in (
        (empty.suite / "dpo.yaml", "is no folder in which files can be written"),
        (empty.suite / "dpo.yaml/below", "is no folder in which files can be written"),
        (f"{empty.root}/a\nb", "is no folder in which files can be written"),
        (empty.root / "seed-0/data/pictures", "lies inside an artifact"),
    ):
        (line,) = empty.run("figure figure2", "figure.yaml", "--out", out, code=2).stderr.splitlines()
        assert line.startswith("--out ") and says in line


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_plan_that_disk_or_memory_may_not_hold_is_warned_of(
    device: str, empty: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header of its weights says how large a model is; nothing else of them is read."""
    monkeypatch.setattr("rpo_cli.devices.gpus", lambda recipes: [])
    empty.edit("base.yaml", f"device: {device}")
    base = model_folder(tmp_path / "base", {})
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**8, 10**7], "data_offsets": [0, 4]}}).encode()
    (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    on(empty.suite, base)
    said = empty.run("train-rm", "rm.yaml", "--ensemble", "--jobs", "2", "--dry-run").stderr
    # pi_SFT, its oracle and three members; two of them train at a time.
    assert "note: disk: the models of this plan take up to 20000.0 TB with --jobs 2, " in said
    assert "note: memory: the models of this plan take up to 32000.0 TB with --jobs 2, " in said
    said = empty.run(
        "train-sft", "sft.yaml", "--set", "use_peft=true", "--set", "save_steps=2", "--dry-run"
    ).stderr
    assert "disk: the models of this plan take up to 4000.0 TB with --jobs 1, " in said, (
        "of an adapter little"
    )
    assert "memory: the models of this plan take up to 4000.0 TB with --jobs 1, " in said


def test_a_word_for_padding_is_refused_before_anything_is_loaded(empty: Tiny) -> None:
    empty.edit("oracle.yaml", "pad_token: cat\n")
    says = "pad_token: 'cat' is a word or a sign, which a text may hold; set `pad_token:`"
    for arguments in (("train-rm", "oracle.yaml", "--dry-run"), ("train-rm", "oracle.yaml")):
        assert says in empty.run(*arguments, code=2).stderr
    assert says in rpo("recipe", "check", empty.suite, code=2).stderr
