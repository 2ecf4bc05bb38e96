"""R13: the agent's figure of a file against a bare loop around ``InferenceSession.run``.

Each side has a process of its own, the same file, threads, warm-up and duration, and both run in
turns; compared are medians, pair by pair. Here ours should be as long as the reference: what the
agent adds (a child process, bound buffers, a look at the machine) must not be in its figure. The
limit is the reference itself.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.protocol import Duel, Unequal, load_average, result
from sharedenc.spec import Graph

PAIRS = 9
WARMUP_S, DURATION_S = 0.5, 2.0
THREADS = 1
BACKBONE = "mobilenet_v3_large"
GRAPH: Graph = "dual"
MOST = 0.05

# What people write when they want to know how long a file takes.
BARE = """
import json, statistics, sys, time
import numpy, onnxruntime
path, threads, warmup_s, duration_s = sys.argv[1], int(sys.argv[2]), *map(float, sys.argv[3:])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()
values = numpy.random.default_rng(0).standard_normal(given.shape).astype("float32")
inputs = {given.name: values}
end = time.perf_counter() + warmup_s
while time.perf_counter() < end:
    session.run(None, inputs)
found = []
end = time.perf_counter() + duration_s
while time.perf_counter() < end:
    start = time.perf_counter()
    outputs = session.run(None, inputs)
    found.append((time.perf_counter() - start) * 1e3)
sums = {o.name: float(v.sum(dtype="float64")) for o, v in zip(session.get_outputs(), outputs)}
print(json.dumps({"p50": statistics.median(found), "sums": sums}))
"""


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure at least `PAIRS` pairs; raises when the outputs of both sides differ."""
    with tempfile.TemporaryDirectory(prefix="bench-agent-") as folder:
        model = export_model(Path(folder))
        return [compare(model, max(rounds, PAIRS))]


def export_model(folder: Path, backbone: str = BACKBONE, image_px: int = 320) -> Path:
    """A real graph with random weights."""
    import torch

    from sharedenc.data.batch import IMAGENET_MEAN, IMAGENET_STD
    from sharedenc.export.onnx import export_graph
    from sharedenc.export.parity import natural_images
    from sharedenc.models.build import build_network
    from sharedenc.models.encoders import batch_norms

    names = [f"class {number}" for number in range(3)]
    network = build_network(backbone, ("det", "seg"), len(names) + 1, seed=0)
    # Batch norms that have seen nothing let deep features of random weights vanish.
    for norm in batch_norms(network).values():
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        network.train()(natural_images(4, image_px))
    meta = {"classes": names, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    path = folder / "model.onnx"
    export_graph(network.eval(), GRAPH, path, meta=meta, image_px=image_px, tolerance=1e-2)
    return path


def compare(
    model: Path, pairs: int, warmup_s: float = WARMUP_S, duration_s: float = DURATION_S
) -> dict[str, Any]:
    """One row: medians of both sides, and of the ratio within a pair."""
    load = load_average()
    bare: list[float] = []
    ours: list[float] = []
    expected = None
    for number in range(pairs):
        sides = [(_bare, bare), (_agent, ours)]
        for measure, found in sides if number % 2 == 0 else reversed(sides):
            found.append(measure(model, warmup_s, duration_s))
        expected = _bare_sums(model) if expected is None else expected
        load = max(load, load_average())
    _check_outputs(model, expected or {})
    excess = statistics.median(b / a - 1 for a, b in zip(bare, ours, strict=True))
    row = result(
        "R13",
        f"{BACKBONE} {GRAPH}, ONNX Runtime, {THREADS} thread, median of {pairs} pairs: "
        f"ours {excess:+.1%}",
        Duel(statistics.median(bare), statistics.median(ours), pairs, load),
        unit="ms",
        check=f"same outputs; {'within' if abs(excess) <= MOST else 'NOT within'} {MOST:.0%}",
        limit=statistics.median(bare),
    )
    return {**row, "excess": excess}


def _bare(model: Path, warmup_s: float, duration_s: float) -> float:
    return float(_run_bare(model, warmup_s, duration_s)["p50"])


def _bare_sums(model: Path) -> dict[str, float]:
    sums: dict[str, float] = _run_bare(model, 0.0, 0.01)["sums"]
    return sums


def _run_bare(model: Path, warmup_s: float, duration_s: float) -> dict[str, Any]:
    command = [sys.executable, "-c", BARE, str(model), str(THREADS), f"{warmup_s}", f"{duration_s}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _agent(model: Path, warmup_s: float, duration_s: float) -> float:
    command = [sys.executable, "-m", "jetson_agent", "measure", str(model), "--json"]
    command += ["--backend", "onnxruntime", "--threads", str(THREADS)]
    command += ["--runs", "1", "--builds", "1", "--repeats", "0"]
    command += ["--warmup-s", f"{warmup_s}", "--duration-s", f"{duration_s}"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        (row,) = json.loads(done.stdout)["results"]
        return float(row["metrics"]["latency_ms/p50"])
    except (ValueError, KeyError) as error:
        raise RuntimeError(f"jetson-agent measure: {error!r}: {done.stderr[-500:]}") from error


def _check_outputs(model: Path, expected: dict[str, float]) -> None:
    """The backend's own outputs of the same input."""
    from jetson_agent.backends import load_backend
    from jetson_agent.backends.base import BuildRequest, seeded_inputs

    backend = load_backend("onnxruntime")
    built = backend.build(
        BuildRequest(model=model, precision="fp32", folder=model.parent, threads=THREADS)
    )
    outputs = backend.run(built, seeded_inputs(built.inputs, 0))
    for name, value in expected.items():
        got = float(outputs[name].sum(dtype="float64"))
        if abs(got - value) > 1e-4 * max(1.0, abs(value)):
            raise Unequal(f"sum of output {name}: bare loop {value}, agent {got}")
