"""A backend that takes its process down, as a fault in native code does."""

from __future__ import annotations

import os
import resource
import signal

from jetson_agent.backends.base import BuildRequest, Built, Probe
from jetson_agent.protocol import LOADS, Int8Recipe, Load


class CrashingBackend:
    name = "crashing"
    precisions: tuple[str, ...] = ("fp32",)
    int8_recipe: Int8Recipe = "cpu"
    loads: tuple[Load, ...] = LOADS

    def probe(self) -> Probe:
        return Probe(available=True, runtime="1.0")

    def build(self, request: BuildRequest) -> Built:
        print("about to crash", flush=True)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError("unreachable")
