"""What teachers make of wrong labels: of a figure's training pairs whose labels were drawn from an oracle.

python -m tools.noise WORKSPACE results/FOLDER

noise.csv has rho, seed and teacher; of the training pairs the share whose label goes against the oracle, also
where the longer and where the shorter won; the share in whose order the teacher agrees with the label; and
the shares in whose order it agrees with the oracle, of all and of those with a right and with a wrong label.
`one model` was trained on the pairs; `cross-fitted` is of each pair the one of five that was not; `halves`
the mean of five of random halves, in units of each one's root mean square; `trusted` never saw the labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from rpo_cli.figures.results import load_results
from rpo_cli.stages.splits import folds_of

MEMBERS = range(5)
ONE = {"one model": "rm-noisy/all", "trusted": "rm-trusted"}
SEVERAL = {"cross-fitted": "rm-noisy-folds/fold", "halves": "rm-noisy-halves/half"}


def margins_of(at: Path, prompts: pd.Series) -> Iterator[tuple[str, np.ndarray]]:
    """The margins [n] of each teacher for the pairs that `prompts` has by id."""

    def read(name: str) -> np.ndarray:
        table = pd.read_parquet(at / "scores" / name / "train.parquet").set_index("id").loc[prompts.index]
        return (table["chosen"] - table["rejected"]).to_numpy(np.float64)

    yield "one model", read(ONE["one model"])
    for name, stem in SEVERAL.items():
        members = np.array([read(f"{stem}-{number}") for number in MEMBERS])
        if name == "halves":
            yield name, (members / np.sqrt((members**2).mean(1, keepdims=True))).mean(0)
        else:
            folds = folds_of(prompts.tolist(), len(MEMBERS))
            yield name, np.take_along_axis(members, folds[None], axis=0)[0]
    yield "trusted", read(ONE["trusted"])


def rows(workspace: Path, folder: Path) -> Iterator[dict[str, float | str]]:
    """One for each teacher, rho and seed."""
    axes = load_results(folder).axes
    for seed in axes.seeds:
        of_seed = workspace / f"seed-{seed}"
        prompts = pd.read_parquet(of_seed / "data/pairs.parquet").set_index("id")["prompt"]
        labels = pd.read_parquet(of_seed / "relabel-noisy/pairs.parquet").set_index("id")
        for rho in axes.rhos:
            at = of_seed / f"rho-{rho:g}"
            split = pd.read_parquet(at / "splits-noisy/train.parquet")
            ids, longer = split["id"], split["longer_preferred"].to_numpy() == 1
            drawn = labels.loc[ids]
            wrong = (drawn["chosen_score"] < drawn["rejected_score"]).to_numpy()
            for teacher, margins in margins_of(at, prompts.loc[ids]):
                right = (margins > 0) != wrong
                shares = {
                    "wrong": wrong.mean(),
                    "wrong_longer": wrong[longer].mean(),
                    "wrong_shorter": wrong[~longer].mean(),
                    "with_label": (margins > 0).mean(),
                    "right": right.mean(),
                    "right_of_right": right[~wrong].mean(),
                    "right_of_wrong": right[wrong].mean(),
                }
                rounded = {name: round(float(share), 4) for name, share in shares.items()}
                yield {"rho": rho, "seed": seed, "teacher": teacher, **rounded}


def main() -> None:
    """Write the table into the folder of the figure's results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    pd.DataFrame(rows(given.workspace, given.folder)).to_csv(given.folder / "noise.csv", index=False)


if __name__ == "__main__":
    main()
