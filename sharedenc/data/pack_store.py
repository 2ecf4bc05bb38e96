"""Packs by digest in a storage: built once, fetched once per node.

A pack's files lie below ``packs/<format>/<digest>``, each under the SHA-256 of its own bytes, and
``files.json`` there, which is written last, says which of them make the pack. Two builders of one
digest may differ in bytes (warnings, source files' times), and cannot mix.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from sharedenc.data.dataset import slug
from sharedenc.data.packed import (
    PackedDataset,
    UnreadablePackError,
    cache_dir,
    whole_or_aside,
)
from sharedenc.data.packing import FORMAT, META, disk_errors_are_told
from sharedenc.errors import DataError
from sharedenc.files import file_sha256, locked, sync_folder, write_atomic
from sharedenc.storage import Storage, StorageError

log = logging.getLogger(__name__)

LISTING = "files.json"


def publish(pack: Path, storage: Storage) -> str:
    """Put a finished pack into a storage, unless it is there; returns its digest.

    Raises:
        DataError: the folder is no finished pack.
        StorageError: the storage cannot be reached.
    """
    found = PackedDataset.open(pack)
    place = _place(found.digest)
    if storage.exists(f"{place}/{LISTING}"):
        return found.digest
    listing: dict[str, str] = {}
    for path in sorted(path for path in found.root.iterdir() if path.is_file()):
        listing[path.name] = file_sha256(path)
        stored = f"{place}/{listing[path.name]}"
        if not storage.exists(stored):
            log.info("storing %s of pack %s", path.name, found.name)
            storage.put(path, stored)
    with TemporaryDirectory(prefix="sharedenc-") as folder:
        local = Path(folder) / LISTING
        write_atomic(local, json.dumps(listing, indent=1).encode())
        storage.put(local, f"{place}/{LISTING}")
    return found.digest


def fetch(digest: str, storage: Storage, cache: Path | None = None) -> Path:
    """Return the pack of a digest in the cache folder (see `cache_dir`), fetched if need be.

    One process of a node fetches, the others wait for it. The pack is built beside its place and
    renamed once every file has its digest.

    Raises:
        StorageError: the storage has no such pack, or a damaged one, or cannot be reached.
        DataError: the cache folder cannot be written, or a pack in it not be read.
    """
    packs = cache_dir(cache) / "packs"
    with disk_errors_are_told(packs):
        packs.mkdir(parents=True, exist_ok=True)
        with locked(packs / f".fetching-{digest[:24]}.lock"):
            found = _cached(packs, digest)
            return found if found is not None else _fetch(digest, storage, packs)


def _place(digest: str) -> str:
    # Packs of another format have the same digest, since they hold the same data.
    return f"packs/{FORMAT}/{digest}"


def _cached(packs: Path, digest: str) -> Path | None:
    for folder in sorted(packs.glob(f"*-{digest[:16]}")):
        try:
            found: PackedDataset | None = PackedDataset.open(folder)
        except UnreadablePackError:
            raise
        except DataError:
            # Perhaps a builder on this node is about to replace it.
            with locked(packs / f".{folder.name}.lock"):
                found = whole_or_aside(folder) if folder.exists() else None
        if found is not None and found.digest == digest:
            return folder
    return None


def _fetch(digest: str, storage: Storage, packs: Path) -> Path:
    place = _place(digest)
    fetching = packs / f".fetching-{digest[:24]}"
    # Only a process that died can have left it: its lock is ours now.
    shutil.rmtree(fetching, ignore_errors=True)
    fetching.mkdir()
    try:
        if not storage.get(f"{place}/{LISTING}", fetching / LISTING):
            raise StorageError(
                f"storage {storage.uri} has no pack {digest[:16]}. The sweep's driver puts it "
                "there: start the sweep with this --storage, and with the same data set."
            )
        listing: dict[str, str] = json.loads((fetching / LISTING).read_text())
        (fetching / LISTING).unlink()
        for name, sha256 in listing.items():
            path = fetching / Path(name).name
            log.info("fetching %s of pack %s", name, digest[:16])
            if not storage.get(f"{place}/{sha256}", path) or file_sha256(path) != sha256:
                for damaged in (LISTING, sha256):
                    storage.remove(f"{place}/{damaged}")
                raise StorageError(
                    f"pack {digest[:16]} in storage {storage.uri} is damaged ({name}): start the "
                    "sweep again to have it stored anew."
                )
        sync_folder(fetching)
        return _moved(fetching, packs, digest)
    finally:
        shutil.rmtree(fetching, ignore_errors=True)


def _moved(fetching: Path, packs: Path, digest: str) -> Path:
    name = json.loads((fetching / META).read_text())["name"]
    pack = PackedDataset.open(fetching)
    if pack.digest != digest:
        raise StorageError(f"the storage gave pack {pack.digest[:16]} instead of {digest[:16]}.")
    final = packs / f"{slug(name)}-{digest[:16]}"
    # The same lock as that of a builder on this node (`sharedenc.data.packed`).
    with locked(packs / f".{final.name}.lock"):
        if not final.exists():
            fetching.rename(final)
            sync_folder(packs)
    return final
