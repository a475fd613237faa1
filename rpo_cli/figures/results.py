"""The small form of a figure's results that is worth committing, and from which all is redrawn."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rpo_cli.artifacts import publish
from rpo_cli.figures.table import KEYS, MEASURES, UNIT, check_cells


def plain(value: Any) -> Any:
    """A value as JSON may hold it: numbers rounded to 6 decimals, NaN as null, no numpy types."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return round(float(value), 6) + 0.0 if np.isfinite(value) else None
    return value


def to_json(value: Any) -> bytes:
    """Sorted, rounded, free of anything that differs between two runs on the same numbers."""
    return (
        json.dumps(plain(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()


def save_results(
    cells: pd.DataFrame,
    choices: pd.DataFrame,
    meta: dict[str, Any],
    folder: Path,
    measures: Sequence[str] = MEASURES,
) -> list[Path]:
    """The small form worth committing, from which all is redrawn: cells.parquet, choices.csv, provenance.json (meta).

    meta: at least policies, rhos, seeds; also bootstrap_samples, bootstrap_seed, title, and any provenance as JSON.
    """
    cells = check_cells(cells, measures)
    numbers = {name: (cells[name].astype(float) / UNIT).round() * UNIT for name in measures}
    kept = cells.assign(**numbers).astype(dict.fromkeys(measures, "float32"))
    kept = kept.astype({"policy": "category", "prompt_id": "category", "seed": "int64"})
    buffer = io.BytesIO()
    kept.to_parquet(buffer, index=False, compression="zstd")
    choices = choices[["policy", "rho", "seed", "member", "share"]].sort_values(
        ["policy", "rho", "seed", "member"]
    )
    csv = choices.round(6).to_csv(index=False, lineterminator="\n").encode()
    return [
        publish(folder / "cells.parquet", buffer.getvalue()),
        publish(folder / "choices.csv", csv),
        publish(folder / "provenance.json", to_json(meta)),
    ]


def load_results(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """What save_results kept: cells, choices, meta; FileNotFoundError naming the file that is not there."""
    cells = pd.read_parquet(folder / "cells.parquet").astype({"policy": str, "prompt_id": str, "seed": int})
    measures = [column for column in cells.columns if column not in KEYS]
    cells = cells.astype(dict.fromkeys(measures, float)).round(dict.fromkeys(measures, 4))
    meta: dict[str, Any] = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    return cells, pd.read_csv(folder / "choices.csv"), meta
