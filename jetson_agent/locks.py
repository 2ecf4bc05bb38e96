"""One agent per state folder, and one timing at a time on the whole machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jetson_agent.errors import AgentError

# World-writable on Debian and its children, and emptied at every start.
MACHINE_LOCK = Path("/run/lock/jetson-agent.lock")


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Hold the lock of the state folder: two agents in it would undo each other's work.

    Raises:
        AgentError: another agent holds it.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AgentError(
                f"another jetson-agent works with {state}: wait until it ends, or give another "
                "folder with --state-dir"
            ) from error
        yield


@contextlib.contextmanager
def machine_lock() -> Iterator[bool]:
    """Try to hold the lock of the machine; yields whether it is held.

    Two timings at once would spoil each other, whatever their folders, users and servers are.
    ``$JETSON_AGENT_LOCK`` names another file.
    """
    descriptor = _open_lock()
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _open_lock() -> int:
    explicit = os.environ.get("JETSON_AGENT_LOCK")
    fallback = Path(tempfile.gettempdir(), MACHINE_LOCK.name)
    places = [Path(explicit)] if explicit else [MACHINE_LOCK, fallback]
    for path in places:
        # Without O_CREAT first: the kernel refuses that for another user's file in a sticky
        # folder (fs.protected_regular). To lock a file, reading it is enough.
        for flags in (os.O_RDONLY, os.O_RDONLY | os.O_CREAT):
            with contextlib.suppress(OSError):
                return os.open(path, flags | os.O_CLOEXEC, 0o644)
    raise AgentError(
        f"no lock file can be opened at {' or '.join(map(str, places))}: let the agent's user "
        "write there, or name another file in JETSON_AGENT_LOCK"
    )
