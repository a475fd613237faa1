"""Damaged data files through `rpo data inspect`: each is read, or refused in a line.

    python -m tools.fuzz_data --count 1000 --seed 0
    python -m tools.fuzz_data --seed 0 --only 17 --keep damaged    # one of them again, with its files

A case takes a small file of one source and damages its bytes or its rows. It is a failure unless the command
ends with code 0, or with code 2 and a line for each problem, within a minute.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

SECONDS = 60
ROWS = 24
Row = dict[str, Any]
Case = random.Random

# ---- Rows of each source, as they should be


def _turns(*texts: str) -> list[Row]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _dialogue(number: int, answer: str) -> str:
    return f"\n\nHuman: who left {number}\n\nAssistant: she\n\nHuman: why\n\nAssistant: {answer}"


def _prompt(number: int) -> str:
    return f"SUBREDDIT: r/pets\n\nTITLE: My dog {number}\n\nPOST: Dog is ill.\n\nRent rose.\n\nTL;DR:"


def _comparison(n: int) -> Row:
    info = {"id": f"t3_{n}", "subreddit": "pets", "title": f"My dog {n}", "post": "Dog is ill.\n\nRent rose."}
    split = ("train", "train", "valid1", "valid2")[n % 4]
    texts = [{"text": f" one {n}", "policy": "ref"}, {"text": " other", "policy": "ref"}]
    return {"info": info, "summaries": texts, "choice": n % 2, "batch": "batch3", "split": split}


def _shp(n: int) -> Row:
    answers = {"human_ref_A": f"so {n}", "human_ref_B": "or so"}
    return {"post_id": f"p{n}", "history": f"Why {n}?", **answers, "labels": n % 2, "score_A": 3}


SOURCES: dict[str, tuple[str, Callable[[int], Row]]] = {
    "files": ("files", lambda n: {"prompt": f"say {n}:", "chosen": " this", "rejected": " that", "id": n}),
    "explicit": ("preference", lambda n: {"prompt": f"say {n}:", "chosen": " this", "rejected": " that"}),
    "implicit": ("preference", lambda n: {"chosen": f"say {n}: this", "rejected": f"say {n}: that"}),
    "conversations": ("preference", lambda n: {
        "prompt": _turns(f"who {n}"), "chosen": _turns("", "she")[1:], "rejected": _turns("", "he")[1:],
        "tools": None, "chat_template_kwargs": {"mood": "x"},
    }),
    "sharegpt": ("preference", lambda n: {
        "conversations": [{"from": "human", "value": f"who {n}"}], "system": "be kind",
        "chosen": {"from": "gpt", "value": "she"}, "rejected": {"from": "gpt", "value": "he"},
    }),
    "hh-rlhf": ("hh-rlhf", lambda n: {"chosen": _dialogue(n, "late"), "rejected": _dialogue(n, "early")}),
    "comparisons": ("tldr-comparisons", _comparison),
    "tldr": ("tldr-preference", lambda n: {
        "prompt": _prompt(n), "chosen": " dog", "rejected": " rent", "chosen_score": 1.5, "rejected_score": 0,
    }),
    "shp": ("shp", _shp),
    "labelled": ("preference", lambda n: {
        "prompt": f"say {n}:", "response_a": " this", "response_b": " that",
        "winner": ("model_a", "tie")[n % 2],
    }),
    "signed": ("preference", lambda n: {
        "prompt": f"say {n}:", "response1": " this", "response2": " that", "overall_preference": n % 7 - 3,
    }),
    "scored": ("preference", lambda n: {
        "prompt": f"say {n}:", "completions": [{"response": f" so {i}", "score": i + n} for i in range(3)],
    }),
    "ranks": ("preference", lambda n: {
        "prompt": f"say {n}:", "answers": [{"answer": f" so {i}", "rank": float(i)} for i in range(3)],
    }),
    "places": ("preference", lambda n: {
        "prompt": f"say {n}:", "summaries": [{"text": " this"}, {"text": " that"}], "choice": n % 2,
    }),
    "rows of one": ("preference", lambda n: {"prompt": f"say {n // 2}:", "response": f" {n}", "score": n}),
}  # fmt: skip

# ---- Damage

VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, float("nan"), float("-inf"), "", " ", "x", "\u200b", "\x00", "\ud800",
    "é" * 900, [], {}, [[]], [{}], [None], [1], ["x"], {"x": None}, {"role": "user"}, {"content": ""},
    _turns("who"), _turns("who", "she"), [{"from": "x", "value": "y"}], [{"role": "user", "content": []}],
    [{"role": "user", "content": [{"type": "image"}]}], {"from": "gpt", "value": None}, "[", "{{ x }}",
]  # fmt: skip
TEXTS = ["9" * 5000, "[" * 90_000, '{"a":' * 2000, '{"x": 1, "x": 2}', "1e999", "-", "'x'", "NaN", "\\ud83d"]
MARK = "MARK-OF-A-RAW-TEXT"


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inside for place in ((*path, key), *_places(item, (*path, key)))]


def _damage_row(rng: Case, row: Row) -> str:
    """A line of JSON of a row of which one thing was changed."""
    row = json.loads(json.dumps(row))
    *way, last = rng.choice(_places(row))
    inside: Any = row
    for key in way:
        inside = inside[key]
    raw = None
    match rng.randrange(6):
        case 0:
            del inside[last]
        case 1:
            raw, inside[last] = rng.choice(TEXTS), MARK
        case 2 if isinstance(inside, dict):
            inside[rng.choice(["prompt", "messages", "tools", "images", "id", "\n", "\ud800", ""])] = (
                inside.pop(last)
            )
        case 3 if isinstance(inside, dict):
            inside[rng.choice(["question", "context", "input", "tools", "completion"])] = rng.choice(VALUES)
        case _:
            inside[last] = rng.choice(VALUES)
    line = json.dumps(row)
    return line if raw is None else line.replace(f'"{MARK}"', raw)


def _damage_bytes(rng: Case, content: bytes) -> bytes:
    """The bytes with some of them changed, lost, doubled or put in."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        at, size = rng.randrange(max(1, len(made))), rng.choice((1, 1, 4, 60))
        match rng.randrange(5):
            case 0:
                made[at : at + size] = rng.randbytes(size)
            case 1:
                del made[at : at + size]
            case 2:
                made[at:at] = rng.randbytes(size)
            case 3:
                made[at:at] = made[at : at + size]
            case _:
                del made[rng.randrange(len(made) // 2, len(made) + 1) :]
    return bytes(made)


def _write(rng: Case, folder: Path, rows: list[Row]) -> Path:
    """A damaged file of rows."""
    form = rng.choice((".jsonl", ".jsonl", ".json", ".JSONL", ".jsonl.gz", ".jsonl.zst", ".parquet"))
    file = folder / f"rows{form}"
    of_rows = rng.random() < 0.6
    if form == ".parquet":
        try:
            damaged = [json.loads(_damage_row(rng, row)) if i % 9 == 3 else row for i, row in enumerate(rows)]
            pq.write_table(pa.Table.from_pylist(damaged if of_rows else rows), file)
        except (pa.ArrowException, ValueError, TypeError, RecursionError):  # there is no such table
            pq.write_table(pa.Table.from_pylist(rows), file)
            of_rows = False
        content = file.read_bytes()
    else:
        share = rng.choice((0.05, 0.05, 1.0))
        lines = [
            _damage_row(rng, row) if of_rows and rng.random() < share else json.dumps(row) for row in rows
        ]
        text = "\n".join(lines).encode()
        if rng.random() < 0.1:
            text = rng.choice(
                (
                    b"",
                    b"[" + text.replace(b"\n", b",") + b"]",
                    b"\xef\xbb\xbf" + text,
                    text.decode().encode("utf-16"),
                )
            )
        packers = {".gz": gzip.compress, ".zst": lambda raw: pa.Codec("zstd").compress(raw, asbytes=True)}
        pack = packers.get(form[form.rindex(".") :].lower())
        of_text = rng.random() < 0.5
        text = text if of_rows or not of_text else _damage_bytes(rng, text)
        content = pack(text) if pack else text
        of_rows = of_rows or of_text
    file.write_bytes(content if of_rows else _damage_bytes(rng, content))
    return file


def write_case(seed: int, index: int, folder: Path, tokenizer: Path) -> Path:
    """The recipe of a case, beside its file."""
    rng = Case(f"{seed}/{index}")
    source, row = SOURCES[rng.choice(sorted(SOURCES))]
    file = _write(rng, folder, [row(number) for number in range(ROWS)])
    if source == "files":
        table = rng.choice(("pairs", "pairs", "sft_train", "prompts_test"))
        keys = f"files: {{{table}: {file.name}}}\n"
    else:
        keys = f"dataset: ./{file.name}\nvalidation_share: 0.2\ntokenizer: {tokenizer}\n"
        keys += "data_dir: null\n" if source == "hh-rlhf" else ""
        if rng.random() < 0.2:
            keys += f"sft_dataset: ./{file.name}\n"
    recipe = folder / "data.yaml"
    recipe.write_text(f"device: cpu\ndtype: float32\nthreads: 1\nstage: data\nsource: {source}\n{keys}")
    (folder / "sft.yaml").write_text(f"stage: sft\nmodel_name_or_path: {tokenizer}\n")
    return recipe


# ---- Running them


def run_case(recipe: Path) -> tuple[int, str]:
    """A case's exit code, and what is wrong with how it ended (nothing: it is as it should be)."""
    from rpo_cli.cli import app

    signal.alarm(SECONDS)
    arguments = ["data", "inspect", "--recipe", str(recipe), "--workspace", str(recipe.parent / "runs")]
    result = CliRunner().invoke(app, arguments)
    signal.alarm(0)
    said = result.stderr.strip().splitlines()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return result.exit_code, f"{type(result.exception).__name__}: {result.exception}"
    if result.exit_code not in (0, 2) or "Traceback" in result.output or "report it" in result.output:
        return result.exit_code, said[-1] if said else "nothing was said"
    if result.exit_code == 2 and (not said or len(said) > 30 or max(map(len, said)) > 3000):
        return 2, f"{len(said)} lines"
    return result.exit_code, ""


def save_tokenizer(folder: Path) -> Path:
    """A tokenizer with a chat template."""
    from rpo_cli.stages.data.miniature import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def fuzz(
    seed: int, indices: range, folder: Path, say: Callable[[str], None] = lambda line: None
) -> tuple[Counter[int], list[str]]:
    """Run cases in a folder; exit codes, and the failures in words. Only a failed case's files stay."""
    codes, failures = Counter[int](), []
    tokenizer = save_tokenizer(folder / "tokenizer")
    for index in indices:
        case = folder / f"case-{index}"
        case.mkdir()
        code, wrong = run_case(write_case(seed, index, case, tokenizer))
        codes[code] += 1
        if wrong:
            failures.append(f"seed {seed} case {index}: exit {code}: {wrong}")
            say(failures[-1])
        else:
            shutil.rmtree(case)
        if index % 50 == 49:
            say(f"{index + 1}: exit codes {dict(codes)}, {len(failures)} failures")
    return codes, failures


def main() -> None:
    """Run the cases that the command line names; exit code 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep", type=Path, help="an empty folder, in which failed cases stay")
    options = parser.parse_args()
    indices = range(options.count) if options.only is None else range(options.only, options.only + 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        codes, failures = fuzz(options.seed, indices, folder, print)
    ends = f"exit codes {dict(codes)}, {len(failures)} failures"
    print(f"{sum(codes.values())} files, seed {options.seed}: {ends}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
