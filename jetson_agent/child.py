"""The process in which one model is built, checked and timed: ``REQUEST.json ANSWER.json``.

A crash or a hang in native code ends this process, not the agent.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jetson_agent.backends import load_backend
from jetson_agent.backends.base import Array, Engine, seeded_inputs
from jetson_agent.conditions import between, read_conditions
from jetson_agent.errors import BackendError
from jetson_agent.identity import usable_cpus
from jetson_agent.stats import summarize, variation
from jetson_agent.verdict import LIMITS, judge

SELF_DESTRUCT_MARGIN_S = 10.0


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Build, check and time; every problem of the model is an answer too.

    Args:
        request: ``backend, model, precision, load, threads, warmup_s, duration_s, seed``.

    Returns:
        ``verdict, reasons, metrics, details``; `details` goes into the certificate.
    """
    backend = load_backend(request["backend"])
    try:
        engine = backend.build(Path(request["model"]), request["precision"], request["threads"])
        with contextlib.closing(engine):
            return _check_and_time(engine, request)
    except BackendError as error:
        return {"verdict": "failed", "reasons": [str(error)], "metrics": {}, "details": {}}


def _check_and_time(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    inputs = seeded_inputs(engine.inputs, request["seed"])
    outputs = engine.run(inputs)
    details: dict[str, Any] = {
        "options": engine.options,
        "inputs": {name: _describe(value) for name, value in inputs.items()},
        "input_seed": request["seed"],
        "outputs": {name: _describe(value) for name, value in outputs.items()},
    }
    if problems := not_finite(outputs):
        return {"verdict": "wrong", "reasons": problems, "metrics": {}, "details": details}
    cpus = len(usable_cpus())
    start = read_conditions()
    samples = engine.measure(inputs, request["load"], request["warmup_s"], request["duration_s"])
    conditions = between(start, read_conditions(), cpus)
    metrics = summarize(samples.latencies_ms, samples.wall_s)
    spread = variation(samples.latencies_ms)
    verdict, reasons = judge(metrics, spread, conditions, cpus)
    details |= {
        "conditions": conditions,
        "counts": {"warmup": samples.warmup_queries, "timed": len(samples.latencies_ms)},
        "timed_s": round(samples.wall_s, 4),
        "variation": round(spread, 4),
        "limits": LIMITS,
    }
    metrics["build_s"] = engine.build_s
    return {"verdict": verdict, "reasons": reasons, "metrics": metrics, "details": details}


def not_finite(outputs: dict[str, Array]) -> list[str]:
    """One sentence per output that holds NaN or infinity."""
    found = []
    for name, value in outputs.items():
        if value.dtype.kind == "f" and (bad := int(np.count_nonzero(~np.isfinite(value)))):
            found.append(f"Output {name} has {bad} of {value.size} values that are not finite.")
    return found


def _describe(value: Array) -> str:
    return f"{value.dtype}{list(value.shape)}"


def main() -> None:
    request_path, answer_path = map(Path, sys.argv[1:3])
    request = json.loads(request_path.read_text())
    # If the agent is killed, nobody watches the deadline: this also ends native code that hangs.
    faulthandler.dump_traceback_later(request["deadline_s"] + SELF_DESTRUCT_MARGIN_S, exit=True)
    part = answer_path.with_suffix(".part")
    part.write_text(json.dumps(answer(request)))
    part.replace(answer_path)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
