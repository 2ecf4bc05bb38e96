"""What a frozen encoder makes of a validation set, kept on disk: computed once, not every epoch.

Maps come back with the bits, type and memory layout that they were made with. On a CPU a score with
them is therefore the score without, to the bit; on a GPU, which may add in another order each time,
the two are as near as two runs are. Below the cache folder each encoder and set has a folder of its
own, named by its key, with one file per batch and map; what does not fit into the budget is
computed as before, and so is everything once the folder fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import torch
import torchvision
from torch import Tensor

from sharedenc.data.packed import cache_dir
from sharedenc.evaluation.tap_file import DTYPES, DamagedTapError, dump, is_dense, load
from sharedenc.files import PART, locked
from sharedenc.models.encoders import Encoder, Level
from sharedenc.spec import BACKBONES, COMPONENTS, Numerics, Recipe
from sharedenc.training.device import device_name

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

log = logging.getLogger(__name__)

DEFAULT_BUDGET_BYTES = 4 * 2**30
# What is left free on the disk whatever the budget says: a trial's state must find room.
SPARE_BYTES = 2**30
TAP, DAMAGED = ".tap", ".damaged"
# In the cache folder: held while the folder's contents are counted, added to or removed.
FOLDER_LOCK = ".lock"
# In each key's folder: shared by all who use it, with the time of the last use; its one writer's.
IN_USE, WRITER = ".use", ".writer"


def open_taps(
    encoder: Encoder,
    *,
    pack: PackedDataset,
    split: str,
    recipe: Recipe,
    numerics: Numerics,
    device: str,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    folder: Path | None = None,
) -> TapCache | None:
    """Open the taps of a trial's encoder on one split, to be closed when the trial ends.

    Call it with the trial's numerics applied and its weights loaded.

    Args:
        budget_bytes: What all taps of this cache folder may take on the disk; 0 turns them off.
        folder: Instead of ``taps`` in the cache folder (`cache_dir`).

    Returns:
        None without a budget, for an encoder that changes in training, and where its code cannot be
        read or the folder cannot be written.
    """
    if budget_bytes <= 0 or encoder.trains or not encoder.stays_in_eval:
        return None
    try:
        key = taps_key(
            encoder, pack=pack, split=split, recipe=recipe, numerics=numerics, device=device
        )
        return TapCache(folder or cache_dir() / "taps", budget_bytes, key)
    except OSError as error:
        log.warning("no frozen maps are kept: %s", error)
        return None


def taps_key(
    encoder: Encoder,
    *,
    pack: PackedDataset,
    split: str,
    recipe: Recipe,
    numerics: Numerics,
    device: str,
) -> str:
    """Digest of all that decides an encoder's maps of a split: 64 hexadecimal digits.

    The encoder's backbone, values, settings and code, the pictures and what is done to them, the
    grouping into batches, and the libraries, processor and threads that compute.

    Raises:
        OSError: the encoder's code cannot be read.
    """
    digest = hashlib.sha256()
    source = inspect.getsourcefile(type(encoder))
    backbone = BACKBONES.get(encoder.registered_as)
    content = {
        "backbone": encoder.registered_as,
        "plugin": "" if backbone is None else backbone.digest,
        "encoder": type(encoder).__qualname__,
        "modules": hashlib.sha256(_described(encoder).encode()).hexdigest(),
        "code": None if source is None else hashlib.sha256(Path(source).read_bytes()).hexdigest(),
        "components": {name: COMPONENTS[name] for name in ("data", "transforms", "encoder")},
        "data": pack.digest,
        "split": split,
        "image_px": recipe.image_px,
        "batch_size": recipe.batch_size,
        "numerics": numerics.content(),
        "device": device_name(device),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "libraries": [torch.__version__, torchvision.__version__, cv2.__version__, _timm_version()],
    }
    digest.update(json.dumps(content, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()


def _described(encoder: Encoder) -> str:
    """The encoder's modules with their settings, which a state dict does not say."""
    # Where an object lies in memory is another place in each process.
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(encoder))


def _timm_version() -> str | None:
    """The version of timm, which plugins take backbones from; None where it is not installed."""
    try:
        return metadata.version("timm")
    except metadata.PackageNotFoundError:
        return None


class TapCache:
    """The maps of one encoder on one split, by number of the batch.

    Processes may share a folder: one of those with the same key writes, all read, and what is open
    is not removed. A process that is killed leaves whole files, and at most one part of a file that
    the next writer replaces. To make room, whole keys go, the one first that was used least lately.
    Once open, a folder that fails costs maps and a warning, never the trial.

    Args:
        folder: Of all keys; it is made.
        budget_bytes: What all files in it may take.
        key: Of this encoder and split, usable as a folder's name.

    Raises:
        OSError: the folder cannot be made or locked.
    """

    def __init__(self, folder: Path, budget_bytes: int, key: str) -> None:
        self._folder, self._budget_bytes, self._own = folder, budget_bytes, folder / key
        self._full = False
        self._memory: dict[Level, Tensor] = {}
        # What reading took, and what making the same maps took when they were written.
        self._read_s = self._made_s = 0.0
        self._use: int | None = None
        self._writer: int | None = None
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(folder / FOLDER_LOCK):
                self._own.mkdir(exist_ok=True)
                self._use = _open(self._own / IN_USE)
                fcntl.flock(self._use, fcntl.LOCK_SH)
                os.utime(self._use)
        except OSError:
            self.close()
            raise

    def __enter__(self) -> TapCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others remove or write what is here; nothing is read or written any more."""
        if self._use is None:
            return
        for descriptor in (self._use, self._writer):
            if descriptor is not None:
                os.close(descriptor)
        self._use = self._writer = None

    def stored(self, levels: Sequence[Level]) -> frozenset[int]:
        """Numbers of the batches whose maps of ``levels`` can be read.

        None where reading has taken longer than computing the same maps had.
        """
        if self._is_slow:
            return frozenset()
        try:
            found = [
                {int(path.stem.split("-")[0]) for path in self._own.glob(f"*-{level}{TAP}")}
                for level in levels
            ]
        except OSError as error:
            log.warning("frozen maps are computed anew: %s", error)
            return frozenset()
        return frozenset(set.intersection(*found)) if found else frozenset()

    def read(self, number: int, levels: Sequence[Level]) -> dict[Level, Tensor]:
        """A batch's maps, on the CPU; they are valid until the next call.

        Raises:
            DamagedTapError: a file is not as it was written; it has been set aside.
        """
        started = time.perf_counter()
        maps: dict[Level, Tensor] = {}
        made_s = 0.0
        for level in levels:
            path = self._path(number, level)
            try:
                maps[level], made_s = load(path, partial(self._buffer, level))
            except DamagedTapError as error:
                log.warning("frozen maps are computed anew: %s", error)
                with contextlib.suppress(OSError), locked(self._folder / FOLDER_LOCK):
                    path.replace(path.with_suffix(DAMAGED))
                raise
        self._made_s += made_s
        self._read_s += time.perf_counter() - started
        return maps

    def write(
        self, number: int, maps: Mapping[str, Tensor], levels: Sequence[Level], seconds: float
    ) -> None:
        """Keep a batch's maps of ``levels``, if there is room and nobody else writes them.

        Nothing more is written once the disk has failed or reading is slower than computing.

        Args:
            seconds: What making all of them took.
        """
        if self._full or self._is_slow:
            return
        try:
            if not self._may_write():
                return
            for level in levels:
                path, tensor = self._path(number, level), maps[level]
                if path.exists() or not is_dense(tensor) or tensor.dtype not in DTYPES.values():
                    continue
                self._full = not self._store(path, dump(tensor.cpu(), seconds))
                if self._full:
                    return
        except OSError as error:
            log.warning("no more frozen maps are kept: %s", error)
            self._full = True

    def _store(self, path: Path, pieces: Sequence[bytes | memoryview]) -> bool:
        """Write a file as a whole; False if there is no room for it."""
        with locked(self._folder / FOLDER_LOCK):
            if not self._make_room(sum(len(piece) for piece in pieces)):
                return False
            part = path.with_suffix(PART)
            try:
                with part.open("wb") as file:
                    file.writelines(pieces)
                part.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    part.unlink()
                raise
        return True

    @property
    def _is_slow(self) -> bool:
        """Whether reading has taken longer than computing the same maps had."""
        return self._read_s > self._made_s

    def _path(self, number: int, level: Level) -> Path:
        return self._own / f"{number:06d}-{level}{TAP}"

    def _buffer(self, level: Level, size: int) -> Tensor:
        """Memory for ``size`` bytes, which reading the level again reuses: fresh pages cost more
        than the copy into them."""
        if level not in self._memory or len(self._memory[level]) < size:
            self._memory[level] = torch.empty(size, dtype=torch.uint8)
        return self._memory[level][:size]

    def _may_write(self) -> bool:
        if self._writer is None:
            descriptor = _open(self._own / WRITER)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    return False
                raise
            self._writer = descriptor
        return True

    def _make_room(self, size: int) -> bool:
        """Remove keys that nobody uses until ``size`` bytes more fit; with the folder's lock."""
        if shutil.disk_usage(self._folder).free < size + SPARE_BYTES:
            return False
        keys = [path for path in self._folder.iterdir() if path.is_dir()]
        used = {path: sum(file.stat().st_size for file in path.iterdir()) for path in keys}
        total = sum(used.values())
        for path in sorted(keys, key=_last_use):
            if total + size <= self._budget_bytes:
                break
            if path != self._own and _remove_unused(path):
                total -= used[path]
        return total + size <= self._budget_bytes


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _last_use(folder: Path) -> float:
    try:
        return (folder / IN_USE).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove_unused(folder: Path) -> bool:
    """Remove a key's folder unless somebody uses it; whether it is gone."""
    descriptor = _open(folder / IN_USE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
