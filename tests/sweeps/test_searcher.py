"""What Ray Tune says of its trials, told to the state; Tune itself is not started."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sweeps.lost import lost
from sweeps.mates import Mates
from sweeps.order import Machine
from sweeps.resources import GIB
from sweeps.searcher import BracketScheduler, GraphSearcher, Watcher
from sweeps.state import SweepState
from tests.sweeps.conftest import MakeNodes
from tests.sweeps.test_state import DONE, failed

A, B = "resnet18/share-frozen/det", "resnet18/share-frozen/seg"


@dataclass
class TuneTrial:
    """What is read of one of Tune's trials."""

    trial_id: str
    config: dict[str, Any]
    error_file: str | None = None


@dataclass
class Ends:
    """Both ends of Tune around a sweep of two frozen trials of one encoder."""

    state: SweepState
    scheduler: BracketScheduler
    searcher: GraphSearcher
    watcher: Watcher
    trials: dict[str, TuneTrial] = field(default_factory=dict)

    def start(self, trial_id: str) -> list[str]:
        config = self.searcher.suggest(trial_id)
        assert isinstance(config, dict)
        self.trials[trial_id] = TuneTrial(trial_id, config)
        return list(config["nodes"])

    def tell(self, trial_id: str, name: str, outcome: dict[str, Any]) -> dict[str, Any]:
        """A worker's last word of a trial."""
        result = {"node": name, "outcome": json.dumps(outcome)}
        self.scheduler.on_trial_result(None, self.trials[trial_id], result)
        return result

    def fail(self, trial_id: str, trace: Path) -> None:
        """The worker of a trial of Tune's is gone."""
        self.searcher.on_trial_complete(trial_id, error=True)
        self.trials[trial_id].error_file = str(trace)
        self.watcher.on_trial_error(1, list(self.trials.values()), self.trials[trial_id])

    def states(self) -> tuple[str, str]:
        return self.state.rows[A].state, self.state.rows[B].state


@pytest.fixture
def ends(make_nodes: MakeNodes) -> Ends:
    """Both have started together, and a second machine has come."""
    machine = Machine(cpus=1, memory=64 * GIB, id="n1")
    nodes = make_nodes(only=("resnet18/share-frozen/*",))
    state = SweepState(nodes, [machine], mates=Mates())
    scheduler = BracketScheduler(state, cut=lambda name: None)
    searcher = GraphSearcher(state, lambda row: {"node": row.node.id}, beat=lambda: None)
    watcher = Watcher(
        state, lambda: None, lambda text, machine: lost(text), scheduler, searcher.running
    )
    both = Ends(state, scheduler, searcher, watcher)
    assert sorted(both.start("first")) == [A, B]
    state.set_machines([machine, Machine(cpus=1, memory=64 * GIB, id="n2")])
    return both


@pytest.mark.parametrize("how", ["complete", "error"])
def test_a_member_that_is_tried_again_outlives_its_old_group(
    ends: Ends, how: str, tmp_path: Path
) -> None:
    ends.tell("first", A, failed("oom"))
    assert ends.start("second") == [A]
    assert ends.states() == ("running", "running")
    if how == "complete":
        result = ends.tell("first", B, DONE)
        ends.searcher.on_trial_complete("first", result)
        assert ends.states() == ("running", "done")
    else:
        trace = tmp_path / "error.txt"
        trace.write_text("The actor is dead because its node has died.")
        ends.fail("first", trace)
        assert ends.states() == ("running", "waiting")
    assert ends.state.rows[A].attempts == 2
    ends.searcher.on_trial_complete("second", ends.tell("second", A, DONE))
    assert ends.states()[0] == "done"


def test_those_that_run_end_with_their_worker(ends: Ends, tmp_path: Path) -> None:
    ends.tell("first", A, DONE)
    ends.fail("first", tmp_path / "nothing")
    assert ends.states() == ("done", "waiting")
    assert ends.state.rows[B].kind == "machine"


def test_nobody_is_left_running_when_a_worker_ends_without_a_word(ends: Ends) -> None:
    ends.searcher.on_trial_complete("first", None)
    assert ends.states() == ("waiting", "waiting")
    assert "without a word" in ends.state.rows[A].traceback
