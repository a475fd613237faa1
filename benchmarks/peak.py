"""Peak memory of what runs between two lines."""

from __future__ import annotations

from pathlib import Path

import torch


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _held_by_graphs() -> int:
    """Bytes of graphs' pools that no tensor holds: replays use them; torch counts them in captures only."""
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0)
    )


class Peak:
    """Bytes above those in use when it was made."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")

    def bytes(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() - self.before + _held_by_graphs()
        return _status("VmHWM") - self.before
