"""Which blocks glibc maps, by its own count, before, within and after."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from sharedenc.training import allocator

COUNT = """
import ctypes, torch
from sharedenc.training.allocator import freed_memory_kept

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Counts

def mapped(size):
    before = libc.mallinfo2().hblks
    block = torch.ones(size, dtype=torch.uint8)
    return libc.mallinfo2().hblks - before

def resident():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])

large, middling = 64 << 20, 20 << 20
print(mapped(large))
start = resident()
with freed_memory_kept():
    print(mapped(large))
    print(int(resident() - start > large // 2))
print(int(resident() - start > large // 2))
print(mapped(large), mapped(middling))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system has no glibc")
def test_large_blocks_are_kept_within_and_go_back_after() -> None:
    said = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True)
    # Mapped; not mapped, and there after it was freed; gone; mapped again, but none below 32 MB.
    assert said.stdout.split() == ["1", "0", "1", "0", "1", "0"]


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", _must_not_be_called)
    with allocator.freed_memory_kept():
        pass


def _must_not_be_called(*_: object) -> None:
    raise AssertionError("a library was opened")
