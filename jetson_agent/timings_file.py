"""Results in a file, for a board without a network: ``sharedenc timings import`` reads it.

One JSON object per line: first ``{"sharedenc_timings": 1}``, then one `BenchResult` each.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from jetson_agent.errors import AgentError
from jetson_agent.protocol import TIMINGS_HEADER, BenchResult


def check_target(path: Path) -> None:
    """Raise `AgentError` if `path` is there and is no file of results, or cannot be written."""
    if not path.parent.is_dir():
        raise AgentError(f"--out {path}: there is no folder {path.parent}")
    try:
        with path.open() as stream:
            first = stream.readline()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise AgentError(f"--out {path} cannot be read: {error}") from error
    try:
        ours = not first or json.loads(first) == TIMINGS_HEADER
    except ValueError:
        ours = False
    if not ours:
        raise AgentError(
            f"--out {path} is there and no file of timings (its first line would be "
            f"{json.dumps(TIMINGS_HEADER)}): give another name"
        )


def append(path: Path, result: BenchResult) -> None:
    """Add a result; when this returns, a power cut does not undo it."""
    lines = [json.dumps(asdict(result), separators=(",", ":"), sort_keys=True)]
    with path.open("a+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        if not end:
            lines.insert(0, json.dumps(TIMINGS_HEADER))
        else:
            stream.seek(end - 1)
            if stream.read(1) != b"\n":  # the power went in the middle of a line
                lines.insert(0, "")
        stream.write(("\n".join(lines) + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())
