"""What a latency budget keeps, skips and waits for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jetson_agent.protocol import Seen
from sharedenc.errors import SpecError, TrackingError
from sharedenc.export.bench import BenchRow
from sharedenc.export.registered import Registered
from sharedenc.spec import Recipe
from sweeps.budget import Budget, Figure, judge
from sweeps.budget_watch import BudgetWatch, open_watch
from sweeps.order import Machine
from sweeps.resources import GIB
from sweeps.state import SweepState
from tests.sweeps.conftest import MakeNodes

ONE = Machine(cpus=1, memory=64 * GIB)
BUDGET = Budget(limit_ms=10, device="board", precision="int8", wait_s=600)
PX = 64
SHARED = {"share-frozen/det", "share-frozen/seg", "swap-frozen/det", "swap-frozen/seg", "dual"}
BASELINES = {"baseline/det", "baseline/seg"}
PAIRS = {"share-bias/det", "share-bias/seg", "swap-bias/det", "swap-bias/seg"}


def figures(**ms: float) -> dict[tuple[str, str], Figure]:
    return {("resnet18", graph): Figure(ms=value) for graph, value in ms.items()}


def decided(make_nodes: MakeNodes, found: Any, **settings: object) -> dict[str, set[str]]:
    """Cells without their backbone, by decision."""
    nodes = make_nodes(backbones=("resnet18",), **settings)
    result: dict[str, set[str]] = {}
    for name, judged in judge(nodes, found, BUDGET, PX).items():
        result.setdefault(judged.decision, set()).add(name.removeprefix("resnet18/"))
    return result


def test_two_passes_that_are_too_slow_leave_what_one_pass_serves(make_nodes: MakeNodes) -> None:
    # 6 + 5 ms are too much together; the shared network's 7 ms are not. Both baselines stay: they
    # feed the swaps whose frozen encoder serves both heads.
    found = decided(make_nodes, figures(seg=6, det=5, dual=7))
    assert found == {"keep": SHARED | BASELINES, "skip": PAIRS}


def test_without_swaps_the_slow_baselines_go_too(make_nodes: MakeNodes) -> None:
    found = decided(
        make_nodes, figures(seg=6, det=5, dual=7), strategies=("baseline", "share", "dual")
    )
    kept = {"share-frozen/det", "share-frozen/seg", "dual"}
    assert found == {
        "keep": kept,
        "skip": BASELINES | {"share-bias/det", "share-bias/seg"},
    }


def test_a_shared_network_that_is_too_slow_leaves_the_pairs(make_nodes: MakeNodes) -> None:
    found = decided(make_nodes, figures(seg=4, det=5, dual=10.5))
    assert found == {"keep": BASELINES | PAIRS, "skip": SHARED}


def test_one_slow_half_decides_before_the_other_is_known(make_nodes: MakeNodes) -> None:
    found = decided(make_nodes, figures(seg=11), freeze=("none", "bias"))
    assert found == {"skip": BASELINES | PAIRS, "unknown": {"dual"}}


def test_without_figures_everything_waits(make_nodes: MakeNodes) -> None:
    assert decided(make_nodes, {}) == {"unknown": SHARED | BASELINES | PAIRS}


def test_what_the_board_cannot_run_is_skipped_with_the_reason(make_nodes: MakeNodes) -> None:
    found = {**figures(seg=4, det=5), ("resnet18", "dual"): Figure(unsupported="node Conv_7")}
    nodes = make_nodes(backbones=("resnet18",))
    judged = judge(nodes, found, BUDGET, PX)["resnet18/dual"]
    assert (judged.decision, judged.why) == ("skip", "resnet18 dual cannot run: node Conv_7")


def test_a_missing_percentile_judges_nobody(make_nodes: MakeNodes) -> None:
    found = decided(make_nodes, figures(seg=4, det=math.nan, dual=12))
    assert found == {"keep": BASELINES | PAIRS, "skip": SHARED}


def test_one_half_that_is_too_slow_needs_no_figure_of_the_other(make_nodes: MakeNodes) -> None:
    found = decided(make_nodes, figures(seg=11, det=math.nan, dual=7), freeze=("none", "bias"))
    assert found == {"keep": {"dual"}, "skip": BASELINES | PAIRS}


def test_other_image_sizes_are_not_judged(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(backbones=("resnet18",), recipe=Recipe(epochs=2, batch_size=2, image_px=96))
    judged = judge(nodes, figures(seg=60, det=50, dual=70), BUDGET, PX)
    assert {one.decision for one in judged.values()} == {"keep"}


def test_a_search_goes_with_the_last_cell_that_needs_it(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(
        backbones=("resnet18",), strategies=("share", "dual"), lr_search="cell", search_trials=2
    )
    judged = judge(nodes, figures(seg=6, det=5, dual=7), BUDGET, PX)
    for node in nodes:
        expected = "skip" if node.cell.freeze == "bias" else "keep"
        assert judged[node.id].decision == expected, node.id
    assert any(node.search for node in nodes)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"limit_ms": 0.0}, "--latency-budget-ms 0"),
        ({"limit_ms": math.nan}, "--latency-budget-ms nan"),
        ({"device": ""}, "name it as its agent does, with --device NAME"),
        ({"precision": "int9"}, "int9"),
        ({"stat": "p42"}, "p42"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        replace(BUDGET, **settings)


# The watch, on a server that is a list.

ARCHITECTURES = {
    ("resnet18", graph): frozenset({f"{graph}-trt", f"{graph}-cpu"})
    for graph in ("seg", "det", "dual")
}


def bench_row(graph: str, p99: float | None, **more: Any) -> BenchRow:
    values: dict[str, Any] = {
        "run_id": "r",
        "key": "k",
        "device": "board",
        "architecture": f"{graph}-trt",
        "precision": "int8",
        "load": "single",
        "mode": "MAXN-pinned",
        "backend": "tensorrt",
        "runtime": "10.3.0",
        "verdict": "valid",
        "reasons": "",
        "stale": False,
        "metrics": {} if p99 is None else {"latency_ms/p99": p99},
        "ended_ms": 1,
    }
    return BenchRow(**{**values, **more})


class Server:
    """Answers what a test puts in."""

    def __init__(self) -> None:
        self.found: list[BenchRow] = []
        self.agents = [Seen(agent="a", at=1000.0)]
        self.away = False
        self.asked = 0

    def rows(self, device: str) -> list[BenchRow]:
        assert device == "board"
        self.asked += 1
        if self.away:
            raise TrackingError("it is away")
        return self.found

    def seen(self, device: str) -> list[Seen]:
        return self.agents


class Watched:
    def __init__(self, make_nodes: MakeNodes) -> None:
        nodes = make_nodes(backbones=("resnet18",))
        self.state = SweepState(nodes, [ONE])
        self.server = Server()
        self.time = 0.0
        self.notes: list[str] = []
        self.watch = BudgetWatch(
            budget=BUDGET,
            timings=self.server,
            nodes=nodes,
            architectures=ARCHITECTURES,
            image_px=PX,
            note=self.notes.append,
            clock=lambda: self.time,
            now=lambda: 1000.0 + self.time,
        )
        self.state.begin()

    def later(self, seconds: float = 10.0) -> None:
        self.time += seconds
        self.watch.beat(self.state)

    def names(self, state: str) -> set[str]:
        return {
            name.removeprefix("resnet18/")
            for name, row in self.state.rows.items()
            if row.state == state
        }


@pytest.fixture
def watched(make_nodes: MakeNodes) -> Watched:
    return Watched(make_nodes)


def test_undecided_trials_wait_and_are_decided_one_by_one(watched: Watched) -> None:
    watched.watch.beat(watched.state)
    assert watched.state.next() is None
    assert not watched.state.finished
    assert "timing of one shared resnet18 on board" in watched.state.waiting_for("resnet18/dual")
    watched.server.found = [bench_row("dual", 7.0)]
    watched.later()
    first = watched.state.next()
    assert first is not None
    # The shared network is fast enough: the longest of the chains that it keeps goes first.
    assert first.node.cell.strategy in ("baseline", "dual")
    assert watched.names("skipped") == set()
    watched.server.found += [bench_row("seg", 6.0), bench_row("det", 5.0)]
    watched.later()
    assert watched.names("skipped") == PAIRS
    reason = watched.state.rows["resnet18/share-bias/seg"].reason
    expected = "two separate resnet18 take 11 ms of 10 ms (p99 of single, int8, on board)"
    assert reason == expected
    asked = watched.server.asked
    watched.later()
    assert watched.server.asked == asked  # all is decided: nobody is asked any more


def test_a_budget_is_judged_by_newest_fresh_figures_of_one_mode(watched: Watched) -> None:
    found = watched.watch.figures(
        [
            bench_row("dual", 20.0, mode="MODE_15W-pinned"),
            bench_row("dual", 7.0),
            bench_row("dual", 30.0, stale=True),
            bench_row("dual", 31.0, load="stream"),
            bench_row("dual", 32.0, precision="fp32"),
            bench_row("dual", None, verdict="failed"),
            bench_row("seg", 4.0, mode="MODE_15W-pinned"),
            bench_row("det", 5.0, architecture="somebody's"),
        ]
    )
    assert found == {("resnet18", "dual"): Figure(ms=7.0)}


def test_an_unsupported_engine_serves_nobody_and_doubts_are_marked(watched: Watched) -> None:
    found = watched.watch.figures(
        [
            bench_row("dual", None, verdict="unsupported", reasons="node X has no INT8 kernel"),
            bench_row("det", None, verdict="wrong", reasons="cosine 0.2"),
            bench_row("seg", 3.0, verdict="suspect"),
        ]
    )
    assert found["resnet18", "dual"].unsupported == "int8 on board: node X has no INT8 kernel"
    wrong = found["resnet18", "det"]  # of random weights: what is trained may be right
    assert (wrong.unsupported, wrong.mark, math.isnan(wrong.ms)) == ("", "wrong", True)
    assert found["resnet18", "seg"] == Figure(ms=3.0, mark="suspect")


def test_a_job_that_failed_is_not_waited_for_and_judges_nobody(watched: Watched) -> None:
    watched.server.found = [
        bench_row("dual", None, verdict="failed", reasons="trtexec crashed three times"),
        bench_row("seg", 3.0),
        bench_row("det", 4.0),
    ]
    watched.watch.beat(watched.state)
    assert watched.state.next() is not None
    assert watched.names("skipped") == set()
    assert watched.state.waiting_for("resnet18/dual").startswith("room on a machine")
    assert watched.notes == [
        "latency budget: resnet18 dual is not judged: failed: trtexec crashed three times"
    ]
    # Another attempt that brought a figure counts, whichever came first.
    failed, timed = bench_row("dual", None, verdict="failed"), bench_row("dual", 12.0)
    for rows in ([failed, timed], [timed, failed]):
        assert watched.watch.figures(rows) == {("resnet18", "dual"): Figure(ms=12.0)}


def test_graphs_that_the_data_has_no_task_for_are_not_waited_for(
    make_nodes: MakeNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*_given: object, **_more: object) -> list[Registered]:
        files = {"model.onnx": "a", "model.int8-trt.onnx": "b"}
        row = Registered(cell="untrained", graph="seg", outcome="present", architectures=files)
        return [row]

    monkeypatch.setattr("sharedenc.export.untrained.export_untrained", export)
    monkeypatch.setattr("sharedenc.data.packed.PackedDataset.open", lambda root: None)
    monkeypatch.setattr("sharedenc.export.bench.Bench", lambda uri: Server())
    nodes = [n for n in make_nodes(backbones=("resnet18",)) if n.id == "resnet18/baseline/seg"]
    notes: list[str] = []
    watch = open_watch(
        BUDGET,
        nodes,
        nodes,
        uri="",
        study="s",
        pack=Path(),
        recipe=Recipe(image_px=PX),
        note=notes.append,
    )
    assert watch.architectures == {("resnet18", "seg"): frozenset({"b"})}
    assert set(watch.missing) == {("resnet18", "det"), ("resnet18", "dual")}
    assert any("resnet18 det is not judged: the data has not all" in note for note in notes)
    state = SweepState(nodes, [ONE])
    state.begin()
    watch.beat(state)
    assert state.next() is not None


def test_without_any_agent_the_sweep_says_so_and_goes_on(watched: Watched) -> None:
    watched.server.agents = []
    watched.watch.beat(watched.state)
    assert watched.state.next() is not None
    (note,) = watched.notes
    assert "no agent of device board has ever answered" in note
    assert "11 trials go on without it" in note


def test_an_agent_that_falls_silent_is_not_waited_for(watched: Watched) -> None:
    watched.watch.beat(watched.state)
    watched.server.agents = [Seen(agent="a", at=1000.0 - 3600)]
    watched.later()
    assert watched.state.next() is not None
    assert "silent for 60 min" in watched.notes[-1]


def test_figures_are_waited_for_only_so_long(watched: Watched) -> None:
    watched.watch.beat(watched.state)
    watched.server.found = [bench_row("dual", 12.0)]
    watched.later(601)
    # What is known by then still counts.
    assert watched.names("skipped") == SHARED
    assert watched.state.next() is not None
    assert "board has not timed everything within 600 s" in watched.notes[-1]


def test_a_server_that_is_away_is_asked_again(watched: Watched) -> None:
    watched.server.away = True
    watched.watch.beat(watched.state)
    assert watched.state.next() is None
    watched.server.away = False
    watched.server.found = [bench_row(graph, 3.0) for graph in ("dual", "seg", "det")]
    watched.later()
    assert watched.state.next() is not None
    assert watched.names("skipped") == set()
