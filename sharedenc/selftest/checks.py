"""The checks of the self-test: each gives a row, and none of them stops the others."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sharedenc.data.packed import PackedDataset
from sharedenc.models.weights import resolve_weights
from sharedenc.selftest.child import Child, ChildDiedError
from sharedenc.selftest.counts import compare_counts
from sharedenc.selftest.jobs import job_to_dict
from sharedenc.selftest.settings import SelftestSettings
from sharedenc.spec import (
    BACKBONES,
    Cell,
    Recipe,
    Strategy,
    Trial,
    installed_torch,
    resolve_numerics,
)
from sharedenc.training.job import TrialJob

# Loss over steps falls whatever the rate, if the machinery works; without a published one: this.
USUAL_LR = 2e-4
# How far the same trial may end from itself on a GPU, whose sums have no fixed order, as a share
# of the validation loss. A processor computes the same bits.
GPU_NOISE = 0.05

Answer = dict[str, Any]


def epochs_of(steps: int) -> int:
    """Into how many epochs the steps of a training are divided."""
    return min(5, steps)


class CheckFailedError(Exception):
    """A check's finding, in words; ``figures`` are what was measured all the same."""

    def __init__(self, reason: str, figures: Answer | None = None, **more: Any) -> None:
        super().__init__(reason)
        self.figures = figures or {}
        self.more = more


@dataclass(frozen=True)
class Item:
    """One check: its group, its name within it, and what does it."""

    group: str
    name: str
    do: Callable[[], Answer]


@dataclass
class Bench:
    """What the checks share: settings, the whole data set, its first pictures, a child."""

    settings: SelftestSettings
    pack: PackedDataset
    part: PackedDataset
    folder: Path
    child: Child
    best: dict[str, Path] = field(default_factory=dict)
    undisturbed: Answer | None = None

    @property
    def epochs(self) -> int:
        """Whole epochs of a training, the last of which is compared with the first."""
        return epochs_of(self.settings.steps)

    def items(self) -> Iterator[Item]:
        """All checks, what says most first."""
        yield Item("data", "counts", partial(compare_counts, self.pack, self.settings.data))
        first = self._small_cell()
        yield Item("resume", "kill and resume", partial(self.kill_and_resume, first))
        yield Item("sharing", "two trials at once", partial(self.two_at_once, first))
        for cell in self.cells():
            for precision in self.settings.precisions:
                train = partial(self.train, cell, precision)
                yield Item("training", f"{cell} {precision}", train)
            if cell.freeze == "none" and cell.source is None:
                yield Item("export", str(cell), partial(self.export, cell))

    def cells(self) -> list[Cell]:
        """The grid, strategy by strategy: time that runs out leaves no backbone untried."""
        quick: tuple[Strategy, ...] = ("baseline", "dual")
        order: tuple[Strategy, ...] = (*quick, "share", "swap")
        found = []
        for strategy in quick if self.settings.quick else order:
            modes = ("none",) if strategy in quick else ("frozen", "bias")
            for freeze in modes:
                for backbone in self.settings.backbones:
                    for task in (None,) if strategy == "dual" else ("det", "seg"):
                        cell = Cell(strategy=strategy, backbone=backbone, freeze=freeze, task=task)
                        if set(cell.tasks) <= set(self.part.tasks):
                            found.append(cell)
        return found

    def _small_cell(self) -> Cell:
        names = self.settings.backbones
        backbone = "mobilenet_v3_large" if "mobilenet_v3_large" in names else names[0]
        if "seg" in self.part.tasks:
            return Cell(strategy="dual", backbone=backbone)
        return Cell(strategy="baseline", backbone=backbone, task="det")

    def job(self, cell: Cell, precision: str, folder: str) -> TrialJob:
        """The job of a cell on the first pictures, in a folder of its own."""
        settings = self.settings
        recipe = Recipe(
            epochs=self.epochs,
            batch_size=settings.batch_size,
            image_px=settings.image_px,
            precision=precision,  # type: ignore[arg-type]  # Recipe refuses others
            calibration_images=min(64, len(self.part.split("train"))),
        )
        kind = "cuda" if settings.device.startswith("cuda") else "cpu"
        info = BACKBONES[cell.backbone]
        trial = Trial(
            cell=cell,
            recipe=recipe,
            lr=info.lr or USUAL_LR,
            seed=0,
            data_digest=self.part.digest,
            weights_digest=resolve_weights(settings.weights, cell.backbone).digest,
            numerics=resolve_numerics(recipe, cell.backbone, kind, installed_torch()),  # type: ignore[arg-type]
            parent_key=None if cell.source is None else "0" * 64,
        )
        return TrialJob(
            trial=trial,
            pack=self.part.root,
            weights=settings.weights,
            parent=None if cell.source is None else self.best.get(cell.source.name),
            work_dir=self.folder / folder,
            device=settings.device,
            workers=settings.workers,
            plugins=settings.plugins,
            predictions=False,
            test=False,
            checkpoint_every="1epochs",
        )

    def ask(
        self,
        child: Child,
        job: TrialJob,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> Answer:
        """Train in a child.

        Raises:
            CheckFailedError: it failed, out of memory included, or the child died.
        """
        request = {"do": "train", "cell": job.trial.cell.name, "job": job_to_dict(job)}
        return self._answer(child, request, on_event)

    def _answer(
        self,
        child: Child,
        request: Answer,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> Answer:
        try:
            answer = child.call(request, on_event, deadline_s=self.settings.deadline_s)
        except ChildDiedError as error:
            answer = error.row(str(request.get("cell"))).to_dict()
        if not answer["ok"]:
            if self.settings.device != "cpu":
                child.kill()  # an error may have left the device's context unusable
            raise CheckFailedError(
                answer["reason"],
                kind=answer["kind"],
                error=answer["error"],
                traceback=answer["traceback"],
            )
        return answer

    def train(self, cell: Cell, precision: str) -> Answer:
        """Some steps of one cell: the loss is finite (or the trial fails) and falls."""
        job = self.job(cell, precision, f"{cell.name.replace('/', '_')}_{precision}")
        try:
            result = self.ask(self.child, job)
            if cell.freeze == "none" and cell.source is None and cell.name not in self.best:
                kept = job.work_dir.with_suffix(".safetensors")
                self.best[cell.name] = Path(result["checkpoint"]).replace(kept)
        finally:
            shutil.rmtree(job.work_dir, ignore_errors=True)
        losses = [row["train/loss"] for row in result["history"]]
        speeds = [row["images_per_s"] for row in result["history"]][1:] or [result["images_per_s"]]
        figures = {
            "loss_first": losses[0],
            "loss_last": losses[-1],
            "val_loss": result["val"]["loss"],
            "images_per_s": sorted(speeds)[len(speeds) // 2],
            "peak_memory_bytes": result["peak_memory_bytes"],
            "trainable": result["parameters"]["trainable"],
        }
        if len(losses) > 1 and not losses[-1] < losses[0]:
            raise CheckFailedError(
                f"the training loss did not fall: {losses[0]:.4g} in the first epoch, "
                f"{losses[-1]:.4g} in the last of {len(losses)}",
                figures,
            )
        return figures

    def export(self, cell: Cell) -> Answer:
        """The trained network as ONNX, compared with torch in ONNX Runtime."""
        checkpoint = self.best.get(cell.name)
        if checkpoint is None:
            raise CheckFailedError("there is no trained network to export: its training failed")
        request = {
            "do": "export",
            "cell": cell.name,
            "checkpoint": str(checkpoint),
            "graph": cell.graph,
            "path": str(checkpoint.with_suffix(".onnx")),
            "untrained": self.settings.weights == "none",
        }
        answer = self._answer(self.child, request)
        return {
            "bytes": answer["bytes"],
            "relative": max(row["relative"] for row in answer["parity"].values()),
            "parity": answer["parity"],
        }

    def kill_and_resume(self, cell: Cell) -> Answer:
        """SIGKILL in the second epoch; run again, a trial ends as one that nothing happened to."""
        precision = self.settings.precisions[0]
        alone = self._alone(cell, precision)
        job = self.job(cell, precision, "killed")
        at: list[int] = []

        def kill(event: dict[str, Any]) -> None:
            at.append(event["epoch"])
            if event["epoch"] == min(2, self.epochs - 1):
                raise _KillNowError

        with Child() as victim:
            try:
                self.ask(victim, job, kill)
            except _KillNowError:
                victim.kill()
            else:
                raise CheckFailedError("the training ended before it could be killed")
        after: list[int] = []
        again = self.ask(self.child, job, lambda event: after.append(event["epoch"]))
        figures = {
            "killed_after_epoch": at[-1],
            "went_on_with_epoch": after[0] if after else None,
            **self._compare(alone, again),
        }
        if not after or after[0] == 1:
            raise CheckFailedError("the killed trial started from the beginning again", figures)
        self._require_same(figures)
        return figures

    def two_at_once(self, cell: Cell) -> Answer:
        """Two trials side by side on the device end as one alone."""
        precision = self.settings.precisions[0]
        alone = self._alone(cell, precision)
        started = time.monotonic()
        answers: dict[int, Answer] = {}
        errors: dict[int, CheckFailedError] = {}

        def run(number: int) -> None:
            with Child() as child:
                children.append(child)
                try:
                    answers[number] = self.ask(child, self.job(cell, precision, f"twin{number}"))
                except CheckFailedError as error:
                    errors[number] = error

        children: list[Child] = []
        threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in (1, 2)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            for child in children:
                child.kill()
            raise
        for error in errors.values():
            raise error
        figures = {
            "seconds_alone": alone["seconds"],
            "seconds_together": max(answer["seconds"] for answer in answers.values()),
            "seconds_with_start": time.monotonic() - started,
            "peak_memory_bytes": [answers[n]["peak_memory_bytes"] for n in (1, 2)],
            **self._compare(alone, *answers.values()),
        }
        self._require_same(figures)
        return figures

    def _alone(self, cell: Cell, precision: str) -> Answer:
        """The undisturbed trial, run once."""
        if self.undisturbed is None:
            self.undisturbed = self.ask(self.child, self.job(cell, precision, "alone"))
        return self.undisturbed

    def _compare(self, alone: Answer, *others: Answer) -> Answer:
        rows = [row["val/loss"] for row in alone["history"]]
        difference = 0.0
        for other in others:
            theirs = [row["val/loss"] for row in other["history"]]
            if len(theirs) != len(rows):
                raise CheckFailedError(f"{len(theirs)} epochs instead of {len(rows)}")
            pairs = zip(rows, theirs, strict=True)
            difference = max(difference, *(abs(a - b) / abs(a) for a, b in pairs))
        return {
            "same_bits": all(other["sha256"] == alone["sha256"] for other in others),
            "largest_difference": difference,
        }

    def _require_same(self, figures: Answer) -> None:
        if self.settings.device == "cpu":
            if not figures["same_bits"]:
                raise CheckFailedError("the best network has other bits than undisturbed", figures)
        elif figures["largest_difference"] > GPU_NOISE:
            raise CheckFailedError(
                f"validation losses differ by up to {figures['largest_difference']:.1%} from the "
                f"undisturbed trial; at most {GPU_NOISE:.0%} is rounding",
                figures,
            )


class _KillNowError(Exception):
    pass
