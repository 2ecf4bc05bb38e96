"""Engines on disk: where they are built, and those that need not be built again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from jetson_agent.backends.base import Built

BUILT_FILE = "built.json"
MAX_BYTES = 8 << 30


def sha256_of(path: Path) -> str:
    """sha256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class EngineCache:
    """Finished engines by key, the latest used `max_bytes` of them.

    A folder has its name only once everything in it is written; one that was cut short by a
    power cut is known by its engine's sha256.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    def workplace(self, key: str) -> Path:
        """An empty folder in which the engine of `key` is built; what was there is gone."""
        place = self.folder / f"{key}.part"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place

    def get(self, key: str) -> Built | None:
        """The engine of `key`, if it is there and whole."""
        place = self.folder / key
        try:
            stored = json.loads((place / BUILT_FILE).read_text())
            built = Built.from_json(stored["built"])
            engine = place / built.engine.name
            if sha256_of(engine) != stored["sha256"]:
                raise ValueError(f"{engine} is not what was written")
            os.utime(place / BUILT_FILE)
        except (OSError, ValueError, KeyError, TypeError):
            self.drop(key)
            return None
        return replace(built, engine=engine)

    def put(self, key: str, built: Built) -> Built:
        """Keep what was built in the workplace of `key`; engines that lie elsewhere are not ours.

        Returns:
            `built` with its engine's new place.
        """
        place = self.folder / key
        part = self.folder / f"{key}.part"
        if built.engine.parent != part:
            shutil.rmtree(part, ignore_errors=True)
            return built
        stored: dict[str, Any] = {"built": built.to_json(), "sha256": sha256_of(built.engine)}
        (part / BUILT_FILE).write_text(json.dumps(stored))
        shutil.rmtree(place, ignore_errors=True)
        part.replace(place)
        self._shrink(key)
        return replace(built, engine=place / built.engine.name)

    def drop(self, key: str) -> None:
        """Forget the engine of `key`."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def _shrink(self, newest: str) -> None:
        places = [p for p in self.folder.iterdir() if (p / BUILT_FILE).is_file()]
        places.sort(key=lambda p: (p.name == newest, (p / BUILT_FILE).stat().st_mtime))
        sizes = {p: sum(f.stat().st_size for f in p.iterdir()) for p in places}
        while places[1:] and sum(sizes[p] for p in places) > self._max_bytes:
            shutil.rmtree(places.pop(0), ignore_errors=True)
