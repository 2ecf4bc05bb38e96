"""A backend that takes its process down, as a fault in native code does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from jetson_agent.backends.base import Engine, Probe


class CrashingBackend:
    name = "crashing"
    precisions: tuple[str, ...] = ("fp32",)

    def probe(self) -> Probe:
        return Probe(available=True, runtime="1.0")

    def build(self, model: Path, precision: str, threads: int) -> Engine:
        print("about to crash", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")
