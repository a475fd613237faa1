"""Shipped recipes with something wrong in them: each is refused in a line or planned, and nothing else.

    python -m tools.fuzz_recipes [--number 2000] [--seed 0]

A mutant is a suite in which one recipe's bytes, lines, values, types, keys or references were changed. It
goes through `rpo recipe check` and its command's `--dry-run`, now and then with a `--set`, in this process:
exit 0 or 2, plain lines, no traceback, no more than `SECONDS`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from typer.testing import CliRunner

from rpo_cli.cli import app
from rpo_cli.recipes.schema import MODELS

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("miniature", "own-data", "tldr", "helpfulness")
SECONDS = 60
VALUES = (
    "", "~", "true", "no", "0", "-1", "010", "1_000", "1:30", "0x10", "1e400", "-.inf", ".nan", "1e-400",
    "9" * 30, "9" * 5000, "0.5", "[]", "{}", "[[]]", "[1, 1]", "{a: 1}", "{0.5: {beta: 1}}", "''", "' '",
    "text", "..", "../x", "/", "x.yaml", "data.yaml", "dpo.yaml", "figure2.yaml", "./nowhere", "~/x", "!x y",
    "&a b", "!!python/name:os.system", "*a", "<<", '"\\ud83d"', '"\\0"', '"a\\nb"', "[" * 200, "é", "$x_$",
    "\u200b", "0.2, 0.3", "- a", "|\n  a\n  b", "2024-01-01", "{? [a] : b}", "sft.yaml@main",
    "org/model@main",
)  # fmt: skip


def mutate(text: str, draw: random.Random) -> str | bytes:
    """The recipe with one or two things changed."""
    for _ in range(draw.choice((1, 1, 2))):
        text = draw.choice(TEXTUAL)(text, draw)
    return draw.choice((_bytes, *[_encoded] * 12))(text, draw)


def _encoded(text: str, draw: random.Random) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _bytes(text: str, draw: random.Random) -> bytes:
    data = bytearray(_encoded(text, draw))
    for _ in range(draw.randint(1, 4)):
        data.insert(draw.randrange(len(data) + 1), draw.randrange(256))
    return bytes(data)


def _lines(change: Callable[[list[str], int, random.Random], None]) -> Callable[[str, random.Random], str]:
    def changed(text: str, draw: random.Random) -> str:
        lines = text.split("\n")
        change(lines, draw.randrange(len(lines)), draw)
        return "\n".join(lines)

    return changed


def _value(lines: list[str], at: int, draw: random.Random) -> None:
    lines[at] = f"{lines[at].split(':')[0]}: {draw.choice(VALUES)}"


def _key(lines: list[str], at: int, draw: random.Random) -> None:
    model = draw.choice(list(MODELS.values()))
    lines.insert(at, f"{draw.choice(sorted(model.model_fields))}: {draw.choice(VALUES)}")


def _misspelt(lines: list[str], at: int, draw: random.Random) -> None:
    cut = draw.randrange(len(lines[at]) + 1)
    lines[at] = lines[at][:cut] + draw.choice("x: -#\t'\"{}[]&*!|>%@`\u2028\ufeff\u0085") + lines[at][cut:]


def _removed(lines: list[str], at: int, draw: random.Random) -> None:
    del lines[at]


def _twice(lines: list[str], at: int, draw: random.Random) -> None:
    lines.insert(draw.randrange(len(lines) + 1), lines[at])


def _indented(lines: list[str], at: int, draw: random.Random) -> None:
    lines[at] = draw.choice(("  ", "\t", "- ")) + lines[at]


def _cut(text: str, draw: random.Random) -> str:
    return text[: draw.randrange(len(text) + 1)]


TEXTUAL = (
    *[_lines(_value)] * 4,
    *[_lines(_key)] * 4,
    *map(_lines, (_misspelt, _removed, _twice, _indented)),
    _cut,
)


def _command(stage: str, path: Path) -> list[str] | None:
    """A dry run of what handles a recipe of this kind."""
    command = MODELS.get(stage) and {
        "sft": "train-sft", "reward": "train-rm", "relabel": "relabel", "splits": "make-biased-splits",
        "policy": "evaluate", "evaluate": "evaluate", "figure": "figure figure2",
    }.get(stage)  # fmt: skip
    return [*command.split(), "--recipe", str(path), "--dry-run"] if command else None


def _late(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def verdict(arguments: list[str], seconds: int) -> str | None:
    """What is wrong with how a command ended; None: nothing. `seconds`: how long it may take; 0: for ever."""
    signal.alarm(seconds)
    try:
        result = CliRunner().invoke(app, arguments)
    finally:
        signal.alarm(0)
    said = result.output
    if result.exit_code not in (0, 2):
        return f"exit {result.exit_code}: {said[-300:]!r} {result.exception!r}"
    if "Traceback" in said or "unexpected" in said.replace("unexpected end", ""):
        return f"unexpected: {said[-300:]!r}"
    lines = result.stderr.splitlines()
    if result.exit_code == 2 and (not lines or any(len(line) > 3000 for line in lines)):
        return f"no plain line: {said[:300]!r}"
    return None


def run(number: int, seed: int, folder: Path, seconds: int = 0) -> tuple[Counter[str], list[str]]:
    """So many mutants: how they ended, and each that ended otherwise than it should."""
    draw, ends, wrong = random.Random(seed), Counter[str](), list[str]()
    for suite in SUITES:
        shutil.copytree(ROOT / "recipes" / suite, folder / "recipes" / suite, dirs_exist_ok=True)
    recipes = [path for suite in SUITES for path in sorted((folder / "recipes" / suite).glob("*.yaml"))]
    for index in range(number):
        path = draw.choice(recipes)
        before = path.read_bytes()
        after = mutate(before.decode(), draw)
        path.write_bytes(after if isinstance(after, bytes) else after.encode())
        stage = next(
            (line[7:].strip() for line in before.decode().split("\n") if line.startswith("stage: ")), ""
        )
        commands = [["recipe", "check", str(path)], _command(stage, path)]
        if commands[1] and draw.random() < 0.3:
            key = draw.choice(sorted(MODELS[stage].model_fields))
            commands[1] += ["--set", f"{key}{draw.choice(('', '', '.x'))}={draw.choice(VALUES)}"]
        for arguments in filter(None, commands):
            problem = verdict(arguments, seconds)
            ends["as it should" if problem is None else "not"] += 1
            if problem is not None:
                kept = folder / f"mutant-{index}.yaml"
                shutil.copy(path, kept)
                wrong.append(
                    f"{index} {path.relative_to(folder)} ({kept}): {' '.join(arguments[:2])}: {problem}"
                )
        path.write_bytes(before)
    return ends, wrong


def main() -> None:
    """Run, report, and fail if one mutant ended otherwise than it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, _late)
    folder = Path(tempfile.mkdtemp(prefix="rpo-fuzz-"))
    ends, wrong = run(given.number, given.seed, folder, SECONDS)
    print("\n".join(wrong))
    commands = sum(ends.values())
    print(f"{given.number} mutants, {commands} commands: {ends['not']} ended otherwise than they should")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
