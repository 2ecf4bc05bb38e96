"""One shared network against two separate ones, in one run.

Board and clocks drift from hour to hour by more than what is to be told apart: so every round times
all three files one after the other, in an order that moves on by one place each round, and only
figures of one round are set against each other.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jetson_agent import certificate
from jetson_agent.errors import BackendError
from jetson_agent.identity import Device, usable_cpus
from jetson_agent.protocol import Load
from jetson_agent.settings import Settings
from jetson_agent.stats import deviation, median, summarize_runs
from jetson_agent.steps import Run, Say, Steps, merge_conditions
from jetson_agent.timing import Note, Timing, failed, finish, silent
from jetson_agent.verdict import LIMITS, Spread, judge

# The order of the files; det and seg together do what dual does alone.
PARTS = ("seg", "det", "dual")
ROUNDS = 5


def compare_files(
    models: Sequence[Path],
    precision: str,
    load: Load,
    settings: Settings,
    device: Device,
    stopping: threading.Event,
    *,
    say: Say = silent,
    cache: Path | None = None,
    note: Note | None = None,
    rounds: int = ROUNDS,
) -> Timing:
    """Time seg, det and dual in `rounds` rounds.

    Metrics are ``pair_ms/p50`` (seg and det one after the other, median of the rounds),
    ``dual_ms/p50``, ``ratio/p50``, ``/min`` and ``/max`` of dual over pair (below 1: sharing is
    faster), and those of dual's own latency. Outputs are not checked here: that is part of the
    timing of each file.

    Args:
        models: Three files, in the order of `PARTS`.

    Raises:
        Stopped: `stopping` was set.
    """
    found = certificate.head(models[-1], precision, load, settings, device)
    found["files_compared"] = dict(zip(PARTS, map(certificate.file_entry, models), strict=True))
    with Steps(settings, device, stopping, say, cache) as steps:
        try:
            return _compare(steps, found, models, precision, load, note, rounds)
        except BackendError as error:
            return failed(error, found)


def _compare(
    steps: Steps,
    found: dict[str, Any],
    models: Sequence[Path],
    precision: str,
    load: Load,
    note: Note | None,
    rounds: int,
) -> Timing:
    if note:
        note("PREFLIGHT")
    steps.preflight()
    engines = {}
    for name, model in zip(PARTS, models, strict=True):
        steps.say(f"build of {name}, {model.name} {precision}")
        engines[name] = steps.build(model, precision, 0)
    if note:
        note("BUILT")
    ready = steps.preflight()
    runs: dict[str, list[Run]] = {name: [] for name in PARTS}
    orders = []
    for number in range(rounds):
        order = [PARTS[(number + at) % len(PARTS)] for at in range(len(PARTS))]
        orders.append(order)
        for name in order:
            runs[name].append(steps.measure(engines[name], load))
        entry = _round(runs, number)
        steps.say(
            f"round {number + 1} of {rounds}: pair {entry['pair_ms']:.4g} ms, "
            f"dual {entry['dual_ms']:.4g} ms, ratio {entry['ratio']:.3f}"
        )
    table = [_round(runs, at) for at in range(rounds)]
    metrics = summarize_runs([run.samples for run in runs["dual"]])
    metrics |= {
        "pair_ms/p50": median(sorted(row["pair_ms"] for row in table)),
        "dual_ms/p50": median(sorted(row["dual_ms"] for row in table)),
        "ratio/p50": median(sorted(row["ratio"] for row in table)),
        "ratio/min": min(row["ratio"] for row in table),
        "ratio/max": max(row["ratio"] for row in table),
        "build_s": sum(engine.built.build_s for engine in engines.values()),
    }
    spread = _spread(runs)
    everything = [run for name in PARTS for run in runs[name]]
    conditions = merge_conditions([run.conditions for run in everything])
    conditions["preflight"] = ready.to_dict()
    verdict, reasons = judge(metrics, spread, conditions, len(usable_cpus()))
    found |= {
        "rounds": [{"order": order, **row} for order, row in zip(orders, table, strict=True)],
        "counts": {
            "rounds": rounds,
            "warmup": sum(run.samples.warmup_queries for run in everything),
            "timed": sum(len(run.samples.latencies_ms) for run in everything),
        },
        "builds": {name: engines[name].built.options for name in PARTS},
        "runs": {name: [certificate.run_entry(run) for run in runs[name]] for name in PARTS},
        "spread": asdict(spread),
        "conditions": conditions,
        "limits": LIMITS,
    }
    return finish(verdict, reasons, metrics, found)


def _round(runs: dict[str, list[Run]], number: int) -> dict[str, float]:
    p50 = {name: median(sorted(runs[name][number].samples.latencies_ms)) for name in PARTS}
    pair_ms = p50["seg"] + p50["det"]
    return {
        **{f"{name}_ms": p50[name] for name in PARTS},
        "pair_ms": pair_ms,
        "ratio": p50["dual"] / pair_ms,
    }


def _spread(runs: dict[str, list[Run]]) -> Spread:
    """The widest of the three files."""
    found = []
    for name in PARTS:
        samples = [run.samples for run in runs[name]]
        part = "gpu_compute_ms" if samples[0].parts.get("gpu_compute_ms") else "latency_ms"
        found.append(deviation([samples], part))
    return Spread(
        within=max(one.within for one in found), between=None, cov=max(one.cov for one in found)
    )
