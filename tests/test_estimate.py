"""A plan's numbers are checkable arithmetic; a smaller figure says what it leaves out; weights can go."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from conftest import RHO, Tiny, manifest, rpo, tokenise
from safetensors import safe_open
from test_cli import HEAVY

from rpo_cli.artifacts import Workspace
from rpo_cli.errors import BadInput
from rpo_cli.figures.cells import Cell
from rpo_cli.figures.selection import select, spread
from rpo_cli.figures.tuning import WeightKeeper
from rpo_cli.models import load_tokenizer
from rpo_cli.runs.options import Study
from rpo_cli.runs.question import ACCELERATORS
from rpo_cli.stages.data.rows import read_rows
from rpo_cli.text import size

ROOT = Path(__file__).resolve().parent.parent

FIGURE = (
    "stage: figure\npolicies: [dpo.yaml, d-dpo.yaml, e-dpo.yaml]\nrhos: [0.4, 0.5, 0.6]\nseeds: [0, 1]\n"
    "bootstrap_samples: 50\n"
)
GRID = "grid: {beta: [0.1, 0.2, 0.4]}"


def with_figure(tiny: Tiny) -> Tiny:
    (tiny.suite / "figure.yaml").write_text(FIGURE)
    for name in ("dpo", "d-dpo", "e-dpo"):
        tiny.edit(f"{name}.yaml", GRID)
    return tiny


def plan(tiny: Tiny, command: str, recipe: str, *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tiny.run(command, recipe, "--dry-run", "--json", *arguments).stdout)
    return found


def kinds(found: dict[str, Any], name: str) -> dict[str, int]:
    return {group["kind"]: group[name] for group in found["stages"]}


# ── The plan ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dry_run_counts_every_stage_by_kind(empty: Tiny) -> None:
    found = plan(with_figure(empty), "figure figure2", "figure.yaml", "--tune")
    assert found["cells"]["validation"] == 3 * 3 * 2 * 3 and found["cells"]["test"] == 3 * 3 * 2
    # For each seed an oracle, for each rho one reward model and three members; two baselines.
    per_seed = {
        "data": 1,
        "sft": 1,
        "reward": 1 + 3 * 4,
        "relabel": 1,
        "splits": 3,
        "reference": 1,
        "samples": 1,
        "scores": 3 * 4,
        "policy": 27,
        "evaluate": 27 + 9 + 2,
    }
    assert (
        kinds(found, "total")
        == kinds(found, "build")
        == {kind: 2 * count for kind, count in per_seed.items()}
    )
    assert found["total"] == found["build"] == len(found["todo"]) == 2 * sum(per_seed.values())
    assert not empty.root.exists()


def test_what_is_there_is_reused_and_what_lies_behind_it_not_needed(tiny: Tiny) -> None:
    found = plan(
        with_figure(tiny),
        "figure figure2",
        "figure.yaml",
        "--rho",
        "0.5",
        "--seeds",
        "0",
        "--objectives",
        "e-dpo",
    )
    assert found["build"] == 0 and kinds(found, "up_to_date") == kinds(found, "total")
    tiny.edit("oracle.yaml", "max_steps: 7")
    found = plan(
        tiny, "figure figure2", "figure.yaml", "--rho", "0.5", "--seeds", "0", "--objectives", "e-dpo"
    )
    assert kinds(found, "up_to_date")["data"] == kinds(found, "up_to_date")["sft"] == 1
    reasons = {group["kind"]: group["why"] for group in found["stages"]}
    assert reasons["reward"].startswith("3 input data changed; 1 max_steps 6 -> 7") and reasons["data"] == ""


def test_a_tuned_value_that_is_in_the_grid_costs_no_other_policy(tiny: Tiny) -> None:
    """The recipes' own beta 0.2 is in the grid; one outside would be a policy more than the sweep chooses."""
    arguments = (
        "figure figure2",
        "figure.yaml",
        "--tune",
        "--rho",
        "0.5",
        "--seeds",
        "0",
        "--objectives",
        "e-dpo",
    )
    assert kinds(plan(with_figure(tiny), *arguments), "total")["policy"] == 3
    tiny.edit("e-dpo.yaml", "beta: 0.7")
    assert kinds(plan(tiny, *arguments), "total")["policy"] == 3


def test_a_plan_imports_no_library_of_models(empty: Tiny) -> None:
    with_figure(empty)
    arguments = [
        "figure",
        "figure2",
        "--recipe",
        str(empty.suite / "figure.yaml"),
        "--workspace",
        str(empty.root),
        "--tune",
        "--dry-run",
    ]
    program = (
        "import sys\nfrom rpo_cli.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stdout.endswith("HEAVY []\n"), ended.stdout + ended.stderr
    assert "54 cells on validation, 18 cells on test" in ended.stdout


# ── The estimate ────────────────────────────────────────────────────────────────────────────────────────────


def by_kind(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["kind"]: group for group in found["estimate"]["by_kind"]}


def test_an_estimate_counts_the_tokens_and_the_parameters_that_are_there(tiny: Tiny) -> None:
    with_figure(tiny)
    found = plan(
        tiny,
        "figure figure2",
        "figure.yaml",
        "--rho",
        "0.5",
        "--seeds",
        "0",
        "--objectives",
        "dpo",
        "--estimate",
    )
    assert kinds(found, "build") == {
        kind: int(kind in ("policy", "evaluate")) for kind in kinds(found, "build")
    }
    policy = tiny.root / "seed-0/sft"
    with safe_open(policy / "model.safetensors", "pt") as file:
        parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    rows = tokenise(
        read_rows(tiny.root / "seed-0/data/pairs.parquet"),
        ("chosen", "rejected"),
        load_tokenizer(policy),
        10**6,
        "error",
        "",
    )
    mean = sum(len(row.prompt_ids) + len(row.responses[0]) + len(row.responses[1]) for row in rows) / len(
        rows
    )
    trained = by_kind(found)["policy"]
    assert trained["train_tokens"] == pytest.approx(6 * 8 * mean)
    assert trained["train"] == pytest.approx(6 * parameters * trained["train_tokens"])
    models = {model["head"]: model["parameters"] for model in found["estimate"]["models"]}
    assert models["language model"] == parameters
    prompts = tokenise(
        read_rows(tiny.root / "seed-0/data/prompts_test.parquet"),
        (),
        load_tokenizer(policy),
        10**6,
        "error",
        "",
    )
    sampled = 2 * (
        sum(len(row.prompt_ids) for row in prompts) + len(prompts) * 8
    )  # two samples of at most eight tokens each
    evaluated = by_kind(found)["evaluate"]
    assert evaluated["decode_tokens"] == 2 * len(prompts) * 8
    # The prompt is read to sample, then policy, reference and oracle score.
    assert evaluated["score_tokens"] == pytest.approx(3 * sampled + sampled - evaluated["decode_tokens"])
    (peak,) = found["estimate"]["memory"]
    assert (peak["bytes"]["weights"], peak["bytes"]["optimizer"]) == (4 * parameters, 8 * parameters)
    assert (
        peak["bytes"]["activations"] == 2 * (2 * 8) * 48 * 16 * 34 * 2
    )  # float32, 16 sequences, 48 tokens, width 16, 2 layers
    assert all("measured on" in line for line in found["estimate"]["token_counts_from"])
    assert found["estimate"]["hours"] is found["estimate"]["dollars"] is None


def test_texts_that_are_not_there_yet_are_bounded_and_said_to_be(empty: Tiny) -> None:
    found = plan(with_figure(empty), "sweep", "dpo.yaml", "--rho", "0.5", "--estimate")
    assert (
        by_kind(found)["policy"]["train_tokens"] == 3 * 6 * 8 * 2 * 48
    )  # cells, steps, pairs, two whole rows
    assert by_kind(found)["relabel"]["score_tokens"] == 360 * 2 * 48
    assert (
        "pairs: 360 rows; not there yet: every row counts as max_length"
        in found["estimate"]["token_counts_from"]
    )
    assert not empty.root.exists()


def test_hours_and_dollars_follow_from_what_is_named(empty: Tiny) -> None:
    with_figure(empty)

    def cost(*arguments: object) -> dict[str, Any]:
        return cast(dict[str, Any], plan(empty, "sweep", "dpo.yaml", "--rho", "0.5", *arguments)["estimate"])

    plain = cost("--tflops", "0.001", "--mfu", "0.5", "--price-per-hour", "3")
    assert plain["hours"] == pytest.approx(plain["flops"]["total"] / (0.001e12 * 0.5) / 3600)
    assert plain["dollars"] == pytest.approx(3 * plain["hours"])
    assert any("50% is reached" in line for line in plain["assumptions"])
    named = cost("--device-name", "a100-80g")
    # Tiny batches: decoding waits for the weights, not for arithmetic.
    reads = sum(group["read_bytes"] for group in named["by_kind"])
    compute = (named["flops"]["train"] + named["flops"]["score"]) / (312e12 * 0.35)
    assert named["hours"] == pytest.approx((compute + reads / (2039e9 * 0.5)) / 3600)
    assert named["dollars"] is None and all(peak["fits"] for peak in named["memory"])


def share_of_an_h100(workload: str, said: str) -> float:
    """The share of its peak at 6 N FLOPs a token, of a row of a card's file: workload, and `N pairs/s`."""
    patterns = (r"llama ([\d.]+)M", r"prompts (\d+) tokens", r"responses (\d+) ", r"([\d.]+) pairs/s")
    found = [re.findall(pattern, f"{workload} {said}") for pattern in patterns]
    million, prompt, response, rate = (float(number) for (number,) in found)
    return rate * 6 * million * 1e6 * (prompt + 2 * response) / 989e12


def test_the_share_of_the_peak_is_the_measured_one_where_there_is_a_measurement(empty: Tiny) -> None:
    with_figure(empty)

    def shares(*arguments: object) -> tuple[float, str]:
        found = plan(empty, "sweep", "dpo.yaml", "--rho", "0.5", *arguments)["estimate"]
        return found["mfu"], next(line for line in found["assumptions"] if "is reached" in line)

    card = json.loads((ROOT / "benchmarks" / "gpu" / "NVIDIA-H100-80GB-HBM3.json").read_text())
    step = next(
        one for one in card["policy_tldr"]["comparisons"] if one["baseline"].startswith("layers not compiled")
    )
    reached = share_of_an_h100(step["workload"], step["baseline"])
    share, said = shares("--device-name", "h100-80g")
    assert share == round(reached, 2) and "measured: a dpo step" in said
    share, said = shares("--device-name", "h100-80g", "--mfu", "0.3")
    assert share == 0.3 and "30% is reached (as --mfu says)" in said
    assert shares("--device-name", "h100-80g", "--tflops", "1979")[0] == 0.35  # not of that peak
    share, said = shares("--device-name", "a100-80g")
    assert share == 0.35 and "assumed, not measured" in said


def test_small_models_reach_the_share_of_the_peak_that_was_measured_of_one(
    empty: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_figure(empty)

    def costs(*arguments: object) -> dict[str, Any]:
        return cast(dict[str, Any], plan(empty, "sweep", "dpo.yaml", "--rho", "0.5", *arguments)["estimate"])

    card = json.loads((ROOT / "benchmarks" / "gpu" / "NVIDIA-H100-80GB-HBM3.json").read_text())
    step = "kernel by kernel, torch's norms: "
    said = next(one["ours"] for one in card["leads"]["comparisons"] if one["ours"].startswith(step))
    reached = share_of_an_h100(card["small_steps"]["comparisons"][0]["workload"], said)
    card_80g = costs("--device-name", "h100-80g")
    assert card_80g["mfu_small"] == round(reached, 2)
    assert any("at most 500M parameters reach 5%" in line for line in card_80g["assumptions"])
    flops = card_80g["flops"]["train"] + card_80g["flops"]["score"]
    reads = sum(group["read_bytes"] for group in card_80g["by_kind"])
    assert sum(group["flops_small"] for group in card_80g["by_kind"]) == pytest.approx(flops)
    assert card_80g["hours"] * 3600 == pytest.approx(flops / (989e12 * 0.05) + reads / (3350e9 * 0.5))
    monkeypatch.setattr("rpo_cli.runs.costs.HOST_BOUND", 1)
    large = costs("--device-name", "h100-80g")
    assert large["hours"] * 3600 == pytest.approx(flops / (989e12 * 0.14) + reads / (3350e9 * 0.5))
    for arguments in (("h100-80g", "--mfu", "0.3"), ("a100-80g",), ("h100-80g", "--tflops", "1979")):
        other = costs("--device-name", *arguments)
        assert other["mfu_small"] == other["mfu"]
        assert not any("at most" in line for line in other["assumptions"])


def test_an_h200_reaches_what_steps_as_graphs_were_measured_to_reach(empty: Tiny) -> None:
    with_figure(empty)
    card = json.loads((ROOT / "benchmarks" / "gpu" / "NVIDIA-H200.json").read_text())
    small, large = (share_of_an_h100(row["workload"], row["ours"]) for row in card["comparisons"])
    found = plan(empty, "sweep", "dpo.yaml", "--rho", "0.5", "--device-name", "h200-141g")["estimate"]
    assert (found["mfu_small"], found["mfu"]) == (round(small, 2), round(large, 2))  # of the same peak


def test_lora_and_checkpointing_change_memory_and_flops(empty: Tiny) -> None:
    with_figure(empty)

    def first(*lines: str) -> tuple[float, dict[str, float]]:
        for line in lines:
            empty.edit("dpo.yaml", line)
        found = plan(empty, "sweep", "dpo.yaml", "--rho", "0.5", "--estimate")
        peak = next(p for p in found["estimate"]["memory"] if p["kind"] == "policy")
        return by_kind(found)["policy"]["train"], peak["bytes"]

    flops, full = first()
    flops_checkpointed, checkpointed = first("gradient_checkpointing: true")
    assert flops_checkpointed == pytest.approx(flops * 8 / 6)
    assert (
        checkpointed["activations"] < full["activations"] and checkpointed["optimizer"] == full["optimizer"]
    )
    flops_lora, lora = first("gradient_checkpointing: false", "use_peft: true", "lora_r: 4")
    assert flops_lora == pytest.approx(flops * 4 / 6)
    # q, k, v, o of 16 x 16 and three of 16 x 32, in two layers, rank 4; not the head.
    assert lora["gradients"] == 4 * 2 * 4 * (4 * 32 + 3 * 48)
    linear = 2 * (4 * 256 + 3 * 512)
    _, four = first("load_in_4bit: true")
    assert (
        lora["weights"] - four["weights"] == linear * (4 - 0.5 - 4 / 64)
        and four["gradients"] == lora["gradients"]
    )
    _, nested = first("use_bnb_nested_quant: true")
    assert four["weights"] - nested["weights"] == pytest.approx(
        linear * 0.373 / 8, rel=1e-3
    )  # 0.373 bits, as the paper has it


@pytest.mark.parametrize(("recipe", "device", "most"), [("lora", "h100-80g", 80), ("qlora", "a10-24g", 24)])
def test_e_dpo_of_an_8b_model_fits_one_gpu_by_an_estimate_that_the_docs_print(
    recipe: str, device: str, most: int
) -> None:
    command = ["train-policy", "--recipe", ROOT / f"recipes/one-gpu/e-dpo-{recipe}.yaml", "--dry-run"]
    found = json.loads(rpo(*command, "--estimate", "--device-name", device, "--json").stdout)["estimate"]
    (peak,) = found["memory"]
    assert peak["fits"] and peak["total"] < most * 1e9
    assert f"| {size(peak['total'])} |" in (ROOT / "docs/estimate.md").read_text()
    parameters = {model["head"]: model["parameters"] for model in found["models"]}
    embeddings = 128_256 * 4096
    # Everything but embeddings and norms in bfloat16: the teacher's linear layers, and no head.
    teacher = 2 * parameters["reward"] + 2 * (embeddings + 65 * 4096)
    assert found["weights_read"]["scores"] == pytest.approx(teacher, rel=1e-4) and teacher < most * 1e9
    assert found["weights_read"]["reference"] == peak["bytes"]["weights"]


def test_a_model_that_cannot_be_read_is_named_or_given(empty: Tiny) -> None:
    with_figure(empty)
    sft = (empty.suite / "sft.yaml").read_text().splitlines()
    kept = [line for line in sft if not line.startswith("model_config_kwargs")]
    (empty.suite / "sft.yaml").write_text("\n".join([*kept, "model_name_or_path: nobody/nothing"]) + "\n")
    refused = empty.run("sweep", "dpo.yaml", "--rho", "0.5", "--dry-run", "--estimate", code=2)
    assert "nobody/nothing: its config cannot be read" in refused.stderr and "--params" in refused.stderr
    found = plan(empty, "sweep", "dpo.yaml", "--rho", "0.5", "--params", "1e9")["estimate"]
    assert {model["parameters"] for model in found["models"]} == {1e9}
    assert any("as --params says" in note for note in found["notes"])
    assert all("activations" not in peak["bytes"] for peak in found["memory"])
    asked = (
        "sweep",
        "dpo.yaml",
        "--rho",
        "0.5",
        "--params",
        "1e9",
        "--dry-run",
        "--estimate",
        "--device-name",
    )
    said = empty.run(*asked, "h100-80g").stdout
    assert "memory to train policy: at least 16.0 GB" in said and "; fits" not in said
    assert "DOES NOT FIT" in empty.run(*asked[:5], "9e9", *asked[6:], "h100-80g").stdout


def test_rows_that_nobody_knows_are_not_counted_and_said_so(empty: Tiny) -> None:
    with_figure(empty)
    from rpo_cli.runs.costs import _rows
    from rpo_cli.runs.sizes import Lengths, Unknown

    with pytest.raises(Unknown, match="how many rows pairs has"):
        _rows(Lengths(None, 1.0, 1.0, 1, ""), "pairs")
    text = empty.run("figure figure2", "figure.yaml", "--tune", "--dry-run", "--estimate").stdout
    assert "name a device for hours" in text and "assumed: training: 6 N" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--estimate"], "go with --dry-run"),
        (["--tflops", "1"], "go with --dry-run"),
        (["--dry-run", "--device-name", "abacus"], "--device-name abacus: not among a10-24g"),
        (["--dry-run", "--price-per-hour", "1"], "need a device"),
        (["--dry-run", "--objectives", "dpo,none"], "none: not among dpo, d-dpo, e-dpo"),
    ],
)
def test_estimates_that_make_no_sense_are_refused(empty: Tiny, arguments: list[str], says: str) -> None:
    assert says in with_figure(empty).run("sweep", "figure.yaml", *arguments, code=2).stderr


def test_every_listed_device_has_its_numbers_and_no_price() -> None:
    devices = yaml.safe_load(ACCELERATORS.read_text())
    assert len(devices) >= 8
    for numbers in devices.values():
        assert numbers.keys() - {"mfu", "mfu_small"} == {"tflops", "memory_gb", "bandwidth_gb_s"} and all(
            value > 0 for value in numbers.values()
        )


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("train-sft", "sft.yaml"),
        ("train-rm", "oracle.yaml"),
        ("train-policy", "e-dpo.yaml"),
        ("evaluate", "e-dpo.yaml"),
    ],
)
def test_every_training_command_estimates_what_its_own_plan_costs(
    empty: Tiny, command: str, recipe: str
) -> None:
    found = plan(empty, command, recipe, "--estimate", "--device-name", "a100-80g")
    counted = {group["kind"]: group["stages"] for group in found["estimate"]["by_kind"]}
    planned = [item["kind"] for item in found["todo"] if item["kind"] not in ("data", "splits")]
    assert counted == {kind: planned.count(kind) for kind in planned}
    assert found["estimate"]["hours"] > 0 and all(peak["fits"] for peak in found["estimate"]["memory"])
    text = empty.run(command, recipe, "--dry-run", "--estimate").stdout
    assert "memory to train sft" in text and "--keep-weights" not in text
    assert "go with --dry-run" in empty.run(command, recipe, "--estimate", code=2).stderr
    assert not empty.root.exists()


# ── Less of it ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_part_of_a_grid_keeps_its_ends() -> None:
    values = [1, 2, 3, 4, 5, 6, 7]
    assert spread(values, 3) == [1, 4, 7] and spread(values, 2) == [1, 7] and spread(values, 1) == [4]
    assert spread(values, None) == spread(values, 7) == spread(values, 99) == values
    assert all(len(set(spread(values, n))) == n for n in range(1, 8))


def test_what_is_left_out_is_listed() -> None:
    whole = (["dpo", "ipo", "e-dpo"], [0.2, 0.3, 0.5, 0.7, 0.8], [0, 1])
    small = select(whole, None, Study(budget="small"))
    assert (small.policies, small.rhos, small.seeds) == (["dpo", "e-dpo"], [0.2, 0.5, 0.8], [0])
    grid = {"beta": [1.0, 2.0, 3.0, 4.0, 5.0]}
    small.leave_out_of_grids({"dpo": grid, "e-dpo": grid})
    assert small.left_out == {
        "policies": ["ipo"],
        "rhos": [0.3, 0.7],
        "seeds": [1],
        "grid": {key: [{"beta": 2.0}, {"beta": 4.0}] for key in ("dpo", "e-dpo")},
    }
    assert small.note() == "2 of 3 objectives, 3 of 5 ρ, 1 of 2 seeds, 3 of 5 grid values"
    mine = select(whole, [0.2], Study("0,1", budget="small", objectives="ipo,dpo", grid_size=5))
    assert (mine.policies, mine.rhos, mine.seeds, mine.grid_size) == (
        ["dpo", "ipo"],
        [0.2],
        [0, 1],
        5,
    )
    whole_figure = select(whole, None, Study())
    whole_figure.leave_out_of_grids({"dpo": {"beta": [1.0, 2.0]}})
    assert whole_figure.left_out == {} and whole_figure.note() == ""
    with pytest.raises(BadInput, match="not among dpo, ipo, e-dpo"):
        select(whole, None, Study(objectives="simpo"))


@pytest.mark.slow
def test_a_reduced_figure_says_so_in_its_json_and_title_and_leaves_recipes_alone(
    tiny: Tiny, tmp_path: Path
) -> None:
    with_figure(tiny)
    tiny.edit("evaluate.yaml", "num_samples: 1")
    before = {file.name: file.read_bytes() for file in tiny.suite.iterdir()}
    out = tmp_path / "out"
    budget = (
        "--budget",
        "small",
        "--objectives",
        "dpo",
        "--rho",
        "0.5",
        "--grid-size",
        "1",
        "--keep-weights",
        "none",
    )
    tiny.run("figure figure2", "figure.yaml", "--tune", *budget, "--out", out)
    provenance = json.loads((out / "figure2.json").read_text())["provenance"]
    assert provenance["left_out"] == {
        "policies": ["d-dpo", "e-dpo"],
        "rhos": [0.4, 0.6],
        "seeds": [1],
        "grid": {"dpo": [{"beta": 0.1}, {"beta": 0.4}]},
    }
    assert provenance["title"].endswith(
        "[reduced: 1 of 3 objectives, 1 of 3 ρ, 1 of 2 seeds, 1 of 3 grid values]"
    )
    assert "[reduced: 1 of 3 objectives" in (out / "figure2.svg").read_text()
    assert provenance["cells"] == {
        "dpo": {"rho-0.5/seed-0": {"beta": 0.2, "key": provenance["cells"]["dpo"]["rho-0.5/seed-0"]["key"]}}
    }
    assert {file.name: file.read_bytes() for file in tiny.suite.iterdir()} == before
    policy = f"{RHO}/policies/dpo/beta-0.2"
    assert manifest(tiny.root, policy)["weights"] == "dropped"
    assert not list((tiny.root / policy).rglob("*.safetensors"))
    assert (tiny.root / "seed-0/sft/model.safetensors").is_file()


# ── What stays on disk ──────────────────────────────────────────────────────────────────────────────────────


def finished(name: str, **metrics: float) -> Any:
    """The manifest of an artifact with this key."""
    return {"kind": "policy", "key": name, "recipe": {}, "options": {}, "inputs": {}, "metrics": metrics}


def cells_in(
    root: Path, advantages: dict[str, float]
) -> tuple[Workspace, list[Cell], dict[str, dict[str, Any]]]:
    """Cells of one policy, rho and seed with weights, and manifests for their evaluations."""
    workspace = Workspace(root, "tiny")
    cells, found = [], {}
    for name, advantage in advantages.items():
        (root / "p" / name).mkdir(parents=True)
        (root / "p" / name / "model.safetensors").write_bytes(b"weights")
        workspace.publish(f"p/{name}", finished(name))
        stage = SimpleNamespace(path=f"e/{name}", key=name, identity={"key": name})
        setting = {"beta": float(len(cells) + 1)}
        cells.append(
            cast(
                Cell,
                SimpleNamespace(
                    policy="dpo",
                    rho=0.2,
                    seed=0,
                    setting=setting,
                    evaluation=stage,
                    policy_path=f"p/{name}",
                    weights=[f"p/{name}"],
                ),
            )
        )
        found[name] = finished(name, advantage=advantage)
    return workspace, cells, found


def kept(workspace: Workspace) -> list[str]:
    return sorted(file.parent.name for file in workspace.root.rglob("*.safetensors"))


@pytest.mark.parametrize(("keep", "stays"), [("best", ["b"]), ("none", []), ("all", ["a", "b", "c"])])
def test_weights_stay_as_asked(tmp_path: Path, keep: Any, stays: list[str]) -> None:
    workspace, cells, found = cells_in(tmp_path, {"a": 1.0, "b": 2.0, "c": 1.5})
    keeper = WeightKeeper(cells, workspace, keep)
    for cell in cells:
        keeper(cell.evaluation, found[cell.evaluation.key])
    assert kept(workspace) == stays


def test_a_resumed_sweep_keeps_one_best_not_one_for_each_run(tmp_path: Path) -> None:
    workspace, cells, found = cells_in(tmp_path, {"a": 1.0, "b": 2.0, "c": 1.5})
    (tmp_path / "e/a").mkdir(parents=True)
    workspace.publish("e/a", found["a"])  # an earlier run got this far
    keeper = WeightKeeper(cells, workspace)
    for cell in cells[1:]:
        keeper(cell.evaluation, found[cell.evaluation.key])
    assert kept(workspace) == ["b"]
