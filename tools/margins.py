"""What the reward models of a figure's ensembles are: how large their margins are, and what they differ in.

python -m tools.margins WORKSPACE results/FOLDER

apart.csv has rho, seed and the share of what the members differ in on held-out pairs that one number for each
member explains, added where the longer response was chosen. margins.csv has rho, seed, member and the mean
square of its margins, not calibrated: at its first step a policy is π_ref, so that this is each member's
distillation loss up to β², what `ensemble_min: dataset` without calibration chooses its teacher by.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from rpo_cli.stages.diagnosis import agreement


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


def apart(workspace: Path, folder: Path) -> Iterator[dict[str, float]]:
    """One for each ensemble that taught; of those that differ in length alone."""
    for (rho, seed), members in pd.read_csv(folder / "margins.csv").groupby(["rho", "seed"]):
        at = workspace / f"seed-{seed}/rho-{rho:g}"
        read = [pd.read_parquet(at / f"scores/rm/b-{b:g}/held_out.parquet") for b in members["member"]]
        pairs = pd.read_parquet(at / "splits/held_out.parquet").set_index("id").loc[read[0]["id"]]
        margins = np.stack([(scores["chosen"] - scores["rejected"]).to_numpy(float) for scores in read])
        agreed = agreement(margins, pairs["longer_preferred"].to_numpy())
        yield {"rho": rho, "seed": seed, "by_length": round(agreed.by_length, 4) if agreed else np.nan}


def main() -> None:
    """Write the tables into the folder of the figure's results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    pd.DataFrame(rows(given.workspace, given.folder)).to_csv(given.folder / "margins.csv", index=False)
    pd.DataFrame(apart(given.workspace, given.folder)).to_csv(given.folder / "apart.csv", index=False)


if __name__ == "__main__":
    main()
