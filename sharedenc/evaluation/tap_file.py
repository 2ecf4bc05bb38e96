"""One tensor as one file: what is read back has the same bits, type and memory layout."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

MAGIC = b"sharedenc tap 1\n"
# Length of the header after it, and the CRC-32 of header and values.
FIXED = struct.Struct("<II")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


class DamagedTapError(Exception):
    """A file that cannot be read, or does not hold what was written to it."""


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor's elements fill one stretch of memory, each place once."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return tensor.numel() > 0


def dump(tensor: Tensor, seconds: float) -> list[bytes | memoryview]:
    """The pieces of a file for a dense CPU tensor that took ``seconds`` to make."""
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    values = flat.numpy().data
    header = json.dumps(
        {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "stride": list(tensor.stride()),
            "seconds": seconds,
        }
    ).encode()
    check = zlib.crc32(values, zlib.crc32(header))
    return [MAGIC + FIXED.pack(len(header), check) + header, values]


def load(path: Path, memory: Callable[[int], Tensor]) -> tuple[Tensor, float]:
    """The tensor of a file, and how many seconds it took to make.

    Args:
        memory: Gives uint8 ``[n]`` for n, into which the values are read and which the tensor uses.

    Raises:
        DamagedTapError: the file is not there, unreadable, or not what `dump` made.
    """
    try:
        with path.open("rb", buffering=0) as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ValueError("it does not begin as a tap file does")
            length, check = FIXED.unpack(file.read(FIXED.size))
            size = os.fstat(file.fileno()).st_size
            if length > size:
                raise ValueError(f"its header is said to have {length} of {size} bytes")
            raw = file.read(length)
            count = size - len(MAGIC) - FIXED.size - length
            values = memory(count)
            view = values.numpy().data
            done = 0
            while done < count and (got := file.readinto(view[done:])):
                done += got
        if done != count or zlib.crc32(view, zlib.crc32(raw)) != check:
            raise ValueError("its checksum is another one")
        header = json.loads(raw)
        flat = values.view(DTYPES[header["dtype"]])
        return flat.as_strided(header["shape"], header["stride"]), float(header["seconds"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, struct.error) as error:
        raise DamagedTapError(f"{path}: {error}") from error
