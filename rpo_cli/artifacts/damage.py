"""Files that are not as they were written: cut short, emptied, overwritten."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rpo_cli.text import first_line

if TYPE_CHECKING:
    from torch import Tensor


def damaged_files(directory: Path) -> Iterator[tuple[Path, str]]:
    """The files below a directory that are not what their suffix says, each with the reason in a line."""
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        if (read := READERS.get(file.suffix)) is not None:
            try:
                read(file)
            except Exception as error:  # of json, zipfile, Arrow and safetensors, each with its own
                yield file, first_line(error)


def checksum(file: Path) -> int:
    """CRC-32 of a file: half a second for a gigabyte, where SHA-256 may take three."""
    found = 0
    with file.open("rb") as content:
        while part := content.read(2**20):
            found = zlib.crc32(part, found)
    return found


def cure(file: Path, why: Exception | str, artifact: Path) -> str:
    """What to say of a damaged file of a finished artifact."""
    return f"{file} is damaged ({first_line(why)}): delete {artifact}, and the same command makes it again"


def _json(file: Path) -> None:
    json.loads(file.read_bytes())


def _lines(file: Path) -> None:
    for line in file.read_bytes().splitlines():
        json.loads(line)


def _zip(file: Path) -> None:
    """A file of torch.save, whose every part has its checksum."""
    with zipfile.ZipFile(file) as parts:
        if (damaged := parts.testzip()) is not None:
            raise ValueError(f"checksum of {damaged}")


def _parquet(file: Path) -> None:
    import pyarrow.parquet as pq

    for _ in pq.ParquetFile(file).iter_batches():
        pass


def _weights(file: Path) -> None:
    """Weights that are all finite: those that a stage publishes are."""
    from safetensors import safe_open

    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            tensor = weights.get_tensor(name)
            if tensor.is_floating_point() and not all_finite(tensor):
                raise ValueError(f"{name} has numbers that are not finite")


def all_finite(numbers: Tensor) -> bool:
    """Whether each of them is finite.

    Where one is not, neither is the sum, which takes a fraction of the time; it may also overflow. Of numbers
    of eight bits torch makes no sums.
    """
    summed = numbers.element_size() > 1 and bool(numbers.sum().isfinite())
    return summed or bool(numbers.isfinite().all())


READERS = {
    ".json": _json, ".jsonl": _lines, ".pt": _zip, ".pth": _zip, ".bin": _zip, ".parquet": _parquet,
    ".safetensors": _weights,
}  # fmt: skip
