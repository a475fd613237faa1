"""What single teachers of a figure's policies know of held-out pairs of D_rho, and the size of their margins.

python -m tools.teachers WORKSPACE results/FOLDER rm/all rm-trusted oracle

teachers.csv has rho, seed, teacher, the share of held-out pairs in whose order it agrees with the labels: of
all, of those that the longer response won, of those that the shorter one did; and the mean square of its
margins on the training pairs, and the share of these in whose order it agrees. --name: another file's name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from rpo_cli.figures.results import load_results


def rows(workspace: Path, folder: Path, teachers: Sequence[str]) -> Iterator[dict[str, float | str]]:
    """One for each teacher, rho and seed."""
    axes = load_results(folder).axes
    for rho in axes.rhos:
        for seed in axes.seeds:
            at = workspace / f"seed-{seed}/rho-{rho:g}"
            longer = pd.read_parquet(at / "splits/held_out.parquet").set_index("id")["longer_preferred"]
            for teacher in teachers:
                held, train = (pd.read_parquet(at / f"scores/{teacher}/{name}.parquet") for name in TABLES)
                right = (held["chosen"] > held["rejected"]).to_numpy()
                won = longer.loc[held["id"]].to_numpy()
                margins = train["chosen"] - train["rejected"]
                shares = {
                    "all": right.mean(),
                    "longer": right[won == 1].mean(),
                    "shorter": right[won == -1].mean(),
                }
                rounded = {name: round(float(share), 4) for name, share in shares.items()}
                yield {
                    "rho": rho,
                    "seed": seed,
                    "teacher": teacher,
                    **rounded,
                    "mean_square": round(float((margins**2).mean()), 2),
                    "trained": round(float((margins > 0).mean()), 4),
                }


TABLES = ("held_out", "train")


def main() -> None:
    """Write the table into the folder of the figure's results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("teachers", nargs="+")
    parser.add_argument("--name", default="teachers.csv")
    given = parser.parse_args()
    found = pd.DataFrame(rows(given.workspace, given.folder, given.teachers))
    found.to_csv(given.folder / given.name, index=False)


if __name__ == "__main__":
    main()
