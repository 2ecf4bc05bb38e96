"""How much memory a trial took, and how much there is, in bytes."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def reset_peak(device: str) -> None:
    """Begin to measure: `peak_bytes` counts from here."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        # Linux: 5 sets the peak resident size back to the present one.
        (_PROC / "self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes(device: str) -> int:
    """Peak memory of the trial: of the GPU, or the process's resident size."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in (_PROC / "self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def capacity_bytes(device: str) -> int:
    """Memory of the GPU, or what this machine or container lets its processes have."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def fixed_bytes(parameters: dict[str, int]) -> int:
    """What a float32 network takes whatever the batch: itself, and gradients and AdamW's two."""
    return 4 * parameters["total"] + 12 * parameters["trainable"]
