"""An artifact's metrics as a person reads them: what matters first, with its interval, in a few lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

Metrics = Mapping[str, Any]
UNFINISHED = 0.2  # share of samples without an end from which on the other numbers are in doubt
TAIL = 4096  # bytes of a journal in which its last line is


def in_words(kind: str, metrics: Metrics, recipe: Metrics | None = None) -> list[str]:
    """The lines of an artifact; none where its kind has none, and its metrics speak for themselves.

    recipe: that it was made by; samples that are not the policy's own draws say nothing of its KL.
    """
    try:
        lines = [line for line in WORDS[kind](metrics) if line]
    except KeyError:  # a kind without words, or a version that measured less
        return []
    if kind == "evaluate" and recipe is not None and not own_draws(recipe):
        return [line.replace("KL to the reference", "log-ratio to the reference") for line in lines]
    return lines


def own_draws(recipe: Metrics) -> bool:
    """Whether samples are drawn from the policy itself, all of it: then their log-ratios estimate its KL."""
    return all(recipe.get(name, 1.0) == 1.0 for name in ("temperature", "top_p"))


def warnings_of(metrics: Metrics) -> list[str]:
    """What the metrics of an evaluation warn of."""
    share = metrics.get("unfinished_share")
    if share is None or share <= UNFINISHED:
        return []
    return [
        f"{100 * share:.0f} % of the samples reached max_new_tokens before their end; lengths and rewards "
        "are of what was cut off there"
    ]


def with_ends(metrics: Metrics, name: str, form: str, *, scale: float = 1, mean: str | None = None) -> str:
    """A metric with its interval, as `+0.08 [-0.76, +0.89]`; without one where it has none."""
    value = f"{scale * metrics[mean or name]:{form}}"
    ends = [metrics.get(f"{name}_{end}") for end in ("low", "high")]
    if None in ends:
        return value
    low, high = (f"{scale * end:{form}}" for end in ends if end is not None)
    return f"{value} [{low}, {high}]"


def share_of(share: float, count: int) -> str:
    """A counted share as `71 % [66, 76]`."""
    from rpo_cli.statistics import wilson

    _, low, high = wilson(share * count, count)
    return f"{100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _evaluation(metrics: Metrics) -> list[str]:
    """Of an evaluation without an oracle, what needs none."""
    if "tokens_mean" not in metrics:
        return []
    tokens = with_ends(metrics, "tokens", ".1f", mean="tokens_mean")
    prompts, kl = metrics["prompts"], with_ends(metrics, "kl_to_reference", ".2f")
    lengths = f"tokens {tokens} against {metrics['baseline_tokens_mean']:.1f}"
    lines = [f"{lengths} on {prompts} prompts; KL to the reference {kl} nats"]
    if "advantage" in metrics:
        wins = with_ends(metrics, "win_rate", ".0f", scale=100)
        advantage = with_ends(metrics, "advantage", "+.2f")
        controlled = with_ends(metrics, "length_controlled_advantage", "+.2f")
        lengths = f"tokens {metrics['tokens_mean']:.1f} against {metrics['baseline_tokens_mean']:.1f}"
        lines = [
            f"advantage {advantage} on {prompts} prompts; {lengths}; wins {wins} %",
            f"at equal length {controlled}; KL to the reference {kl} nats",
        ]
    unfinished, theirs = (100 * metrics[f"{of}unfinished_share"] for of in ("", "baseline_"))
    dropped = metrics.get("dropped_prompts", 0)
    return [
        *lines,
        f"unfinished {unfinished:.1f} % of {metrics['samples']} samples, of the baseline's {theirs:.1f} %",
        f"{dropped} prompts left out: no finished sample" if dropped else "",
    ]


def _trained(metrics: Metrics, rows: str) -> str:
    """Loss, steps and rows of a training."""
    losses = [metrics[name] for name in ("first_loss", "last_loss") if name in metrics]
    left_out = f", {metrics['dropped']} left out for their length" if metrics.get("dropped") else ""
    said = f"loss {losses[0]:.4g} to {losses[1]:.4g} " if len(losses) == 2 else ""
    if said and losses[0] == losses[1]:  # logged once, as the mean of all steps
        said = f"mean loss {losses[0]:.4g} "
    return f"{said}in {metrics['steps']} steps on {metrics['rows']} {rows}{left_out}"


def _policy(metrics: Metrics) -> list[str]:
    ended = training_words({name.removeprefix("ended/"): value for name, value in metrics.items()})
    taught, temperatures = (
        ", ".join(
            f"{name.removeprefix(kind)} {value:{form}}"
            for name, value in metrics.items()
            if name.startswith(kind)
        )
        for kind, form in (("members/", ".0%"), ("temperature/", ".2f"))
    )
    return [
        _trained(metrics, "pairs"),
        f"at its end {ended}" if ended else "",
        _monitored(metrics),
        f"members taught: {taught}" if taught else "",
        f"temperatures: {temperatures}" if temperatures else "",
    ]


def _selected(metrics: Metrics) -> str:
    """Which checkpoint validation chose, and what each of them had."""
    steps = {name.removeprefix("kept/"): step for name, step in metrics.items() if "kept/" in name}
    values = ", ".join(
        f"{metrics[f'validation/{number}']:.2f} after {step}" for number, step in steps.items()
    )
    return f"chosen on validation: step {metrics['selected/step']} ({values})"


def _monitored(metrics: Metrics) -> str:
    """What the last look at held-out pairs and samples found."""
    of = {name.removeprefix("monitor/"): value for name, value in metrics.items() if "monitor/" in name}
    if not of:
        return ""
    kl = f", KL to the reference {of['kl_to_reference']:.2f}" if "kl_to_reference" in of else ""
    known, pairs = f"{of['accuracy']:.0%}", of.get("pairs")
    if pairs is not None:  # older versions did not count them
        known = f"{share_of(of['accuracy'], pairs)} on {pairs} pairs"
    held_out = f"held-out accuracy {known}, margin {of['margin']:+.2f}"
    return f"{held_out}; samples {of['tokens']:.1f} tokens, before {of['tokens_before']:.1f}{kl}"


def _scores(metrics: Metrics) -> list[str]:
    """How often a teacher agrees with the labels."""
    parts = []
    for table, pairs in (("train", "training pairs"), ("held_out", "held-out pairs")):
        if (share := metrics.get(f"{table}/accuracy")) is not None:
            count = metrics.get(f"{table}/rows")  # older versions did not count them
            known = f"{share:.0%} of the" if count is None else f"{share_of(share, count)} of the {count}"
            parts.append(f"{known} {pairs}")
    return [f"prefers what the labels prefer in {' and '.join(parts)}"]


def _reward(metrics: Metrics) -> list[str]:
    lines = [_trained(metrics, "pairs")] if "steps" in metrics else []
    if "held_out_accuracy" not in metrics:
        return lines
    count = metrics["held_out_rows"]
    line = f"held-out accuracy {share_of(metrics['held_out_accuracy'], count)} on {count} pairs"
    if (seen := metrics.get("held_out_shared_prompts")) is not None:
        line += f", {seen} of them of prompts that were trained on"
    parts = []
    for name, said in (
        ("longer", "the longer won"),
        ("shorter", "the shorter won"),
        ("ties", "neither is longer"),
    ):
        if (pairs := metrics.get(f"held_out_rows/{name}")) is not None:
            parts.append(f"{share_of(metrics[f'held_out_accuracy/{name}'], pairs)} of {pairs} where {said}")
    equal = metrics.get("held_out_equal_rewards")
    return [
        line + (": " + "; ".join(parts) if parts else ""),
        f"equal rewards in {equal} of these pairs, which count as wrong" if equal else "",
        *lines,
    ]


def _held_out(metrics: Metrics) -> list[str]:
    """How a policy ranks all held-out pairs, and those that cannot have chosen it."""
    count = metrics["rows"]
    line = f"held-out accuracy {share_of(metrics['accuracy'], count)} on {count} pairs"
    if own := metrics.get("test/rows"):  # older versions did not count them
        known = f"{share_of(metrics['test/accuracy'], own)} on the {own} of them"
        others = f", {known} that chose no strength or checkpoint (which may be chosen on the others)"
        line += others * (own < count)
    return [f"{line}; margin {metrics['margin']:+.2f} nats"]


def _splits(metrics: Metrics) -> list[str]:
    tables = [name.removesuffix("/size") for name in metrics if name.endswith("/size")]
    ordered = sorted(tables, key=lambda name: (name not in ("train", "held_out"), name == "all", name))
    lines = []
    for table in ordered:
        longer, ties = (metrics[f"{table}/{share}"] for share in ("longer_share", "tie_share"))
        won = "all are about equally long" if longer is None else f"the longer won in {100 * longer:.1f} %"
        if (biased := metrics.get(f"{table}/biased_share")) is not None:
            won = f"the higher won in {100 * biased:.1f} % by bias_on's columns, {won}"
        lines.append(f"{table}: {metrics[f'{table}/size']} pairs, {won}, ties {100 * (ties or 0):.1f} %")
    return lines


def _relabel(metrics: Metrics) -> list[str]:
    line = f"{100 * metrics['swapped_share']:.1f} % of {metrics['rows']} labels turned round"
    if (against := metrics.get("against_share")) is not None:
        line += f"; drawn, {100 * against:.1f} % of them go against the oracle"
    return [line]


def _by_position(metrics: Metrics) -> str:
    """In how many pairs the judge went by the order: of these the rates say nothing."""
    share = metrics.get("position_decided_share")
    return "" if share is None else f"; the order of the two decided {100 * share:.0f} %"


def _identical(metrics: Metrics) -> str:
    """How many comparisons were ties without a question, because both texts are the same."""
    same = metrics.get("identical", 0)
    return f"; {same} of them the same text, a tie that nobody was asked about" if same else ""


def _unread(metrics: Metrics) -> str:
    """How many comparisons the rates leave out, because an answer held no verdict."""
    unread = metrics.get("unread", 0)
    total = unread + metrics["comparisons"]
    return f"; {unread} of {total} left out, an answer held no verdict" if unread else ""


def _judge(metrics: Metrics) -> list[str]:
    lines = []
    for against in ("baseline", "reference"):
        if f"{against}/win_rate" in metrics:
            of = {name.removeprefix(f"{against}/"): value for name, value in metrics.items()}
            wins = with_ends(of, "win_rate", ".0f", scale=100)
            controlled = with_ends(of, "length_controlled_win_rate", ".0f", scale=100)
            lines.append(
                f"against the {against}: wins {wins} % of {of['comparisons']} comparisons, {controlled} % "
                f"at equal length{_by_position(of)}{_unread(of)}{_identical(of)}"
            )
    return lines


WORDS: dict[str, Callable[[Metrics], list[str]]] = {
    "evaluate": _evaluation,
    "policy": _policy,
    "selected": lambda metrics: [*_policy(metrics), _selected(metrics)],
    "reward": _reward,
    "sft": lambda metrics: [_trained(metrics, "rows")],
    "splits": _splits,
    "relabel": _relabel,
    "judge": _judge,
    "scores": _scores,
    "reference": lambda metrics: [
        "log pi_ref of the chosen {ref_chosen_logps:.1f}, of the rejected {ref_rejected_logps:.1f} nats, "
        "means of {rows} pairs".format(**metrics)
    ],
    "held_out": _held_out,
    "taught": lambda metrics: [
        "teacher's reward {reward_mean:+.3f}, of the baseline {baseline_reward_mean:+.3f}, "
        "on {prompts} prompts; not independent".format(**metrics)
    ],
}
# What a training's journal says of a step, in the order in which it is read; the first of its names counts.
OF_A_STEP: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("loss", ("loss",), ".3g"),
    ("accuracy", ("rewards/accuracies", "accuracy"), ".0%"),
    ("margin", ("rewards/margins", "margin"), "+.2f"),
)


def training_words(metrics: Metrics) -> str:
    """A step of a training as `loss 0.52, accuracy 71%, margin +0.42, forward KL 1.30`, as far as it says.

    Without samples of the reference no KL is known, but how much likelier the responses of its pairs became.
    """
    found = []
    for said, names, form in OF_A_STEP:
        value = next((metrics[name] for name in names if isinstance(metrics.get(name), int | float)), None)
        found += [] if value is None else [f"{said} {value:{form}}"]
    for said, name, sign, form in (
        ("forward KL", "kl_to_reference", 1, ".2f"),
        ("log-ratio", "kl_data", -1, "+.2f"),
    ):
        if isinstance(value := metrics.get(name), int | float):
            return ", ".join([*found, f"{said} {sign * value:{form}}"])
    return ", ".join(found)


def latest(journal: Path) -> str:
    """What a running training's journal says of its latest step; nothing before it says any."""
    try:
        with journal.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return ""
    for line in reversed(lines):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and (said := training_words(found)):
                return said
    return ""
