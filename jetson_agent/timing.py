"""Time one ONNX file: wait for a quiet board, build, check, time, judge; and the certificate."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from jetson_agent import certificate
from jetson_agent.check import MEANINGLESS, Check
from jetson_agent.energy import mj_per_inference
from jetson_agent.engines import sha256_of as sha256_of
from jetson_agent.errors import BackendError
from jetson_agent.failures import ACTIONS, Failure
from jetson_agent.identity import Device, usable_cpus
from jetson_agent.preflight import Preflight
from jetson_agent.protocol import Checked, Load, Verdict
from jetson_agent.settings import Settings as Settings
from jetson_agent.stats import deviation, median, summarize_runs
from jetson_agent.steps import ChildError, Engine, Run, Say, Steps, merge_conditions
from jetson_agent.steps import Stopped as Stopped
from jetson_agent.steps import agent_version as agent_version
from jetson_agent.verdict import LIMITS, Spread, judge

Note = Callable[[Literal["PREFLIGHT", "BUILT"]], None]
# After these nothing is gained by timing an engine whose outputs could not be had. A crash is not
# among them: a Python package for another NumPy takes its process along, and trtexec still times.
FATAL = ("timeout", "memory")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What came out of one timing; `metrics` is empty without a figure.

    `failure` is why there is none, for whoever decides whether to try again.
    """

    verdict: Verdict
    reasons: list[str]
    metrics: dict[str, float]
    certificate: dict[str, Any]
    checked: Checked = "unchecked"
    failure: Failure | None = None


def silent(_text: str) -> None:
    """Say nothing."""


def time_file(
    model: Path,
    precision: str,
    load: Load,
    settings: Settings,
    device: Device,
    stopping: threading.Event,
    *,
    reference: Path | None = None,
    say: Say = silent,
    cache: Path | None = None,
    note: Note | None = None,
    profile: Path | None = None,
) -> Timing:
    """Time `model` once as `settings` say, each step in a child process.

    A model that cannot be built, crashes its process or does not end in time is a `Timing` with
    the verdict and the failure. Suspect figures are measured again on the same engines.

    Args:
        reference: ``reference.npz`` of the model's export, if it has one.
        cache: Folder for engines; without one they are deleted in the end.
        note: Told which state of a job is reached.
        profile: Folder for a layer profile of the first engine.

    Raises:
        Stopped: `stopping` was set.
    """
    found = certificate.head(model, precision, load, settings, device)
    with Steps(settings, device, stopping, say, cache) as steps:
        try:
            return _time(steps, found, model, precision, load, reference, note, profile)
        except BackendError as error:
            return failed(error, found)


def _time(
    steps: Steps,
    found: dict[str, Any],
    model: Path,
    precision: str,
    load: Load,
    reference: Path | None,
    note: Note | None,
    profile: Path | None,
) -> Timing:
    settings = steps.settings
    if note:
        note("PREFLIGHT")
    steps.preflight()
    engines: list[Engine] = []
    checks: list[Check] = []
    for number in range(settings.builds):
        steps.say(f"build {number + 1} of {settings.builds} of {model.name} {precision}")
        engine, check = _prepare(steps, found, model, precision, number, reference)
        engines.append(engine)
        checks.append(check)
    if note:
        note("BUILT")
    found["builds"] = [
        certificate.build_entry(engine, check)
        for engine, check in zip(engines, checks, strict=True)
    ]
    first = engines[0].built
    found["options"] = first.options
    found["inputs"] = {i.name: f"{i.dtype}{list(i.shape)}" for i in first.inputs}
    checked = _overall(checks, found)
    if checked == "wrong":
        return finish("wrong", found["check"]["reasons"], {}, found, checked=checked)
    attempts: list[dict[str, Any]] = []
    for attempt in range(settings.repeats + 1):
        ready = steps.preflight()
        runs = _run_all(steps, engines, checks, load, found, reference)
        # An engine may have been replaced meanwhile.
        checked = _overall(checks, found)
        if checked == "wrong":
            return finish("wrong", found["check"]["reasons"], {}, found, checked=checked)
        metrics, spread, conditions = figures(runs, ready)
        metrics["build_s"] = median(sorted(engine.built.build_s for engine in engines))
        metrics |= memory_of(runs)
        verdict, reasons = judge(metrics, spread, conditions, len(usable_cpus()))
        attempts.append(
            {"verdict": verdict, "reasons": reasons, "p50_ms": metrics["latency_ms/p50"]}
        )
        if verdict == "valid" or attempt == settings.repeats:
            break
        steps.say(f"suspect, measured again: {' '.join(reasons)}")
    if profile is not None:
        steps.say("layer profile")
        steps.measure(engines[0], load, profile)
        found["profile"] = str(profile)
    found |= {
        "attempts": attempts,
        "counts": {
            "builds": len(engines),
            "runs": len(runs),
            "warmup": sum(run.samples.warmup_queries for run in runs),
            "timed": sum(len(run.samples.latencies_ms) for run in runs),
        },
        "timed_s": round(sum(run.samples.wall_s for run in runs), 4),
        "runs": [certificate.run_entry(run) for run in runs],
        "spread": {name: _rounded(value) for name, value in asdict(spread).items()},
        "conditions": conditions,
        "limits": LIMITS,
    }
    return finish(verdict, reasons, metrics, found, checked=checked)


def _prepare(
    steps: Steps,
    found: dict[str, Any],
    model: Path,
    precision: str,
    number: int,
    reference: Path | None,
    *,
    anew: bool = False,
) -> tuple[Engine, Check]:
    """Build an engine, and run it once."""
    engine = steps.build(model, precision, number, anew=anew)
    if precision in MEANINGLESS:
        return engine, Check(checked="unchecked", reasons=[MEANINGLESS[precision]])
    try:
        check, outputs = steps.check(engine, reference)
    except BackendError as error:
        if error.kind in FATAL:
            raise
        return engine, Check(checked="unchecked", reasons=[str(error)])
    found["outputs"] = outputs
    return engine, check


def _run_all(
    steps: Steps,
    engines: list[Engine],
    checks: list[Check],
    load: Load,
    found: dict[str, Any],
    reference: Path | None,
) -> list[Run]:
    """All runs of all engines, in turn, so that what drifts does so for all of them.

    A kept engine that the runtime does not take any more is replaced in `engines`, and its check
    in `checks`.
    """
    runs: list[Run] = []
    count = steps.settings.runs * len(engines)
    for _ in range(steps.settings.runs):
        for at, engine in enumerate(engines):
            try:
                run = steps.measure(engine, load)
            except BackendError as error:
                if error.kind != "engine-mismatch" or not engine.cached:
                    raise
                steps.say(f"a kept engine does not fit any more, built again: {error}")
                engines[at], checks[at] = _prepare(
                    steps,
                    found,
                    engine.model,
                    engine.built.precision,
                    engine.number,
                    reference,
                    anew=True,
                )
                found["builds"][at] = certificate.build_entry(engines[at], checks[at])
                run = steps.measure(engines[at], load)
            runs.append(run)
            p50 = median(sorted(run.samples.latencies_ms))
            steps.say(f"run {len(runs)} of {count}: p50 {p50:.4g} ms")
    return runs


def figures(
    runs: Sequence[Run], ready: Preflight
) -> tuple[dict[str, float], Spread, dict[str, Any]]:
    """Metrics, spread and conditions of all runs together."""
    metrics = summarize_runs([run.samples for run in runs])
    numbers = dict.fromkeys(run.engine.number for run in runs)
    builds = [[run.samples for run in runs if run.engine.number == number] for number in numbers]
    part = "gpu_compute_ms" if "gpu_compute_ms/p50" in metrics else "latency_ms"
    spread = Spread(**deviation(builds, part)._asdict())
    metrics["spread_within"] = spread.within
    if spread.between is not None:
        metrics["spread_between"] = spread.between
    conditions = merge_conditions([run.conditions for run in runs])
    if power := conditions.get("power_w"):
        metrics |= {f"power_w/{name}": w for name, w in power.items() if w is not None}
    energy_mj = mj_per_inference(conditions, metrics["n"])
    if energy_mj is not None:
        metrics["energy_mj"] = energy_mj
    conditions["preflight"] = ready.to_dict()
    return metrics, spread, conditions


def memory_of(runs: Sequence[Run]) -> dict[str, float]:
    """MiB of the engine and of its execution context, the most of all builds, where told."""
    told = {
        "engine_mib": [run.engine.built.options.get("engine_mib") for run in runs],
        "context_mib": [run.samples.options.get("context_mib") for run in runs],
    }
    known = {name: [v for v in values if v is not None] for name, values in told.items()}
    return {name: float(max(values)) for name, values in known.items() if values}


def failed(error: BackendError, found: dict[str, Any]) -> Timing:
    """The timing of a model that gave no figure."""
    failure = Failure(kind=error.kind, lines=error.lines, node=error.node)
    found["failure"] = failure.to_json()
    if isinstance(error, ChildError) and error.tail:
        found["log_tail"] = error.tail
    return finish(ACTIONS[error.kind].verdict, [str(error)], {}, found, failure=failure)


def finish(
    verdict: Verdict,
    reasons: list[str],
    metrics: dict[str, float],
    found: dict[str, Any],
    *,
    checked: Checked = "unchecked",
    failure: Failure | None = None,
) -> Timing:
    """A timing with its certificate."""
    ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Timing(
        verdict=verdict,
        reasons=reasons,
        metrics=metrics,
        certificate={"verdict": verdict, "reasons": reasons, **found, "ended_at": ended},
        checked=checked,
        failure=failure,
    )


def _overall(checks: Sequence[Check], found: dict[str, Any]) -> Checked:
    """One wrong engine makes all wrong; right are only all. `found` gets the check that tells."""
    states = {check.checked for check in checks}
    overall: Checked = "unchecked"
    if "wrong" in states:
        overall = "wrong"
    elif states == {"right"}:
        overall = "right"
    found["check"] = next((c for c in checks if c.checked == overall), checks[0]).to_json()
    return overall


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
