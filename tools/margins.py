"""How large the margins of each reward model of a figure's ensembles are on the training pairs.

python -m tools.margins WORKSPACE results/FOLDER

margins.csv has rho, seed, member and the mean square of its margins, not calibrated. At its first step a
policy is π_ref, so that this is each member's distillation loss up to β²: what `ensemble_min: dataset`
without calibration chooses its teacher by.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd


def mean_square(seed: Path, rho: float, member: float) -> float:
    """Of the margins of one member on the training pairs of one rho."""
    scores = pd.read_parquet(seed / f"rho-{rho:g}/scores/rm/b-{member:g}/train.parquet")
    return round(float(((scores["chosen"] - scores["rejected"]) ** 2).mean()), 2)


def rows(workspace: Path, folder: Path) -> Iterator[dict[str, float]]:
    """One for each member of each ensemble that taught."""
    taught = pd.read_csv(folder / "choices.csv")[["rho", "seed", "member"]].drop_duplicates()
    for one in taught.sort_values(["rho", "seed", "member"]).itertuples(index=False):
        size = mean_square(workspace / f"seed-{one.seed}", one.rho, one.member)
        yield {"rho": one.rho, "seed": one.seed, "member": one.member, "mean_square": size}


def main() -> None:
    """Write the table into the folder of the figure's results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    pd.DataFrame(rows(given.workspace, given.folder)).to_csv(given.folder / "margins.csv", index=False)


if __name__ == "__main__":
    main()
