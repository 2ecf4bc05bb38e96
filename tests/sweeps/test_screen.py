"""The live screen as a terminal would show it, at several sizes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sharedenc.spec import BACKBONES as KNOWN
from sharedenc.spec import Cell
from sweeps.faults import Rules
from sweeps.grid_view import ASCII_MARKS, MARKS, tail, wrapped
from sweeps.mates import Mates
from sweeps.order import Machine
from sweeps.resources import GIB
from sweeps.screen import screen, search_line, share
from sweeps.state import SweepState
from tests.sweeps.shown import (
    BACKBONES,
    Clock,
    cells_of,
    finish,
    grid,
    node,
    report,
    search,
    start,
    sweep,
    whole_grid,
)

SIZES = [(80, 24), (120, 40), (200, 50)]
SEG = Cell(strategy="baseline", backbone="resnet18", task="seg")
DET = Cell(strategy="baseline", backbone="resnet18", task="det")


def shot(state: SweepState, width: int, height: int, **options: object) -> list[str]:
    """The lines that a terminal of this size shows, with the cursor on the last one."""
    console = Console(record=True, width=width, height=height, file=io.StringIO())
    drawn = screen(state, width, height - 1, **options)  # type: ignore[arg-type]
    drawn.no_wrap, drawn.overflow = True, "crop"
    console.print(drawn)
    lines = console.export_text().splitlines()
    assert len(lines) <= height - 1
    assert all(len(line) <= width for line in lines)
    return lines


def mixed() -> SweepState:
    """44 cells: some done, one failed with what needs it, one tried again, the rest waits."""
    state = sweep(grid(), cpus=4)
    for number in range(14):
        name = state.running[0].node.id
        if number == 3:
            state.end(name, {"state": "failed", "kind": "data", "reason": "no such picture"})
            start(state)
        else:
            finish(state, name, 0.2 + number / 100)
    for row in state.running:
        report(state, row.node.id, 12, 0.3)
    lost = state.running[0]
    state.end(lost.node.id, {"state": "failed", "kind": "machine", "reason": "the worker died"})
    return state


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_all_44_cells_are_on_one_screen_with_their_scores(width: int, height: int) -> None:
    state, scores = whole_grid()
    lines = shot(state, width, height)
    text = "\n".join(lines)
    for score in scores.values():
        assert text.count(f"✓{score:.3f}".replace("0.", ".")) == 1
    assert lines[0].startswith("44/44 done, 0 running, 0 waiting")
    assert "…" not in text
    # Each score stands in the row of its method, in the order of backbones and tasks.
    row = next(line for line in lines if line.startswith("swap-bias"))
    wanted = [f"{b}/swap-bias/{t}" for b in BACKBONES for t in ("det", "seg")]
    assert row.split()[1:] == [f"✓{scores[name]:.3f}".replace("0.", ".") for name in wanted]
    dual = next(line for line in lines if line.startswith("dual"))
    assert len(dual.split()) == 5


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_backbones_keep_their_whole_names(width: int, height: int) -> None:
    lines = shot(whole_grid()[0], width, height)
    at = next(i for i, line in enumerate(lines) if line.split()[:2] == ["det", "seg"])
    # At 80 columns a name may need two lines; read down the columns it is whole again.
    heads = [line for line in lines[max(at - 2, 1) : at] if line.startswith(" " * 13)]
    pair = min((width - 13) // 4, 24)
    read = [
        "".join(line[13 + i * pair : 13 + (i + 1) * pair].strip() for line in heads)
        for i in range(4)
    ]
    assert read == list(BACKBONES)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_what_runs_what_failed_and_what_waits_is_said(width: int, height: int) -> None:
    state = mixed()
    text = "\n".join(shot(state, width, height))
    for row in state.running:
        line = next(line for line in text.splitlines() if line.startswith(row.node.id))
        # 48 epochs of 2.5 s are left.
        assert line.split()[1:] == ["epoch", "12/60", "0.300", "660", "img/s", "2:00", "left"]
    failed = next(row for row in state.rows.values() if row.state == "failed")
    assert f"✗ {failed.node.id}: data: no such picture" in text
    assert f"- 2 trials skipped: needs {failed.node.id}, which failed" in text
    assert ": attempt 2 of 3 in 20 s: the worker" in text
    assert "trials wait for" in text
    assert "✗ failed" in text


def test_a_retry_counts_down_and_a_preemption_is_not_charged() -> None:
    clock = Clock()
    state = sweep([node(SEG), node(DET)], clock=clock)
    state.end(SEG.name, {"state": "failed", "kind": "machine", "reason": "lost node"})
    report(state, DET.name, 1, 0.1)
    state.end(DET.name, {"state": "preempted", "reason": "spot machine taken back"})
    clock.now += 15
    text = "\n".join(shot(state, 120, 24))
    assert f"{SEG.name}: attempt 2 of 3 in 5 s: lost node" in text
    assert f"{DET.name}: goes on in 5 s, not charged: " in text
    assert "spot machine taken back" in text
    assert "↻" in next(line for line in text.splitlines() if line.startswith("baseline"))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_who_trains_together_is_marked(width: int, height: int) -> None:
    clock = Clock()
    shares = [node(cell) for cell in cells_of(BACKBONES[:2]) if cell.name.count("share-frozen")]
    alone = node(Cell(strategy="dual", backbone="densenet121"))
    machines = [Machine(cpus=5, memory=4096 * GIB)]
    state = SweepState([*shares, alone], machines, clock=clock, mates=Mates())
    start(state)
    assert not any("together" in line for line in shot(state, width, height))
    state = SweepState(
        shares, [Machine(cpus=4, memory=4096 * GIB)], clock=clock, mates=Mates(),
        rules=Rules(max_concurrent=1),
    )  # fmt: skip
    start(state)
    marked = [line for line in shot(state, width, height) if "together 1" in line]
    assert len(marked) == 2
    assert {line.split()[0] for line in marked} == {
        f"{state.running[0].node.cell.backbone}/share-frozen/{task}" for task in ("det", "seg")
    }
    state.end(state.running[0].node.id, {"state": "done", "result": {"score": 0.5}})
    assert not any("together" in line for line in shot(state, width, height))


def test_who_is_tried_again_elsewhere_is_not_marked() -> None:
    machines = [Machine(cpus=1, memory=4096 * GIB, id=name) for name in ("m1", "m2")]
    shares = [node(cell) for cell in cells_of(BACKBONES[:1]) if cell.name.count("share-frozen")]
    state = SweepState(shares, machines[:1], clock=Clock(), mates=Mates())
    start(state)
    state.end(shares[0].id, {"state": "failed", "kind": "oom", "reason": "out of memory"})
    state.set_machines(machines)
    start(state)
    assert len(state.running) == 2
    assert not any("together" in line for line in shot(state, 120, 24))


def test_a_search_is_one_line() -> None:
    state = sweep([*search(SEG, [1e-4, 3.2e-4, 1e-3, 2e-3]), node(SEG, lr=5e-3)], cpus=4)
    names = [row.node.id for row in state.running if row.node.search]
    for name, score in zip(names, (0.2, 0.412, 0.3, 0.1), strict=False):
        report(state, name, 5, score)
    state.end(names[0], {"state": "stopped", "reason": "cut at epoch 5"})
    lines = [line for line in shot(state, 80, 24) if line.startswith("search")]
    assert len(lines) == 1
    assert lines[0].startswith("search resnet18/baseline/seg: 1/4 ended (1 cut), ")
    assert lines[0].endswith("best 0.00032 (0.412)")


def test_a_search_of_both_baselines_names_both() -> None:
    nodes = [
        node(cell, lr=rate, name=f"{cell.name} {rate}", stage="lr-search", search="one")
        for cell in (DET, SEG)
        for rate in (1e-4, 1e-3)
    ]
    state = sweep(nodes, cpus=4)
    line = search_line(list(state.rows.values()))
    assert line == "search resnet18/(baseline/det, baseline/seg): 0/4 ended, 4 running"


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (100, 30), (200, 60)])
def test_a_thousand_trials_fit_any_terminal(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"own_backbone_number_{i}" for i in range(31)]
    for name in names:
        monkeypatch.setitem(KNOWN, name, KNOWN["resnet18"])
    state = sweep(grid(names, seeds=3), cpus=40)
    assert len(state.rows) == 31 * 33
    for row in state.running:
        report(state, row.node.id, 3, 0.1)
    text = "\n".join(shot(state, width, height))
    assert "0/1023 done, 40 running, 983 waiting"[: width - 1] in text
    assert "more running" in text or "40 running" in text
    assert "more backbones" in text or text.count("share-bias ") == 3


def test_several_seeds_show_their_mean_and_how_many_are_done() -> None:
    state = sweep(grid(("resnet18",), seeds=3), cpus=2)
    name = state.running[0].node.id
    finish(state, name, 0.4)
    finish(state, next(r.node.id for r in state.running if r.node.id[:-1] == name[:-1]), 0.2)
    method = "baseline" if "baseline" in name else name.split("/")[1].split()[0]
    line = next(line for line in shot(state, 80, 24) if line.startswith(method))
    assert "▶.300 2/3" in line


def test_terminals_without_the_letters_get_plain_ones() -> None:
    text = "\n".join(shot(mixed(), 80, 24, marks=ASCII_MARKS))
    assert not set(MARKS.values()) - set(ASCII_MARKS.values()) & set(text)
    assert "x failed" in text


def test_lines_are_dealt_out_in_turn() -> None:
    assert share({"a": 1, "b": 9, "c": 3}, 7) == {"a": 1, "b": 3, "c": 3}
    assert share({"a": 2}, 9) == {"a": 2}
    assert share({"a": 2}, -3) == {"a": 0}


def test_long_names() -> None:
    assert wrapped("mobilenet_v3_large", 15) == ["mobilenet_v3_", "large"]
    assert wrapped("resnet18", 15) == ["resnet18"]
    assert wrapped("x" * 20, 15) == ["x" * 15, "x" * 5]
    assert tail("resnet18/baseline/det", 10) == "…eline/det"


def test_every_cell_of_the_helper_is_one_of_the_grid() -> None:
    assert len(list(cells_of())) == 44
