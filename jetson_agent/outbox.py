"""Results on disk until the server has them: one file each, written atomically."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from jetson_agent import durable
from jetson_agent.protocol import BenchResult, ProtocolError


def server_folder(tracking_uri: str) -> str:
    """Name of the folders that belong to one tracking server: 12 hex digits.

    User and password do not count: a new password does not make another server.
    """
    parts = urlsplit(tracking_uri)
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    return hashlib.sha256(place.encode()).hexdigest()[:12]


class Outbox:
    """The results for one tracking server, in ``<state>/outbox/<digest of its address>/``."""

    def __init__(self, state: Path, tracking_uri: str) -> None:
        self.folder = state / "outbox" / server_folder(tracking_uri)
        self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, result: BenchResult) -> Path:
        """Keep a result; when this returns, a power cut does not lose it."""
        path = self.folder / f"{result.key}.json"
        durable.write_text(path, result.to_json())
        return path

    def pending(self) -> Iterator[BenchResult]:
        """Results not yet sent, oldest first; one that cannot be read is set aside as ``*.bad``."""
        for path in self._files():
            try:
                yield BenchResult.from_json(path.read_text())
            except (ProtocolError, OSError, TypeError, UnicodeDecodeError):
                path.replace(path.with_suffix(".bad"))

    def keys(self) -> set[str]:
        """Bench keys of what waits."""
        return {path.stem for path in self.folder.glob("*.json")}

    def sent(self, result: BenchResult) -> None:
        """Forget a result that the server has."""
        durable.remove(self.folder / f"{result.key}.json")

    def __len__(self) -> int:
        return len(self.keys())

    def _files(self) -> list[Path]:
        """By age, then by name where a file system's clock is coarse."""
        return sorted(self.folder.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path))
