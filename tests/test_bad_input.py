"""Whatever a user gives wrongly: one clear line, exit code 2 (1 where a run fails), and no result."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RHO, SEED, Tiny
from safetensors.torch import load_file, save_file

PAIR = {"prompt": "a", "chosen": "c", "rejected": "d"}
DATA = "device: cpu\ndtype: float32\nthreads: 1\nstage: data\nfiles: {pairs: pairs.jsonl}\n"


@dataclass
class Case:
    """A command on a workspace in which something was spoilt; `says` may hold {suite} and {root}."""

    says: str
    spoil: Callable[[Tiny], Any] = lambda tiny: None
    command: tuple[str, ...] = ("train-policy", "e-dpo.yaml")
    more: tuple[str, ...] = field(default=())
    makes: str | None = None
    code: int = 2


def pairs(content: bytes, name: str = "pairs.jsonl") -> Callable[[Tiny], None]:
    """The suite on a file of pairs, in a workspace without anything."""

    def spoil(tiny: Tiny) -> None:
        shutil.rmtree(tiny.root)
        (tiny.suite / name).write_bytes(content)
        (tiny.suite / "data.yaml").write_text(DATA.replace("pairs.jsonl", name))

    return spoil


def beside(spoil: Callable[[Tiny], None], name: str) -> Callable[[Tiny], None]:
    """The same, with another file there as well."""

    def both(tiny: Tiny) -> None:
        spoil(tiny)
        (tiny.suite / name).write_bytes(lines(PAIR))

    return both


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def recipe(name: str, text: str) -> Callable[[Tiny], None]:
    return lambda tiny: tiny.edit(name, text)


def without_special(tiny: Tiny, *names: str) -> None:
    """Take special tokens from the tokenizer of pi_SFT."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tiny.root / SEED / "sft" / file
        if path.is_file():
            path.write_text(
                json.dumps(
                    {key: value for key, value in json.loads(path.read_text()).items() if key not in names}
                )
            )
    shutil.rmtree(tiny.root / RHO / "rm/all")
    config = tiny.root / SEED / "sft/config.json"
    config.write_text(
        json.dumps(
            {
                key: None if key[:3] in ("pad", "eos") else value
                for key, value in json.loads(config.read_text()).items()
            }
        )
    )


def not_a_number(tiny: Tiny) -> None:
    file = tiny.root / SEED / "oracle/model.safetensors"
    weights = load_file(file)
    weights["score.weight"] = torch.full_like(weights["score.weight"], float("nan"))
    save_file(weights, file, metadata={"format": "pt"})
    shutil.rmtree(tiny.root / SEED / "relabel")


INSPECT = ("data inspect", "data.yaml")
OUT = f"{SEED}/data"
CASES = {
    "an unknown key": Case("{suite}/e-dpo.yaml:7: bta: unknown key, did you mean beta?", recipe("e-dpo.yaml",
    "bta: 1")),
    "a list for a number": Case(
        "{suite}/e-dpo.yaml:7: beta: expected a number, got a list ([0.1, 0.2])", recipe("e-dpo.yaml",
        "beta: [0.1, 0.2]")
    ),
    "text for a number": Case(
        "{suite}/e-dpo.yaml:7: max_steps: expected a whole number, got text ('many')", recipe("e-dpo.yaml",
        "max_steps: many")
    ),
    "a file that is not there": Case(
        "{suite}/data.yaml:5: files.pairs: no such file: {suite}/pairs.jsonl",
        lambda tiny: (tiny.suite / "data.yaml").write_text(DATA), ("data inspect", "data.yaml"),
    ),
    "a table that no file is listed for": Case(
        "{suite}/sft.yaml:1: data: needs the table sft_train, which files: of {suite}/data.yaml does not "
        "list",
        pairs(lines(PAIR)), ("train-sft", "sft.yaml")
    ),
    "a column that is not there": Case(
        "{suite}/pairs.jsonl:2: no column 'rejected' (has: chosen, prompt)",
        pairs(lines(PAIR, {"prompt": "b", "chosen": "c"})), INSPECT, makes=OUT
    ),
    "no rows": Case("{suite}/pairs.jsonl: no rows", pairs(b"\n"), INSPECT, makes=OUT),
    "equal responses": Case(
        "{suite}/pairs.jsonl:1: chosen and rejected are the same text, so there is no preference to learn",
        pairs(lines(PAIR | {"rejected": "c"})), INSPECT, makes=OUT,
    ),
    "a line that is no JSON": Case("{suite}/pairs.jsonl:2: not JSON: ", pairs(lines(PAIR) + b'{"prompt": \n'),
    INSPECT, makes=OUT),
    "a line that is no UTF-8": Case("{suite}/pairs.jsonl:2: not UTF-8: ",
    pairs(lines(PAIR) + b'{"prompt": "\xff"}\n'), INSPECT, makes=OUT),
    "a JSON array": Case(
        "{suite}/pairs.json:1: a JSON array; expected JSON Lines, an object on each line: "
        "jq -c '.[]' {suite}/pairs.json > {suite}/pairs.jsonl, then name pairs.jsonl in files:",
        pairs(json.dumps([PAIR], indent=1).encode(), "pairs.json"), INSPECT, makes=OUT,
    ),
    "an object over several lines": Case(
        "{suite}/pairs.json:1: an object over several lines; expected JSON Lines, an object on each line: "
        "jq -c '.' {suite}/pairs.json > {suite}/pairs.jsonl, then name pairs.jsonl in files:",
        pairs(json.dumps(PAIR, indent=1).encode(), "pairs.json"), INSPECT, makes=OUT,
    ),
    "a JSON array in a file of lines, which jq must not be told to empty": Case(
        "jq -c '.[]' '{suite}/b 8.jsonl' > '{suite}/b 8-lines.jsonl', then name b 8-lines.jsonl in files:",
        pairs(json.dumps([PAIR]).encode(), "b 8.jsonl"), INSPECT, makes=OUT,
    ),
    "a JSON array beside a file of lines, which jq must not be told to replace": Case(
        "jq -c '.[]' {suite}/pairs.json > {suite}/pairs-lines.jsonl, then name pairs-lines.jsonl in files:",
        beside(pairs(json.dumps([PAIR]).encode(), "pairs.json"), "pairs.jsonl"), INSPECT, makes=OUT,
    ),
    "a conversation for text": Case(
        "{suite}/pairs.jsonl:1: chosen: expected text, got a conversation; `prompt_format: chat` with "
        "`tokenizer:` in the data recipe makes text of it",
        pairs(lines(PAIR | {"chosen": [{"role": "assistant", "content": "c"}]})), INSPECT, makes=OUT,
    ),
    "an id twice": Case(
        "{suite}/pairs.jsonl:2: id 'x' belongs to another row as well",
        pairs(lines(PAIR | {"id": "x"}, PAIR | {"id": "x", "prompt": "b"})), INSPECT, makes=OUT,
    ),
    "a rho that cannot be filled": Case(
        "splits: rho 0.5 with num_pairs 400 and held_out 24 needs 212 pairs whose longer response is "
        "preferred, 156 exist",
        command=("make-biased-splits", "splits.yaml"), more=("num_pairs=400",), makes=f"{RHO}/splits",
    ),
    "a prompt longer than max_length": Case(
        "max_length is 20; raise max_length, shorten the text, or set overlong: drop",
        command=("train-sft", "sft.yaml"), more=("max_length=20",), makes=f"{SEED}/sft",
    ),
    "a tokenizer without EOS": Case(
        "the tokenizer has no EOS token, so a response could never end",
        lambda tiny: without_special(tiny, "eos_token"), ("train-rm", "rm.yaml"), makes=f"{RHO}/rm/all",
    ),
    "a reward that is no number": Case(
        "oracle/model.safetensors is damaged (score.weight has numbers that are not finite): delete",
        not_a_number, ("relabel", "relabel.yaml"), makes=f"{SEED}/relabel", code=1,
    ),
    "a loss that is no number": Case(
        " is nan at step 2; try a smaller learning_rate", command=("train-policy", "dpo.yaml"),
        more=("learning_rate=1e30", "max_steps=3"),
        makes=f"{RHO}/policies/dpo/beta-0.2-learning_rate-1e+30-max_steps-3", code=1,
    ),
    "a workspace of another suite": Case(
        "{root}: workspace of suite 'tiny', not 'other'; choose another --workspace", more=("suite=other",)
    ),
    "too few rows for a batch": Case(
        "200 rows do not fill one batch of 256; lower per_device_train_batch_size (256)",
        command=("train-sft", "sft.yaml"), more=("per_device_train_batch_size=256",), makes=f"{SEED}/sft",
    ),
    "too few rows for an accumulated batch": Case(
        "200 rows do not fill one batch of 256; lower per_device_train_batch_size (64) or "
        "gradient_accumulation_steps (4)", command=("train-sft", "sft.yaml"), makes=f"{SEED}/sft",
        more=("per_device_train_batch_size=64", "gradient_accumulation_steps=4"),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_in_one_line_and_nothing_half_written_counts(tiny: Tiny, name: str) -> None:
    case = CASES[name]
    case.spoil(tiny)
    before = {path: path.read_bytes() for path in tiny.root.rglob("manifest.json")}
    result = tiny.run(*case.command, *(part for key in case.more for part in ("--set", key)), code=case.code)
    assert case.says.format(suite=tiny.suite, root=tiny.root) in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output and "unexpected" not in result.output
    if case.makes is None:
        assert len(result.stderr.splitlines()) == 1
    else:
        assert (tiny.root / case.makes).is_dir()  # it had begun
    # What it would have replaced is there again, as it was.
    assert {path: path.read_bytes() for path in tiny.root.rglob("manifest.json")} == before


def test_every_broken_row_is_named_up_to_twenty_and_the_rest_counted(empty: Tiny) -> None:
    rows: list[Any] = [
        PAIR,
        PAIR | {"chosen": None, "rejected": 3},
        ["c"],
        {"prompt": "a", "chosen": {}, "rejected": []},
    ]
    (empty.suite / "pairs.jsonl").write_bytes(lines(*rows, *[PAIR | {"chosen": 7}] * 17))
    (empty.suite / "data.yaml").write_text(DATA)
    said = empty.run(*INSPECT, code=2).stderr.splitlines()
    file = empty.suite / "pairs.jsonl"
    assert said[-21:] == [
        f"{file}:2: chosen: expected text, got null",
        f"{file}:2: rejected: expected text, got a number",
        f"{file}:3: expected an object with columns, got a list",
        f"{file}:4: chosen: expected text, got an object",
        f"{file}:4: rejected: expected text, got a list",
        *(f"{file}:{number}: chosen: expected text, got a number" for number in range(5, 20)),
        f"{file}: and 2 more problems",
    ]


def test_broken_rows_of_pairs_in_trls_formats_are_named_alike(empty: Tiny) -> None:
    null, file = PAIR | {"chosen": None}, empty.suite / "pairs.jsonl"
    recipe = DATA.replace("files: {pairs: pairs.jsonl}", "source: preference\ndataset: ./pairs.jsonl")
    (empty.suite / "data.yaml").write_text(recipe)

    def said(*rows: Any) -> list[str]:
        file.write_bytes(lines(*rows))
        found = empty.run(*INSPECT, code=2).stderr.splitlines()
        return [line.removeprefix(f"{file}:") for line in found if line.startswith(f"{file}:")] + found[-1:]

    is_null = "chosen is null (has: prompt, rejected)"
    assert said(null, null, PAIR, ["c"], PAIR | {"prompt": 3}, PAIR)[:-1] == [
        f"1: {is_null}",
        f"2: {is_null}",
        "4: expected an object with columns, got a list",
        "5: prompt: expected text or messages with role and content, got a number",
    ]
    many = said(PAIR, *[null] * 25)
    assert many[:20] == [f"{number}: {is_null}" for number in range(2, 22)]
    assert len(many) == 21 and many[-1].endswith("/data: not read any further, so there may be more problems")
    assert not said(PAIR, *[null] * 19)[-1].endswith("problems")
    # Rows that are all wrong alike are a set of another form: one line says so.
    assert said(*[null] * 3)[:-1] == said(*[null] * 30, PAIR)[:-1] == [f"1: {is_null}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.makes is None])
def test_what_a_plan_can_tell_is_told_without_torch(tiny: Tiny, name: str) -> None:
    case = CASES[name]
    case.spoil(tiny)
    words, file = case.command
    settings = [part for key in case.more for part in ("--set", key)]
    arguments = [*words.split(), "--recipe", str(tiny.suite / file), "--workspace", str(tiny.root), *settings]
    program = (
        "import sys\nfrom rpo_cli.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert end.code == 2, end.code\n"
        "print('TORCH', 'torch' in sys.modules)"
    )
    here = Path(__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=here
    )
    assert ended.stdout == "TORCH False\n", ended.stdout + ended.stderr
