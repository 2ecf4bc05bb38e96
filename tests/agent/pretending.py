"""An agent over a shelf in memory, with timings that are only pretended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from jetson_agent.agent import Agent
from jetson_agent.artifacts import Artifacts
from jetson_agent.attempt import Workbench
from jetson_agent.failures import Failure, FailureKind
from jetson_agent.identity import Device, identify
from jetson_agent.jobs import Bench
from jetson_agent.journal import Journal
from jetson_agent.outbox import Outbox
from jetson_agent.protocol import BenchResult, Verdict
from jetson_agent.stopping import StopFlag
from jetson_agent.timing import Settings, Timing
from tests.agent.publishing import Shelf

SERVER = "http://server"
FIGURES = {
    "latency_ms/p50": 1.0,
    "latency_ms/p99": 1.1,
    "throughput_qps": 1000.0,
    "build_s": 0.1,
    "n": 500.0,
}


def device(name: str = "board", **changes: Any) -> Device:
    """A machine of which nothing depends on the one that tests run on."""
    fixed = {"power_mode": "MAXN", "clock_policy": "pinned", "l4t": "", **changes}
    return replace(identify(name), **fixed)


def bench_of(**changes: Any) -> Bench:
    values: dict[str, Any] = {
        "device": device(),
        "settings": Settings(backend="fake", runtime="1", threads=2),
        "can": ["fp32", "tf32", "int8"],
        "recipe": "trt",
        "loads": ["single"],
    }
    return Bench(**{**values, **changes})


def timing_of(
    verdict: Verdict = "valid", *, kind: FailureKind | None = None, node: str = ""
) -> Timing:
    return Timing(
        verdict=verdict,
        reasons=[] if verdict == "valid" else ["Because."],
        metrics=FIGURES if verdict in ("valid", "suspect") else {},
        certificate={"log": "text"},
        checked="unchecked",
        failure=None if kind is None else Failure(kind=kind, lines=["a line"], node=node),
    )


class Pretence:
    """An agent; `timed` lists the contents that were timed, in order.

    `answers` has timings by content, taken one after another; without one it is valid.
    """

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.shelf = Shelf()
        self.timed: list[bytes] = []
        self.compared: list[list[bytes]] = []
        self.settings: list[Settings] = []
        self.answers: dict[bytes, list[Timing]] = {}
        self.said: list[str] = []
        self.bench = bench_of()
        (tmp_path / "files").mkdir(exist_ok=True)
        self.agent = self.start()

    def start(self) -> Agent:
        """The agent as a new process has it: with what is on disk, and nothing else."""
        state = self.tmp_path / "state"
        stopping = StopFlag()
        self.agent = Agent(
            registry=self.shelf.registry,
            outbox=Outbox(state, SERVER),
            journal=Journal(state, SERVER),
            workbench=Workbench(
                artifacts=Artifacts(self.tmp_path / "cache"),
                engines=self.tmp_path / "engines",
                say=self.said.append,
                stopping=stopping,
                time_model=self.pretend,
                compare_models=self.pretend_comparison,
                check_model=lambda *_args, **_keywords: None,
            ),
            look=lambda: self.bench,
            name="agent",
            say=self.said.append,
            stopping=stopping,
            back_off_s=0.01,
        )
        return self.agent

    def file(self, content: str) -> Path:
        path = self.tmp_path / "files" / content
        path.write_text(content)
        return path

    def add(self, content: str, architecture: str, graph: str = "seg", **tags: str) -> None:
        self.shelf.add(self.file(content), architecture, graph=graph, **tags)

    def pretend(self, model: Path, _precision: str, _load: str, *rest: Any, **more: Any) -> Timing:
        content = model.read_bytes()
        self.timed.append(content)
        self.settings.append(rest[0])
        more["note"]("PREFLIGHT")
        more["note"]("BUILT")
        left = self.answers.get(content, [])
        return left.pop(0) if left else timing_of()

    def pretend_comparison(self, models: list[Path], *_rest: Any, **_more: Any) -> Timing:
        self.compared.append([model.read_bytes() for model in models])
        return timing_of()

    @property
    def results(self) -> list[BenchResult]:
        return list(self.shelf.registry.results.values())
