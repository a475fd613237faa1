"""Which small changes of the code do the tests notice? Each is made in a copy of the repository, its tests run there.

    python tools/mutate.py                      every mutant, one after another; exit code 1 below 95 % killed
    python tools/mutate.py --only NAME          one mutant (may be given several times)
    python tools/mutate.py --jobs 2 --out mutants.json
    python tools/mutate.py --list
    python tools/mutate.py --check              only: is every snippet there, exactly once?

The mutants are those of mutants.txt, found by their text, whatever file of the package they are in. The tests that they
name must pass without them: those that fail on this machine anyway are found first and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "rpo_cli"
TABLE = Path(__file__).resolve().parent / "mutants.txt"
SECONDS = 600  # for the tests of one mutant
ENOUGH = 0.95


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new`; `tests`: files, and `keyword`: pytest's -k, most likely to kill it.

    `equivalent`: why no test can.
    """

    name: str
    old: str
    new: str
    tests: str
    keyword: str = ""
    equivalent: str = ""


def read_table(text: str) -> list[Mutant]:
    """The mutants of mutants.txt, whose head says how it is written."""
    mutants = []
    for block in re.split(r"\n{2,}", text[text.index("\n## ") :]):
        lines = block.strip().splitlines()
        if len(lines) < 2:
            continue
        name, old, new, tests, *rest = lines
        assert old.startswith("- ") and new.startswith("+ ") and tests.startswith("  "), name
        files, _, keyword = tests.strip().partition(" -k ")
        equivalent = rest[0].removeprefix("= ") if rest else ""
        mutants.append(Mutant(name, old[2:], new[2:], files, keyword.strip('"'), equivalent))
    return mutants


MUTANTS = read_table(TABLE.read_text())


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: killed, survived, equivalent, not found, timeout, or no tests."""

    name: str
    status: str
    seconds: float = 0.0
    by: str = ""


def pattern(snippet: str) -> re.Pattern[str]:
    """The snippet as a regular expression: blanks between tokens are free, and a comma before a closing bracket."""
    parts = re.findall(r"\w+|[^\w\s]", snippet)
    expression = ""
    for before, part in zip(["", *parts], parts, strict=False):
        apart = (
            before and (before[-1].isalnum() or before[-1] == "_") and (part[0].isalnum() or part[0] == "_")
        )
        expression += (r"\s+" if apart else r"\s*") if before else ""
        expression += r"(?:,\s*)?" if part in ")]}" and before != "," else ""
        expression += re.escape(part)
    begin = r"(?<!\w)" if re.match(r"\w", snippet) else ""
    end = r"(?!\w)" if re.search(r"\w$", snippet) else ""
    return re.compile(begin + expression + end)


@cache
def text_of(file: Path) -> str:
    return file.read_text()


def places(snippet: str, root: Path = ROOT) -> list[tuple[Path, int, int]]:
    """Every file of the package that has the snippet, and where."""
    wanted, word = pattern(snippet), max(re.findall(r"\w+", snippet), key=len)
    files = [file for file in sorted((root / PACKAGE).rglob("*.py")) if word in text_of(file)]
    return [(file, *found.span()) for file in files for found in wanted.finditer(text_of(file))]


def check() -> Iterator[str]:
    """What is wrong with the table of mutants."""
    names = [mutant.name for mutant in MUTANTS]
    yield from (
        f"{name}: two have this name" for name in sorted({name for name in names if names.count(name) > 1})
    )
    for mutant in MUTANTS:
        found = places(mutant.old)
        if len(found) != 1:
            where = ", ".join(sorted({str(file.relative_to(ROOT)) for file, _, _ in found})) or "nowhere"
            yield f"{mutant.name}: found {len(found)} times ({where}): {mutant.old}"
        elif pattern(mutant.old).fullmatch(mutant.new):
            yield f"{mutant.name}: changes nothing"
        for test in mutant.tests.split():
            if test.endswith(".py") and not (ROOT / test).is_file():
                yield f"{mutant.name}: no such file: {test}"


def copy_to(folder: Path) -> Path:
    """A copy of the repository's files as they are, committed or not."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in names:
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def pytest(
    folder: Path, tests: str, keyword: str, left_out: Sequence[str] = (), *, first: bool = True
) -> tuple[int, str]:
    """Exit code and output of the tests in a copy; 124: they took too long."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--no-header",
        "--tb=line",
        *tests.split(),
    ]
    command += (
        ["-x"] * first + (["-k", keyword] if keyword else []) + [f"--deselect={test}" for test in left_out]
    )
    command += [f"--basetemp={folder / '.tests'}"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return 124, process.communicate()[0]
    return process.returncode, output


def failures(output: str) -> list[str]:
    """The tests that pytest's summary lists as failed."""
    return [
        line.split(" ", 1)[1].split(" - ")[0]
        for line in output.splitlines()
        if line.startswith(("FAILED ", "ERROR "))
    ]


def run(mutant: Mutant, left_out: Sequence[str]) -> Outcome:
    """Make the change in a copy of its own and run its tests."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as home:
        folder = copy_to(Path(home))
        found = places(mutant.old, folder)
        if len(found) != 1:
            return Outcome(mutant.name, "not found")
        file, start, end = found[0]
        text = text_of(file)
        file.write_text(text[:start] + mutant.new + text[end:])
        code, output = pytest(folder, mutant.tests, mutant.keyword, left_out)
    survived = "equivalent" if mutant.equivalent else "survived"
    status = {0: survived, 124: "timeout", 5: "no tests"}.get(code, "killed")
    by = (
        (failures(output) or [line for line in output.splitlines() if line][-1:] or [""])[0]
        if status == "killed"
        else ""
    )
    return Outcome(mutant.name, status, round(time.monotonic() - started, 1), by)


def failing_anyway(mutants: Sequence[Mutant]) -> list[str]:
    """Tests that the mutants name and that fail without any of them."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as home:
        folder = copy_to(Path(home))
        found: list[str] = []
        for tests, keyword in sorted({(mutant.tests, mutant.keyword) for mutant in mutants}):
            found += failures(pytest(folder, tests, keyword, found, first=False)[1])
    return found


def table(outcomes: Sequence[Outcome]) -> str:
    """One line for each mutant, and a total."""
    width = max(len(outcome.name) for outcome in outcomes)
    lines = [f"{o.name:<{width}}  {o.status:<9}  {o.seconds:6.1f} s  {o.by}" for o in outcomes]
    counts = {
        status: sum(o.status == status for o in outcomes)
        for status in dict.fromkeys(o.status for o in outcomes)
    }
    return "\n".join(
        [
            *lines,
            f"{len(outcomes)} mutants: " + ", ".join(f"{count} {status}" for status, count in counts.items()),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="this mutant; may be given several times"
    )
    parser.add_argument("--list", action="store_true", help="names, changes and tests")
    parser.add_argument("--check", action="store_true", help="only whether every snippet occurs exactly once")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutants at a time")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the outcomes here")
    parser.add_argument(
        "--trust", action="store_true", help="do not look first for tests that fail without any mutant"
    )
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.only or []) - {mutant.name for mutant in MUTANTS})
    if unknown:
        parser.error(f"no such mutant: {', '.join(unknown)}")
    mutants = [mutant for mutant in MUTANTS if chosen.only is None or mutant.name in chosen.only]
    if chosen.list:
        for mutant in mutants:
            print(f"{mutant.name}: {mutant.old} -> {mutant.new} ({mutant.tests} {mutant.keyword})")
        return 0
    if chosen.check:
        problems = list(check())
        print("\n".join(problems) or f"{len(MUTANTS)} mutants, each found once")
        return 1 if problems else 0
    left_out = [] if chosen.trust else failing_anyway(mutants)
    for test in left_out:
        print(f"fails without a mutant, left out: {test}", flush=True)
    outcomes: list[Outcome] = []

    def one(mutant: Mutant) -> Outcome:
        outcome = run(mutant, left_out)
        print(f"{outcome.status:<9} {outcome.name} ({outcome.seconds:.0f} s) {outcome.by}", flush=True)
        return outcome

    with ThreadPoolExecutor(chosen.jobs) as pool:
        outcomes = list(pool.map(one, mutants))
    counted = [outcome for outcome in outcomes if outcome.status != "equivalent"]
    killed = sum(outcome.status in ("killed", "timeout") for outcome in counted) / max(1, len(counted))
    print(f"\n{table(outcomes)}\n{killed:.1%} killed")
    if chosen.out is not None:
        content = {
            "killed": killed,
            "left_out": left_out,
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        chosen.out.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if killed >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
