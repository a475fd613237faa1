"""The benchmarks run, and refuse to compare unequal work; nothing here depends on time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from conftest import set_aside

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


# The baselines are what TRL and transformers make of them, warnings included.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_benchmark_does_equal_work_for_one_step_at_toy_size(tmp_path: Path) -> None:
    from benchmarks.__main__ import BEGIN, END, machine, measure, put_into, table
    from benchmarks.bench import Bench
    from benchmarks.sections import SECTIONS
    from benchmarks.workloads import TOY
    from rpo_cli.devices import Device

    set_aside()
    bench = Bench(TOY, Device("cpu", "float32", "test"), tmp_path)
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        results = {
            section.__name__: measure(section, bench, machine("cpu", "float32", 1)) for section in SECTIONS
        }
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
    rows = [row for section in results.values() for row in section["comparisons"]]
    assert len(results) == 13 and len(rows) >= 24
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    put_into(readme, table(results))
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    assert all(f"| {row['what']} | {row['workload']} |" in text for row in rows)


def test_a_ratio_between_unequal_work_is_refused() -> None:
    from benchmarks.contestants import Loop
    from benchmarks.race import UnequalWork, same_work

    def taken(name: str, loss: float, *ids: list[int], kind: str = "dpo") -> Loop:
        one = Loop(name, kind, iter([torch.tensor(loss)]), [*ids], len(ids))
        one.step()
        return one

    same_work(
        [
            taken("a", 0.7, [1, 2]),
            taken("b", 0.70005, [1, 2]),
            taken("other objective", 3.0, [1, 2], kind="e-dpo"),
        ],
        1e-4,
    )
    with pytest.raises(UnequalWork, match="losses of b and a differ"):
        same_work([taken("a", 0.7, [1, 2]), taken("b", 0.7002, [1, 2])], 1e-4)
    with pytest.raises(UnequalWork, match="b saw other rows than a"):
        same_work([taken("a", 0.7, [1, 2]), taken("b", 0.7, [2, 3])], 1e-4)
    # A batch may be cut as one likes: what counts is which rows a step was taken on.
    same_work([taken("a", 0.7, [1, 2], [3, 4]), taken("b", 0.7, [4, 1], [2, 3])], 1e-4)
    with pytest.raises(UnequalWork, match="b saw other rows than a"):
        same_work([taken("a", 0.7, [1, 2], [3, 4]), taken("b", 0.7, [1, 2], [3, 5])], 1e-4)


def test_committed_table_has_the_committed_results() -> None:
    from benchmarks.__main__ import BEGIN, END, table

    results = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    shown = (ROOT / "benchmarks" / "README.md").read_text().partition(BEGIN)[2].partition(END)[0]
    assert results and shown == f"\n{table(results)}\n"


AGAIN = "── again ──\n"
# Both calls in one process, which imports once.
TWICE = f"""
import json, runpy, sys
from pathlib import Path
out, file, first = sys.argv[1:]
def call(*words):
    sys.argv = ["gpu_check", "--toy", "--out", out, *words]
    runpy.run_module("benchmarks.gpu_check", run_name="__main__")
call("--minutes", "60")
results = json.loads(Path(file).read_text())
Path(first).write_text(json.dumps(results))
del results["samples_alone"]
Path(file).write_text(json.dumps(results))
for stream in (sys.stdout, sys.stderr):
    print({AGAIN!r}, end="", file=stream, flush=True)
call()
"""


@pytest.mark.slow
def test_gpu_check_runs_to_its_end_on_a_cpu_and_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    file, first = (tmp_path / name for name in ("gpu_check.json", "first.json"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TWICE, str(tmp_path), str(file), str(first)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    said, _ = ran.stdout.split(AGAIN)
    _, again = ran.stderr.split(AGAIN)
    results = json.loads(first.read_text())
    assert "Failed" not in said and "Not measured" not in said
    assert not [name for name, each in results.items() if "error" in each]
    every = [row for each in results.values() for row in each["comparisons"]]
    rows = {row["what"]: row for row in every}
    equal = (
        "first losses", "gradient by graphs beside one without", "cpu beside the CPU, float32",
        "a sample does not depend on its batch",
    )  # fmt: skip
    twice = [what for what in rows if "twice" in what]
    assert len(twice) == 2 and {*equal, *twice} <= rows.keys()
    held = [row for row in every if row["what"] in (*equal, *twice)]
    assert len(held) > len({*equal, *twice}) and all(row["passed"] for row in held)
    assert rows["Figure 2 from an empty workspace, --jobs 1"]["passed"]
    for kind in ("LoRA", "checkpointing", "LoRA and checkpointing", "QLoRA and checkpointing"):
        assert rows[f"dpo step, {kind}"]["ratios"] or "not installed" in rows[f"dpo step, {kind}"]["ours"]
    assert "samples_alone: " in again and "figure: " not in again
    assert list(json.loads(file.read_text())) == list(results)


def test_gpu_check_goes_on_with_what_is_new_then_with_what_failed_and_last_with_a_figure_it_began() -> None:
    from benchmarks.gpu_check import missing

    names = ["equal", "speed", "figure", "memory"]
    failed: dict[str, Any] = {"error": "out of memory"}
    fine: dict[str, Any] = {"comparisons": []}
    assert missing(names, {}, "figure") == names
    assert missing(names, {"equal": failed, "speed": fine}, "figure") == ["figure", "memory", "equal"]
    begun = {"speed": fine, "figure": failed, "memory": failed}
    assert missing(names, begun, "figure") == ["equal", "memory", "figure"]
    assert missing(names, dict.fromkeys(names, fine), "figure") == []


def test_variants_that_need_what_is_not_installed_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_variants

    nowhere: Any = None  # no card is asked for anything
    monkeypatch.setattr(gpu_variants, "is_bitsandbytes_available", lambda: False)
    (row,) = gpu_variants.qlora(nowhere)
    assert row.ours == "not measured: bitsandbytes is not installed" and row.passed is None
    monkeypatch.setattr(gpu_variants, "is_peft_available", lambda: False)
    (row,) = gpu_variants.lora(nowhere)
    assert row.ours == "not measured: peft is not installed" and row.passed is None


def test_losses_of_variants_are_compared_unless_something_else_is_learnt() -> None:
    from benchmarks.contestants import _kind
    from benchmarks.gpu_variants import LORA, RECOMPUTED

    assert _kind("dpo", RECOMPUTED) == _kind("dpo", {}) == _kind("dpo", {"torch_compile": True})
    assert _kind("dpo", LORA | RECOMPUTED) == _kind("dpo", LORA) != _kind("dpo", {})


def test_a_contestant_whose_graphs_were_given_up_is_a_missed_bar_on_a_gpu() -> None:
    from benchmarks.gpu_rows import by_graphs
    from benchmarks.race import Done

    def done(name: str, captured: bool) -> Done:
        return Done(name, "dpo", [], 1, [], [], 0, 0, 0.0, captured)

    gpu, cpu = (cast(Any, SimpleNamespace(device=name)) for name in ("cuda", "cpu"))
    both = {"rpo": done("rpo", True), "LoRA": done("LoRA", False)}
    assert by_graphs(gpu, both, ("rpo",)).passed is True
    missed = by_graphs(gpu, both, ("rpo", "LoRA"))
    assert missed.passed is False and (missed.ours, missed.baseline) == ("as graphs: rpo", "without: LoRA")
    assert by_graphs(cpu, both, ("rpo", "LoRA")).passed is None


def test_the_real_figure_begins_with_its_first_part_and_says_how_far_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gpu_figure

    ran: list[list[str]] = []
    ends = [0, 0, None]  # the third one is stopped when the seconds are over

    def run(command: list[str], log: Path, seconds: float) -> int | None:
        ran.append(command)
        return ends[len(ran) - 1]

    made = {"state": "up to date", "kind": "sft", "seconds": 3.0}
    left = {"primary.yaml": 0, "figure2.yaml": 2}

    def said(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        recipe = Path(command[command.index("--recipe") + 1]).name
        total = 5 if "--tune" in command else 3  # a plan of the same part, with its choice
        found = {"artifacts": [made], "build": left[recipe], "total": total}
        return subprocess.CompletedProcess(command, 0, json.dumps(found))

    monkeypatch.setattr(gpu_figure, "_run", run)
    monkeypatch.setattr(subprocess, "run", said)
    rows = gpu_figure.figure(
        tmp_path / "small/figure2.yaml", tmp_path, "cuda", 60, tune=True, first=gpu_figure.FIRST
    )
    found = [next(rows), next(rows), next(rows)]
    assert [row.ours.split(" in ")[0] for row in found] == ["3 of 3 stages", "5 of 5 stages", "3 of 5 stages"]
    assert [row.passed for row in found] == [True, True, None]
    assert [row.workload for row in found] == [
        "small/primary.yaml", "small/primary.yaml, strengths chosen", "small/figure2.yaml, strengths chosen"
    ]  # fmt: skip
    with pytest.raises(TimeoutError, match="goes on from here"):
        next(rows)
    recipes = [command[command.index("--recipe") + 1] for command in ran]
    assert [Path(recipe).name for recipe in recipes] == ["primary.yaml", "primary.yaml", "figure2.yaml"]
    assert ["--tune" in command for command in ran] == [False, True, True]
    assert len({command[-1] for command in ran}) == 3  # none overwrites another's figure
    (tmp_path / "figure_seconds.txt").write_text("700.0")  # a later call: the first part was there before
    ran.clear()
    again = gpu_figure.figure(tmp_path / "small/figure2.yaml", tmp_path, "cuda", 60, first="primary.yaml")
    assert next(again).passed and next(again).passed


def test_a_section_that_fails_keeps_its_rows_and_tells_its_error() -> None:
    from benchmarks.__main__ import measure
    from benchmarks.bench import Comparison
    from benchmarks.gpu_check import report

    def section(on: object) -> Iterator[Comparison]:
        yield Comparison("dpo step", "tiny", "1", "2", [0.5])
        raise RuntimeError("no memory\nand more")

    where: dict[str, Any] = {"device": "a card"}
    measured = measure(section, None, where, forgiving=True)
    assert [row["what"] for row in measured["comparisons"]] == ["dpo step"]
    assert measured["error"] == "RuntimeError: no memory"
    said = report({"memory": measured}, ["memory", "speed"])
    assert "- memory: RuntimeError: no memory" in said and "Not measured: speed" in said
    with pytest.raises(RuntimeError):
        measure(section, None, where)


def test_kernels_are_counted_by_kind() -> None:
    from benchmarks.kernels import kind_of

    names = {
        "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT": "matrix products",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "matrix products",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma": "attention",
        "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>": "optimiser and clipping",
        "void at::native::vectorized_elementwise_kernel<4, silu>": "element-wise",
        "void at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda>": "copies and casts",
        "void at::native::reduce_kernel<512, 1, MeanOps>": "reductions",
        "void at::native::elementwise_kernel<128, gpu_kernel_impl_nocast<MulFunctor>>": "element-wise",
        "void at::native::unrolled_elementwise_kernel<MulFunctor, LoadWithCast<2>>": "element-wise",
        "Memcpy HtoD (Pinned -> Device)": "copies and casts",
    }
    assert {name: kind_of(name) for name in names} == names
