"""Several agents of one device, as processes of their own, on a real MLflow server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.agent import models
from tests.agent.claiming import jobs
from tests.agent.publishing import manifest_of, publish
from tests.infra.cluster import await_true, mlflow_server, running

ROOT = Path(__file__).resolve().parents[2]
AGENTS = 6

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that does several things at once, as a team's does."""
    with mlflow_server(tmp_path_factory.mktemp("many"), ["--workers=2"]) as uri:
        yield uri


@pytest.fixture
def device() -> str:
    return f"board-{uuid4().hex[:8]}"


def bench_runs(uri: str, device: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"bench/{device}")
    found = client.search_runs([experiment.experiment_id])
    return [run for run in found if run.data.tags.get("sharedenc.kind") == "bench"]


def read(log: Path) -> list[tuple[str, str, int]]:
    """Key, agent and epoch of every job that was begun."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(key, agent, int(epoch)) for key, agent, epoch, _ in lines]


def command(uri: str, device: str, name: str, count: int, log: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tests.agent.claiming"),
        *(uri, device, name, str(count), str(log), *more),
    ]


def run_all(commands: Sequence[Sequence[str]], folder: Path) -> None:
    """Run them side by side until all have ended well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with ExitStack() as started:
        logs = [folder / f"agent-{number}.err" for number in range(len(commands))]
        processes = [
            started.enter_context(running(each, log, environment))
            for each, log in zip(commands, logs, strict=True)
        ]
        for process, log in zip(processes, logs, strict=True):
            assert process.wait(600) == 0, log.read_text()[-3000:]


def test_no_job_is_done_twice_and_none_is_lost(server: str, device: str, tmp_path: Path) -> None:
    count, log = 24, tmp_path / "log"
    names = [f"agent-{number}" for number in range(AGENTS)]
    run_all([command(server, device, name, count, log) for name in names], tmp_path)
    begun = read(log)
    assert Counter(key for key, _, _ in begun) == {job.key: 1 for job in jobs(device, count)}
    # It was a contest: one agent alone would prove nothing.
    assert len({agent for _, agent, _ in begun}) > 1
    runs = bench_runs(server, device)
    assert sorted(run.data.tags["sharedenc.bench_key"] for run in runs) == sorted(
        job.key for job in jobs(device, count)
    )
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_the_job_of_an_agent_that_was_killed_is_taken_over(
    server: str, device: str, tmp_path: Path
) -> None:
    count, log = 6, tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    victim = command(server, device, "victim", count, log, "freeze")
    with running(victim, tmp_path / "victim.err", environment) as process:
        await_true("the victim has begun a job", lambda: len(read(log)) == 1)
        process.kill()
        process.wait(60)
    names = [f"agent-{number}" for number in range(AGENTS - 1)]
    run_all([command(server, device, name, count, log) for name in names], tmp_path)
    ((lost, _, first_epoch), *others) = read(log)
    assert first_epoch == 1
    assert Counter(key for key, _, _ in others) == {job.key: 1 for job in jobs(device, count)}
    assert [epoch for key, _, epoch in others if key == lost] == [2]
    assert len(bench_runs(server, device)) == count


def test_six_real_agents_share_the_work(server: str, device: str, tmp_path: Path) -> None:
    data = f"d{uuid4().hex[:8]}"
    # Without det beside seg, which would be timed together as well.
    graphs = ("seg", "dual", "encoder", "other")
    for seed, graph in enumerate(graphs):
        model = models.convolution(tmp_path / f"{graph}.onnx", seed=seed)
        publish(server, model, manifest_of(model, f"conv-{graph}", graph=graph, data=data))
    expected = Counter((f"conv-{graph}", load) for graph in graphs for load in ("single", "stream"))
    environment = {**os.environ, "JETSON_AGENT_LOCK": str(tmp_path / "lock")}

    def start(number: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "jetson_agent", "once", "--json", "--tracking-uri", server),
                *("--device", device, "--select", f"{data}-*", "--load", "single,stream"),
                *("--state-dir", str(tmp_path / f"state-{number}"), "--threads", "1"),
                *("--warmup-s", "0.01", "--duration-s", "0.05"),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    timed: Counter[tuple[str, str]] = Counter()
    agents = [start(number) for number in range(AGENTS)]
    try:
        for process in agents:
            out, said = process.communicate(timeout=600)
            assert process.returncode == 0, said[-3000:]
            rows = json.loads(out)["timed"]
            timed.update((row["architecture"], row["load"]) for row in rows)
    finally:
        for process in agents:
            process.kill()
            process.communicate()
    assert timed == expected
    runs = bench_runs(server, device)
    stored = Counter(
        (run.data.tags["sharedenc.architecture"], run.data.tags["sharedenc.load"]) for run in runs
    )
    assert stored == expected
    assert {run.info.status for run in runs} == {"FINISHED"}
