"""Length-biased splits: D_rho, and its subsets D_rho,b.

The longer response of a pair has at least `length_margin` more tokens than the other; closer pairs are ties. D_rho has
the longer response preferred in a share rho of its pairs, drawn without replacement (Fisch et al., section 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo_cli.data.pairs import read_rows, tokenise, write_rows
from rpo_cli.errors import BadInput
from rpo_cli.models import load_tokenizer
from rpo_cli.pipeline import Job
from rpo_cli.schema import SplitsRecipe, seed_of
from rpo_cli.scoring import pairs_file
from rpo_cli.tracking import Report

LONGER, SHORTER, TIE = 1, -1, 0


def preference_of_length(chosen: np.ndarray, rejected: np.ndarray, margin: float) -> np.ndarray:
    """For each pair whether the LONGER or the SHORTER response is preferred, or their lengths TIE: int8 [n].

    Longer means at least `margin` (a share) more tokens than the other, and always more.
    """
    result = np.zeros(len(chosen), dtype=np.int8)
    factor = (1 + margin) * (1 - 1e-12)  # 20 * 1.1 is 22.000000000000004, but 22 tokens are 10 % more than 20
    result[(chosen > rejected) & (chosen >= rejected * factor)] = LONGER
    result[(rejected > chosen) & (rejected >= chosen * factor)] = SHORTER
    return result


@dataclass(frozen=True)
class Split:
    """Row indices of D_rho's training pairs, of held-out pairs of the same bias, and of each D_rho,b."""

    train: np.ndarray
    held_out: np.ndarray
    subsets: dict[float, np.ndarray]


def counts_for(size: int, share: float) -> tuple[int, int]:
    """How many longer-preferred and shorter-preferred pairs make a set of this size and bias."""
    longer = round(size * share)
    return longer, size - longer


def draw(kinds: np.ndarray, recipe: SplitsRecipe, seed: int) -> Split:
    """Draw D_rho, held-out pairs and subsets without replacement; order is shuffled.

    Args:
        kinds: [n] of LONGER, SHORTER, TIE.

    Raises:
        BadInput: not enough pairs of a kind; says how many exist and are needed.
    """
    rng = np.random.default_rng([seed, 30, 0 if recipe.rho is None else round(recipe.rho * 10_000)])
    pools = {kind: rng.permutation(np.flatnonzero(kinds == kind)) for kind in (LONGER, SHORTER, TIE)}
    if recipe.rho is None:
        everything = rng.permutation(len(kinds))
        size = len(kinds) - recipe.held_out if recipe.num_pairs is None else recipe.num_pairs
        if size < 1 or size + recipe.held_out > len(kinds):
            raise BadInput(f"splits: {max(size, 1)} training and {recipe.held_out} held-out pairs are needed, {len(kinds)} exist")
        train, held_out = everything[:size], everything[size : size + recipe.held_out]
    else:
        assert recipe.num_pairs is not None
        train, held_out = _biased(pools, recipe, len(kinds))
        train, held_out = rng.permutation(train), rng.permutation(held_out)
    subsets = {b: rng.permutation(rows) for b, rows in _subsets(train, kinds, recipe).items()}
    return Split(train, held_out, subsets)


def _biased(pools: dict[int, np.ndarray], recipe: SplitsRecipe, total: int) -> tuple[np.ndarray, np.ndarray]:
    assert recipe.rho is not None and recipe.num_pairs is not None
    tie_share = len(pools[TIE]) / total if recipe.ties == "include" else 0.0
    taken = dict.fromkeys(pools, 0)
    parts = []
    for size in (recipe.num_pairs, recipe.held_out):
        ties = round(size * tie_share)
        longer, shorter = counts_for(size - ties, recipe.rho)
        rows = []
        for kind, count in ((LONGER, longer), (SHORTER, shorter), (TIE, ties)):
            rows.append(pools[kind][taken[kind] : taken[kind] + count])
            taken[kind] += count
        parts.append(np.concatenate(rows))
    names = {LONGER: "longer", SHORTER: "shorter", TIE: "equally long"}
    for kind, need in taken.items():
        if need > len(pools[kind]):
            raise BadInput(
                f"splits: rho {recipe.rho:g} with num_pairs {recipe.num_pairs} and held_out {recipe.held_out} needs {need} pairs whose "
                f"{names[kind]} response is preferred, {len(pools[kind])} exist"
            )
    return parts[0], parts[1]


def subset_sizes(longer: int, shorter: int, recipe: SplitsRecipe) -> dict[float, int]:
    """Size of each D_rho,b that can be drawn without replacement from a D_rho with these counts.

    Raises:
        BadInput: a subset of the size that was asked for cannot be filled.
    """
    largest = {b: int(min(longer / b, shorter / (1 - b)) + 1e-9) for b in recipe.ensemble}
    if recipe.subset_size == "largest" or not largest:
        return largest
    equal = min(largest.values())
    size = equal if recipe.subset_size == "equal" else recipe.subset_size
    if size > equal:
        b = min(largest, key=lambda b: largest[b])
        raise BadInput(
            f"splits: subset_size {size} cannot be filled for b {b:g}: {largest[b]} pairs at most, "
            f"from {longer} longer and {shorter} shorter"
        )
    return dict.fromkeys(recipe.ensemble, size)


def _subsets(train: np.ndarray, kinds: np.ndarray, recipe: SplitsRecipe) -> dict[float, np.ndarray]:
    longer, shorter = train[kinds[train] == LONGER], train[kinds[train] == SHORTER]
    result = {}
    for b, size in subset_sizes(len(longer), len(shorter), recipe).items():
        many, few = counts_for(size, b)
        # Rounding may ask for one pair more than there is of a kind.
        many = min(many, len(longer))
        few = min(few, len(shorter))
        if many + few == 0:
            raise BadInput(
                f"splits: the subset for b {b:g} would be empty: D_rho has {len(longer)} longer and {len(shorter)} shorter pairs"
            )
        result[b] = np.concatenate([longer[:many], shorter[:few]])
    return result


def bias_of(kinds: np.ndarray, rows: Sequence[int] | np.ndarray) -> dict[str, float | None]:
    """Realised size, share of longer-preferred among pairs that are no ties, and share of ties."""
    chosen = kinds[np.asarray(rows, dtype=int)]
    counted = int((chosen != TIE).sum())
    return {
        "size": len(chosen),
        "longer_share": float((chosen == LONGER).sum() / counted) if counted else None,
        "tie_share": float((chosen == TIE).mean()) if len(chosen) else None,
    }


def run(job: Job, report: Report) -> dict[str, Any]:
    """Write train, held_out and b-*.parquet, with token counts and the kind of each pair."""
    recipe: SplitsRecipe = job.recipe
    rows = read_rows(pairs_file(job))
    tokenizer = load_tokenizer(job.inputs["tokenizer"], revision=job.revisions.get("tokenizer"), need_pad=False)
    tokens = tokenise(rows, ("chosen", "rejected"), tokenizer, 2**31, "error", job.path)
    chosen = np.array([len(t.responses[0]) for t in tokens])
    rejected = np.array([len(t.responses[1]) for t in tokens])
    kinds = preference_of_length(chosen, rejected, recipe.length_margin)
    for row, c, r, kind in zip(rows, chosen.tolist(), rejected.tolist(), kinds.tolist(), strict=True):
        row |= {"chosen_tokens": c, "rejected_tokens": r, "longer_preferred": kind}
    split = draw(kinds, recipe, seed_of(recipe, "data"))
    parts = {"train": split.train, "held_out": split.held_out, **{f"b-{b:g}": s for b, s in split.subsets.items()}}
    metrics: dict[str, Any] = {f"all/{name}": value for name, value in bias_of(kinds, np.arange(len(rows))).items()}
    for index, (name, chosen_rows) in enumerate(parts.items()):
        write_rows([rows[i] for i in chosen_rows.tolist()], job.directory / f"{name}.parquet")
        metrics |= {f"{name}/{key}": value for key, value in bias_of(kinds, chosen_rows).items()}
        report(index + 1, len(parts))
    return metrics
