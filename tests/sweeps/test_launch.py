"""Both launchers keep the contract; Ray overlaps, survives its workers and keeps quiet."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedenc.errors import TrackingError
from sweeps.faults import Rules
from sweeps.launch import Launcher, LocalLauncher, RayLauncher
from sweeps.mates import Mates
from sweeps.state import SweepState
from tests.contracts.launcher import (
    LauncherContract,
    launch,
    process,
    quick,
    started,
    summary,
    together,
)
from tests.sweeps.conftest import MakeNodes


@pytest.fixture(scope="module")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One private Ray with two slots for all tests of this module."""
    owner = RayLauncher(storage=tmp_path_factory.mktemp("ray") / "tune", threads=1, cpus=2)
    owner.machines()
    yield
    owner.close()


class TestLocalLauncher(LauncherContract):
    @pytest.fixture
    def launcher(self, tmp_path: Path) -> Launcher:
        return LocalLauncher(run_trial=quick)


class TestRayLauncher(LauncherContract):
    @pytest.fixture
    def launcher(self, ray_session: None, tmp_path: Path) -> Launcher:
        return RayLauncher(storage=tmp_path / "ray", run_trial=quick)

    def test_a_swap_starts_while_another_backbones_baseline_trains(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        slow, swap = "densenet121/baseline/seg", "resnet18/swap-frozen/seg"
        nodes = make_nodes(only=(slow, swap))
        # The baseline ends only after the swap has started; a barrier between stages would hang.
        rows = launch(launcher, nodes, tmp_path, waits=slow, **{"for": swap})
        assert {name: row.state for name, row in rows.items()} == {
            slow: "done",
            "resnet18/baseline/det": "done",
            swap: "done",
        }
        assert rows[swap].started < rows[slow].ended

    @pytest.mark.slow
    def test_a_worker_that_always_dies_is_a_row_and_the_sweep_goes_on(
        self,
        launcher: Launcher,
        make_nodes: MakeNodes,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        dead = "resnet18/baseline/det"
        nodes = make_nodes(only=("resnet18/swap-frozen/*", "resnet18/share-frozen/seg"))
        rules = Rules(machine_attempts=2, backoff_s=0.01)
        rows = launch(launcher, nodes, tmp_path, rules=rules, dies=dead)
        assert (rows[dead].state, rows[dead].kind, rows[dead].attempts) == ("failed", "machine", 2)
        assert started(tmp_path, dead) == 2
        assert "died" in rows[dead].reason
        assert rows[dead].traceback
        assert rows["resnet18/swap-frozen/seg"].state == "skipped"
        assert rows["resnet18/swap-frozen/det"].state == "done"
        assert rows["resnet18/share-frozen/seg"].result["omp"] == "1"
        assert capfd.readouterr().out == ""

    @pytest.mark.slow
    def test_sigterm_saves_and_is_not_charged_and_kill_9_is(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        asked, killed = "resnet18/baseline/det", "resnet18/baseline/seg"
        signals = {asked: signal.SIGTERM, killed: signal.SIGKILL}

        def beat(state: SweepState) -> None:
            for name in [name for name in signals if state.rows[name].epoch == 2]:
                os.kill(process(tmp_path, name), signals.pop(name))

        nodes = make_nodes(only=(asked, killed))
        rows = launch(launcher, nodes, tmp_path, beat=beat, lasts=f"{asked} {killed}")
        assert signals == {}
        assert summary(rows[asked]) == ("done", "", "", 1, 1)
        assert summary(rows[killed]) == ("done", "", "", 2, 0)

    @pytest.mark.slow
    def test_a_worker_lost_with_all_its_trials_brings_each_back_alone(
        self, launcher: Launcher, make_nodes: MakeNodes, tmp_path: Path
    ) -> None:
        nodes = make_nodes(only=("resnet18/share-frozen/*",))
        names = sorted(node.id for node in nodes)
        rules = Rules(max_concurrent=1, backoff_s=0.01)
        rows = launch(launcher, nodes, tmp_path, mates=Mates(), rules=rules, dies=names[0])
        assert together(tmp_path) == [names]
        # The one that brings its process down does so alone too, to the end of its attempts.
        assert summary(rows[names[1]]) == ("done", "", "", 2, 0)
        assert (rows[names[0]].state, rows[names[0]].kind) == ("failed", "machine")
        assert rows[names[0]].attempts == 3


def test_an_error_of_ours_is_found_behind_tunes() -> None:
    from ray.tune import TuneError

    from sweeps.launch import _own

    def wrapped() -> BaseException:
        try:
            try:
                raise TrackingError("another sweep has the study")
            except TrackingError:
                raise TuneError("Traceback ...")  # noqa: B904  # as Tune does
        except TuneError as error:
            return error

    found = _own(wrapped())
    assert isinstance(found, TrackingError)
    assert str(found) == "another sweep has the study"
    assert _own(TuneError("its own")) is None
