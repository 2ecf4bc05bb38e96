"""An agent without a bench: claims jobs, pretends to time them, reports. Run as a process.

Usage: python -m tests.agent.claiming URI DEVICE NAME JOBS LOG [FREEZE]

Each start of a job is a line of LOG; with FREEZE, the first job is begun and never ended.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from jetson_agent.errors import ServerError
from jetson_agent.protocol import BenchResult
from jetson_agent.registry_mlflow import MlflowRegistry
from tests.agent.test_protocol import RESULT

Answer = TypeVar("Answer")
# Of who freezes, so that its job is soon free; the others lose none however busy the machine is.
FROZEN_TTL_S, TTL_S = 4.0, 600.0
SKEW_S = 1.0


def jobs(device: str, count: int) -> list[BenchResult]:
    """The results that are to be had, one per job."""
    return [
        replace(RESULT, device=device, architecture=f"{number:064x}", verdict="valid")
        for number in range(count)
    ]


def main(uri: str, device: str, name: str, count: str, log: str, freeze: str = "") -> None:
    registry = MlflowRegistry(uri, skew_s=SKEW_S)
    claims = registry.claims(device)
    results = jobs(device, int(count))
    random.Random(name).shuffle(results)
    with Path(log).open("ab", buffering=0) as lines:
        while True:
            try:
                known = registry.bench_keys(device)
                left = [result for result in results if result.key not in known]
                if not left:
                    return
                for result in left:
                    claim = claims.take(result.key, name, FROZEN_TTL_S if freeze else TTL_S)
                    if claim is None:
                        continue
                    if result.key not in registry.bench_keys(device):
                        lines.write(f"{result.key} {name} {claim.epoch} {os.getpid()}\n".encode())
                        time.sleep(3600 if freeze else random.uniform(0.0, 0.2))
                        if until_answered(claim.still_mine):
                            # As from an outbox: what is done is sent again, not done again.
                            until_answered(partial(registry.report, result))
                    claim.release()
            except ServerError as error:
                print(error, file=sys.stderr)
            time.sleep(0.2)


def until_answered(ask: Callable[[], Answer]) -> Answer:
    """Six clients of one SQLite file: now and then the server is out of breath."""
    while True:
        try:
            return ask()
        except ServerError as error:
            print(error, file=sys.stderr)
            time.sleep(0.2)


if __name__ == "__main__":
    main(*sys.argv[1:])
