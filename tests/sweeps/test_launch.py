"""Both launchers keep the contract; Ray overlaps, survives its workers and keeps quiet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.launch import Launcher, LocalLauncher, RayLauncher
from tests.contracts.launcher import LauncherContract, launch, quick
from tests.sweeps.conftest import MakeNodes


@pytest.fixture(scope="module")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One private Ray with two slots for all tests of this module."""
    owner = RayLauncher(storage=tmp_path_factory.mktemp("ray"), threads=1, cpus=2)
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

    def test_a_dead_worker_is_a_row_and_the_sweep_goes_on(
        self,
        launcher: Launcher,
        make_nodes: MakeNodes,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        dead = "resnet18/baseline/det"
        nodes = make_nodes(only=("resnet18/swap-frozen/*", "resnet18/share-frozen/seg"))
        rows = launch(launcher, nodes, tmp_path, dies=dead)
        assert (rows[dead].state, rows[dead].kind) == ("failed", "machine")
        assert "died" in rows[dead].reason
        assert rows[dead].traceback
        assert rows["resnet18/swap-frozen/seg"].state == "skipped"
        assert rows["resnet18/swap-frozen/det"].state == "done"
        assert rows["resnet18/share-frozen/seg"].result["omp"] == "1"
        assert capfd.readouterr().out == ""
