"""Bradley-Terry reward models through TRL's RewardTrainer: oracle, RM of D_rho, members of the ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerControl
from trl import RewardConfig, RewardTrainer

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.models import PairCollator, TokenRow, load_reward, pair_rewards, response_rewards
from rpo_cli.recipes.schema import RewardRecipe, seed_of
from rpo_cli.recipes.schema.base import LAST_SEED
from rpo_cli.recipes.schema.training import REQUIRED, Measured
from rpo_cli.stages.data.rows import PAIR, Rows, rows_of
from rpo_cli.stages.diagnosis import short_form
from rpo_cli.stages.inputs import tokenizer_of
from rpo_cli.stages.splits import LENGTH_MARGIN, bias_trained_on, folds_of, preference_of_length
from rpo_cli.stages.training.arguments import lora_of, prepare, start_from, steps_over
from rpo_cli.stages.training.loop import train
from rpo_cli.stages.training.publish import publish_model
from rpo_cli.stages.training.trl import LeanTrainer, config_of

SEEDS_APART = 1000  # from one member of an ensemble of seeds to the next


class LeanRewardTrainer(LeanTrainer, RewardTrainer):
    """RewardTrainer with its loss on rows that share their prompt."""

    held_out: Sequence[TokenRow] = ()
    control: TrainerControl
    data_collator: PairCollator

    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """The mean loss over the held-out pairs; in several processes every one of them reads all pairs.

        Shared by accelerate, a last batch would be filled up with rows that were counted already; a bulk
        scorer also has buckets of its own.
        """
        if devices.processes() == 1 and self.data_collator.buckets is None:
            return dict(super().evaluate(*args, **kwargs))
        self.model.eval()
        with self.compute_loss_context_manager():
            size, shared = self.args.per_device_eval_batch_size, self.data_collator.layout == "shared"
            scores = pair_rewards(self.model, self.held_out, size, shared=shared)
        loss = np.logaddexp(0, -(scores[:, 0] - scores[:, 1]).astype(np.float64)).mean()
        mean = self.batch_mean(torch.tensor(loss, dtype=torch.float32, device=self.args.device))
        metrics = {"eval_loss": mean.item()}  # the same in every process, hence the same best step
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """-log sigmoid(r(chosen) - r(rejected)), mean over pairs."""
        chosen, rejected = self.reader(response_rewards)(model, inputs).chunk(2)
        margins = chosen - rejected
        loss = -torch.nn.functional.logsigmoid(margins).mean()
        if self.model.training and self.is_logged():
            self.note("accuracy", (margins > 0).float().mean())
            self.note("margin", margins.mean())
        return (loss, {"margins": margins}) if return_outputs else loss


def table_of_pairs(rows: list[TokenRow]) -> list[dict[str, object]]:
    """The collator's columns."""
    return [
        {"prompt_ids": r.prompt_ids, "chosen_ids": r.responses[0], "rejected_ids": r.responses[1]}
        for r in rows
    ]


def training_rows(job: Job[RewardRecipe]) -> tuple[Rows, Rows | None]:
    """Rows to train on, and rows held out (none for a data recipe without pairs_validation)."""
    recipe: RewardRecipe = job.recipe
    folder = job.inputs["data"]
    if (folder / "held_out.parquet").is_file():
        member, half, fold = (job.options.get(name) for name in ("member", "half", "fold"))
        pairs = rows_of(job, "train" if member is None else f"b-{member:g}")
        if fold is not None:
            folds = folds_of(pairs.texts("prompt"), job.options["folds"])
            if not (left := np.flatnonzero(folds != fold)).size:
                raise BadInput(f"{job.path}: without the prompts of fold {fold} nothing is left to train on")
            pairs = pairs.take(left.tolist())
        if half is not None:
            order = np.random.default_rng([seed_of(recipe, "rm"), 40, half]).permutation(len(pairs))
            pairs = pairs.take(np.sort(order[: len(pairs) // 2]).tolist())
        return pairs, rows_of(job, "held_out")
    held_out = "pairs_validation"
    has_held_out = (folder / f"{held_out}.parquet").is_file()
    return rows_of(job, recipe.table), rows_of(job, held_out) if has_held_out else None


def kinds_of_length(rows: Sequence[TokenRow], pairs: Rows) -> np.ndarray:
    """Whether the longer or the shorter response was chosen, or neither is longer: [n]."""
    if "longer_preferred" in pairs.notes.column_names:
        known = dict(zip(pairs.ids, pairs.notes["longer_preferred"].to_pylist(), strict=True))
        return np.array([known[row.id] for row in rows])
    chosen, rejected = (np.array([len(row.responses[side]) for row in rows]) for side in (0, 1))
    return preference_of_length(chosen, rejected, LENGTH_MARGIN)


def utility_accuracy(
    margins: np.ndarray, kinds: np.ndarray, rows: Sequence[TokenRow], pairs: Rows
) -> dict[str, float | int]:
    """Accuracy against the latent utility where the world tells it (the miniature); ties do not count.

    Of it also that where the longer, and where the shorter response is worth more. margins, kinds: [n].
    """
    if "chosen_utility" not in pairs.notes.column_names:
        return {}
    worth = [pairs.notes[f"{side}_utility"].to_numpy() for side in PAIR]
    gaps = dict(zip(pairs.ids, np.sign(worth[0] - worth[1]), strict=True))
    better = np.array([gaps[row.id] for row in rows], dtype=int)
    right, told = margins * better, better != 0
    if not told.any():
        return {}
    by_kind = short_form(right[told], (kinds * better)[told], "utility_")
    return {"held_out_utility_accuracy": float((right[told] > 0).mean()), **by_kind}


def check(metrics: Mapping[str, float], required: Mapping[Measured, float], seed: int) -> None:
    """RunFailed unless a reward model is as accurate as its recipe requires."""
    for name in required:
        if name not in metrics:
            has = ", ".join(sorted(each for each in metrics if each in REQUIRED)) or "none"
            raise BadInput(f"require: {name} is not measured on these pairs (measured: {has})")
    if short := [name for name, least in required.items() if metrics[name] < least]:
        found = ", ".join(f"{name} {metrics[name]:.3f}, required {required[name]:g}" for name in short)
        raise RunFailed(f"{found}: nothing is built on seed {seed}; a figure is drawn without it by --seeds")


def early_arguments(recipe: RewardRecipe) -> dict[str, object]:
    """Keyword arguments of RewardConfig with which the step of the least held-out loss is kept."""
    return {
        "eval_strategy": "steps",
        "eval_steps": recipe.eval_steps,
        "save_strategy": "best",
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "load_best_model_at_end": True,
    }


def held_out_metrics(scores: np.ndarray, rows: Sequence[TokenRow], pairs: Rows) -> dict[str, float]:
    """Loss and accuracy on the held-out pairs that fit, also by length and by utility; scores: [n, 2].

    Equal rewards count as wrong, and are counted where there are any.
    """
    margins = (scores[:, 0] - scores[:, 1]).astype(np.float64)
    kinds = kinds_of_length(rows, pairs)
    return {
        "held_out_accuracy": float((margins > 0).mean()),
        "held_out_loss": float(np.logaddexp(0, -margins).mean()),
        "held_out_rows": len(rows),
        "held_out_dropped": len(pairs) - len(rows),
        **({"held_out_equal_rewards": int((margins == 0).sum())} if (margins == 0).any() else {}),
        **short_form(margins, kinds),
        **utility_accuracy(margins, kinds, rows, pairs),
    }


def shared_prompts(held_out: Rows, trained: Rows) -> dict[str, int]:
    """How many held-out pairs have a prompt that was trained on; none of a splits recipe have."""
    prompts = set(trained.texts("prompt"))
    shared = sum(prompt in prompts for prompt in held_out.texts("prompt"))
    return {"held_out_shared_prompts": shared} if shared else {}


def run(job: Job[RewardRecipe], report: Report) -> dict[str, object]:
    """Train, keep the last or the best evaluated step, and measure the held-out loss and accuracy."""
    recipe: RewardRecipe = job.recipe
    device = devices.choose(recipe)
    seed = (seed_of(recipe, "rm") + SEEDS_APART * job.options.get("seed", 0)) % (LAST_SEED + 1)
    tokenizer = tokenizer_of(job, "model", own_pad=True)
    pairs, held_out_pairs = training_rows(job)

    def tokens_of(pairs: Rows, name: str = "") -> list[TokenRow]:
        def warn(line: str) -> None:
            report.warn(name + line)

        return pairs.tokens(PAIR, tokenizer, job.path, recipe.max_length, recipe.overlong, warn)

    rows, held_out = tokens_of(pairs), tokens_of(held_out_pairs, "held out: ") if held_out_pairs else []
    steps = steps_over(len(rows), recipe, job.path)
    bias = bias_trained_on(pairs, rows, recipe.max_length, report)
    model, whole_base = start_from(load_reward, job, tokenizer, device, seed)
    early = recipe.stopping == "early"
    if early and not held_out:
        raise BadInput(f"{job.path}: stopping: early needs held-out pairs (pairs_validation)")
    own = early_arguments(recipe) if early else {}
    config = config_of(RewardConfig, job, device, seed, max_steps=steps, disable_dropout=False, **own)
    table, shared = table_of_pairs(rows), recipe.shared_prompts
    prepared = prepare(model, table, recipe, device, response_rewards, shared=shared)
    trainer = LeanRewardTrainer(
        model,
        config,
        device=device,
        data_collator=prepared.collator,
        train_dataset=Dataset.from_list(table),
        eval_dataset=Dataset.from_list(table_of_pairs(held_out)) if early else None,
        processing_class=tokenizer,
        peft_config=lora_of(recipe, "SEQ_CLS"),
    )
    trainer.held_out, trainer.graphs = held_out, prepared.graphs
    metrics = train(trainer, report)
    trained = publish_model(trainer, tokenizer, job.directory, whole_base)
    # All hosts score what is spread over them all; the first one's numbers are kept.
    if held_out and (devices.rank() == 0 or devices.is_spmd()):
        assert held_out_pairs is not None
        size = recipe.per_device_eval_batch_size
        with device.autocast():
            scores = pair_rewards(device.place(trained), held_out, size, shared=prepared.shared)
        if devices.rank() == 0:
            metrics |= held_out_metrics(scores, held_out, held_out_pairs)
            metrics |= shared_prompts(held_out_pairs.only(held_out), pairs.only(rows))
            check(metrics, recipe.require, recipe.seed)
    counts = {"rows": len(rows), "dropped": len(pairs) - len(rows), "steps": trainer.state.global_step}
    return {**metrics, **counts, **bias, **prepared.shapes, "shared_prompts": prepared.shared}
