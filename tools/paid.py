"""What the reward models of splits biased in an attribute pay for it, on held-out pairs of the same bias.

python -m tools.paid WORKSPACE results/FOLDER RM SPLITS

paid.csv has rho, seed, member and two means of the margin towards the response of the higher number on
held-out pairs, each divided by the root of the mean square of all margins: `drawn` over the pairs, which are
biased as D_rho is, and `balanced`, the mean of those where it was chosen and of those where it was rejected,
as if both were as many. On training pairs it would say which of them a member was trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd


def paid(scores: pd.DataFrame, splits: pd.DataFrame) -> tuple[float, float]:
    """The two means of one member: `drawn` and `balanced`."""
    higher = splits.set_index("id")["higher_preferred"].loc[scores["id"]].to_numpy()
    margins = (scores["chosen"] - scores["rejected"]).to_numpy()
    size = float(np.sqrt((margins**2).mean()))
    sides = [float((side * margins[higher == side]).mean()) for side in (1, -1)]
    return round(float((higher * margins).mean()) / size, 4), round(sum(sides) / 2 / size, 4)


def rows(workspace: Path, folder: Path, models: str, splits: str) -> Iterator[dict[str, float]]:
    """One for each member of each ensemble that taught."""
    taught = pd.read_csv(folder / "choices.csv")[["rho", "seed", "member"]].drop_duplicates()
    for one in taught.sort_values(["rho", "seed", "member"]).itertuples(index=False):
        at = workspace / f"seed-{one.seed}/rho-{one.rho:g}"
        scores = pd.read_parquet(at / f"scores/{models}/b-{one.member:g}/held_out.parquet")
        drawn, balanced = paid(scores, pd.read_parquet(at / splits / "held_out.parquet"))
        yield {"rho": one.rho, "seed": one.seed, "member": one.member, "drawn": drawn, "balanced": balanced}


def main() -> None:
    """Write the table into the folder of the figure's results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models")
    parser.add_argument("splits")
    given = parser.parse_args()
    found = rows(given.workspace, given.folder, given.models, given.splits)
    pd.DataFrame(found).to_csv(given.folder / "paid.csv", index=False)


if __name__ == "__main__":
    main()
