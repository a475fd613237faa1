"""Which small changes of the code do the tests notice? Each is made in a copy of the repository, and tested.

    python tools/mutate.py                      every mutant, one after another; exit code 1 below 95 % killed
    python tools/mutate.py --only NAME          one mutant (may be given several times)
    python tools/mutate.py --jobs 2 --out mutants.json
    python tools/mutate.py --list
    python tools/mutate.py --check              only: is every snippet there, exactly once?

The mutants are those of mutants.txt, found by their text, whatever file of the package they are in. The tests
that they name must pass without them: those that fail on this machine anyway are found first and left out.

Each run is a fork of this process, which has loaded the libraries once. It first takes the session's worlds
(tests/conftest.py) from the code as it is, and only a mutant that survives so builds worlds of its own.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "rpo_cli"
TABLE = Path(__file__).resolve().parent / "mutants.txt"
SECONDS = 600  # for the tests of one mutant
OUTPUT, WORLDS = ".output", "RPO_TESTS_WORLDS"
# As conftest.py sets them: read when the libraries are imported.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
LIBRARIES = (
    "torch", "transformers", "trl", "datasets", "accelerate", "peft", "pandas", "matplotlib.figure",
    "pydantic", "pytest", "typer.testing", "rich.table", "wandb", "trl.trainer.dpo_trainer",
    "trl.trainer.reward_trainer", "trl.trainer.sft_trainer", "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2", "transformers.generation.utils",
)  # fmt: skip
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
    """What became of a mutant: killed, survived, equivalent, not found, timeout, broken, or no tests."""

    name: str
    status: str
    seconds: float = 0.0
    by: str = ""


def pattern(snippet: str) -> re.Pattern[str]:
    """The snippet as a regular expression: free are blanks, and a comma before a closing bracket."""
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


def start(
    folder: Path, tests: str, keyword: str, left_out: Sequence[str], worlds: Path | None, *, first: bool
) -> int:
    """Run the tests of a copy in a fork of this process; its process id."""
    arguments = [
        "-p",
        "no:cacheprovider",
        "--no-header",
        "--tb=line",
        f"--rootdir={folder}",
        *shlex.split(tests),
    ]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that the libraries import
    arguments += ["-x"] * first + (["-k", keyword] if keyword else [])
    arguments += [f"--deselect={test}" for test in left_out] + [f"--basetemp={folder / '.tests'}"]
    if (process := os.fork()) > 0:
        return process
    code = 3
    try:
        os.setsid()
        output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        os.environ.pop(WORLDS, None)
        if worlds is not None:
            os.environ[WORLDS] = str(worlds)
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True
        package, runner = importlib.import_module(PACKAGE), importlib.import_module("pytest")
        assert Path(package.__file__ or "").is_relative_to(folder), package.__file__
        code = int(runner.main(arguments))
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(process: int) -> Generator[None, None, int]:
    """Yields while a run goes on; its exit code is the generator's value; 124: it took too long."""
    started = time.monotonic()
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - started > SECONDS:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return 124
        yield


def failures(folder: Path) -> list[str]:
    """The tests that the summary of a run lists as failed."""
    lines = (folder / OUTPUT).read_text(errors="replace").splitlines()
    return [
        line.split(" ", 1)[1].split(" - ")[0] for line in lines if re.match(r"(FAILED|ERROR) \S+\.py", line)
    ]


def run(mutant: Mutant, left_out: Sequence[str], worlds: Path) -> Generator[None, None, Outcome]:
    """Make the change in a copy of its own and run its tests, yielding while they run."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as home:
        folder = copy_to(Path(home).resolve())
        found = places(mutant.old, folder)
        if len(found) != 1:
            return Outcome(mutant.name, "not found")
        file, begin, end = found[0]
        text = text_of(file)
        file.write_text(text[:begin] + mutant.new + text[end:])
        code = 0
        for given in (worlds, None):
            if code == 0:
                code = yield from wait(
                    start(folder, mutant.tests, mutant.keyword, left_out, given, first=True)
                )
        failed = failures(folder)
    survived = "equivalent" if mutant.equivalent else "survived"
    status = {0: survived, 1: "killed", 124: "timeout", 5: "no tests"}.get(code, "broken")
    by = failed[0] if failed and status in ("killed", "broken") else ""
    return Outcome(mutant.name, status, round(time.monotonic() - started, 1), by)


def finish(running: Generator[None, None, Any]) -> Any:
    """What a run comes to, waited for."""
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value
        time.sleep(0.05)


def build_worlds(worlds: Path) -> None:
    """Have the code as it is build the worlds of the tests."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as home:
        folder = copy_to(Path(home).resolve())
        (folder / "tests/test_build.py").write_text("def test_worlds(built, learnt):\n    pass\n")
        if finish(wait(start(folder, "tests/test_build.py", "", (), worlds, first=True))):
            sys.exit((folder / OUTPUT).read_text())


def failing_anyway(mutants: Sequence[Mutant], worlds: Path) -> list[str]:
    """Tests that the mutants name and that fail without any of them."""
    found: list[str] = []
    for tests, keyword in sorted({(mutant.tests, mutant.keyword) for mutant in mutants}):
        with tempfile.TemporaryDirectory(prefix="mutant-") as home:
            folder = copy_to(Path(home).resolve())
            finish(wait(start(folder, tests, keyword, found, worlds, first=False)))
            found += failures(folder)
    return found


def run_all(mutants: Sequence[Mutant], left_out: Sequence[str], worlds: Path, jobs: int) -> list[Outcome]:
    """Outcomes in the order of the mutants, some of them at a time."""
    waiting = [(index, run(mutant, left_out, worlds)) for index, mutant in enumerate(mutants)]
    running: list[tuple[int, Generator[None, None, Outcome]]] = []
    outcomes: dict[int, Outcome] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(waiting.pop(0))
        for item in list(running):
            try:
                next(item[1])
            except StopIteration as end:
                running.remove(item)
                outcomes[item[0]] = outcome = end.value
                print(
                    f"{outcome.status:<10} {outcome.name} ({outcome.seconds:.0f} s) {outcome.by}", flush=True
                )
        time.sleep(0.05)
    return [outcomes[index] for index in range(len(mutants))]


def table(outcomes: Sequence[Outcome]) -> str:
    """One line for each mutant, and a total."""
    width = max(len(outcome.name) for outcome in outcomes)
    lines = [f"{o.name:<{width}}  {o.status:<10}  {o.seconds:6.1f} s  {o.by}" for o in outcomes]
    counts = Counter(outcome.status for outcome in outcomes)
    total = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    return "\n".join([*lines, f"{len(outcomes)} mutants: {total}"])


def options() -> argparse.ArgumentParser:
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
    parser.add_argument("--trust", action="store_true", help="take it that all tests pass without a mutant")
    return parser


def main() -> int:
    chosen = options().parse_args()
    unknown = sorted(set(chosen.only or []) - {mutant.name for mutant in MUTANTS})
    if unknown:
        sys.exit(f"no such mutant: {', '.join(unknown)}")
    mutants = [mutant for mutant in MUTANTS if chosen.only is None or mutant.name in chosen.only]
    if chosen.list:
        for mutant in mutants:
            print(f"{mutant.name}: {mutant.old} -> {mutant.new} ({mutant.tests} {mutant.keyword})")
        return 0
    if chosen.check:
        problems = list(check())
        print("\n".join(problems) or f"{len(MUTANTS)} mutants, each found once")
        return 1 if problems else 0
    os.environ |= QUIET
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()
    with tempfile.TemporaryDirectory(prefix="mutant-worlds-") as home:
        worlds = Path(home).resolve()
        build_worlds(worlds)
        left_out = [] if chosen.trust else failing_anyway(mutants, worlds)
        for test in left_out:
            print(f"fails without a mutant, left out: {test}", flush=True)
        outcomes = run_all(mutants, left_out, worlds, chosen.jobs)
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
