"""Initial weights from a user's own file, by digest in a storage: put once, fetched once per node.

The trial that loads them compares their digest with that of its key; nothing is trusted here.
"""

from __future__ import annotations

from pathlib import Path

from sharedenc.data.packed import cache_dir
from sharedenc.errors import WeightsError
from sharedenc.files import locked
from sharedenc.storage import Storage


def publish(file: Path, digest: str, storage: Storage) -> None:
    """Put a weights file into a storage, unless it is there.

    Raises:
        StorageError: the storage cannot be reached.
    """
    name = _name(file.name, digest)
    if not storage.exists(name):
        storage.put(file, name)


def fetch(file: Path, digest: str, storage: Storage, cache: Path | None = None) -> Path:
    """Return the file itself where it exists, else a copy of it in the cache folder.

    Args:
        file: Where the driver has it.
        digest: That of the weights, as in the trial's key.

    Raises:
        WeightsError: neither this node nor the storage has it.
        StorageError: the storage cannot be reached.
    """
    if file.is_file():
        return file
    name = _name(file.name, digest)
    local = cache_dir(cache) / name
    local.parent.mkdir(parents=True, exist_ok=True)
    with locked(local.parent / ".fetching.lock"):
        if not local.is_file() and not storage.get(name, local):
            raise WeightsError(
                f"weights {file} are neither on this node nor in {storage.uri}; run the sweep's "
                "command again from where they are, or copy them to this node"
            )
    return local


def _name(name: str, digest: str) -> str:
    return f"weights/{digest.replace(':', '-')}/{name}"
