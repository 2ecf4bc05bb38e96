"""From a timing to what is reported of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jetson_agent.jobs import Bench, Candidate, Job
from jetson_agent.protocol import COMPARISON, BenchResult
from jetson_agent.timing import Timing


def make_result(job: Job, bench: Bench, timing: Timing, used: Sequence[Candidate]) -> BenchResult:
    """The result of a job.

    Args:
        used: The version that was timed for each part of the job.
    """
    last = used[-1]
    files = {c.version.name: c.manifest.files for c in used}
    return BenchResult(
        device=bench.device.name,
        architecture=job.architecture,
        precision=job.precision,
        load=job.load,
        mode=bench.mode,
        backend=bench.settings.backend,
        runtime=bench.settings.runtime,
        settings=bench.settings.text,
        verdict=timing.verdict,
        checked=timing.checked,
        reasons=timing.reasons,
        metrics=timing.metrics,
        certificate={
            **timing.certificate,
            "files": files if job.compares else last.manifest.files,
            "parts": [part.architecture for part in job.parts],
        },
        model=last.version.model,
        version=last.version.version,
        study=last.manifest.study,
        backbone=last.manifest.backbone,
        graph=COMPARISON if job.compares else last.manifest.graph,
    )


def logs_of(result: BenchResult) -> dict[str, bytes]:
    """The ends of the tool's logs as files, such as ``logs/builds-0.txt`` and ``logs/runs-2.txt``.

    They stand in the certificate as well, where nobody reads them as easily.
    """
    logs: dict[str, bytes] = {}

    def collect(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            if isinstance(tail := value.get("log_tail"), str) and tail:
                logs[f"logs/{name}.txt"] = f"{tail}\n".encode()
            for key, inner in value.items():
                collect(inner, name if key == "options" else f"{name}-{key}")
        elif isinstance(value, list):
            for at, inner in enumerate(value):
                collect(inner, f"{name}-{at}")

    certificate = result.certificate
    for name in ("builds", "runs"):
        collect(certificate.get(name), name)
    failure = certificate.get("failure")
    lines = failure.get("lines", []) if isinstance(failure, Mapping) else []
    if tail := certificate.get("log_tail") or "\n".join(map(str, lines)):
        logs["logs/failure.txt"] = f"{tail}\n".encode()
    return logs


def row_of(result: BenchResult) -> dict[str, Any]:
    """A result as ``--json`` prints it: all but the certificate."""
    row = asdict(result)
    del row["certificate"]
    return {**row, "key": result.key}


def describe(result: BenchResult) -> str:
    """One line for people."""
    version = f" v{result.version}" if result.version else ""
    head = f"{result.model}{version} {result.precision} {result.load}"
    m = result.metrics
    if "latency_ms/p50" in m:
        head += f": p50 {m['latency_ms/p50']:.3g} ms"
        if "latency_ms/p99" in m:
            head += f", p99 {m['latency_ms/p99']:.3g} ms"
        head += f", {m['throughput_qps']:.4g} queries/s, n = {m['n']:.0f}"
    head += f", {result.verdict}"
    return head + (f" ({' '.join(result.reasons)})" if result.reasons else "")
