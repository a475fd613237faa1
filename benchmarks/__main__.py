"""`python -m benchmarks`: measure, write results.json, and the table into README.md beside this file."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.quiet import quiet
from rpo_cli.artifacts import git_revision
from rpo_cli.text import first_line

if TYPE_CHECKING:
    from benchmarks.bench import Comparison

On = TypeVar("On")  # what a section measures on
HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- measured: written by `make bench` -->", "<!-- end -->"
CLOCKS = {"cpu": "seconds of the processor", "wall": "seconds on the clock"}


def machine(device: str, dtype: str, threads: int) -> dict[str, Any]:
    """Where it was measured."""
    import torch
    import transformers
    import trl

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next(
            (
                line.split(":")[1].strip()
                for line in info.read_text().splitlines()
                if line.startswith("model name")
            ),
            cpu,
        )
    return {
        "cpu": f"{cpu}, {os.cpu_count()} logical CPUs, {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "commit": git_revision() or "unknown",
        "dtype": dtype,
        "threads": threads,
        "system": platform.platform(terse=True),
        "versions": ", ".join(
            f"{module.__name__} {module.__version__}" for module in (torch, transformers, trl)
        ),
    }


def verdict(row: dict[str, Any]) -> str:
    return "" if row["passed"] is None else "met" if row["passed"] else "**missed**"


def table(sections: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    wheres = [section["machine"] for section in sections.values()]
    alike = {key for key in wheres[0] if all(where[key] == wheres[0][key] for where in wheres)}
    loads = [load for where in wheres for load in where["load"]]
    lines = [
        *(
            f"- {key}: {value}"
            for key, value in wheres[0].items()
            if key in alike and key not in ("load", "seconds")
        ),
        f"- load of the machine before and after the sections: {min(loads)} to {max(loads)}",
        f"- minutes: {sum(where['seconds'] for where in wheres) / 60:.0f}",
        "",
        "| what | workload | this package | baseline | ratio: median (range) | on the clock | bar | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for section in sections.values() for row in section["comparisons"]):
        ratio = f"{row['median']:.2f} ({row['min']:.2f} – {row['max']:.2f})" if row["ratios"] else ""
        clock = f"{row['wall_ratio']:.2f}" if row["wall_ratio"] is not None else ""
        cells = (
            row["what"],
            row["workload"],
            row["ours"],
            row["baseline"],
            ratio,
            clock,
            row["bar"],
            verdict(row),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def put_into(readme: Path, text: str) -> None:
    """Replace what stands between the markers."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def measure(
    section: Callable[[On], Iterator[Comparison]], on: On, where: dict[str, Any], *, forgiving: bool = False
) -> dict[str, Any]:
    """One section's rows, and where and when they were measured; said on stderr while it runs.

    `forgiving`: an error is told in the result, beside the rows before it.
    """
    started, load, rows = time.monotonic(), round(os.getloadavg()[0], 1), []
    failed: dict[str, str] = {}
    try:
        for comparison in section(on):
            row = comparison.as_json()
            rows.append(row)
            ratio = f"{row['median']:.3f}" if row["ratios"] else ""
            print(
                f"  {row['what']}: {row['ours']} | {row['baseline']} | {ratio} {row['bar']} {verdict(row)}",
                file=sys.stderr,
                flush=True,
            )
    except Exception as error:
        if not forgiving:
            raise
        traceback.print_exc()
        failed = {"error": f"{type(error).__name__}: {first_line(error)}"}
    seconds = round(time.monotonic() - started)
    return {
        "machine": where | {"load": [load, round(os.getloadavg()[0], 1)], "seconds": seconds},
        "comparisons": rows,
    } | failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="bfloat16: by autocast, as rpo trains",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--only", help="names of sections, with commas; results.json keeps the others")
    parser.add_argument(
        "--toy", action="store_true", help="toy sizes, to see that everything runs; writes nothing"
    )
    arguments = parser.parse_args()
    quiet(arguments.threads)
    from benchmarks.bench import Bench
    from benchmarks.sections import SECTIONS
    from benchmarks.workloads import FULL, TOY

    gc.freeze()  # what was imported stays: between contestants only what they made is looked through
    from rpo_cli.devices import Device

    names = [section.__name__ for section in SECTIONS]
    only = arguments.only.split(",") if arguments.only else names
    if unknown := sorted(set(only) - set(names)):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(names)}")
    file = HERE / "results.json"
    # A section replaces what the file holds of it once it is measured: a run that is stopped loses nothing.
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() and not arguments.toy else {}
    device = Device(arguments.device, arguments.dtype, "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(TOY if arguments.toy else FULL, device, Path(folder))
        where = machine(arguments.device, arguments.dtype, arguments.threads) | {
            "ratios of": CLOCKS[bench.clock]
        }
        for section in (section for section in SECTIONS if section.__name__ in only):
            print(section.__name__, file=sys.stderr, flush=True)
            results[section.__name__] = measure(section, bench, where)
            results = {name: results[name] for name in names if name in results}
            if not arguments.toy:
                file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
                put_into(HERE / "README.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
