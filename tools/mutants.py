"""Small changes of the code that would change a result, and the tests that ought to notice each.

A snippet is part of a statement; blanks, line breaks and trailing commas do not count, comments and file names are left out, so
that moved or reformatted code still has it. It must occur exactly once in the package.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new`; `tests`: files, and `keyword`: pytest's -k, most likely to kill it.

    `equivalent`: why no test can, if so.
    """

    name: str
    old: str
    new: str
    tests: str
    keyword: str = ""
    equivalent: str = ""


def in_file(tests: str, *rows: tuple[str, str, str, str]) -> list[Mutant]:
    """Mutants (name, old, new, keyword) for the tests of one file."""
    return [Mutant(name, old, new, f"tests/test_{tests}.py", keyword) for name, old, new, keyword in rows]


OBJECTIVES = in_file(
    "objectives",
    ("dpo: sign", "-F.logsigmoid(beta * delta_h)", "-F.logsigmoid(-beta * delta_h)", "by_hand"),
    ("ipo: target twice as far", "delta_h - 1 / (2 * tau)", "delta_h - 1 / tau", "by_hand"),
    ("distillation: sign", "(delta_r - beta * delta_h) ** 2", "(delta_r + beta * delta_h) ** 2", "by_hand"),
    (
        "distillation: in units of the policy",
        "(delta_r - beta * delta_h) ** 2",
        "(delta_r / beta - delta_h) ** 2",
        "by_hand",
    ),
    ("min: the worst member", "member_losses.argmin()", "member_losses.argmax()", "least or per_example or ema"),
    ("min: the worst member of a pair", "losses.argmin(0)", "losses.argmax(0)", "per_example"),
    (
        "ema: decay turned round",
        "self.decay * old + (1 - self.decay) * batch_losses.double()",
        "(1 - self.decay) * old + self.decay * batch_losses.double()",
        "ema_forgets",
    ),
    (
        "ema: starts at absolute margins",
        "delta_r.double().square().mean(1)",
        "delta_r.double().abs().mean(1)",
        "ema_starts",
    ),
    ("gamma: never quite its end", "step / max(total_steps - 1, 1)", "step / max(total_steps, 1)", "gamma_is_exact"),
    (
        "gamma: ends exchanged",
        "(1 - done) * gamma + done * gamma_end",
        "done * gamma + (1 - done) * gamma_end",
        "gamma_is_exact",
    ),
    (
        "kl weight: coefficients exchanged",
        'gamma * beta if kl_coefficient == "gamma_beta"',
        'gamma * beta if kl_coefficient == "gamma"',
        "kl_coefficient",
    ),
    ("full kl: reverse", "ref.exp() * (ref - policy)", "policy.exp() * (policy - ref)", "full_kl"),
    (
        "full kl: without its mask",
        "per_position.masked_fill(~mask.bool(), 0).sum(-1)",
        "per_position.sum(-1)",
        "full_kl",
    ),
    ("full kl: a mean over tokens", "(~mask.bool(), 0).sum(-1)", "(~mask.bool(), 0).mean(-1)", "full_kl"),
    ("sample kl: sign", "return ref_logps - policy_logps", "return policy_logps - ref_logps", "kl_estimators"),
    (
        "logits: left in bfloat16",
        "logits.to(torch.promote_types(logits.dtype, torch.float32))",
        "logits.to(logits.dtype)",
        "half_precision",
    ),
    (
        "temperature: its inverse",
        "scale / _zero_of_slope(margins, weight)",
        "scale * _zero_of_slope(margins, weight)",
        "recovered",
    ),
    ("temperature: ties count", "(weight > 0) & (margins != 0)", "(weight > 0)", "temperature"),
    (
        "mix: shares exchanged",
        '("longer", longer_wins, mix), ("shorter", shorter_wins, 1 - mix)',
        '("longer", longer_wins, 1 - mix), ("shorter", shorter_wins, mix)',
        "mix_weights",
    ),
    ("mix: weights of another mean", "share * len(wins) / count", "share / count", "mix_weights"),
)

RIVALS = in_file(
    "rivals",
    ("r-dpo: length rewarded", "beta * delta_h + length_alpha * longer", "beta * delta_h - length_alpha * longer", "hand"),
    ("dpo-sft: a sum over tokens", "-chosen_logps / chosen_lengths", "-chosen_logps", "hand"),
    ("robust-dpo: normalised wrongly", "/ (1 - 2 * label_smoothing)", "/ (1 - label_smoothing)", "hand or flipped"),
    ("simpo: margin given away", "- simpo_gamma)", "+ simpo_gamma)", "hand"),
    ("mean teacher: the least margin", "return delta_r.mean(0)", "return delta_r.amin(0)", "teacher_is_made or hand"),
    ("lcb teacher: deviation of a sample", "delta_r.std(0, correction=0)", "delta_r.std(0, correction=1)", "bound or agree"),
    ("lcb teacher: sign lost", "mean.sign() * (mean.abs()", "(mean.abs()", "bound"),
    ("warm: a sum of weights", "(tensor / len(models)).to(first", "tensor.to(first", "mean_of_equal"),
)

TEACHERS = [
    *in_file(
        "calibration",
        ("margins multiplied by the temperature", 'scores["rejected"])) / temperature', 'scores["rejected"])) * temperature', "first_loss"),
        ("calibration to 1 - b", "kind == SHORTER, mix)", "kind == SHORTER, 1 - mix)", "stationary"),
        ("calibration: kinds exchanged", "kind == LONGER, kind == SHORTER", "kind == SHORTER, kind == LONGER", "stationary"),
        ("calibration: mixes exchanged", 'recipe.calibration_mix == "data"', 'recipe.calibration_mix != "data"', "stationary"),
        ("calibration: even if none", 'recipe.calibration == "temperature" and recipe.compares_members', "recipe.compares_members", "first_loss"),
        ("teachers: mean and lcb exchanged", 'if recipe.teacher == "mean" else', 'if recipe.teacher != "mean" else', "one_teacher"),
        (
            "margins by place instead of id",
            'entry["margins"] = teachers.margins[row.id]',
            'entry["margins"] = list(teachers.margins.values())[index]',
            "whatever_the_order",
        ),
    ),
    *in_file(
        "wiring",
        (
            "teacher: margins turned round",
            'np.array(scores["chosen"]) - np.array(scores["rejected"])',
            'np.array(scores["rejected"]) - np.array(scores["chosen"])',
            "formula and d-dpo",
        ),
        ("a pair takes its prompt's first sample", "drawn[index % len(drawn)]", "drawn[0]", "kl_is_along and sample"),
        (
            "samples of another policy",
            'key = job.identity["inputs"]["samples"]',
            'key = ""',
            "their_own_samples",
        ),
        (
            "pairs of another rho",
            'key = (job.identity["inputs"]["data"], job',
            'key = ("", job',
            "their_own_pairs",
        ),
        ("reference: chosen and rejected exchanged", "row: (c, r) for row, c, r", "row: (r, c) for row, c, r", "formula and dpo"),
        ("members: names in another order", "list(teachers.temperatures)", "sorted(teachers.temperatures, reverse=True)", "least_of"),
        ("collator: columns in half precision", "row[name] for row in rows], dtype=torch.float32)", "row[name] for row in rows], dtype=torch.float16)", "formula"),
    ),
]

REWARD = [
    *in_file(
        "members",
        ("every member trained on D_rho", 'name = "train" if member is None else', 'name = "train" if True else', "as_many_rows"),
        ("reward: loss turned round", "functional.logsigmoid(margins)", "functional.logsigmoid(-margins)", "own_subset"),
        ("reward: a sum over pairs", "functional.logsigmoid(margins).mean()", "functional.logsigmoid(margins).sum()", "own_subset"),
        ("reward: pairs interleaved", "response_rewards(model, inputs).chunk(2)", "response_rewards(model, inputs).view(-1, 2).T", "own_subset"),
        ("held-out accuracy turned round", '"held_out_accuracy": float((margins > 0)', '"held_out_accuracy": float((margins < 0)', "own_subset"),
        ("held-out loss turned round", "np.logaddexp(0, -margins).mean())", "np.logaddexp(0, margins).mean())", "own_subset"),
        ("scores: rms of a mean", "(margins**2).mean()", "margins.mean() ** 2", "named_for"),
        ("scores: columns exchanged", '"chosen": values[:, 0], "rejected": values[:, 1]', '"chosen": values[:, 1], "rejected": values[:, 0]', "named_for"),
    ),
    *in_file(
        "models_and_scoring",
        ("early stopping: the worst step", '"greater_is_better": False', '"greater_is_better": True', "early_stopping"),
        ("early stopping: the last step", '"load_best_model_at_end": True', '"load_best_model_at_end": False', "early_stopping"),
        ("rewards: padding is seen", "[1] * len(sequences[i]) + [0]", "[1] * len(sequences[i]) + [1]", "do_not_depend"),
        ("bulk reader: responses of other rows", "numpy().reshape(-1, len(rows)).T", "numpy().reshape(len(rows), -1)", "do_not_depend"),
    ),
    *in_file(
        "measured_plainly",
        ("utility accuracy turned round", "(m > 0) == (g > 0)", "(m > 0) != (g > 0)", "utility"),
        ("oracle ties turned round", "swapped = margins < 0", "swapped = margins <= 0", "undecided"),
    ),
]

LOOP = [
    *in_file(
        "epochs",
        ("every epoch in the same order", "manual_seed(self.seed + self.epoch())", "manual_seed(self.seed)", "other_orders"),
        ("one order whatever the seed", '"data_seed": seed', '"data_seed": 0', "the_order_is"),
    ),
    *in_file(
        "policy_training",
        ("an epoch's last batch is not whole", "return len(self.lengths) // self.batch * self.batch", "return len(self.lengths)", "divide and e-dpo"),
        ("batches of the micro-batch", "micro * self.args.gradient_accumulation_steps * self.args.world_size", "micro", "divide and e-dpo"),
        ("logged: one step early", "step = self.state.global_step + 1", "step = self.state.global_step", "line_of_the_last or the_kl"),
        ("resumed after the last step", "if step(p) < max_steps", "if step(p) <= max_steps", "before_it_was_published"),
        ("a NaN averaged away", '"logging_nan_inf_filter": False', '"logging_nan_inf_filter": True', "no_number"),
        ("last loss is the first", '"last_loss": losses[-1]', '"last_loss": losses[0]', "last_loss"),
        ("journal keeps what is done again", '["step"] <= step', '["step"] <= step + 1', "goes_on_from"),
        ("choice over the first micro-batch", "torch.stack(means).mean(0)", "means[0]", "how_the_batch_is_cut and batch"),
        ("dataset min: sums of micro-batches", "self._sums / self._batches", "self._sums", "how_the_batch_is_cut and dataset"),
        ("logged gamma is the next step's", "gamma_at(self.state.global_step - 1", "gamma_at(self.state.global_step", "every_kl and data"),
    ),
    *in_file(
        "settings",
        ("warm-up forgotten", '"warmup_steps": recipe.warmup_steps', '"warmup_steps": 0', "rate"),
        ("weight decay forgotten", '"weight_decay": recipe.weight_decay', '"weight_decay": 0.0', "reaches"),
        ("betas exchanged", '"adam_beta2": recipe.adam_beta2', '"adam_beta2": recipe.adam_beta1', "reaches"),
        ("gradients not clipped", '"max_grad_norm": recipe.max_grad_norm', '"max_grad_norm": 0.0', "reaches"),
        ("scheduler forgotten", '"lr_scheduler_type": recipe.lr_scheduler_type', '"lr_scheduler_type": "constant"', "rate"),
        ("adapter: alpha is r", "lora_alpha=recipe.lora_alpha", "lora_alpha=recipe.lora_r", "reaches"),
        ("member choice: sums of all steps", "self._sums = torch.zeros_like(self._sums)", "pass", "step_of_its_own"),
        ("another seed for reward models", 'seed_of(recipe, "rm")', 'seed_of(recipe, "policy")', "seed"),
        ("own seeds ignored", "recipe.seed if own is None else int(own)", "recipe.seed", "seed"),
    ),
    *in_file("by_length", ("micro-batches from short to long", "key=lambda i: -self.lengths[i]", "key=lambda i: self.lengths[i]", "random_batch")),
]

POLICY = [
    Mutant(
        "no eval() in the choice over the batch",
        "means = [] self.model.eval()",
        "means = []",
        "tests/test_wiring.py",
        "choice_over_a_batch",
        equivalent="every dropout is off while a policy trains, an adapter's too",
    ),
    *in_file(
        "wiring",
        ("policy: margin turned round", "return h_chosen - h_rejected", "return h_rejected - h_chosen", "formula and dpo"),
        ("ipo-norm: lengths of the other response", "h_chosen / lengths[:size]", "h_chosen / lengths[size : 2 * size]", "formula and ipo-norm"),
        ("policy: a sum over pairs", "loss = preference = losses.mean()", "loss = preference = losses.sum()", "formula and dpo"),
        ("full kl along the rejected response", "if len(logits) > size else (0, 3)", "if len(logits) > size else (0, 2)", "full-true"),
        ("full kl in rows from the rejected on", "(2 * size, 1) if len(logits) > size", "(size, 1) if len(logits) > size", "full-false"),
        ("full kl to itself", "response_logits(self.kl_reference, inputs)", "response_logits(self.model, inputs)", "full-true"),
        ("data kl on chosen alone", "kl_sample(logps[: 2 * size], reference)", "kl_sample(logps[:size], reference[:size])", "data-true"),
        ("sample kl against chosen", 'kl_sample(logps[2 * size :], inputs["ref_sample_logps"])', 'kl_sample(logps[2 * size :], inputs["ref_chosen_logps"])', "sample-true"),
        ("gamma of the next step", "gamma_at(self.state.global_step, self", "gamma_at(self.state.global_step - 1, self", "sample-true"),
        ("accuracy without the reference", "(h_chosen > h_rejected).float()", "(chosen > rejected).float()", "formula and dpo"),
        ("rewards of ipo scaled by beta", 'strength = 1.0 if self.recipe.objective.startswith("ipo")', 'strength = 1.0 if self.recipe.objective == "ipo-norm"', "formula and ipo"),
        ("members: one pair counted for each", "(chosen == members[:, None]).sum(1)", "(chosen == members[:, None]).any(1)", "least_of"),
    ),
]

DATA = [
    *in_file(
        "data",
        ("longer: strictly more than the margin", "chosen >= rejected * factor", "chosen > rejected * factor", "longer_means"),
        ("bias rounded down", "longer = round(size * share)", "longer = int(size * share)", "exactly or rounded"),
        ("held-out prompts trained on", "pool[~np.isin(names[pool], apart)]", "pool", "never_both"),
        ("subsets of the opposite bias", "longer[:many], shorter[:few]", "longer[:few], shorter[:many]", "subsets_have"),
        ("splits not shuffled", "train, held_out = rng.permutation(train), rng.permutation(held_out)", "pass", "exactly_its_bias"),
        ("sampled labels turned round", "draws > 1 / (1 + np.exp(-margins))", "draws < 1 / (1 + np.exp(-margins))", "sampled"),
        ("scores of swapped pairs not swapped", "order = (1, 0) if swap else (0, 1)", "order = (0, 1)", "relabelling"),
        ("responses without EOS", "[*ids[index], eos]", "list(ids[index])", "end_in_eos"),
        ("lengths of the other response", "np.array([len(t.responses[0])", "np.array([len(t.responses[1])", "splits_stage"),
    ),
    *in_file("settings", ("every rho draws alike", "else round(recipe.rho * 10_000)", "else 0", "rho")),
    *in_file("measured_plainly", ("sft: learns prompts, too", "[-100] * len(r.prompt_ids) + r.responses[0]", "r.prompt_ids + r.responses[0]", "completions_alone")),
]

EVALUATION = in_file(
    "measured_plainly",
    ("log pi_ref is log pi_theta", 'if job.inputs["reference"] != job.inputs["policy"]', "if False", "models_own"),
    (
        "finished is shorter than the limit",
        "[a[-1] == tokenizer.eos_token_id for a in answers]",
        "[len(a) < recipe.max_new_tokens for a in answers]",
        "finished",
    ),
    ("tokens without EOS", "[len(a) for a in answers], dtype", "[len(a) - 1 for a in answers], dtype", "models_own"),
    ("a policy is its own baseline", 'pd.read_parquet(job.inputs["baseline"] / SAMPLES) if', "samples if", "same_prompts"),
    ("evaluation on test whatever the split", 'f"prompts_{recipe.split}")[: recipe', 'f"prompts_test")[: recipe', "settings"),
    ("evaluation at temperature 1", '"temperature": recipe.temperature, "top_p"', '"temperature": 1.0, "top_p"', "settings"),
    ("evaluation under one seed", '"seed": seed_of(recipe, "sampling"), "on_batch"', '"seed": 0, "on_batch"', "settings"),
    ("reference samples too sure", "temperature=1.0, top_p=1.0", "temperature=0.7, top_p=1.0", "drawn_as_it_is"),
    ("reference samples under one seed", 'seed=seed_of(recipe, "sampling"), on_batch', "seed=0, on_batch", "drawn_as_it_is"),
    ("unfinished share is the finished one", '"unfinished_share": 1 - ended', '"unfinished_share": ended', "references_samples"),
    ("reference: columns exchanged", '"ref_chosen_logps": both[:, 0], "ref_rejected_logps": both[:, 1]}, job', '"ref_chosen_logps": both[:, 1], "ref_rejected_logps": both[:, 0]}, job', "chosen_and_rejected"),
    ("cells: advantage of the baseline", 'joined["reward"] - joined["reward_baseline"]', 'joined["reward_baseline"] - joined["reward"]', "cells_are"),
    ("cells: lengths of the policy for the baseline", 'joined["tokens_baseline"]', 'joined["tokens"]', "cells_are"),
)

STATISTICS = [
    *in_file(
        "resampling",
        ("seeds never share a draw of prompts", "same = all(ids == prompts[0] for ids in prompts)", "same = False", "share_a_draw"),
        ("interval of 90 %", "[2.5, 97.5]", "[5.0, 95.0]", "percentiles"),
        ("absent seeds count as zero", "count = present.sum(axis)", "count = np.full_like(present.sum(axis), values.shape[axis])", "lacks"),
        ("cells rounded to cents", "UNIT = 1e-4", "UNIT = 1e-2", "percentiles"),
        ("advantage and tokens exchanged", "for m in (0, 1))", "for m in (1, 0))", "percentiles"),
        ("prompt interval over seeds, too", "over_seeds(prompts.drawn[:, *at, 0], 1)", "over_seeds(both.drawn[:, *at, 0], 1)", ""),
        ("sweep: the larger of equals", 'if mean > best.get((policy, rho), float("-inf"))', 'if mean >= best.get((policy, rho), float("-inf"))', "choice"),
        ("sweep: the luckiest seed", "mean = sum(seen) / len(seen)", "mean = max(seen)", "choice"),
    ),
    *in_file(
        "statistics",
        ("missing values weigh", "else weights @ present", "else weights.sum(1, keepdims=True) * np.ones_like(totals)", "without_a_value"),
        ("seeds not drawn", "rng.integers(count, size=picks.shape)", "rng.integers(1, size=picks.shape)", "widen"),
        (
            "ties are losses",
            '(np.sign(pairs["reward"] - pairs["reward_baseline"]) + 1) / 2',
            '(pairs["reward"] > pairs["reward_baseline"]).astype(float)',
            "win_rate",
        ),
        ("length control: slope wrong", "product - length * d, variance", "product + length * d, variance", "length_control"),
        ("dropped counted where scored", 'unfinished if truncated == "drop" else 0', 'unfinished if truncated == "score" else 0', "unfinished"),
        ("other prompts for every column", "+ size * np.arange(len(some))[:, None]", "+ 0 * np.arange(len(some))[:, None]", "covers or nothing"),
    ),
    *in_file("measured_plainly", ("kl to reference: sign", 'kl=kept["logp"] - kept["ref_logp"]', 'kl=kept["ref_logp"] - kept["logp"]', "models_own")),
]

GENERATION = [
    *in_file(
        "generation",
        ("copies of a prompt are one sample", 'f"{seed},{copy};"', 'f"{seed},0;"', "copies"),
        ("picked: the token before", "(edges <= mark).sum(-1)", "(edges < mark).sum(-1)", "probabilit or alone"),
        ("top_p leaves out the token that reaches it", "sums - ordered >= top_p", "sums >= top_p", "top_p"),
        ("temperature turned round", "(logits - top) / temperature", "(logits - top) * temperature", "temperature"),
        ("positions one too far", "self.lengths[:, None] - 1", "self.lengths[:, None]", "alone"),
        ("a response goes on behind its EOS", "if token != eos: going", "if True: going", "alone or read_no_further"),
    ),
    *in_file(
        "batches",
        ("responses of a row see each other", "(key == PROMPT) | (key == query)", "(key == PROMPT) | (key <= query)", "change_no_logp"),
        ("gradient of log-probs: sign", "mul_(-wanted[part])", "mul_(wanted[part])", "in_pieces"),
        ("a response predicts from its own place", "place + 1 : place + len(response)] = np.arange(place + 1,", "place + 1 : place + len(response)] = np.arange(place,", ""),
    ),
]

JUDGING = in_file(
    "judge",
    ("verdicts of one order", 'value(second, "B")) / 2', 'value(second, "A")) / 2', "mean_of_both"),
    ("position share of B", '(decided == "A").mean()', '(decided == "B").mean()', "always_says_a"),
    ("both questions in one order", '("second", (p, theirs, ours))', '("second", (p, ours, theirs))', "workspace_too"),
    ("oracle's sign turned round", 'pairs["reward"] - pairs["reward_other"]', 'pairs["reward_other"] - pairs["reward"]', "agrees_with"),
    ("chance of one rater alone", "table.sum(0) @ table.sum(1)", "table.sum(0) @ table.sum(0)", "kappa"),
    ("length feature not bounded", "np.tanh(differences / spread)", "differences / spread", "length"),
    ("length difference turned round", 'pairs["response"].str.len() - pairs["other"].str.len()', 'pairs["other"].str.len() - pairs["response"].str.len()', "references_of or agrees_with"),
    ("prices exchanged", "prompt * prices[0] + completion * prices[1]", "prompt * prices[1] + completion * prices[0]", ""),
)

WORKSPACE = [
    *in_file(
        "large_files",
        ("files over 64 MB known by size only", 'f"{stat.st_size}:{stat.st_mtime_ns}"', 'f"{stat.st_size}"', ""),
        ("names of files do not count", "digest.update(str(file.relative_to(path)).encode())", "pass", ""),
    ),
    *in_file(
        "pipeline",
        ("dropped weights count as there", 'weights and found.get("weights") == "dropped"', "False", "dropped_weights"),
        ("unfinished work of another key kept", 'started.get("key") != identity["key"]', "False", "changed_recipe or set_aside or kill"),
    ),
    *in_file(
        "keys",
        ("beta in the key of ipo, not tau", '{"beta"} if self.objective.startswith("ipo") else {"tau"}', '{"tau"} if self.objective.startswith("ipo") else {"beta"}', ""),
        ("no sampling seed in a policy's key", '"policy": ("policy", "sampling")', '"policy": ("policy",)', "seed"),
    ),
    *in_file(
        "figures",
        ("a sweep keeps the worst weights", "if score > self.best[place]", "if score < self.best[place]", "keeps_every"),
        ("a sweep looks at test prompts", '"validation", [f"{name}={value!r}"]', '"test", [f"{name}={value!r}"]', "sweep"),
    ),
    *in_file("estimate", ("a part of a grid loses its end", "index * (len(values) - 1) / (count - 1)", "index * (len(values) - 1) / count", "keeps_its_ends")),
]

MUTANTS: list[Mutant] = [
    *OBJECTIVES, *RIVALS, *TEACHERS, *REWARD, *LOOP, *POLICY, *DATA, *EVALUATION, *STATISTICS, *GENERATION, *JUDGING, *WORKSPACE,
]  # fmt: skip
