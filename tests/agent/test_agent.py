"""The pass of the agent over registries in memory, with timings that are only pretended."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jetson_agent.agent import Agent, only_one
from jetson_agent.errors import AgentError, ServerError
from jetson_agent.identity import Device, identify
from jetson_agent.outbox import Outbox
from jetson_agent.protocol import BenchResult, Load, Verdict
from jetson_agent.registry import MemoryRegistry
from jetson_agent.timing import Settings, Stopped, Timing
from tests.agent.publishing import Shelf

FIGURES = {
    "latency_ms/p50": 1.0,
    "latency_ms/p99": 1.1,
    "throughput_qps": 1000.0,
    "build_s": 0.1,
    "n": 50.0,
}


class Bench:
    """An agent over a shelf; `timed` lists the contents that were timed, in order."""

    def __init__(self, tmp_path: Path) -> None:
        self.shelf = Shelf()
        self.timed: list[bytes] = []
        self.verdicts: dict[bytes, Verdict] = {}
        self.said: list[str] = []
        self.agent = Agent(
            registry=self.shelf.registry,
            outbox=Outbox(tmp_path / "state", "http://server"),
            device=replace(identify("board"), power_mode="default"),
            settings=Settings(backend="fake", runtime="1", threads=2),
            precisions=["fp32"],
            loads=["single"],
            work=tmp_path / "work",
            say=self.said.append,
            stopping=threading.Event(),
            time_model=self.pretend,
        )
        self._files = tmp_path / "files"
        self._files.mkdir()

    def file(self, content: str) -> Path:
        path = self._files / content
        path.write_text(content)
        return path

    def pretend(
        self,
        model: Path,
        precision: str,
        load: Load,
        settings: Settings,
        device: Device,
        stopping: threading.Event,
    ) -> Timing:
        content = model.read_bytes()
        self.timed.append(content)
        verdict = self.verdicts.get(content, "valid")
        figures = FIGURES if verdict in ("valid", "suspect") else {}
        reasons = [] if verdict == "valid" else ["Because."]
        return Timing(verdict=verdict, reasons=reasons, metrics=figures, certificate={})

    @property
    def results(self) -> list[BenchResult]:
        return list(self.shelf.registry.results.values())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_every_architecture_is_timed_once_and_then_there_is_nothing_to_do(bench: Bench) -> None:
    bench.shelf.add(bench.file("seg, trial 1"), "A")
    bench.shelf.add(bench.file("seg, trial 2"), "A")
    bench.shelf.add(bench.file("det"), "B", graph="det")
    first = bench.agent.once()
    assert first.exit_code == 0
    # The newest version stands for its architecture.
    assert bench.timed == [b"det", b"seg, trial 2"]
    assert {(r.architecture, r.model, r.version) for r in bench.results} == {
        ("A", "voc20-resnet18-seg", "2"),
        ("B", "voc20-resnet18-det", "1"),
    }
    second = bench.agent.once()
    assert (second.timed, second.already_timed, second.sent) == ([], 2, 0)
    assert len(bench.timed) == 2
    assert bench.said[-1] == "nothing to do"


def test_each_load_is_a_timing_of_its_own(bench: Bench) -> None:
    bench.shelf.add(bench.file("seg"), "A")
    bench.agent.loads = ["single", "stream"]
    bench.agent.once()
    assert sorted(r.load for r in bench.results) == ["single", "stream"]


@pytest.mark.parametrize("change", ["threads", "runtime", "device"])
def test_another_mode_runtime_or_device_is_timed_anew(bench: Bench, change: str) -> None:
    bench.shelf.add(bench.file("seg"), "A")
    bench.agent.once()
    if change == "threads":
        bench.agent.settings = replace(bench.agent.settings, threads=1)
    elif change == "runtime":
        bench.agent.settings = replace(bench.agent.settings, runtime="2")
    else:
        bench.agent.device = replace(bench.agent.device, name="other board")
    bench.agent.once()
    assert len(bench.results) == 2


def test_a_file_of_another_hash_is_refused_and_nothing_is_timed(bench: Bench) -> None:
    bench.shelf.add(bench.file("seg"), "A", content=b"something else")
    summary = bench.agent.once()
    assert bench.timed == []
    assert bench.results == []
    assert [row["model"] for row in summary.refused] == ["voc20-resnet18-seg v1"]
    assert "sha256 of model.onnx" in summary.refused[0]["reason"]
    assert any("refused voc20-resnet18-seg v1" in line for line in bench.said)
    assert summary.exit_code == 1
    assert not any(bench.agent.work.iterdir())


def test_an_older_version_answers_for_an_architecture_whose_newest_is_refused(
    bench: Bench,
) -> None:
    bench.shelf.add(bench.file("good"), "A")
    bench.shelf.add(bench.file("bad"), "A", content=b"something else")
    summary = bench.agent.once()
    assert bench.timed == [b"good"]
    assert bench.results[0].version == "1"
    assert summary.exit_code == 1


def test_only_versions_that_are_ready_are_looked_at(bench: Bench) -> None:
    bench.shelf.add(bench.file("seg"), "A", state="uploading")
    assert bench.agent.once().to_dict()["skipped"] == []
    assert bench.timed == []


def test_another_protocol_is_skipped_with_its_reason(bench: Bench) -> None:
    bench.shelf.add(bench.file("old"), "A", **{"sharedenc.protocol": "7"})
    bench.shelf.add(bench.file("new"), "B")
    summary = bench.agent.once()
    assert bench.timed == [b"new"]
    assert "protocol 7" in summary.skipped[0]["reason"]
    assert summary.exit_code == 0


def test_a_precision_that_the_backend_lacks_is_skipped_with_its_reason(bench: Bench) -> None:
    bench.shelf.add(bench.file("seg"), "A", **{"sharedenc.precisions": '["fp32", "int8"]'})
    summary = bench.agent.once()
    assert [row["reason"] for row in summary.skipped] == ["backend fake has no precision int8"]
    assert [r.precision for r in bench.results] == ["fp32"]


def test_one_bad_model_does_not_stop_the_others_and_is_reported(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.shelf.add(bench.file(name), name, graph=name)
    bench.verdicts = {b"a": "failed", b"b": "wrong"}
    summary = bench.agent.once()
    assert bench.timed == [b"a", b"b", b"c"]
    assert {r.architecture: r.verdict for r in bench.results} == {
        "a": "failed",
        "b": "wrong",
        "c": "valid",
    }
    assert summary.exit_code == 1
    assert bench.agent.once().timed == []


def test_a_timing_can_be_repeated_by_its_verdict(bench: Bench) -> None:
    bench.shelf.add(bench.file("a"), "A")
    bench.verdicts = {b"a": "suspect"}
    bench.agent.once()
    bench.agent.retry = ["failed"]
    bench.agent.once()
    assert len(bench.timed) == 1
    bench.agent.retry = ["suspect"]
    bench.verdicts = {b"a": "failed"}
    bench.agent.once()
    # A figure with doubts is better than none.
    assert [r.verdict for r in bench.results] == ["suspect"]
    bench.verdicts = {}
    bench.agent.once()
    assert [r.verdict for r in bench.results] == ["valid"]
    bench.agent.once()
    assert len(bench.timed) == 3


def test_a_choice_of_models_is_by_pattern_of_names(bench: Bench) -> None:
    for graph in ("seg", "det", "dual"):
        bench.shelf.add(bench.file(graph), graph, graph=graph)
    bench.agent.select = ["*-d*"]
    bench.agent.once()
    assert bench.timed == [b"det", b"dual"]


class DeafRegistry(MemoryRegistry):
    """A server that can be read but takes nothing."""

    deaf = True

    def report(self, result: BenchResult) -> str:
        if self.deaf:
            raise ServerError("the server is away")
        return super().report(result)


def test_what_cannot_be_sent_is_kept_and_sent_by_the_next_pass_without_timing_again(
    bench: Bench,
) -> None:
    for name in ("a", "b"):
        bench.shelf.add(bench.file(name), name, graph=name)
    deaf = DeafRegistry(bench.shelf.registry.versions, bench.shelf.registry.files)
    bench.agent.registry = deaf
    first = bench.agent.once()
    assert (len(first.timed), first.sent, first.waiting) == (2, 0, 2)
    assert first.exit_code == 1
    deaf.deaf = False
    second = bench.agent.once()
    assert (second.timed, second.sent, second.waiting) == ([], 2, 0)
    assert second.exit_code == 0
    assert len(bench.timed) == 2
    assert {r.architecture for r in deaf.results.values()} == {"a", "b"}


def test_what_waits_is_not_timed_again_while_the_server_takes_nothing(bench: Bench) -> None:
    bench.shelf.add(bench.file("a"), "A")
    bench.agent.registry = DeafRegistry(bench.shelf.registry.versions, bench.shelf.registry.files)
    bench.agent.once()
    bench.agent.once()
    assert len(bench.timed) == 1


def test_a_stop_ends_the_pass_and_keeps_what_is_done(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.shelf.add(bench.file(name), name, graph=name)

    def stop_at_b(model: Path, *rest: Any) -> Timing:
        if model.read_bytes() == b"b":
            bench.agent.stopping.set()
            raise Stopped
        return bench.pretend(model, *rest)

    bench.agent.time_model = stop_at_b
    summary = bench.agent.once()
    assert summary.stopped
    assert [r.architecture for r in bench.results] == ["a"]


def test_two_agents_do_not_share_a_state_folder(tmp_path: Path) -> None:
    with only_one(tmp_path):
        with pytest.raises(AgentError, match="another jetson-agent"), only_one(tmp_path):
            pass
    with only_one(tmp_path):
        pass
