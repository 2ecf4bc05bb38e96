"""What a trial computes on."""

from __future__ import annotations

import platform
from pathlib import Path


def device_name(device: str) -> str:
    """The name of the device's model, for example ``NVIDIA H100 80GB HBM3`` or the processor's."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
