"""What is too large to read for a key, such as a model's weights, is known by its size and its time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Tiny

LARGE = 64 * 2**20 + 1


def key(tiny: Tiny, model: Path) -> str:
    """The key of a policy that starts from a directory."""
    return tiny.stage("dpo.yaml", f"model_name_or_path={model}").key


@pytest.mark.parametrize("large", [True, False])
def test_a_file_counts_by_content_or_if_it_is_large_by_size_and_time(
    empty: Tiny, tmp_path: Path, large: bool
) -> None:
    weights = tmp_path / "model/model.safetensors"
    weights.parent.mkdir()

    def write(size: int, time: int, first: bytes = b"a") -> str:
        with weights.open("wb") as file:
            file.write(first)
            file.truncate(size)
        os.utime(weights, ns=(time, time))
        return key(empty, weights.parent)

    size = LARGE if large else 1000
    before = write(size, 1)
    assert write(size, 1) == before
    assert (write(size, 2) != before) == large
    assert write(size + 1, 1) != before
    assert (write(size, 1, b"b") != before) == (not large)
    weights.rename(weights.with_name("other.safetensors"))
    assert key(empty, weights.parent) != before
