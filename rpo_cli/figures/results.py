"""The small form of a figure's results that is worth committing, and from which all is redrawn."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rpo_cli.artifacts import publish
from rpo_cli.errors import BadInput
from rpo_cli.figures.table import CELL, KEYS, UNIT, Axes, Bootstrap, check_cells, key
from rpo_cli.recipes import schema

CHOICES = [*CELL, "member", "share"]
DIGITS = {"curves.csv": 5, "checkpoints.csv": 5}  # decimals that are kept of tables; others: 6
DRAWN = ("curves.csv", "checkpoints.csv", "accuracies.csv")  # tables that pictures are drawn from


class Results(NamedTuple):
    """What is kept of a figure: numbers of every prompt, choices of ensembles, provenance, further tables.

    meta: at least policies, rhos, seeds; also kind, panels, claims, bootstrap_samples, bootstrap_seed, title,
    and any provenance as JSON. tables: by the name of their CSV file.
    """

    cells: pd.DataFrame
    choices: pd.DataFrame
    meta: dict[str, Any]
    tables: Mapping[str, pd.DataFrame]

    @property
    def kind(self) -> str:
        return str(self.meta.get("kind", "figure2"))

    @property
    def axes(self) -> Axes:
        policies, rhos, seeds = (self.meta[name] for name in ("policies", "rhos", "seeds"))
        return Axes(policies, rhos, seeds, self.measures)

    @property
    def measures(self) -> tuple[str, ...]:
        """What its kind measures, and whatever else its cells have."""
        own = schema.MEASURES[self.kind]
        return own + tuple(name for name in schema.FURTHER if name in self.cells and name not in own)

    @property
    def bootstrap(self) -> Bootstrap:
        drawn, seed = (self.meta.get(f"bootstrap_{name}", 0) for name in ("samples", "seed"))
        return Bootstrap(int(drawn or 2000), int(seed), self.meta.get("intervals") == "t")

    @property
    def claims(self) -> list[schema.Claim]:
        """What is claimed; results of Figure 2 from before it had claims of its own: what the paper does."""
        said = self.meta.get("claims")
        if said is None:
            return schema.claims_by_default(self.kind)
        return [schema.Claim.model_validate(claim) for claim in said]


def plain(value: object) -> Any:
    """A value as JSON may hold it: numbers rounded to 6 decimals, NaN as null, no numpy types."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return round(float(value), 6) + 0.0 if np.isfinite(value) else None
    return value


def to_json(value: object) -> bytes:
    """Sorted, rounded, free of anything that differs between two runs on the same numbers."""
    text = json.dumps(plain(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def to_csv(table: pd.DataFrame, digits: int) -> bytes:
    """Numbers rounded to so many decimals, without zeros at their end."""
    return bytes(table.round(digits).to_csv(index=False, lineterminator="\n").encode())


def save_results(results: Results, folder: Path) -> list[Path]:
    """The small form worth committing: cells.parquet, choices.csv, provenance.json (meta), other tables."""
    measures = results.measures
    cells = check_cells(results.cells, measures)
    numbers = {name: (cells[name].astype(float) / UNIT).round() * UNIT for name in measures}
    kept = cells.assign(**numbers).astype(dict.fromkeys(measures, "float32"))
    kept = kept.astype({"policy": "category", "prompt_id": "category", "seed": "int64"})
    buffer = io.BytesIO()
    kept.to_parquet(buffer, index=False, compression="zstd")
    choices = results.choices[CHOICES].sort_values(CHOICES[:4])
    return [
        publish(folder / "cells.parquet", buffer.getvalue()),
        publish(folder / "choices.csv", to_csv(choices, 6)),
        publish(folder / "provenance.json", to_json(results.meta)),
        *(
            publish(folder / name, to_csv(table, DIGITS.get(name, 6)))
            for name, table in results.tables.items()
        ),
    ]


def load_results(folder: Path) -> Results:
    """What save_results kept.

    Raises:
        BadInput: there is none.
    """
    if not (folder / "cells.parquet").is_file():
        raise BadInput(f"{folder}: holds no results (cells.parquet)")
    cells = pd.read_parquet(folder / "cells.parquet").astype({"policy": str, "prompt_id": str, "seed": int})
    measures = [column for column in cells.columns if column not in KEYS]
    cells = cells.astype(dict.fromkeys(measures, float)).round(dict.fromkeys(measures, 4))
    choices = pd.read_csv(folder / "choices.csv")
    # Results from before there was a name for it have the key of "no resampling" in every file.
    cells, choices = (frame.assign(rho=frame["rho"].replace(key(None), np.nan)) for frame in (cells, choices))
    meta = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    meta["rhos"] = [rho or None for rho in meta["rhos"]]
    return Results(
        cells,
        choices,
        meta,
        {name: pd.read_csv(folder / name) for name in DRAWN if (folder / name).is_file()},
    )
