"""The child's side of `sharedenc.selftest.child`: requests on standard input, one JSON per line.

An answer is ``{"answer": {...}}``; lines before it are events. A request that fails is answered
with the failed row of its cell.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sharedenc.selftest.check import check_cell, export_checked, run_quietly, with_parent
from sharedenc.selftest.jobs import fingerprint, job_from_dict, release
from sharedenc.selftest.rows import failed
from sharedenc.training.job import EpochReport

Tell = Callable[[Mapping[str, Any]], None]


def train(request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Train ``job`` to its end, or on from what lies in its folder; an event after each epoch."""
    from sharedenc.models.weights import file_sha256

    job = job_from_dict(request["job"])
    job.work_dir.mkdir(parents=True, exist_ok=True)

    def on_epoch(report: EpochReport) -> bool:
        tell({"epoch": report.epoch})
        return False

    try:
        result = run_quietly(with_parent(job), on_epoch)
    finally:
        release(job.device)
    return {"ok": True, **result.to_dict(), "sha256": file_sha256(Path(result.checkpoint))}


def export(request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Export ``graph`` of ``checkpoint`` to ``path`` and compare it with torch."""
    from sharedenc.training.checkpoint import load_network

    network, meta = load_network(Path(request["checkpoint"]))
    path = Path(request["path"])
    info = export_checked(
        network, request["graph"], path, meta, images=2, untrained=request["untrained"]
    )
    return {"ok": True, "parity": info.parity, "bytes": path.stat().st_size}


def check(request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """`check_cell` with the keywords ``settings``."""
    return check_cell(job_from_dict(request["job"]), **request["settings"]).to_dict()


def sign(request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """The fingerprint of checking ``job`` with ``settings``."""
    return {"fingerprint": fingerprint(job_from_dict(request["job"]), **request["settings"])}


def about(request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """What this machine is."""
    from sharedenc.selftest.environment import environment

    return environment(request["device"])


HANDLERS: dict[str, Callable[[Mapping[str, Any], Tell], dict[str, Any]]] = {
    "train": train,
    "export": export,
    "check": check,
    "fingerprint": sign,
    "environment": about,
}


def main() -> None:
    """Serve until standard input ends; what libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = HANDLERS[request["do"]](request, tell)
        except Exception as error:
            answer = failed(request.get("cell", ""), error).to_dict()
        tell({"answer": answer})


if __name__ == "__main__":
    main()
