"""Whose fault an error is, in the words of the libraries; and what fits into memory."""

from __future__ import annotations

import errno
import signal
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sharedenc.errors import CheckpointError, DataError, SpecError, TrackingError
from sharedenc.storage import StorageError
from sharedenc.training import memory
from sharedenc.training.failures import (
    asked_bytes,
    failure_kind,
    fitting_batch_size,
    out_of_memory,
)

GIB = 1 << 30

CUDA_OOM = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.25 GiB of "
    "which 1.19 GiB is free. Including non-PyTorch memory, this process has 78.05 GiB memory in "
    "use. Of the allocated memory 75.10 GiB is allocated by PyTorch, and 2.31 GiB is reserved by "
    "PyTorch but unallocated."
)
CUDA_HINT = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)
SHARED_MEMORY = (
    "DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that "
    "dataloader's workers are out of shared memory. Please try to raise your shared memory limit."
)

# What torch, CUDA, NCCL, OpenCV, numpy and the system have written, and whose fault it was.
TEXTS = [
    (torch.OutOfMemoryError(CUDA_OOM), "oom"),
    (RuntimeError("CUDA error: out of memory" + CUDA_HINT), "oom"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "oom"),
    (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4398046511104 bytes. Error code 12 (Cannot allocate "
            "memory)"
        ),
        "oom",
    ),
    (MemoryError("Unable to allocate 1.86 GiB for an array with shape (500, 1000, 1000)"), "oom"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
    (
        RuntimeError(
            "OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate "
            "7077888000 bytes in function 'OutOfMemoryError'"
        ),
        "oom",
    ),
    (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), "machine"),
    (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), "machine"),
    (RuntimeError(SHARED_MEMORY), "machine"),
    (
        RuntimeError(
            "unable to open shared memory object </torch_12_34> in read-write mode: Too many "
            "open files (24)"
        ),
        "machine",
    ),
    (OSError(errno.ENOSPC, "No space left on device"), "machine"),
    (
        RuntimeError(
            "[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0: No space left "
            "on device"
        ),
        "machine",
    ),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered" + CUDA_HINT), "machine"),
    (RuntimeError("CUDA error: unspecified launch failure" + CUDA_HINT), "machine"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "machine"),
    (RuntimeError("No CUDA GPUs are available; no CUDA-capable device is detected"), "machine"),
    (RuntimeError("The NVIDIA driver is too old. CUDA driver version is insufficient"), "machine"),
    (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1234, unhandled system error"), "machine"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "machine"),
    (torch.AcceleratorError("GPU is gone"), "machine"),
    (ConnectionResetError(), "machine"),
    (TrackingError("no server"), "machine"),
    (StorageError("no bucket"), "machine"),
    (CheckpointError("cut"), "data"),
    (DataError("no image: No space left on device"), "data"),
    (RuntimeError("CUDA error: device-side assert triggered" + CUDA_HINT), "code"),
    (torch.AcceleratorError("CUDA error: device-side assert triggered"), "code"),
    (SpecError("no such name"), "code"),
    (ZeroDivisionError("division by zero"), "code"),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)"), "code"),
    (AssertionError(), "code"),
]


@pytest.mark.parametrize(("error", "kind"), TEXTS, ids=[str(e)[:40] for e, _ in TEXTS])
def test_errors_are_sorted_by_whose_fault_they_are(error: Exception, kind: str) -> None:
    assert failure_kind(error) == kind


def test_what_an_error_was_raised_from_counts() -> None:
    error: Exception = RuntimeError("batch 3 failed")
    error.__cause__ = MemoryError()
    assert failure_kind(error) == "oom"
    # Raised while another was handled, and not because of it.
    error = KeyError("name")
    error.__context__ = ConnectionResetError()
    assert failure_kind(error) == "code"


class Killing(Dataset[int]):
    """A loader process that reads the second sample is gone."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        if index == 1:
            signal.raise_signal(signal.SIGKILL)
        return index


def test_a_loader_process_that_is_killed_is_the_machines_fault() -> None:
    with pytest.raises(RuntimeError) as caught:
        list(DataLoader(Killing(), num_workers=1))
    assert failure_kind(caught.value) == "machine"


def test_a_real_allocation_that_fails_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert failure_kind(caught.value) == "oom"
    assert asked_bytes(str(caught.value)) == 1 << 60


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (CUDA_OOM, int(2.5 * GIB)),
        ("Tried to allocate 20.00 MiB (GPU 0; ...)", 20 << 20),
        ("can't allocate memory: you tried to allocate 4398046511104 bytes.", 1 << 42),
        ("CUDA error: out of memory", 0),
    ],
)
def test_the_size_that_was_asked_for_is_read(text: str, size: int) -> None:
    assert asked_bytes(text) == size


@pytest.mark.parametrize(
    ("fixed", "needed", "capacity", "expected"),
    [
        # 32 pictures need 10 + 32 x 3 = 106; 0.9 x 70 - 10 = 53 hold 17.7: half of 32.
        (10, 106, 70, 16),
        # 32 need 10 + 32 x 10 = 330; 0.9 x 100 - 10 = 80 hold 8.
        (10, 330, 100, 8),
        # Failed early, having needed little: all that is known is that the whole was too small.
        (0, 10, 100, 16),
        (95, 330, 100, 0),
        (0, 32 * 100, 50, 0),
    ],
)
def test_a_batch_that_fits(fixed: int, needed: int, capacity: int, expected: int) -> None:
    found = fitting_batch_size(32, fixed_bytes=fixed, needed_bytes=needed, capacity_bytes=capacity)
    assert found == expected


@pytest.mark.parametrize(("peak", "words"), [(76, "batch-size 16"), (9000, "smaller --image-px")])
def test_the_reason_says_what_to_do(peak: int, words: str) -> None:
    settings: dict[str, Any] = {"batch_size": 32, "image_px": 320, "device": "cuda:0"}
    reason = out_of_memory(
        torch.OutOfMemoryError(CUDA_OOM),
        **settings,
        fixed_bytes=0,
        peak_bytes=peak * GIB,
        capacity_bytes=79 * GIB,
    )
    assert reason.startswith("out of memory at batch size 32 and 320 px")
    assert f"needs more than {peak + 2.5} GiB, and the GPU has 79.0 GiB" in reason
    assert words in reason


def test_memory_is_measured_from_where_one_says() -> None:
    memory.reset_peak("cpu")
    before = memory.peak_bytes("cpu")
    block = torch.ones(50 << 20, dtype=torch.uint8)
    assert memory.peak_bytes("cpu") - before > 45 << 20
    del block
    assert 1 << 28 < memory.capacity_bytes("cpu") < 1 << 50
    assert memory.fixed_bytes({"total": 100, "encoder": 60, "trainable": 40}) == 880
