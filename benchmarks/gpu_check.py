"""Check one GPU within minutes: `python -m benchmarks.gpu_check`, or `make gpu-check`.

Sections run in order of value, first what was promised and never seen on a card. Each is written to `--out`
when it is done. The next call goes on with what is not there: what did not fit, then what failed, then the
figure where it stopped. A section that fails is recorded with its error, and the others go on in a new
process, as an error of the device stays with the old one. What does not fit into the minutes is not started.
With `--toy` it runs to its end on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.__main__ import machine, measure, table
from benchmarks.quiet import quiet

STARTED = time.monotonic()
Results = dict[str, dict[str, Any]]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="where results are kept")
    parser.add_argument("--minutes", type=float, default=9.0, help="when it is to be over")
    parser.add_argument("--model", type=Path, help="directory of SmolLM2-135M; default: random weights")
    parser.add_argument(
        "--data", type=Path, help="the figure's: a Debian archive's indices, or .jsonl of prompt, completion"
    )
    parser.add_argument(
        "--only", help="names of sections, with commas: measured in this order, whatever there is"
    )
    parser.add_argument("--toy", action="store_true", help="toy sizes, on a CPU where there is no GPU")
    return parser.parse_args()


def main() -> None:
    """Measure what is asked for and missing, as far as the minutes go, and print all that there is."""
    arguments = parsed()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS begins
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one card: over several, Trainer would split batches
    quiet(1 if arguments.toy else max(1, (os.cpu_count() or 1) // 2))
    import torch

    from benchmarks.gpu_rows import Check
    from benchmarks.gpu_sections import ENDLESS, SECTIONS
    from benchmarks.workloads import CARD, TOY

    gc.freeze()  # what was imported stays: between contestants only what they made is looked through

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.toy:
        sys.exit("torch sees no GPU; --toy tries the script on a CPU")
    sections = {section.__name__: (section, expected) for section, expected in SECTIONS}
    only = arguments.only.split(",") if arguments.only else None
    if unknown := sorted(set(only or ()) - set(sections)):
        sys.exit(f"no section {', '.join(unknown)}; there are {', '.join(sections)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "gpu_check.json"
    results: Results = json.loads(file.read_text()) if file.is_file() else {}
    todo = missing(list(sections), results, ENDLESS) if only is None else only
    where = machine(device, "bfloat16", torch.get_num_threads()) | {"ratios of": "seconds on the clock"}

    def left() -> float:
        return 60 * arguments.minutes - (time.monotonic() - STARTED)

    with tempfile.TemporaryDirectory() as folder:
        scale, warm, steps = (TOY, 1, 1) if arguments.toy else (CARD, 3, 4)
        check = Check(
            scale, device, Path(folder), arguments.out, arguments.model, arguments.data, warm, steps,
            left, arguments.toy,
        )  # fmt: skip
        for number, name in enumerate(todo, 1):
            section, expected = sections[name]
            if not arguments.toy and left() < expected:
                print(f"{name}: not started, {left():.0f} s are left", file=sys.stderr)
                continue
            print(f"{name}: {left():.0f} s are left", file=sys.stderr, flush=True)
            most = left() + (120 if arguments.toy else 30)  # the figure needs some to stop
            whole = arguments.toy or name in (ENDLESS, todo[-1])
            with ended_after(most if whole else min(2 * expected + 60, most)):
                results[name] = measure(section, check, where, forgiving=True)
            results = {each: results[each] for each in sections if each in results}
            file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
            (arguments.out / "gpu_check.md").write_text(report(results, sections))
            fit = [each for each in todo[number:] if left() >= sections[each][1]]
            if device == "cuda" and "error" in results[name] and fit:
                go_on(left() / 60, todo[number:])
    print(report(results, sections))


def missing(names: list[str], results: Results, endless: str) -> list[str]:
    """What was not measured yet, then what failed; `endless`, once begun, behind all that."""
    new = [name for name in names if name not in results]
    failed = [name for name in names if "error" in results.get(name, {})]
    return [*new, *sorted(failed, key=lambda name: name == endless)]


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer: a section that hangs must not take the others' time."""

    def too_long(number: int, frame: object) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(int(seconds))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def go_on(minutes: float, names: list[str]) -> None:
    """Become a new process that measures the rest."""
    given = [*sys.argv[1:], "--minutes", f"{minutes:.2f}", "--only", ",".join(names)]
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu_check", *given])


def report(results: Results, names: Iterable[str]) -> str:
    """The table, what failed, and what was not measured."""
    lines = [table(results)] if results else []
    failed = [f"- {name}: {each['error']}" for name, each in results.items() if "error" in each]
    if failed:
        lines += ["", "Failed or not finished:", "", *failed]
    if left := [name for name in names if name not in results]:
        lines += ["", f"Not measured: {', '.join(left)}"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
