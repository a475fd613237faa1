"""As ranks.py, with weights sharded by FSDP2; these processes pass for accelerators, which it needs.

Usage: a file of JSON lines [job, step to be interrupted at or null], the job a text of JSON itself.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from rpo_cli.artifacts import job_from
from rpo_cli.runs.child import take_part
from rpo_cli.stages.training import publish

begin, whole = PartialState.__init__, publish.whole_model


def pass_for_gpus(self: Any, *args: Any, **kwargs: Any) -> None:
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def whole_of_shards(trainer: Any) -> Any:
    assert trainer.accelerator.distributed_type == DistributedType.FSDP
    assert all(
        weights.to_local().numel() < weights.numel()
        for weights in trainer.model.parameters()
        if len(weights) > 1
    )
    return whole(trainer)


def interrupt(at: int | None, step: int) -> None:
    if step == at:
        raise KeyboardInterrupt


PartialState.__init__ = pass_for_gpus
publish.whole_model = whole_of_shards
for line in Path(sys.argv[1]).read_text().splitlines():
    text, stop = json.loads(line)
    job = job_from(text)
    with contextlib.suppress(KeyboardInterrupt):
        take_part(job, lambda step, of, stop=stop: interrupt(stop, step))
