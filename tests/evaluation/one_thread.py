"""Numerics that give the same bits wherever tests run."""

from __future__ import annotations

from sharedenc.spec import Numerics

CPU = Numerics(
    device="cpu",
    precision="float32",
    memory_format="contiguous",
    tf32=False,
    cpu_threads=1,
    sample_path="fast",
    torch="",
)
