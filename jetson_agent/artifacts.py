"""Downloaded files: checked by sha256, kept while there is room, the least used ones go first."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from jetson_agent import durable
from jetson_agent.registry import ModelVersion, Registry
from jetson_agent.timing import sha256_of

DEFAULT_LIMIT_BYTES = 4 * 2**30


class RefusedError(Exception):
    """A file that is not what its registration says; nothing of it is timed."""


class Artifacts:
    """Files by content, in ``<folder>/<sha256>/<name>``, together at most `limit_bytes`.

    A file is there whole or not at all: it arrives in a folder ``part-*`` and is renamed when its
    digest is right. The limit may be passed by what one job needs.
    """

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("part-*"):
            shutil.rmtree(left, ignore_errors=True)

    def has(self, name: str, digest: str) -> bool:
        """Whether the file can be had without the server."""
        return (self.folder / digest / name).is_file()

    def fetch(
        self,
        registry: Registry,
        version: ModelVersion,
        name: str,
        digest: str,
        keep: Collection[str] = (),
    ) -> Path:
        """The file `name` of `version`, downloaded if it is not here.

        Args:
            digest: sha256 that was registered, 64 hex digits.
            keep: Digests that must not make room for it: what the same job needs.

        Raises:
            RefusedError: what came is not what was registered.
            ServerError: the server does not give it.
        """
        path = self.folder / digest / name
        if path.is_file():
            # Also what lies here is checked: a flash cell may have died since.
            if sha256_of(path) == digest:
                os.utime(path)
                return path
            shutil.rmtree(path.parent)
        with tempfile.TemporaryDirectory(prefix="part-", dir=self.folder) as part:
            came = registry.download(version, name, Path(part))
            if (actual := sha256_of(came)) != digest:
                raise RefusedError(
                    f"sha256 of {name} is {actual}, but {digest} was registered: the file is not "
                    "the one that was exported; export and register it again"
                )
            durable.sync_file(came)
            path.parent.mkdir(exist_ok=True)
            os.replace(came, path)
        durable.sync_folder(path.parent)
        self.evict(keep={digest, *keep})
        return path

    def evict(self, *, keep: Collection[str], everything: bool = False) -> int:
        """Delete the least recently used files until the rest is within the limit.

        Args:
            keep: Digests that stay in any case.
            everything: Whether all others go: the disk is full.

        Returns:
            Number of bytes that were freed.
        """
        files = sorted(self._files(), key=lambda path: path.stat().st_mtime_ns)
        total = sum(path.stat().st_size for path in files)
        freed = 0
        for path in files:
            if not everything and total - freed <= self.limit_bytes:
                break
            if path.parent.name not in keep:
                freed += path.stat().st_size
                shutil.rmtree(path.parent)
        return freed

    def _files(self) -> list[Path]:
        return [p for p in self.folder.glob("*/*") if not p.parent.name.startswith("part-")]
