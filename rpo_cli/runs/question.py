"""What an estimate is asked for: the accelerator, the share of its peak reached, the price of an hour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from rpo_cli.errors import BadInput
from rpo_cli.runs.options import Costs

MFU = 0.35
ACCELERATORS = Path(__file__).with_name("accelerators.yaml")


@dataclass(frozen=True)
class Accelerator:
    """One accelerator: peak TFLOP/s; GB, GB/s of memory if known; `mfu`, of small models too, if measured."""

    name: str
    tflops: float
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None
    mfu: float | None = None
    mfu_small: float | None = None


@dataclass(frozen=True)
class Question:
    """What an estimate is asked for; `mfu_from`: whether the share was given, measured or is assumed.

    mfu_small: the share that models of at most `devices.HOST_BOUND` parameters reach.
    """

    device: Accelerator | None
    mfu: float
    mfu_small: float
    mfu_from: str
    price_per_hour: float | None
    params: float | None


def asked(dry_run: bool, costs: Costs) -> Question | None:
    """The question that the command line asks; None without any of these options.

    Raises:
        BadInput: not a dry run, an unknown device, a price without a device.
    """
    if costs == Costs():
        return None
    if not dry_run:
        raise BadInput("--estimate and its options go with --dry-run: an estimate builds nothing")
    name, tflops = costs.device_name, costs.tflops
    device = None
    if name is not None:
        known = yaml.safe_load(ACCELERATORS.read_text())
        if name not in known:
            raise BadInput(f"--device-name {name}: not among {', '.join(known)}; give --tflops for another")
        # What was measured was a share of its own peak.
        other_peak = {} if tflops is None else {"tflops": tflops, "mfu": None, "mfu_small": None}
        device = Accelerator(name, **{**known[name], **other_peak})
    elif tflops is not None:
        device = Accelerator(f"a device of {tflops:g} TFLOP/s", tflops)
    if device is None and (costs.mfu is not None or costs.price_per_hour is not None):
        raise BadInput("--mfu and --price-per-hour need a device: --device-name or --tflops")
    if costs.mfu is not None:
        mfu, source = costs.mfu, "as --mfu says"
    elif device is not None and device.mfu is not None:
        mfu, source = device.mfu, "measured: a dpo step of 1.24B parameters; --mfu for another share"
    else:
        mfu, source = MFU, "assumed, not measured: --mfu"
    small = mfu if device is None or costs.mfu is not None else device.mfu_small or mfu
    return Question(device, mfu, small, source, costs.price_per_hour, costs.params)
