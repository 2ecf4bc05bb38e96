"""Messages of a run that the server does not have yet, as lines of JSON on this machine's disk."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharedenc.tracking.seam import log

NAME = "unsent.jsonl"

Message = dict[str, Any]


class Spool:
    """The file of one run.

    Lines that were sent may stay until all are: to say one twice does no harm. A line is not forced
    to the disk: what a power cut takes is in the trial's state too.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME

    def read(self) -> list[Message]:
        """What an earlier process left; a line that it did not finish is left out."""
        if not self.path.is_file():
            return []
        messages = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                messages.append(json.loads(line))
            except ValueError:
                log.warning("%s has a line that was not written to its end: %.80s", self.path, line)
        return messages

    def add(self, message: Message) -> None:
        """Append one message."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(message) + "\n")

    def replace(self, messages: Sequence[Message]) -> None:
        """Keep these messages and no others."""
        if not messages:
            self.path.unlink(missing_ok=True)
            return
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(message) + "\n" for message in messages), "utf-8")
        os.replace(part, self.path)
