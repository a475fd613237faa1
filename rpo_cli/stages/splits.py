"""Biased splits: D_rho, and its subsets D_rho,b, of other biases of length or of another attribute.

The longer response of a pair has at least `length_margin` more tokens than the other; closer pairs are ties.
D_rho has the longer response preferred in a share rho of its pairs, drawn without replacement (Fisch et al.,
section 5.1), with `bias_on` the one with the higher number. Held-out pairs share no prompt with the training
pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rpo_cli.artifacts import Job, Report
from rpo_cli.errors import BadInput
from rpo_cli.recipes.schema import SplitsRecipe, attribute, seed_of
from rpo_cli.stages.data.rows import FEW, PAIR, UNLIMITED, Rows, digest, dropped, rows_of, write_columns
from rpo_cli.text import percent

if TYPE_CHECKING:
    from rpo_cli.models import TokenRow

LONGER, SHORTER, TIE = 1, -1, 0
ENSEMBLE = "higher_preferred"  # column of what the subsets differ in, where that is not length
LENGTH_MARGIN: float = SplitsRecipe.model_fields["length_margin"].default
LENGTHS = ("longer", "shorter", "equally long")
NUMBERS = ("higher", "lower", "equal")
NEGLIGIBLE = 0.01  # by so much the share of longer-preferred pairs may move without a warning
APART = "share no prompt with the {} held-out pairs; lower num_pairs or held_out"


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


def draw(
    kinds: np.ndarray,
    recipe: SplitsRecipe,
    seed: int,
    prompts: Sequence[str] | None = None,
    differ_in: np.ndarray | None = None,
) -> Split:
    """Draw D_rho, held-out pairs and subsets without replacement; order is shuffled.

    Args:
        kinds: [n] of LONGER, SHORTER, TIE, what D_rho is biased in.
        prompts: [n]; a prompt is trained on or held out, never both. None: each pair has one of its own.
        differ_in: [n] of the same, what the subsets differ in. None: `kinds`.

    Raises:
        BadInput: not enough pairs of a kind; says how many exist and are needed.
    """
    names = np.arange(len(kinds))
    if prompts is not None:
        names = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)[1]
    rng = np.random.default_rng([seed, 30, 0 if recipe.rho is None else round(recipe.rho * 10_000)])
    pools = {kind: rng.permutation(np.flatnonzero(kinds == kind)) for kind in (LONGER, SHORTER, TIE)}
    if recipe.rho is None:
        everything = rng.permutation(len(kinds))
        size = len(kinds) - recipe.held_out if recipe.num_pairs is None else recipe.num_pairs
        if size < 1 or size + recipe.held_out > len(kinds):
            needed = f"{max(size, 1)} training and {recipe.held_out} held-out pairs are needed"
            raise BadInput(f"splits: {needed}, {len(kinds)} exist")
        (held_out,) = hold_out([(everything, size, recipe.held_out)], names)
        train = everything[~np.isin(names[everything], names[held_out])]
        if recipe.num_pairs is not None and len(train) < size:
            apart = APART.format(recipe.held_out)
            raise BadInput(f"splits: num_pairs {size} cannot be filled: {len(train)} pairs {apart}")
        train = train[:size]
    else:
        assert recipe.num_pairs is not None
        train, held_out = _biased(pools, recipe, names)
        train, held_out = rng.permutation(train), rng.permutation(held_out)
    found = _subsets(train, kinds if differ_in is None else differ_in, recipe, seed)
    subsets = {b: rng.permutation(rows) for b, rows in found.items()}
    return Split(train, held_out, subsets)


def hold_out(wanted: Sequence[tuple[np.ndarray, int, int]], names: np.ndarray) -> list[np.ndarray]:
    """Rows to hold out of each pool, of as few prompts as it takes, so that few training pairs are lost.

    Args:
        wanted: pools in random order, each with the number of its rows to train on and to hold out.
        names: [n], equal for pairs of one prompt. If all differ, the held-out rows are those after the
            training rows.
    """
    held: set[int] = set()
    result = []
    for pool, trained, count in wanted:
        order = np.concatenate([pool[trained:], pool[:trained]])
        together: dict[int, list[int]] = {}
        for row in order.tolist():
            together.setdefault(int(names[row]), []).append(row)
        # Prompts that another pool holds out already come first.
        ordered = sorted(together, key=lambda name: name not in held)
        chosen = [row for name in ordered for row in together[name]][:count]
        held |= {int(names[row]) for row in chosen}
        result.append(np.array(chosen, dtype=pool.dtype))
    return result


def _biased(
    pools: dict[int, np.ndarray], recipe: SplitsRecipe, names: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of D_rho and held-out rows. `names`: [n], equal for pairs of one prompt."""
    assert recipe.rho is not None and recipe.num_pairs is not None
    tie_share = len(pools[TIE]) / max(1, len(names)) if recipe.ties == "include" else 0.0
    counts = []
    for size in (recipe.num_pairs, recipe.held_out):
        ties = round(size * tie_share)
        counts.append((*counts_for(size - ties, recipe.rho), ties))
    of = f"splits: rho {recipe.rho:g} with num_pairs {recipe.num_pairs} and held_out {recipe.held_out} needs"
    on = f" by {attribute(recipe.bias_on)}" if recipe.bias_on else ""
    named = zip((LONGER, SHORTER, TIE), NUMBERS if recipe.bias_on else LENGTHS, strict=True)
    kinds = {kind: f"pairs whose {word} response{on} is preferred" for kind, word in named}
    wanted = []
    for kind, train, held_out in zip(kinds, *counts, strict=True):
        need = train + held_out
        if need > len(pools[kind]):
            raise BadInput(f"{of} {need} {kinds[kind]}, {len(pools[kind])} exist")
        wanted.append((pools[kind], train, held_out))
    held = hold_out(wanted, names)
    apart = names[np.concatenate(held)]
    parts = []
    for kind, (pool, need, _) in zip(kinds, wanted, strict=True):
        free = pool[~np.isin(names[pool], apart)]
        if need > len(free):
            raise BadInput(f"{of} {need} training {kinds[kind]}, {len(free)} {APART.format(len(apart))}")
        parts.append(free[:need])
    return np.concatenate(parts), np.concatenate(held)


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
        more, less, _ = NUMBERS if recipe.told else LENGTHS
        raise BadInput(
            f"splits: subset_size {size} cannot be filled for b {b:g}: {largest[b]} pairs at most, "
            f"from {longer} {more} and {shorter} {less}"
        )
    return dict.fromkeys(recipe.ensemble, size)


def _subsets(
    train: np.ndarray, kinds: np.ndarray, recipe: SplitsRecipe, seed: int
) -> dict[float, np.ndarray]:
    longer, shorter = train[kinds[train] == LONGER], train[kinds[train] == SHORTER]
    result = {}
    for b, size in subset_sizes(len(longer), len(shorter), recipe).items():
        many, few = counts_for(size, b)
        # Rounding may ask for one pair more than there is of a kind.
        many = min(many, len(longer))
        few = min(few, len(shorter))
        if many + few == 0:
            more, less, _ = NUMBERS if recipe.told else LENGTHS
            there = f"{len(longer)} {more} and {len(shorter)} {less} pairs"
            raise BadInput(f"splits: the subset for b {b:g} would be empty: D_rho has {there}")
        if recipe.subset_draw == "independent":
            rng = np.random.default_rng([seed, 31, round((recipe.rho or 0) * 10_000), round(b * 10_000)])
            longer, shorter = rng.permutation(longer), rng.permutation(shorter)
        result[b] = np.concatenate([longer[:many], shorter[:few]])
    return result


def folds_of(prompts: Sequence[str], folds: int) -> np.ndarray:
    """The fold, 0 to folds - 1, of each prompt, by its text alone, so in about equal parts: [n]."""
    return np.array([digest(prompt) % folds for prompt in prompts], dtype=int)


def bias_of(kinds: np.ndarray, rows: Sequence[int] | np.ndarray) -> dict[str, float | None]:
    """Realised size, share of longer-preferred among pairs that are no ties, and share of ties."""
    chosen = kinds[np.asarray(rows, dtype=int)]
    counted = int((chosen != TIE).sum())
    return {
        "size": len(chosen),
        "longer_share": float((chosen == LONGER).sum() / counted) if counted else None,
        "tie_share": float((chosen == TIE).mean()) if len(chosen) else None,
    }


def bias_trained_on(
    pairs: Rows, kept: Sequence[TokenRow], max_length: int, report: Report
) -> dict[str, float | None]:
    """The share of longer-preferred among the pairs of a D_rho that a stage keeps; none where it has others.

    Warns where it is another than was drawn, or where many were dropped.
    """
    if "longer_preferred" not in pairs.notes.column_names:
        return {}
    kinds, names = pairs.notes["longer_preferred"].to_numpy(), {row.id for row in kept}
    left = [place for place, name in enumerate(pairs.ids) if name in names]
    drawn, trained = (bias_of(kinds, rows)["longer_share"] for rows in (np.arange(len(kinds)), left))
    moved = drawn is not None and (trained is None or abs(trained - drawn) > NEGLIGIBLE)
    if moved or len(kept) < (1 - FEW) * len(pairs):
        report.warn(
            f"the longer response is preferred in {percent(trained) or 'none'} of the pairs trained on, in "
            f"{percent(drawn) or 'none'} of those drawn; set max_length: {max_length} in the splits recipe: "
            "it draws from pairs that fit"
        )
    return {"longer_share": trained}


def pairs_within(limit: int, job: Job[SplitsRecipe], report: Report) -> tuple[Rows, list[TokenRow], int]:
    """The pairs of at most so many tokens, their tokens, and how many pairs are longer."""
    from rpo_cli.models import load_tokenizer

    pairs, revision = rows_of(job, "pairs"), job.revisions.get("tokenizer")
    tokenizer = load_tokenizer(job.inputs["tokenizer"], revision=revision, need_pad=False)
    every = pairs.tokens(PAIR, tokenizer, job.path, warn=report.warn)
    fits = [place for place, row in enumerate(every) if row.longest <= limit]
    overlong = len(every) - len(fits)
    if overlong > FEW * len(every):
        report.warn(dropped(overlong, len(every), limit))
    return pairs.take(fits), [every[place] for place in fits], overlong


def preference_of_number(pairs: Rows, columns: Sequence[str] | None) -> np.ndarray | None:
    """For each pair whether the response of the higher number is preferred: int8 [n], as of length."""
    return None if columns is None else np.sign(pairs.numbers(columns) @ (1, -1)).astype(np.int8)


def write_parts(
    split: Split,
    notes: Mapping[str, np.ndarray],
    shares: Mapping[str, np.ndarray],
    job: Job[SplitsRecipe],
    report: Report,
) -> dict[str, object]:
    """Write the rows of each part of a split, with the columns `notes`; metrics of their biases.

    shares: [n] of LONGER, SHORTER, TIE, what else than length they are biased in, by the metric's name.
    """
    parts = {"train": split.train, "held_out": split.held_out}
    parts |= {f"b-{b:g}": rows for b, rows in split.subsets.items()}
    metrics: dict[str, object] = {}
    for index, (name, rows) in enumerate(parts.items()):
        write_columns({key: values[rows] for key, values in notes.items()}, job.directory / f"{name}.parquet")
        found = bias_of(notes["longer_preferred"], rows)
        found |= {key: bias_of(higher, rows)["longer_share"] for key, higher in shares.items()}
        metrics |= {f"{name}/{key}": value for key, value in found.items()}
        report(index + 1, len(parts))
    return metrics


def run(job: Job[SplitsRecipe], report: Report) -> dict[str, object]:
    """Write train, held_out and b-*.parquet: ids of pairs, their token counts and kinds.

    All are drawn from the pairs that fit; `auto` of a max_length is what is left where the plan found none.
    """
    recipe: SplitsRecipe = job.recipe
    limit = recipe.max_length if isinstance(recipe.max_length, int) else UNLIMITED
    pairs, tokens, overlong = pairs_within(limit, job, report)
    chosen, rejected = (np.array([len(row.responses[side]) for row in tokens], int) for side in (0, 1))
    ends = 0 if recipe.length_counts_eos else 1  # every response has one, its last token
    kinds = preference_of_length(chosen - ends, rejected - ends, recipe.length_margin)
    biased_in, differ_in = (preference_of_number(pairs, each) for each in (recipe.bias_on, recipe.told))
    biases = kinds if biased_in is None else biased_in
    differences = kinds if differ_in is None else differ_in
    prompts = pairs.texts("prompt")
    try:
        split = draw(biases, recipe, seed_of(recipe, "data"), prompts, differences)
    except BadInput as error:
        left_out = dropped(overlong, len(pairs) + overlong, limit)
        cure = "; lower num_pairs or held_out, or set max_length: null in the splits recipe to draw from all"
        raise BadInput(f"{error}; {left_out}{cure}" if overlong else str(error)) from None
    notes = {
        "id": np.asarray(pairs.ids, dtype=object),
        "chosen_tokens": chosen.astype(np.int32),
        "rejected_tokens": rejected.astype(np.int32),
        "longer_preferred": kinds,
    }
    if differ_in is not None:
        notes[ENSEMBLE] = differ_in
    of_all = bias_of(kinds, np.arange(len(kinds)))
    metrics: dict[str, object] = {f"all/{name}": value for name, value in of_all.items()}
    metrics |= {"overlong": overlong, "max_length": limit} if limit < UNLIMITED else {}
    # Neither held out nor to be trained on, because another pair of their prompt is held out.
    held_prompts = {prompts[row] for row in split.held_out.tolist()}
    metrics["barred_by_prompt"] = sum(prompt in held_prompts for prompt in prompts) - len(split.held_out)
    shares = {"biased_share": biased_in, "higher_share": differ_in}
    told = {name: higher for name, higher in shares.items() if higher is not None}
    return metrics | write_parts(split, notes, told, job, report)
