"""From versions to jobs, without any agent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jetson_agent.jobs import make_plan, read_candidates
from jetson_agent.protocol import COMPARISON
from jetson_agent.registry import ModelVersion
from tests.agent.pretending import bench_of, device
from tests.agent.publishing import Shelf


class Stock:
    """Versions whose files are never looked at."""

    def __init__(self, tmp_path: Path) -> None:
        self.shelf = Shelf()
        self.model = tmp_path / "model"
        self.model.write_text("model")

    def add(
        self,
        architecture: str,
        graph: str = "seg",
        *,
        precisions: tuple[str, ...] = ("fp32",),
        int8: str = "",
        untrained: bool = False,
    ) -> ModelVersion:
        """`int8` is the architecture of the TensorRT file with Q/DQ, if there is one."""
        files = {"model.onnx": "0f" * 32}
        architectures = {"model.onnx": architecture}
        if int8:
            files["model.int8-trt.onnx"] = "1f" * 32
            architectures["model.int8-trt.onnx"] = int8
        tags = {
            "sharedenc.precisions": json.dumps(precisions),
            "sharedenc.sha256": json.dumps(files),
            "sharedenc.architectures": json.dumps(architectures),
            "sharedenc.untrained": json.dumps(untrained),
        }
        version = self.shelf.add(self.model, architecture, graph=graph, **tags)
        if untrained:
            self.shelf.registry.versions[-1] = version = replace(
                version, model=f"{version.model}-untrained"
            )
        return version

    def candidates(self, *select: str):  # type: ignore[no-untyped-def]
        return read_candidates(self.shelf.registry.versions, select)[0]


@pytest.fixture
def stock(tmp_path: Path) -> Stock:
    return Stock(tmp_path)


def test_one_job_serves_all_trials_of_an_architecture_the_newest_version_first(
    stock: Stock,
) -> None:
    for _ in range(3):
        stock.add("A")
    plan = make_plan(stock.candidates(), bench_of(), {})
    assert [job.architecture for job in plan.jobs] == ["A"]
    assert [c.version.version for c in plan.jobs[0].parts[0].candidates] == ["3", "2", "1"]


def test_each_precision_is_timed_with_its_own_file_and_its_architecture(stock: Stock) -> None:
    stock.add("A", precisions=("fp32", "int8"), int8="A8")
    plan = make_plan(stock.candidates(), bench_of(loads=["single", "stream"]), {})
    assert [(j.precision, j.load, j.architecture, j.parts[0].file) for j in plan.jobs] == [
        ("fp32", "single", "A", "model.onnx"),
        ("int8", "single", "A8", "model.int8-trt.onnx"),
        ("fp32", "stream", "A", "model.onnx"),
        ("int8", "stream", "A8", "model.int8-trt.onnx"),
    ]


def test_what_a_sweep_waits_for_comes_first(stock: Stock) -> None:
    stock.add("trained", "seg", precisions=("fp32", "tf32"))
    stock.add("new", "det", precisions=("fp32", "tf32", "int8"), int8="new8", untrained=True)
    plan = make_plan(stock.candidates(), bench_of(loads=["stream", "single"]), {})
    order = [(j.newest.manifest.untrained, j.precision, j.load) for j in plan.jobs]
    assert order[:3] == [
        (True, "fp32", "single"),
        (True, "int8", "single"),
        (False, "fp32", "single"),
    ]
    assert len(order) == 10


def test_an_untrained_graph_and_the_trained_one_are_one_job(stock: Stock) -> None:
    stock.add("A", untrained=True)
    stock.add("A")
    [job] = make_plan(stock.candidates(), bench_of(), {}).jobs
    assert [c.manifest.untrained for c in job.parts[0].candidates] == [False, True]
    assert job.order[0] == 0


def test_precisions_that_cannot_be_timed_here_are_counted_and_nothing_else(stock: Stock) -> None:
    stock.add("A", precisions=("fp32", "fp16", "int8"))
    stock.add("B", "det", precisions=("fp32", "fp16"))
    plan = make_plan(stock.candidates(), bench_of(), {})
    # fp16: the backend has none; int8: the version has no such file.
    assert dict(plan.lacking) == {"fp16": 2, "int8": 1}
    assert [job.precision for job in plan.jobs] == ["fp32", "fp32"]


@pytest.mark.parametrize(
    ("chosen", "timed"), [(("fp32",), ["fp32"]), (("tf32",), ["tf32"]), (("fp16",), [])]
)
def test_a_choice_of_precisions_restricts_and_adds(
    stock: Stock, chosen: tuple[str, ...], timed: list[str]
) -> None:
    stock.add("A", precisions=("fp32", "int8"), int8="A8")
    plan = make_plan(stock.candidates(), bench_of(precisions=chosen), {})
    assert [job.precision for job in plan.jobs] == timed


def test_a_choice_of_models_is_by_pattern_and_an_unreadable_version_has_a_reason(
    stock: Stock,
) -> None:
    stock.add("A", "seg")
    stock.add("B", "det")
    odd = stock.add("C", "dual")
    odd = replace(odd, tags={**odd.tags, "sharedenc.protocol": "7"})
    stock.shelf.registry.versions[-1] = odd
    found, skipped = read_candidates(stock.shelf.registry.versions, ["*-d*"])
    assert [c.version.model for c in found] == ["voc20-resnet18-det"]
    assert [version.name for version, _ in skipped] == ["voc20-resnet18-dual v1"]
    assert "protocol 7" in skipped[0][1]


def test_a_key_depends_on_device_mode_runtime_and_settings(stock: Stock) -> None:
    stock.add("A")
    bench = bench_of()
    benches = [
        bench,
        replace(bench, device=device("another")),
        replace(bench, device=device(power_mode="MODE_30W")),
        replace(bench, device=device(clock_policy="floating")),
        replace(bench, settings=replace(bench.settings, runtime="2")),
        replace(bench, settings=replace(bench.settings, duration_s=77.0)),
    ]
    keys = [make_plan(stock.candidates(), b, {}).jobs[0].key for b in benches]
    assert len(set(keys)) == len(benches)
    assert make_plan(stock.candidates(), bench_of(), {}).jobs[0].key == keys[0]


def test_two_networks_are_compared_with_the_shared_one_once_all_have_figures(
    stock: Stock,
) -> None:
    for graph in ("seg", "det", "dual", "encoder"):
        stock.add(graph.upper(), graph)
    bench = bench_of()
    jobs = make_plan(stock.candidates(), bench, {}).jobs
    assert not any(job.compares for job in jobs)
    done = {job.key: "valid" for job in jobs}
    [comparison] = make_plan(stock.candidates(), bench, done).jobs
    assert comparison.compares
    assert [part.architecture for part in comparison.parts] == ["SEG", "DET", "DUAL"]
    assert comparison.newest.manifest.graph == "dual"
    assert COMPARISON == "seg+det|dual"
    done[comparison.key] = "valid"
    assert make_plan(stock.candidates(), bench, done).jobs == []


def test_nothing_is_compared_with_what_has_no_figure(stock: Stock) -> None:
    for graph in ("seg", "det", "dual"):
        stock.add(graph.upper(), graph)
    jobs = make_plan(stock.candidates(), bench_of(), {}).jobs
    done = {job.key: "valid" for job in jobs}
    done[jobs[1].key] = "unsupported"
    assert make_plan(stock.candidates(), bench_of(), done).jobs == []
