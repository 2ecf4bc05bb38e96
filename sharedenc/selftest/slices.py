"""The first pictures of a pack as a pack of its own: whole trials then take seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sharedenc.data.dataset import SPLITS, Split
from sharedenc.data.packed import PackedDataset
from sharedenc.data.packing import META

# Arrays of a split's index by what they count; offsets have one entry more.
_PER_IMAGE = ("ids", "widths", "heights")
_OFFSETS = ("image_ends", "mask_ends", "box_ends")
_PER_OBJECT = ("boxes", "labels", "crowd", "areas")


def write_slice(pack: PackedDataset, folder: Path, images: Mapping[Split, int]) -> PackedDataset:
    """Write the first ``images`` of each split (fewer where there are fewer) into a new folder.

    Nothing but the wanted pictures is read of ``pack``. The digest is that of the pack and the
    numbers, so that a slice is never taken for the whole.

    Raises:
        DataError: ``pack`` is damaged.
    """
    folder.mkdir(parents=True)
    taken = {split: min(images[split], len(pack.split(split))) for split in SPLITS}
    for split in SPLITS:
        _write_split(pack.root, folder, split, taken[split])
    meta: dict[str, Any] = json.loads((pack.root / META).read_text(encoding="utf-8"))
    text = json.dumps([pack.digest, taken], sort_keys=True)
    meta |= {"digest": hashlib.sha256(text.encode()).hexdigest(), "images": taken}
    (folder / META).write_text(json.dumps(meta), encoding="utf-8")
    return PackedDataset.open(folder)


def _write_split(source: Path, folder: Path, split: Split, count: int) -> None:
    with (source / f"{split}.npz").open("rb") as file, np.load(file) as index:
        arrays: dict[str, npt.NDArray[Any]] = {name: index[name] for name in index.files}
    for name in _PER_IMAGE:
        arrays[name] = arrays[name][:count]
    for name in _OFFSETS:
        # A pack without masks has no offsets of masks but the first.
        arrays[name] = arrays[name][: count + 1]
    for name in _PER_OBJECT:
        arrays[name] = arrays[name][: int(arrays["box_ends"][-1])]
    with (folder / f"{split}.npz").open("wb") as out:
        np.savez(out, allow_pickle=False, **arrays)
    for kind, ends in (("images", "image_ends"), ("masks", "mask_ends")):
        stored = source / f"{split}.{kind}"
        if stored.exists():
            with stored.open("rb") as pictures:
                (folder / f"{split}.{kind}").write_bytes(pictures.read(int(arrays[ends][-1])))
