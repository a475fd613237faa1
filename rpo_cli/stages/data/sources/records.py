"""Records of files: Parquet, JSON lines, Debian indices, packed or not, in the layouts that the hub has."""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count, starmap
from pathlib import Path
from shlex import quote

import pyarrow as pa
import pyarrow.parquet as pq

from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.sources.base import columns_in, named, shown_name
from rpo_cli.text import first_line

PACKED = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bz2", ".lz4": "lz4"}
INDEX = re.compile(r"(^|_)(Packages|Translation-en)$")  # of a Debian archive, or as apt names them
KNOWN = "a .jsonl or .parquet file (lines may be packed: .jsonl.gz, .jsonl.zst)"
# data/train-00000-of-00007-3d41a76ca5845f49.parquet
SHARD = re.compile(r"(?P<split>[\w.]+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
VALIDATION = ("validation", "valid", "val", "eval", "dev")
SPLITS = {"train": "train", "test": "test", **dict.fromkeys(VALIDATION, "validation")}
ENDINGS = re.compile(rf"\.(jsonl?|parquet)({'|'.join(map(re.escape, PACKED))})?$", re.IGNORECASE)
HALF = re.compile(rb"\\u[dD][89a-fA-F]")
UTF_8_MARK = b"\xef\xbb\xbf"


class RepeatedKey(Exception):
    """An object in which one key stands twice."""


def form_of(file: Path) -> tuple[str, str | None] | None:
    """How a file's name says that it is written: `parquet`, `json` or `index`, and packed in what."""
    *others, last = ["", *(suffix.lower() for suffix in file.suffixes)]
    packed = PACKED.get(last)
    kind = others[-1] if packed and others else last
    if INDEX.search(file.name.removesuffix(file.suffix) if packed else file.name):
        return "index", packed
    if kind in (".jsonl", ".json"):
        return "json", packed
    return ("parquet", None) if last == ".parquet" else None


def data_files(source: Path, folders: Sequence[str] = ()) -> list[Path]:
    """The files with records of a directory (in these folders of it), or the one file.

    Raises:
        BadInput: none there, or the Arrow files of `save_to_disk`.
    """
    if source.is_file():
        return [source]
    if (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
        what = "a data set of datasets' save_to_disk, which is not read"
        raise BadInput(f"{source}: {what}{_from_disk(source)}")

    def bookkeeping(file: Path) -> bool:
        """Whether a file is a repository's own: dataset_infos.json, .cache/..."""
        hidden = any(part.startswith(".") for part in file.relative_to(source).parts)
        return hidden or file.name == "dataset_infos.json"

    places = [source / folder for folder in folders] or [source]
    files = [file for place in places for file in sorted(place.rglob("*")) if file.is_file()]
    found = [file for file in files if form_of(file) and not bookkeeping(file)]
    if not found:
        raise BadInput(f"{', '.join(map(str, places))}: holds no Parquet or JSON lines files")
    return found


def split_of(file: Path) -> str | None:
    """The split that a file's name tells, if any.

    `train-00000-of-00001`, `train/0000`, `x-train`, `x.test`, `TEST`; `test_prefs` is one of this name.
    """
    stem, whole = file.name.split(".")[0], ENDINGS.sub("", file.name)
    if shard := SHARD.match(stem):
        return shard["split"]
    if re.fullmatch(r"(part-)?\d+", stem):
        return file.parent.name
    words, more = re.split(r"[-_]", stem), re.split(r"[-_.]", whole)
    for part in (stem, words[-1], more[-1]):
        if part.lower() in SPLITS:
            return SPLITS[part.lower()]
    return stem if len(words) == 2 and words[0].lower() in SPLITS else None


def published_split(file: Path) -> str | None:
    """`split_of`, under one name for validation."""
    split = split_of(file)
    return None if split is None else one_name(split)


def one_name(split: str) -> str:
    """A split by the name that it has here, if it is one of the three."""
    return SPLITS.get(split.lower(), split)


def records(
    files: Sequence[Path], kind: str, ledger: Ledger, columns: Mapping[str, str], *, every: bool = False
) -> Iterator[tuple[str, str | None, Row]]:
    """(place, split as published or None, record) of every record of these files; see `rows_in`.

    Raises:
        BadInput: a file or a record that cannot be read, with the line or row; those behind such a record can
            be asked for.
    """

    def read() -> Iterator[tuple[str, str | None, Row | str]]:
        for file in files:
            split = published_split(file)
            for place, row in rows_in(file, kind, ledger, columns, every=every):
                yield place, split, row

    return starmap(_whole, read())


def _whole(place: str, split: str | None, row: Row | str) -> tuple[str, str | None, Row]:
    if isinstance(row, str):
        raise BadInput(f"{place}: {row}")
    return place, split, row


def rows_in(
    file: Path, kind: str, ledger: Ledger, columns: Mapping[str, str], *, every: bool = False
) -> Iterator[tuple[str, Row | str]]:
    """Each row of a file after its place, or what is wrong with it; the ledger is told of each.

    Left out are rows in which a key stands twice. columns: ours -> the file's, which are renamed; every: of a
    Parquet file also columns of tokens.

    Raises:
        BadInput: the file cannot be read.
    """
    form = form_of(file)
    if form is None:
        raise BadInput(f"{file}: expected {KNOWN}{_from_table(file)}")
    kind_of, packed = form
    read = (
        _parquet(file, every)
        if kind_of == "parquet"
        else (_json if kind_of == "json" else _index)(file, packed)
    )
    for place, row in read:
        ledger.read(kind, place)
        if isinstance(row, dict):
            yield place, _renamed(row, columns, ledger)
        elif row is None:
            ledger.leave_out(f"{kind}/repeated_key")
        else:
            yield place, row


def _renamed(row: Row, columns: Mapping[str, str], ledger: Ledger) -> Row | str:
    """The row with our names for its columns, or what is wrong with it."""
    found = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    for ours, theirs in columns.items():
        if ours in found:
            ledger.renamed[ours, theirs] = ""
        elif (ours, theirs) not in ledger.renamed:
            ledger.renamed[ours, theirs] = columns_in(row)
        if ours not in found and ours not in row:
            return f"no column {theirs!r}, which columns: has for {ours} (has: {columns_in(row)})"
    others = {name: value for name, value in row.items() if name not in columns.values()}
    return others | found


def _parquet(file: Path, every: bool) -> Iterator[tuple[str, Row]]:
    try:
        # Batches: the pre-tokenised columns of some derivatives are many times their text.
        opened = pq.ParquetFile(file)
        schema = opened.schema_arrow
        if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
            raise BadInput(f"{file}: has the column {shown_name(twice[0])} twice; leave one of them out")
        tokens = [
            each.name for each in schema
            if each.name.endswith(("_token", "_label")) and pa.types.is_nested(each.type)
        ]  # fmt: skip
        columns = [name for name in schema.names if every or name not in tokens]
        batches = opened.iter_batches(columns=columns, batch_size=1000)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{file}: row {number}", row
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadInput(f"{file}: not a Parquet file: {first_line(error)}") from error


def _json(file: Path, packed: str | None) -> Iterator[tuple[str, Row | str | None]]:
    """Each line's row, None where a key stands in it twice, or what is wrong with it."""
    empty = True
    try:
        with _opened(file, packed) as lines:
            for number, line in enumerate(lines, 1):
                bare = line.removeprefix(UTF_8_MARK)  # files may be put behind each other, each with its mark
                if not bare.strip() or not (bare.isascii() or bare.decode(errors="replace").strip()):
                    continue
                if empty and bare.lstrip().startswith(b"["):
                    raise BadInput(f"{file}:{number}: a JSON array; {_instead(file, packed)}")
                if empty and bare.strip() == b"{":
                    over = "an object over several lines"
                    raise BadInput(f"{file}:{number}: {over}; {_instead(file, packed, '.')}")
                empty = False
                yield f"{file}:{number}", _parse(bare)
    except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:
        raise BadInput(f"{file}: cannot be read: {first_line(error)}") from error


def _opened(file: Path, packed: str | None) -> io.BufferedReader:
    """The bytes of a file, unpacked."""
    if packed == "xz":
        return io.BufferedReader(lzma.LZMAFile(file))
    return io.BufferedReader(pa.input_stream(str(file), compression=packed))


def _index(file: Path, packed: str | None) -> Iterator[tuple[str, Row]]:
    """Each paragraph of a Debian index: its fields, with the lines that go on as they are."""
    row: Row = {}
    first, last = 0, ""
    try:
        with _opened(file, packed) as lines:
            for number, line in enumerate(chain(lines, [b"\n"]), 1):
                shown = line.decode(errors="replace").rstrip("\n")
                if not shown.strip():
                    if row:
                        yield f"{file}:{first}", row
                    row = {}
                elif shown[0] in " \t" and row:
                    row[last] += f"\n{shown}"
                elif ":" in shown:
                    first = first if row else number
                    last, _, value = shown.partition(":")
                    row[last] = value.strip()
    except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:
        raise BadInput(f"{file}: cannot be read: {first_line(error)}") from error


def _from_table(file: Path) -> str:
    """What makes JSON Lines of a table of text."""
    kind = file.suffix.lower()
    if kind not in (".csv", ".tsv"):
        return ""
    tabs = ", sep='\\t'" if kind == ".tsv" else ""
    read = f"pandas.read_csv({str(file)!r}{tabs}, keep_default_na=False)"  # "None" is an answer
    target = str(_untaken(file.with_suffix(".jsonl")))
    code = f"import pandas; {read}.to_json({target!r}, orient='records', lines=True)"
    return f": python -c {quote(code)} makes one"


def _untaken(file: Path) -> Path:
    """The first of file, file-2, file-3 … that is not there, so that what is advised overwrites nothing."""
    numbered = (file.with_name(f"{file.stem}-{number}{file.suffix}") for number in count(2))
    return next(each for each in chain([file], numbered) if not each.exists())


def _from_disk(folder: Path) -> str:
    """What makes Parquet of a folder of `save_to_disk`, of one split or of several."""
    target = str(_untaken(folder.with_name(f"{folder.name}.parquet")))
    code = f"import datasets; datasets.load_from_disk({str(folder)!r}).to_parquet({target!r})"
    if (folder / "dataset_dict.json").is_file():
        target = str(_untaken(folder.with_name(f"{folder.name}-parquet")))
        each = f"each.to_parquet({target + os.sep!r} + name + '.parquet')"
        sets = f"datasets.load_from_disk({str(folder)!r}).items()"
        code = f"import datasets; [{each} for name, each in {sets}]"
    return f": python -c {quote(code)} makes {target}; name that instead"


def _instead(file: Path, packed: str | None, what: str = ".[]") -> str:
    """What makes lines of a JSON array, or of the values that jq's filter names."""
    expected = "expected JSON Lines, an object on each line"
    if packed is not None:
        return f"{expected}: unpack it, then jq -c '{what}'"
    # The shell empties what it redirects to before jq reads: the command must name no file that there is.
    endings = chain(("", "-lines"), (f"-lines-{number}" for number in count(2)))
    paths = (file.with_name(f"{file.stem}{end}.jsonl") for end in endings)
    target = next(path for path in paths if not path.exists())
    command = f"jq -c '{what}' {quote(str(file))} > {quote(str(target))}"
    return f"{expected}: {command}, then name {target.name} in files: or dataset:"


def _parse(line: bytes) -> Row | str | None:
    """The object on a line, None where a key stands in it twice, or what is wrong with the line."""
    try:
        row = DECODER.decode(line.decode())
        if not isinstance(row, dict):
            return f"expected an object with columns, got {named(row)}"
        half = [name for name, value in row.items() if _is_half(name, value)] if HALF.search(line) else []
    except RepeatedKey:
        return None
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason}"
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg.removesuffix(' at')}, in column {error.colno}"
    except RecursionError:
        return "not JSON that can be read: nested too deeply"
    except ValueError:
        return _too_long(line)
    names = ", ".join(map(shown_name, half))
    return f"{names}: holds half of a surrogate pair, which is no text" if half else row


def _once(pairs: list[tuple[str, object]]) -> Row:
    if len(row := dict(pairs)) < len(pairs):
        raise RepeatedKey
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _is_half(name: str, value: object) -> bool:
    """Whether a column's name or value holds half of a surrogate pair, which no file can be written with."""
    try:
        json.dumps([name, value], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _too_long(line: bytes) -> str:
    """Which column's number has more digits than Python converts."""
    most = sys.get_int_max_str_digits()
    long = re.compile(rf"\d{{{most + 1}}}")
    try:
        columns = json.loads(line, parse_int=str).items()
        names = ", ".join(shown_name(name) for name, value in columns if long.search(json.dumps(value)))
    except (ValueError, AttributeError, RecursionError):  # more is wrong with the line
        names = "the line"
    return f"{names}: a number of more than {most} digits"
