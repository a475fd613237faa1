"""What a plan costs before it is run: tokens, parameters, FLOPs, memory, disk, and with a device hours and
dollars.

Every number is arithmetic on the plan; ASSUMPTIONS and the notes of `estimate` say which. Imports torch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rpo_cli.artifacts import Stage, Workspace
from rpo_cli.devices import HOST_BOUND
from rpo_cli.recipes import schema
from rpo_cli.runs.costs import Work, work_of
from rpo_cli.runs.memory import held_by, memory_of
from rpo_cli.runs.question import Question
from rpo_cli.runs.sizes import GIVE_PARAMS, Sizes, Unknown
from rpo_cli.runs.todo import Todo
from rpo_cli.text import aligned, clock, size

WAYS = ("train", "score", "decode")
READ_SHARE = 0.5  # share of the memory bandwidth that decoding reaches
ASSUMPTIONS = (
    "training: 6 N FLOPs per token (8 N with gradient_checkpointing, 4 N with LoRA); scoring and prompts: "
    "2 N; N parameters, attention scores left out",
    "a prompt counts once for its responses, with shared_prompts: false once for each; padding is left out",
    "memory of training: 4 N weights (of a frozen base the linear layers in bfloat16, or with load_in_4bit "
    "half a byte and its constants) + 4 T gradients + 8 T Adam, T trained parameters, else all float32; "
    "activations 34 b s h L bytes (2 b s h L + one layer with gradient_checkpointing; twice that in float32; "
    "Korthikanti et al., 2022, without attention scores) for b sequences of s = max_length tokens; logits "
    "c b r V for r response tokens, c = 4 bytes in bfloat16 and 8 in float32, by CUDA graphs 12 and 24, in "
    "several processes 8, with kl_estimator: full more; SFT without graphs: a tile",
    "one device per stage; stages of different cells can run side by side, which shortens hours, not "
    "device-hours",
    "loading, start-up, tokenising, data and splits stages take no time",
)


def estimate(
    todo: Sequence[Todo],
    workspace: Workspace,
    question: Question,
    keep: str | None = None,
    places: int = 0,
    *,
    several: bool = False,
) -> dict[str, Any]:
    """What the stages of a plan cost, as JSON; `not_counted` says which stages no number covers and why.

    keep: `--keep-weights` of a plan of many policies, of which so many `places` keep one; several: what
    trains does so in several processes.
    """
    sizes = Sizes(workspace, question.params, GIVE_PARAMS)
    by_kind: defaultdict[str, Work] = defaultdict(Work)
    counted: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    peaks: dict[str, tuple[dict[str, float], str]] = {}
    held: dict[str, float] = {}
    for item in todo:
        stage = item.stage
        if not schema.KINDS[stage.kind].needs_model:
            continue
        try:
            work = work_of(stage, sizes)
        except Unknown as error:
            unknown[f"{stage.kind}: {error}"] += 1
            continue
        by_kind[stage.kind] += work
        counted[stage.kind] += 1
        if schema.KINDS[stage.kind].trains:
            parts = memory_of(stage, sizes, several=several)
            if stage.kind not in peaks or sum(parts.values()) > sum(peaks[stage.kind][0].values()):
                peaks[stage.kind] = parts, stage.path
        elif weights := held_by(stage, sizes):
            held[stage.kind] = max(weights, held.get(stage.kind, 0.0))
    total = Work()
    for work in by_kind.values():
        total += work
    not_counted = [f"{count} x {line}" for line, count in unknown.items()]
    device = question.device
    times = [_time(work, question) for work in (Work(), *by_kind.values())]
    sums = {
        name: None if any(t[name] is None for t in times) else sum(t[name] or 0.0 for t in times)
        for name in ("hours", "dollars")
    }
    return {
        "by_kind": [
            {"kind": kind, "stages": counted[kind], **vars(work), **_time(work, question)}
            for kind, work in by_kind.items()
        ],
        "flops": {"train": total.train, "score": total.score, "decode": total.decode, "total": total.flops},
        "tokens": {"train": total.train_tokens, "score": total.score_tokens, "decode": total.decode_tokens},
        "token_counts_from": sorted({found.source for found in sizes.tables.values()}),
        "models": [
            {
                "name": model.name,
                "parameters": model.parameters,
                "head": "reward" if reward else "language model",
            }
            for (_, reward), model in sizes.models.items()
        ],
        "memory": [_peak(kind, parts, path, question) for kind, (parts, path) in peaks.items()],
        "weights_read": held,
        "disk": disk(todo, sizes, keep, places),
        "device": None if device is None else vars(device),
        "mfu": question.mfu,
        "mfu_small": question.mfu_small,
        "price_per_hour": question.price_per_hour,
        **sums,
        "assumptions": [*ASSUMPTIONS, *_device_assumptions(question, total.flops_small)],
        "notes": sizes.notes,
        "not_counted": not_counted,
    }


def minutes(stage: Stage, sizes: Sizes, question: Question) -> float | None:
    """Minutes that a stage computes on the device of a question; None where that is not known."""
    if not schema.KINDS[stage.kind].needs_model:
        return None
    try:
        hours = _time(work_of(stage, sizes), question)["hours"]
    except Unknown:
        return None
    return None if hours is None else 60 * hours


def _time(work: Work, question: Question) -> dict[str, float | None]:
    """Device-hours and dollars: FLOPs at their share of the peak; decoding as slow as reading weights."""
    if question.device is None:
        return {"hours": None, "dollars": None}
    peak = question.device.tflops * 1e12
    rate = peak * question.mfu
    decoding = work.decode / rate
    if question.device.bandwidth_gb_s is not None:
        decoding = max(decoding, work.read_bytes / (question.device.bandwidth_gb_s * 1e9 * READ_SHARE))
    large = work.train + work.score - work.flops_small
    hours = (large / rate + work.flops_small / (peak * question.mfu_small) + decoding) / 3600
    price = question.price_per_hour
    return {"hours": hours, "dollars": None if price is None else hours * price}


def _device_assumptions(question: Question, small: float) -> list[str]:
    device = question.device
    if device is None:
        return []
    listed = [
        f"{device.name}: {device.tflops:g} TFLOP/s peak, of which {question.mfu:.0%} is reached "
        f"({question.mfu_from})"
    ]
    if question.mfu_small != question.mfu and small:
        listed.append(
            f"models of at most {HOST_BOUND / 1e6:.0f}M parameters reach {question.mfu_small:.0%} (measured: "
            "a dpo step of 135M; scoring is taken to do as well)"
        )
    if device.bandwidth_gb_s is not None:
        listed.append(
            f"decoding reads all float32 weights for each new token of a batch, at {READ_SHARE:.0%} of "
            f"{device.bandwidth_gb_s:g} GB/s, up to max_new_tokens"
        )
    else:
        listed.append(
            "decoding at the same share of the peak, which is optimistic: --device-name knows the memory "
            "bandwidth"
        )
    return listed


def _peak(kind: str, parts: Mapping[str, float], path: str, question: Question) -> dict[str, Any]:
    total = sum(parts.values())
    memory = None if question.device is None else question.device.memory_gb
    fits = None if memory is None else total <= memory * 1e9
    if fits and "activations" not in parts:  # of a model whose config is not known
        fits = None
    return {"kind": kind, "largest": path, "bytes": parts, "total": total, "fits": fits}


def disk(todo: Sequence[Todo], sizes: Sizes, keep: str | None, places: int) -> dict[str, float]:
    """Bytes of float32 weights at the end: of policies, under each --keep-weights, and of other models."""
    trained = [item.stage for item in todo if schema.KINDS[item.stage.kind].trains]
    policies = [stage for stage in trained if stage.kind == "policy"]
    others = [stage for stage in trained if stage.kind != "policy"]
    each = 4 * max((sizes.model(stage).parameters for stage in policies), default=0.0)
    counts = {"all": len(policies), "best": min(len(policies), places), "none": 0}
    rest = sum(4 * sizes.model(stage, reward=stage.kind == "reward").parameters for stage in others)
    by_keep = {} if keep is None else {f"policies_{name}": count * each for name, count in counts.items()}
    return {"policies": counts[keep or "all"] * each, "other_models": rest, **by_keep}


def lines(found: Mapping[str, Any]) -> list[str]:
    """An estimate for a terminal."""
    rows = [
        [
            group["kind"],
            str(group["stages"]),
            *(_short(group[f"{way}_tokens"]) for way in WAYS),
            _short(sum(group[way] for way in WAYS)),
            _hours(group),
        ]
        for group in found["by_kind"]
    ]
    tokens, flops = found["tokens"], found["flops"]
    count = sum(group["stages"] for group in found["by_kind"])
    rows.append(
        ["all", str(count), *(_short(tokens[way]) for way in WAYS), _short(flops["total"]), _hours(found)]
    )
    out = aligned(
        [("estimate", "stages", "trained tokens", "scored", "sampled", "FLOPs", "device-hours"), *rows],
        right=(1, 2, 3, 4, 5, 6),
    ).splitlines()
    if found["hours"] is not None:
        dollars, price = found["dollars"], found["price_per_hour"]
        money = "" if dollars is None else f", {dollars:,.2f} dollars at {price:g} an hour"
        out.append(
            f"{found['device']['name']}: {found['hours']:.3g} device-hours "
            f"({clock(found['hours'] * 3600)}){money}"
        )
    else:
        out.append(
            "name a device for hours: --device-name a100-80g, or --tflops; add --price-per-hour for dollars"
        )
    for model in found["models"]:
        out.append(f"model {model['name']} ({model['head']}): {model['parameters']:,.0f} parameters")
    for peak in found["memory"]:
        fits = {
            None: "",
            True: "; fits",
            False: "; DOES NOT FIT: a smaller per_device_train_batch_size, gradient_checkpointing or LoRA",
        }
        parts = ", ".join(f"{name} {size(value)}" for name, value in peak["bytes"].items())
        needs = size(peak["total"])
        if "activations" not in peak["bytes"]:
            needs, parts = f"at least {needs}", f"{parts}; activations and logits are not counted"
        out.append(f"memory to train {peak['kind']}: {needs} ({parts}){fits[peak['fits']]}")
    if held := found["weights_read"]:
        said = ", ".join(f"{kind} {size(count)}" for kind, count in held.items())
        out.append(f"weights where nothing is trained, one model at a time: {said}; activations come on top")
    disk = found["disk"]
    by_keep = {name: disk.get(f"policies_{name}") for name in ("best", "all", "none")}
    kept = ", ".join(f"{name} {size(count)}" for name, count in by_keep.items() if count is not None)
    choice = f"; policies by --keep-weights: {kept}" if kept else ""
    out.append(f"disk: {size(disk['policies'] + disk['other_models'])} of weights at the end{choice}")
    out += [f"tokens: {line}" for line in found["token_counts_from"]]
    out += [f"note: {line}" for line in found["notes"]]
    out += [f"NOT COUNTED: {line}" for line in found["not_counted"]]
    return out + [f"assumed: {line}" for line in found["assumptions"]]


def _hours(found: Mapping[str, Any]) -> str:
    return "" if found["hours"] is None else f"{found['hours']:.3g}"


def _short(value: float) -> str:
    """`3.1e+15` for large numbers, digits for small ones."""
    return f"{value:,.0f}" if value < 1e6 else f"{value:.2e}"
