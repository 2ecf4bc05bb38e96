"""Whose fault an error is, and what to do when memory ran out. No torch in here."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from sharedenc.errors import FailureKind, SharedencError

_GIB = float(1 << 30)

# Texts of the libraries, in lower case, searched in this order; the first that is found decides.
_TEXTS: tuple[tuple[str, FailureKind], ...] = (
    # A wrong index in a kernel: the machine is well. CUDA says it in the same words as a fault.
    (r"device-side assert", "code"),
    # torch: "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that
    # dataloader's workers are out of shared memory."
    (r"out of shared memory|unable to (open|write to|mmap).*(shared|/torch_)", "machine"),
    (r"dataloader worker \(pid\(?s?\)?.*(killed by signal|exited unexpectedly)", "machine"),
    (r"out of memory|outofmemory|insufficient memory|(can'?t|cannot|unable to) allocate", "oom"),
    (r"alloc_failed|failed to allocate|bad_alloc", "oom"),
    (r"no space left|disk quota exceeded|read-only file system|input/output error", "machine"),
    (r"too many open files|stale file handle|resource temporarily unavailable", "machine"),
    (r"\becc\b|nccl|cuda error|cuda driver|cuda unknown error|cuda-capable", "machine"),
    (r"cublas_status|cudnn_status|cudnn error|nvml|fallen off the bus|no nvidia driver", "machine"),
    (r"bus error|connection (reset|refused|aborted)|broken pipe", "machine"),
)
_CLASSES: dict[str, FailureKind] = {"OutOfMemoryError": "oom", "AcceleratorError": "machine"}


def failure_kind(error: BaseException) -> FailureKind:
    """Sort an error: ``code``, ``data``, ``oom`` (memory ran out) or ``machine``.

    An error of ours knows its kind. Others are known by class and by the text that torch, CUDA,
    NCCL and the system write; what an error was raised from counts when itself says nothing.
    """
    if isinstance(error, SharedencError):
        return error.kind
    for link in _chain(error):
        kind = _kind(link)
        if kind is not None:
            return kind
    return "code"


def fitting_batch_size(
    batch_size: int, *, fixed_bytes: int, needed_bytes: int, capacity_bytes: int
) -> int:
    """The largest batch that should fit where ``batch_size`` did not; 0 when not even 1 does.

    Memory is taken as a fixed part (parameters, gradients, optimiser) and one that grows with the
    batch. A step that failed had not asked for everything yet, so at most half the batch is named;
    a tenth of the memory stays free.

    Args:
        fixed_bytes: What does not depend on the batch.
        needed_bytes: Peak of the batch that failed, as far as it got.
        capacity_bytes: Memory of the device, or of the machine for one trial.
    """
    usable = 0.9 * capacity_bytes - fixed_bytes
    per_image = max(needed_bytes, capacity_bytes) - fixed_bytes
    if usable <= 0 or per_image <= 0:
        return 0
    return min(int(usable * batch_size / per_image), batch_size // 2)


def out_of_memory(
    error: BaseException,
    *,
    batch_size: int,
    image_px: int,
    device: str,
    fixed_bytes: int,
    peak_bytes: int,
    capacity_bytes: int,
) -> str:
    """The reason of a trial that ran out of memory, with the batch size that should fit."""
    needed = peak_bytes + asked_bytes(str(error))
    fits = fitting_batch_size(
        batch_size,
        fixed_bytes=fixed_bytes,
        needed_bytes=needed,
        capacity_bytes=capacity_bytes,
    )
    where = "the GPU" if device.startswith("cuda") else "this machine"
    advice = (
        f"--batch-size {fits} should fit."
        if fits
        else "Not even one picture fits: take a smaller --image-px or a device with more memory."
    )
    return (
        f"out of memory at batch size {batch_size} and {image_px} px: it needs more than "
        f"{needed / _GIB:.1f} GiB, and {where} has {capacity_bytes / _GIB:.1f} GiB. {advice}"
    )


def asked_bytes(text: str) -> int:
    """The size in an allocator's message (``Tried to allocate 2.50 GiB``); 0 without one."""
    units = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
    found = re.search(r"allocate\D{0,20}?(\d+(?:\.\d+)?) ?([kmgt]?)(?:i?b\b|bytes)", text.lower())
    return 0 if found is None else int(float(found[1]) * 2 ** units[found[2]])


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _kind(error: BaseException) -> FailureKind | None:
    if isinstance(error, SharedencError):
        return error.kind
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "oom"
    text = str(error).lower()
    for pattern, kind in _TEXTS:
        if re.search(pattern, text, re.DOTALL):
            return kind
    if isinstance(error, OSError):
        return "machine"
    names = (base.__name__ for base in type(error).__mro__)
    return next((_CLASSES[name] for name in names if name in _CLASSES), None)
