"""Trials on a dozen small pictures, alone and together, into a tracker in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedenc.spec import Cell, Recipe, Trial, resolve_numerics
from sharedenc.tracking import MemoryTracker, RunHandle, RunRecord
from sharedenc.training.job import OnEpoch, trial_tags
from sharedenc.training.run import Outcome, TrialJob, run_and_record, run_together

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

SETTINGS: dict[str, Any] = {
    "image_px": 64,
    "batch_size": 4,
    "calibration_images": 8,
    "precision": "float32",
}


class Bench:
    """Runs trials on one pack into one memory tracker."""

    def __init__(self, pack: PackedDataset, folder: Path) -> None:
        self.pack, self.folder = pack, folder
        self.tracker = MemoryTracker(folder / "artifacts")
        self.parent = self.tracker.study("bench", {})

    def trial(self, cell: str, lr: float = 1e-3, parent: str | None = None, **more: Any) -> Trial:
        parsed = Cell.parse(cell)
        recipe = Recipe.from_dict(SETTINGS | more)
        return Trial(
            cell=parsed,
            recipe=recipe,
            lr=lr,
            seed=0,
            data_digest=self.pack.digest,
            weights_digest="none",
            numerics=resolve_numerics(recipe, parsed.backbone, "cpu", "2.14"),
            parent_key=parent,
        )

    def run(
        self,
        trial: Trial,
        folder: str,
        on_epoch: OnEpoch | None = None,
        parent: Path | None = None,
        run_id: str = "",
        **more: Any,
    ) -> tuple[Outcome, RunRecord]:
        run = self.start(trial, run_id)
        outcome = run_and_record(self.job(trial, folder, parent=parent, **more), run, on_epoch)
        return outcome, self.record(run.run_id)

    def together(
        self,
        trials: Sequence[Trial],
        folder: str,
        on_epochs: Sequence[OnEpoch | None] | None = None,
        on_end: Callable[[int, Outcome], None] | None = None,
        **more: Any,
    ) -> tuple[list[Outcome], list[RunRecord]]:
        """Run trials as one group; the work of the n-th is in ``<folder>/<n>``."""
        jobs = [self.job(trial, f"{folder}/{n}", **more) for n, trial in enumerate(trials)]
        runs = [self.start(trial) for trial in trials]
        outcomes = run_together(jobs, runs, on_epochs or [None] * len(jobs), on_end)
        return outcomes, [self.record(run.run_id) for run in runs]

    def job(self, trial: Trial, folder: str, **more: Any) -> TrialJob:
        values: dict[str, Any] = {"parent": None} | more
        return TrialJob(
            trial=trial,
            pack=self.pack.root,
            weights="none",
            work_dir=self.folder / folder,
            device="cpu",
            **values,
        )

    def start(self, trial: Trial, run_id: str = "") -> RunHandle:
        """A new run for a trial, or one to go on with."""
        if run_id:
            return self.tracker.resume(run_id)
        tags = trial_tags(
            trial, study="bench", stage="s", data=self.pack.name, classes=self.pack.classes
        )
        return self.tracker.child("bench", self.parent, trial.cell.name, tags)

    def rows(self, record: RunRecord) -> dict[str, list[int]]:
        """Steps of some metrics, one for each row."""
        names = ("val/loss", "score", "test/mIoU")
        return {
            name: [step for step, _ in self.tracker.history(record.run_id, name)] for name in names
        }

    def record(self, run_id: str) -> RunRecord:
        return next(r for r in self.tracker.runs("bench") if r.run_id == run_id)


@dataclass
class Stop:
    """Gives its reason at the n-th ask, and if it is a lasting one at each after that."""

    at: int = 0
    reason: str = ""
    asked: int = 0
    lasting: bool = False

    def __call__(self) -> str:
        self.asked += 1
        due = self.asked >= self.at if self.lasting else self.asked == self.at
        return self.reason if due else ""


def comparable(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "images_per_s"} for row in rows]
