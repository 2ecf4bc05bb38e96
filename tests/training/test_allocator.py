"""Which blocks glibc maps, by its own count, before, within and after."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from sharedenc.training import allocator

COUNT = """
import ctypes, threading, torch
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

def in_a_thread():
    with freed_memory_kept():
        mapped(large)
        print(mapped(large), int(resident() - start > large // 2))

large, middling = 64 << 20, 20 << 20
"""

IN_FIRST_THREAD = (
    COUNT
    + """
print(mapped(large))
start = resident()
with freed_memory_kept():
    print(mapped(large))
    print(int(resident() - start > large // 2))
print(int(resident() - start > large // 2))
print(mapped(large), mapped(middling))
"""
)

IN_ANOTHER = (
    COUNT
    + """
start = resident()
thread = threading.Thread(target=in_a_thread)
thread.start()
thread.join()
"""
)


GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system has no glibc")


@GLIBC
def test_large_blocks_are_kept_within_and_go_back_after() -> None:
    # Mapped; not mapped, and there after it was freed; gone; mapped again, but none below 32 MB.
    assert said(IN_FIRST_THREAD) == ["1", "0", "1", "0", "1", "0"]


@GLIBC
def test_in_another_thread_it_takes_an_environment_that_the_process_starts_with() -> None:
    assert said(IN_ANOTHER) == ["1", "0"]
    assert said(IN_ANOTHER, allocator.ENVIRONMENT) == ["0", "1"]


def said(code: str, environment: dict[str, str] | None = None) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **(environment or {})},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", _must_not_be_called)
    with allocator.freed_memory_kept():
        pass


def _must_not_be_called(*_: object) -> None:
    raise AssertionError("a library was opened")
