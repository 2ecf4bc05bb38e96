"""What was registered when the server was last heard of: so a start without it has work."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from jetson_agent import durable
from jetson_agent.registry import ModelVersion


class Catalog:
    """The versions of one server, in one file that is written when they change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = ""

    def save(self, versions: Iterable[ModelVersion]) -> None:
        rows = [asdict(replace(version, tags=dict(version.tags))) for version in versions]
        text = json.dumps(rows, sort_keys=True)
        if text != self._text:
            durable.write_text(self.path, text)
            self._text = text

    def load(self) -> list[ModelVersion]:
        """Nothing if there is none that can be read: it is only a copy."""
        try:
            rows = json.loads(self.path.read_text())
            return [ModelVersion(**row) for row in rows]
        except (OSError, ValueError, TypeError):
            return []
