"""R8: from one trial's end to the next one's first step, against a plain Tuner script.

Both run the same function for the same 40 trials, one after the other on one slot, each in a
process of its own: settings that Ray reads from the environment must not leak from one side to
the other. Wall time, since the work is done by other processes. The limit is the same wait
between bare Ray tasks on a warm worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.protocol import Side, interleaved, result

TRIALS = 40
CHILD_S = 600.0
MIB = 2**20

Row = Mapping[str, float]


def run(rounds: int, trials: int = TRIALS) -> list[dict[str, Any]]:
    """Measure both sides, and the limit beside ours."""
    limits: list[float] = []

    def side(name: str) -> Callable[[], Side]:
        def measure() -> Side:
            said = _child(name, trials)
            if "limit" in said:
                limits.append(waits_ms(said["limit"]))
            return Side(waits_ms(said["rows"]), table(said["rows"]))

        return measure

    duel = interleaved(side("reference"), side("ours"), rounds)
    return [
        result(
            "R8",
            f"wait between two of {trials} trials that do nothing, one slot, wall time, mean",
            duel,
            unit="ms",
            limit=min(limits),
            check="same results table",
        )
    ]


def noop(number: int) -> dict[str, float]:
    """The trial: a made-up score, and when its first step began and its last one ended."""
    started = time.time()
    score = (number * 37 % 101) / 101
    return {"number": number, "score": score, "started": started, "ended": time.time()}


def waits_ms(rows: list[Row]) -> float:
    """Mean of the waits between one trial's end and the start of the next, in milliseconds."""
    order = sorted(rows, key=lambda row: row["started"])
    return 1000 * fmean(after["started"] - before["ended"] for before, after in pairwise(order))


def table(rows: list[Row]) -> dict[int, float]:
    """Score by trial, in the order of trials."""
    return {int(row["number"]): row["score"] for row in sorted(rows, key=lambda r: r["number"])}


def _child(name: str, trials: int) -> dict[str, Any]:
    """Run one side in a process of its own; Ray's chatter stays in its output."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks.trial_start", name, str(trials), folder]
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_ADDRESS", None)
        done = subprocess.run(
            command,
            env=environment,
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True,
            text=True,
            timeout=CHILD_S,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name} side ended with {done.returncode}: {done.stderr[-2000:]}")
        said: dict[str, Any] = json.loads(answer.read_text())
        return said


def _reference(trials: int, folder: Path) -> dict[str, Any]:
    """What a user of Ray Tune writes first."""
    import ray
    from ray import tune

    def train(config: dict[str, Any]) -> None:
        tune.report(noop(config["number"]))

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"number": tune.grid_search(list(range(trials)))},
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    )
    names = ("number", "score", "started", "ended")
    rows = [{name: found.metrics[name] for name in names} for found in tuner.fit()]
    ray.shutdown()
    return {"rows": rows}


def _ours(trials: int, folder: Path) -> dict[str, Any]:
    """The launcher of `sharedenc sweep` with the same function."""
    from sweeps.launch import RayLauncher
    from sweeps.state import Row as SweepRow
    from sweeps.state import SweepState

    def execute(
        payloads: Sequence[dict[str, Any]],
        on_report: object,
        on_end: Callable[[str, dict[str, Any]], None],
        stop: object,
    ) -> None:
        for payload in payloads:
            on_end(payload["node"], {"state": "done", "result": noop(payload["number"])})

    def payload(row: SweepRow) -> dict[str, Any]:
        return {"node": row.node.id, "number": row.node.seed}

    launcher = RayLauncher(storage=folder / "tune", cpus=1, memory_gib=1, run_trial=execute)
    try:
        state = SweepState(_nodes(trials), launcher.machines())
        state.begin()
        launcher.run(state, payload, lambda: None)
        rows = [row.result for row in state.rows.values()]
        return {"rows": rows, "limit": _tasks(trials)}
    finally:
        launcher.close()


def _nodes(trials: int) -> list[Any]:
    """One cell with as many seeds as there are trials."""
    from sharedenc.spec import Cell, Recipe, Trial, resolve_numerics
    from sweeps.graph import Node
    from sweeps.order import Demand

    cell = Cell(strategy="share", backbone="resnet18", freeze="frozen", task="seg")
    recipe = Recipe(epochs=1)
    numerics = resolve_numerics(recipe, cell.backbone, "cpu", "0.0")
    return [
        Node(
            id=f"trial {seed}",
            stage=cell.strategy,
            cell=cell,
            recipe=recipe,
            seed=seed,
            trial=Trial(
                cell=cell,
                recipe=recipe,
                lr=1e-3,
                seed=seed,
                data_digest="0" * 64,
                weights_digest="none",
                numerics=numerics,
            ),
            demand=Demand(cpus=1, memory=MIB),
        )
        for seed in range(trials)
    ]


def _tasks(trials: int) -> list[dict[str, float]]:
    """The same function as bare Ray tasks, one after the other."""
    import ray

    task = ray.remote(num_cpus=1)(noop)
    ray.get(task.remote(0))  # a worker is there from now on
    return [ray.get(task.remote(number)) for number in range(trials)]


if __name__ == "__main__":
    side, count, where = sys.argv[1:]
    measure = {"reference": _reference, "ours": _ours}[side]
    said = measure(int(count), Path(where))
    (Path(where) / "answer.json").write_text(json.dumps(said))
