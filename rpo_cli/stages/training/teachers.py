"""What a policy learns from, joined by row: pairs, reference log-probs and samples, calibrated margins."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedTokenizerBase

from rpo_cli.artifacts import Job, Report, own_name, scores_of, told_of
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.models.tokens import Row
from rpo_cli.objectives import TEACHERS
from rpo_cli.objectives.calibration import fit_temperature, mix_weights
from rpo_cli.recipes.schema import PolicyRecipe
from rpo_cli.stages.data.rows import PAIR, margins_by_id, rows_of
from rpo_cli.stages.diagnosis import Agreement, agreement
from rpo_cli.stages.reference import reference_logps
from rpo_cli.stages.samples import samples_by_prompt
from rpo_cli.stages.splits import ENSEMBLE, LONGER, SHORTER, bias_trained_on, folds_of

# Models of all of D_rho or of a random part: their own mix is that of the held-out pairs.
ALL_PAIRS = re.compile("rm|all|seed-.*|half-.*|fold-.*")


@dataclass(frozen=True)
class Teachers:
    """Margins r(chosen) - r(rejected) by row id, divided by the members' temperatures (1 when uncalibrated).

    margins: [k] each for e-dpo; [1] for d-dpo and dp-dpo, whatever their teacher. agreed: how far several
    models agree on these pairs; None of one, and where each speaks of other pairs.
    """

    margins: dict[str, list[float]]
    temperatures: dict[str, float]
    agreed: Agreement | None = None

    @property
    def columns(self) -> np.ndarray:
        """The margins [n, k]."""
        return np.array(list(self.margins.values()), dtype=np.float64)


def calibrated_margins(job: Job[PolicyRecipe]) -> Teachers:
    """Read every teacher's scores and calibrate them on held-out pairs where the recipe says so.

    Raises:
        RunFailed: a member's temperature cannot be fitted.
    """
    recipe = job.recipe
    found: list[dict[str, float]] = []
    temperatures: dict[str, float] = {}
    for name, folder in scores_of(job.inputs).items():
        temperature = 1.0
        if recipe.calibrates:
            try:
                temperature = _temperature(job, name)
            except ValueError as error:
                who = "the teacher" if recipe.reads_one else f"ensemble member {name}"
                cure = "calibrate_one: false" if recipe.reads_one else "calibration: none"
                what = f"the temperature of {who} cannot be fitted"
                raise RunFailed(f"{job.path}: {what}: {error}; or set {cure}") from error
        margins = margins_by_id(folder / "train.parquet")
        found.append({row: margin / temperature for row, margin in margins.items()})
        temperatures[name] = temperature
    # Each may have left out rows that its own chat template refuses.
    ids = [row for row in (found[0] if found else ()) if all(row in each for each in found)]
    columns = np.array([[each[row] for row in ids] for each in found])
    if found and recipe.distils_unseen:
        pairs = rows_of(job, "train")
        prompts = dict(zip(pairs.ids, pairs.texts("prompt"), strict=True))
        folds = folds_of([prompts[row] for row in ids], len(columns))
        places = [list(temperatures).index(f"fold-{number}") for number in range(len(columns))]
        columns = np.take_along_axis(columns[places], folds[None], axis=0)
    stacked = _as_one(columns, recipe).T.tolist() if found else []
    agreed = agreement(columns, np.zeros(len(ids))) if len(ids) > 1 else None
    return Teachers(dict(zip(ids, stacked, strict=True)), temperatures, agreed)


def _as_one(margins: np.ndarray, recipe: PolicyRecipe) -> np.ndarray:
    """The members' margins [k, n] as the one teacher [1, n] that d-dpo distils; a min keeps them all."""
    if recipe.takes_min:
        return margins
    return TEACHERS[recipe.teacher].of(torch.from_numpy(margins), recipe).numpy()


def _temperature(job: Job[PolicyRecipe], name: str) -> float:
    held_out = margins_by_id(job.inputs[f"scores/{name}"] / "held_out.parquet")
    margins = torch.tensor(list(held_out.values()), dtype=torch.float64)
    own = own_name(name)
    if job.recipe.calibration_mix == "data" or ALL_PAIRS.fullmatch(own):
        return fit_temperature(margins)
    try:
        mix = float(own)
    except ValueError:
        raise ValueError(
            "calibration_mix: own needs an ensemble recipe, whose members know their b; "
            "use calibration_mix: data"
        ) from None
    folder = job.inputs.get(told_of(name), job.inputs["data"])
    notes = pq.read_table(folder / "held_out.parquet").to_pydict()
    kinds = dict(zip(notes["id"], notes.get(ENSEMBLE, notes["longer_preferred"]), strict=True))
    kind = torch.tensor([kinds[row] for row in held_out])
    return fit_temperature(margins, mix_weights(kind == LONGER, kind == SHORTER, mix))


def policy_rows(
    job: Job[PolicyRecipe],
    tokenizer: PreTrainedTokenizerBase,
    teachers: Teachers,
    report: Report,
) -> tuple[list[list[Row]], dict[str, object]]:
    """Rows for the collator; how many pairs were left out, too long or without margins; the others' bias.

    As many times as there are samples of the reference for a prompt, each time with the next one, so that
    passes over the pairs may take turns with them.
    """
    recipe = job.recipe
    pairs = rows_of(job, "train" if recipe.subset is None else f"b-{recipe.subset:g}")
    tokens = pairs.tokens(PAIR, tokenizer, job.path, recipe.max_length, recipe.overlong, report.warn)
    if teachers.margins:
        tokens = [row for row in tokens if row.id in teachers.margins]
    reference = reference_logps(job.inputs["reference"])
    sampled = recipe.samples_reference
    samples = samples_by_prompt(job) if sampled else {}
    prompts = dict(zip(pairs.ids, pairs.texts("prompt"), strict=True)) if sampled else {}
    turns = recipe.reference_samples if sampled else 1
    result: list[list[Row]] = [[] for _ in range(turns)]
    seen: Counter[str] = Counter()
    for row in tokens:
        if row.id not in reference:
            raise BadInput(f"{job.inputs['reference']}: no reference log-probs for row {row.id}")
        chosen, rejected = row.responses
        entry: Row = {"prompt_ids": row.prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected}
        entry["ref_chosen_logps"], entry["ref_rejected_logps"] = reference[row.id]
        if teachers.margins:
            entry["margins"] = teachers.margins[row.id]
        for turn, rows in enumerate(result):
            rows.append(entry)
            if sampled:
                # Pairs that share a prompt take turns with its samples, too.
                drawn = samples[prompts[row.id]]
                one, logp = drawn[(seen[prompts[row.id]] + turn) % len(drawn)]
                rows[-1] = {**entry, "sample_ids": one, "ref_sample_logps": logp}
        if sampled:
            seen[prompts[row.id]] += 1
    bias = bias_trained_on(pairs, tokens, recipe.max_length, report)
    return result, {"dropped": len(pairs) - len(tokens), **bias}
