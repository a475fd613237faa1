"""The benchmarks run, and refuse to compare unequal work; nothing here depends on time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

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
    from benchmarks.contestants import Loop, UnequalWork, same_work

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
