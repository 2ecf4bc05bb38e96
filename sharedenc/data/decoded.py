"""The pictures of a pack as plain pixels beside it: more disk, and no JPEG decoder in the loop.

They lie in ``<pack>.decoded-<OpenCV's version>``: ``<split>.pixels``, RGB, uint8, one picture after
the other, and ``decoded.json``, which is written last. Every reader of the pack maps them when they
are there. They are the very pixels that decoding gives, so that no result and no key depends on
them. Those of another OpenCV do not count, and stay: others on this cache may be reading them.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedenc.data.dataset import SPLITS
from sharedenc.data.packing import append, disk_errors_are_told
from sharedenc.data.progress import amount, progress
from sharedenc.errors import DataError
from sharedenc.files import locked, sync_folder, write_atomic

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

log = logging.getLogger(__name__)

LISTING = "decoded.json"


def decoded_folder(root: Path) -> Path:
    """Where the decoded pictures of the pack in ``root`` belong, with this OpenCV."""
    import cv2

    return root.with_name(f"{root.name}.decoded-{cv2.__version__}")


def other_decoded(root: Path) -> list[Path]:
    """Folders with the pack's pictures as other versions of OpenCV decode them."""
    found = root.parent.glob(f"{glob.escape(root.name)}.decoded*")
    return sorted(set(found) - {decoded_folder(root)})


def find_decoded(root: Path, digest: str) -> Path | None:
    """Return the folder of a pack's decoded pictures if it is whole and belongs to it."""
    folder = decoded_folder(root)
    try:
        return folder if _is_whole(folder, digest) else None
    except OSError as error:
        log.warning("%s cannot be read now (%s) and is not used", folder, error)
        return None


def _is_whole(folder: Path, digest: str) -> bool:
    """Whether decoded pictures are there and a pack's; a warning where they are not of use.

    Raises:
        OSError: that cannot be told.
    """
    try:
        listing = json.loads((folder / LISTING).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError as error:
        log.warning("%s is damaged (%s) and not used: delete it", folder, error)
        return False
    try:
        sizes = {name: (folder / name).stat().st_size for name in listing["bytes"]}
    except (FileNotFoundError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s) and not used: delete it", folder, error)
        return False
    if listing != _listing(digest, sizes):
        log.warning(
            "%s is not used: it is damaged, or of other data. "
            "`sharedenc data prepare --decoded` makes it anew",
            folder,
        )
        return False
    return True


def decoded_bytes(pack: PackedDataset) -> int:
    """How much disk the decoded pictures of a pack take."""
    return sum(int(pack.split(split).picture_bytes().sum()) for split in SPLITS)


def decode_pack(pack: PackedDataset, shown: bool = True) -> Path:
    """Decode all pictures of a pack beside it, unless they are there; returns their folder.

    A pack that is open already does not see them: open it again.

    Args:
        shown: Whether to show progress.

    Raises:
        DataError: the disk has no room for them (nothing is begun then), or a picture is damaged.
    """
    final = decoded_folder(pack.root)
    with disk_errors_are_told(final.parent), locked(final.parent / f".{final.name}.lock"):
        if _is_whole(final, pack.digest):
            return final
        # Only a process that died can have left either: their lock is ours now.
        building = final.with_name(f".building-{final.name}")
        for old in (building, final):
            shutil.rmtree(old, ignore_errors=True)
        _require_room(pack, final.parent)
        building.mkdir()
        try:
            _write(pack, building, shown)
            building.rename(final)
            sync_folder(final.parent)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return final


def _require_room(pack: PackedDataset, folder: Path) -> None:
    needed, free = decoded_bytes(pack), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the decoded pictures of {pack.name} take {amount(needed)}, but the disk of {folder} "
            f"has {amount(free)} free. Free some space, choose another disk (--cache-dir or "
            "SHAREDENC_CACHE), or go on without: then pictures are decoded whenever they are read."
        )


def _write(pack: PackedDataset, folder: Path, shown: bool) -> None:
    sizes: dict[str, int] = {}
    total = sum(len(pack.split(split)) for split in SPLITS)
    with progress(f"decoding {pack.name}", total, unit="images", shown=shown) as advance:
        for name in SPLITS:
            split = pack.split(name)
            with (folder / f"{name}.pixels").open("wb") as file:
                for index in range(len(split)):
                    append(file, split.decode(index).tobytes())
                    advance(1)
                file.flush()
                os.fsync(file.fileno())
                sizes[f"{name}.pixels"] = file.tell()
    write_atomic(folder / LISTING, json.dumps(_listing(pack.digest, sizes)).encode())


def _listing(digest: str, sizes: dict[str, int]) -> dict[str, Any]:
    import cv2

    return {"digest": digest, "decoder": f"OpenCV {cv2.__version__}", "bytes": sizes}
