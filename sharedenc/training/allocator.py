"""Memory that a training step frees stays with the process for the next step.

glibc maps each block above 32 MB from the kernel and gives it back when it is freed; what is mapped
anew is zeroed page by page. At batch 32 and 320 px most activations are such blocks, and their
pages cost as much as half of a small network's step. Values do not change.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import threading
from collections.abc import Iterator

# Of mallopt(3), from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
NEVER = -1
# glibc's usual number of mapped blocks, and what its own adaption of the others ends at.
MAPPED, LARGE_BYTES = 65536, 32 << 20

ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_ARENA_MAX": "1",
}
"""Does the same for a whole process that starts with it, and for all threads of it."""


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed within; at the end it goes back, and large blocks are mapped again.

    For the process's first thread, since others have heaps that hold no large block: there, and
    without glibc, it does nothing. The peak grows by what lies between blocks that are kept.
    """
    libc = _glibc()
    if libc is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, MAPPED)
        # Any mallopt ends glibc's own adaption, which had begun at 128 KiB.
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BYTES)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
