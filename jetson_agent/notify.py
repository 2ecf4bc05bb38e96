"""Tell systemd how the service is: sd_notify(3), without a library."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(text: str) -> None:
    """Send a line such as ``READY=1`` or ``STATUS=...``; without systemd nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # A leading @ names the abstract namespace.
    place = f"\0{address[1:]}" if address[0] == "@" else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stream:
        stream.sendto(text.encode(), place)


def watchdog_s() -> float | None:
    """Seconds within which systemd expects a sign of life of this process, or None."""
    own = os.environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if own and text.isdigit() and int(text) > 0 else None
