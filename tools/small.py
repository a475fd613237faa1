"""From a workspace of `recipes/small`, what its figure does not hold: the reward models, and another measure.

python -m tools.small WORKSPACE results/small/primary

reward_models.csv has what each reward model knows of held-out pairs, the mean square of its margins on the
training pairs, and the temperature that calibration divides its rewards by. overlap.parquet has what the
words of each sample on the test prompts share with the line that a person wrote for the same post, and with
the post. No reward model is asked for it; the oracle learnt from such lines too.
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


def words(text: str) -> Counter[str]:
    """A text's bag of words, in lower case."""
    return Counter(WORD.findall(text.lower()))


def shares(response: str, written: str, post: str) -> dict[str, float]:
    """Of a sample: F1 with the written line's bag of words, its two halves, and its words from the post."""
    mine, theirs = words(response), words(written)
    both = (mine & theirs).total()
    return {
        "overlap": 2 * both / max(1, mine.total() + theirs.total()),
        "of_the_written": both / max(1, theirs.total()),
        "of_its_own": both / max(1, mine.total()),
        "copied": sum(mine[word] for word in mine.keys() & words(post).keys()) / max(1, mine.total()),
    }


def overlaps(seed: Path, folder: Path) -> Iterator[pd.DataFrame]:
    """policy, rho, prompt_id and `shares`: of π_SFT's samples, and of each cell's of a figure's results."""
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
        found = pd.DataFrame([shares(response, written[prompt], prompt) for response, prompt in both])
        named = {"policy": policy, "rho": rho, "prompt_id": samples["prompt_id"].to_numpy()}
        yield found.astype("float32").assign(**named)


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
    name = f"temperature/{member:g}"
    found = {float(each[name]) for each in calibrated if name in each}
    if len(found) != 1:
        raise SystemExit(
            f"{seed}, rho {rho:g}, b {member:g}: {len(found)} temperatures of calibrated policies"
        )
    return found.pop()


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
