"""What a machine is, for a report that is sent to others: no names of people, hosts or folders."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import sharedenc
from sharedenc.selftest.jobs import code_digest, versions
from sharedenc.training.device import device_name


def environment(device: str) -> dict[str, Any]:
    """Versions, processor and device as plain values; what cannot be known is left out."""
    found: dict[str, Any] = {
        "sharedenc": sharedenc.__version__,
        "code": code_digest()[:16],
        "versions": versions(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": device_name("cpu"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": device,
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
        "cuda_available": torch.cuda.is_available(),
    }
    driver = driver_version()
    if driver:
        found["driver"] = driver
    if device.startswith("cuda") and torch.cuda.is_available():
        found["gpu"] = _gpu(device)
    return found


def _gpu(device: str) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": total,
        # Less than all of it: another process computes there, and times are not to be trusted.
        "free_bytes": free,
        "processors": properties.multi_processor_count,
        "count": torch.cuda.device_count(),
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "bfloat16": torch.cuda.is_bf16_supported(),
    }


def driver_version() -> str:
    """The NVIDIA driver's version, from the kernel or ``nvidia-smi``; empty without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
        if found := re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text):
            return found.group(1)
    except OSError:
        pass
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (answer.stdout.strip().splitlines() or [""])[0]
