"""From a workspace of `recipes/small`, what its figure does not hold: the reward models, and a second judge.

python -m tools.small WORKSPACE results/small/primary

reward_models.csv has what each reward model knows of held-out pairs, the mean square of its margins on the
training pairs, and the temperature that calibration divides its rewards by. overlap.parquet has how many
words each sample on the test prompts shares with the line that a person wrote for the same post: F1 of the
two bags of words, in lower case, which knows nothing of the oracle.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from rpo_cli.figures.results import load_results
from tools.margins import mean_square

WORD = re.compile(r"[a-z0-9]+")
KINDS = ("longer", "shorter")


def overlap(one: str, other: str) -> float:
    """F1 of two texts' bags of words: 1 for the same words, 0 for none in common."""
    mine, theirs = (Counter(WORD.findall(text.lower())) for text in (one, other))
    return 2 * (mine & theirs).total() / max(1, mine.total() + theirs.total())


def overlaps(seed: Path, folder: Path) -> Iterator[pd.DataFrame]:
    """policy, rho, prompt_id, overlap: of π_SFT's samples, and of each cell's of the figure in `folder`."""
    posts = pd.read_parquet(seed / "data/prompts_test.parquet")
    written = dict(zip(posts["prompt"], posts["completion"], strict=True))
    evaluations = {json.loads(path.read_text())["key"]: path for path in seed.rglob("test/manifest.json")}
    cells = json.loads((folder / "provenance.json").read_text())["cells"]
    places = [("sft", float("nan"), seed / "evaluations/sft/test")]
    for policy, each in cells.items():
        for where, cell in each.items():
            rho = float(where.split("/")[0].removeprefix("rho-"))
            places.append((policy, rho, evaluations[cell["key"]].parent))
    for policy, rho, place in places:
        samples = pd.read_parquet(place / "samples.parquet").sort_values("prompt_id")
        both = zip(samples["response"], samples["prompt"], strict=True)
        shared = [overlap(response, written[prompt]) for response, prompt in both]
        columns = {"policy": policy, "rho": rho, "prompt_id": samples["prompt_id"], "overlap": shared}
        yield pd.DataFrame(columns).astype({"policy": "category", "overlap": "float32"})


def reward_models(seed: Path) -> Iterator[dict[str, float]]:
    """A row for each: rho, member (its bias), accuracies and pairs by kind, size of margins, temperature."""
    for place in sorted(seed.glob("rho-*/rm/b-*")):
        found = json.loads((place / "manifest.json").read_text())["metrics"]
        rho, member = (float(part.split("-")[1]) for part in (place.parts[-3], place.parts[-1]))
        names = {"all": "held_out_accuracy", **{kind: f"held_out_accuracy/{kind}" for kind in KINDS}}
        yield {
            "rho": rho,
            "member": member,
            **{name: round(found[column], 4) for name, column in names.items()},
            **{f"{kind}_pairs": found[f"held_out_rows/{kind}"] for kind in KINDS},
            "margins_mean_square": mean_square(seed, rho, member),
            "temperature": round(temperature(seed, rho, member), 2),
        }


def temperature(seed: Path, rho: float, member: float) -> float:
    """What the policies of that rho that calibrate divide this member's rewards by."""
    manifests = [
        json.loads(path.read_text()) for path in seed.glob(f"rho-{rho:g}/policies/*/*/manifest.json")
    ]
    calibrated = [each["metrics"] for each in manifests if each["recipe"].get("calibration") == "temperature"]
    (found,) = {float(each[f"temperature/{member:g}"]) for each in calibrated if each.get("temperature/0.2")}
    return found


def main() -> None:
    """Write both tables into the folder of the figure's results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    seeds = load_results(given.folder).axes.seeds
    if len(seeds) != 1:
        parser.error(f"{given.folder} has {len(seeds)} seeds; one is expected")
    seed = given.workspace / f"seed-{seeds[0]}"
    pd.DataFrame(reward_models(seed)).to_csv(given.folder / "reward_models.csv", index=False)
    found = pd.concat(overlaps(seed, given.folder), ignore_index=True)
    found.astype({"policy": "category", "prompt_id": "category"}).to_parquet(given.folder / "overlap.parquet")


if __name__ == "__main__":
    main()
