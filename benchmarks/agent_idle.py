"""R14: what `jetson-agent run` costs while there is nothing to do, against one hundredth of a core.

CPU time of the daemon and of its children that have ended, by the kernel's accounts, while it polls
a real server as often as it does by default. CPU time hardly depends on who else is busy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.metric_logging import server_or_own
from benchmarks.protocol import Duel, load_average, result

IDLE_S = 150.0
DEVICE = "bench-idle"
MOST = 0.01
START_S = 120.0


def run(rounds: int, uri: str | None = None, idle_s: float = IDLE_S) -> list[dict[str, Any]]:
    """Measure once, over five polls, with a server of our own unless ``uri`` names one."""
    with server_or_own(uri) as server, tempfile.TemporaryDirectory(prefix="bench-idle-") as folder:
        share = measure(server, Path(folder), idle_s)
    verdict = "under" if share < MOST else "NOT under"
    row = result(
        "R14",
        f"idle daemon, {idle_s:.0f} s: {share:.2%} of a core",
        Duel(1000 * MOST, 1000 * share, 1, load_average()),
        unit="ms/s",
        check=f"it lives; {verdict} {MOST:.0%}",
    )
    return [{**row, "share": share}]


def measure(uri: str, folder: Path, idle_s: float, *more: str) -> float:
    """CPU seconds per second of a daemon that has nothing to do.

    Args:
        folder: for its state.
        more: further options of `jetson-agent run`.

    Raises:
        RuntimeError: it ended, or never said that it lives.
    """
    command = [sys.executable, "-m", "jetson_agent", "run", "--backend", "onnxruntime"]
    command += ["--tracking-uri", uri, "--device", DEVICE, "--state-dir", str(folder / "state")]
    # No model has such a name: whatever the server holds, there is nothing to do.
    command += ["--select", "no-such-model", *more]
    log = folder / "log"
    with log.open("w") as stream:
        daemon = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "JETSON_AGENT_LOCK": str(folder / "lock")},
            start_new_session=True,
        )
        try:
            _await_life(uri, daemon, log)
            before, begun = cpu_s(daemon.pid), time.monotonic()
            time.sleep(idle_s)
            used, took = cpu_s(daemon.pid) - before, time.monotonic() - begun
            if daemon.poll() is not None:
                raise RuntimeError(f"jetson-agent run ended: {log.read_text()[-500:]}")
            return used / took
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def cpu_s(pid: int) -> float:
    """User and system time of a process and of its children that have ended.

    Source: proc(5), fields 14 to 17 of /proc/PID/stat; the name before them may hold anything.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _await_life(uri: str, daemon: subprocess.Popen[bytes], log: Path) -> None:
    from sharedenc.export.bench import Bench

    bench, deadline = Bench(uri), time.monotonic() + START_S
    begun = time.time()
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            break
        if any(seen.at > begun - 1 for seen in bench.seen(DEVICE)):
            time.sleep(2.0)  # what is done once after the first look
            return
        time.sleep(0.5)
    raise RuntimeError(f"jetson-agent run did not come up: {log.read_text()[-500:]}")
