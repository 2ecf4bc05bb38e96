"""One cell through the real code path, in a few steps: train, validate, save, resume, export."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sharedenc.data.packed import PackedDataset
from sharedenc.errors import CheckpointError
from sharedenc.evaluation.evaluate import evaluate_network
from sharedenc.export.onnx import ExportInfo, export_graph
from sharedenc.export.parity import TOLERANCE, natural_images
from sharedenc.models.network import Network
from sharedenc.models.plugins import load_plugin
from sharedenc.models.weights import resolve_weights
from sharedenc.selftest.jobs import release, synchronise
from sharedenc.selftest.rows import Checked, failed
from sharedenc.selftest.slices import write_slice
from sharedenc.spec import Graph, Trial
from sharedenc.tracking import MemoryTracker
from sharedenc.training.checkpoint import BEST, load_network, save_network
from sharedenc.training.initialise import initial_network, open_pack
from sharedenc.training.job import (
    EpochReport,
    OnEpoch,
    TrialJob,
    TrialResult,
    trial_tags,
)
from sharedenc.training.numerics import applied, place
from sharedenc.training.run import network_meta, run_trial

Stage = Literal["build", "train", "validate", "checkpoint", "reload", "resume", "export"]
# How far a reloaded network's loss may lie from the one that was written down, as a share: the
# processor computes the same bits again, a GPU may choose other kernels.
RELOADED = {"cpu": 0.0, "float32": 1e-3, "bfloat16": 2e-2}

UNTRAINED_TOLERANCE = 1e-2


def check_cell(
    job: TrialJob,
    *,
    steps: int = 2,
    val_images: int = 4,
    batch_size: int | None = None,
    image_px: int | None = None,
    export: bool = True,
) -> Checked:
    """Run a job's cell on its device as a sweep would, on the first pictures of its pack.

    Half of ``steps`` are the first epoch, which ends as if it had been cut; the other half are
    trained after going on from what lies on the disk. The reloaded network must give the
    validation loss that was recorded when it was saved, and its ONNX file the network's outputs.
    A swap without a parent gets one on the fly: the untrained network of its source. Whatever is
    raised becomes the row.

    Args:
        job: Its ``work_dir`` gets files of the check; remove it afterwards.
        steps: Training steps, an even number of at least 2.
        batch_size: In place of the recipe's.
        image_px: In place of the recipe's.
        export: Whether to export and compare in ONNX Runtime.
    """
    recipe = job.trial.recipe
    check = _Check(
        job,
        steps=max(1, steps // 2),
        val_images=val_images,
        batch_size=batch_size or recipe.batch_size,
        image_px=image_px or recipe.image_px,
    )
    try:
        return check.run(export)
    except Exception as error:
        return failed(job.trial.cell.name, error, check.stage)
    finally:
        release(job.device)


class _Check:
    def __init__(
        self, job: TrialJob, *, steps: int, val_images: int, batch_size: int, image_px: int
    ) -> None:
        self.wanted, self.steps, self.val_images = job, steps, val_images
        self.batch_size, self.image_px = batch_size, image_px
        # Both times follow the number of pixels.
        self.pixels = (job.trial.recipe.image_px / image_px) ** 2
        self.stage: Stage = "build"
        self.stages: dict[str, float] = {}

    def run(self, export: bool) -> Checked:
        self.job = sliced(
            self.wanted,
            train=self.steps * self.batch_size,
            val=self.val_images,
            batch_size=self.batch_size,
            image_px=self.image_px,
            epochs=2,
        )
        first = self._begin()
        val_s = self._reload(first)
        second, speed = self._go_on()
        onnx_bytes = self._export() if export else None
        return Checked(
            cell=self.wanted.trial.cell.name,
            ok=True,
            step_s=self.wanted.trial.recipe.batch_size / speed * self.pixels,
            val_s_per_image=val_s * self.pixels,
            peak_memory_bytes=max(first.peak_memory_bytes, second.peak_memory_bytes),
            stages=self.stages,
            checkpoint_bytes=Path(second.checkpoint).stat().st_size,
            onnx_bytes=onnx_bytes,
        )

    def _begin(self) -> TrialResult:
        """The first epoch, cut at its end: build, train and validate."""
        started = time.monotonic()
        told: list[tuple[float, EpochReport]] = []

        def cut(report: EpochReport) -> bool:
            told.append((time.monotonic(), report))
            self.stage = "checkpoint"
            return True

        self.job = with_parent(self.job)
        self.stage = "train"
        result = run_quietly(self.job, cut)
        at, report = told[0]
        train_s = self._images() / report.metrics["images_per_s"]
        self.stages["build"] = at - report.seconds - started
        self.stages["train"] = train_s
        self.stages["validate"] = report.seconds - train_s
        self.stages["checkpoint"] = time.monotonic() - at
        return result

    def _images(self) -> int:
        """Pictures of an epoch; a last batch of one is dropped."""
        count = len(PackedDataset.open(self.job.pack).split("train"))
        return count - 1 if count % self.batch_size == 1 and count > 1 else count

    def _reload(self, result: TrialResult) -> float:
        """Read the checkpoint, compare its validation loss; returns validation's s per image."""
        with self._timed("reload"):
            network, meta = load_network(Path(result.checkpoint))
            again = self.job.work_dir / "again.safetensors"
            save_network(network, again, meta)
            if again.read_bytes() != Path(result.checkpoint).read_bytes():
                raise CheckpointError("a reloaded checkpoint, written again, has other bytes")
            trial, device = self.job.trial, self.job.device
            pack = open_pack(self.job)
            split = pack.split("val")
            with applied(trial.numerics):
                network = place(network, trial.numerics, device)
                for _ in range(2 if device.startswith("cuda") else 1):  # the first one warms up
                    synchronise(device)
                    started = time.monotonic()
                    metrics = evaluate_network(
                        network, split, trial.recipe, pack.classes, trial.numerics, device
                    )
                    synchronise(device)
                    seconds = time.monotonic() - started
        kept, got = result.val["loss"], metrics["loss"]
        limit = RELOADED["cpu" if device == "cpu" else trial.numerics.precision]
        if not abs(got - kept) <= limit * abs(kept):
            raise CheckpointError(
                f"the reloaded checkpoint has validation loss {got!r}; the network that was saved "
                f"had {kept!r}. At most {limit:.0%} is allowed on this device."
            )
        return seconds / len(split)

    def _go_on(self) -> tuple[TrialResult, float]:
        """The second epoch, from the files of the first; returns images per second, too."""
        told: list[EpochReport] = []

        def tell(report: EpochReport) -> bool:
            told.append(report)
            return False

        with self._timed("resume"):
            result = run_quietly(self.job, tell)
        if [report.epoch for report in told] != [2] or result.epochs != 2:
            raise CheckpointError(
                f"after a stop at epoch 1 the trial went on with epochs "
                f"{[report.epoch for report in told]} instead of [2]"
            )
        return result, told[0].metrics["images_per_s"]

    def _export(self) -> int:
        """Export the network and compare in ONNX Runtime; returns the file's bytes."""
        path = self.job.work_dir / "model.onnx"
        with self._timed("export"):
            network, meta = load_network(self.job.work_dir / BEST)
            untrained = resolve_weights(self.job.weights, network.backbone).load is None
            export_checked(
                network, self.job.trial.cell.graph, path, meta, images=1, untrained=untrained
            )
        return path.stat().st_size

    @contextlib.contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        self.stage = stage
        started = time.monotonic()
        yield
        self.stages[stage] = time.monotonic() - started


def export_checked(
    network: Network,
    graph: Graph,
    path: Path,
    meta: Mapping[str, Any],
    *,
    images: int,
    untrained: bool,
) -> ExportInfo:
    """Export and compare with torch on ``images`` photo-like pictures.

    An ``untrained`` network, random but for a few steps, is settled on the pictures first. Its
    batch norms divide by what varies little, rounding errors too: its limit is wider.

    Raises:
        ExportError: as `export_graph`.
    """
    image_px = int(meta["image_px"])
    pictures = natural_images(4, image_px)
    if untrained:
        settle(network, pictures)
    return export_graph(
        network,
        graph,
        path,
        meta=meta,
        image_px=image_px,
        images=pictures[:images],
        tolerance=UNTRAINED_TOLERANCE if untrained else TOLERANCE,
    )


def settle(network: Network, images: Tensor) -> None:
    """Give batch norms the statistics of ``images`` (``[N, 3, S, S]``, normalised).

    A random network after a few steps knows too few pictures: on others its values grow from layer
    to layer, and rounding with them, so that comparing two engines would say nothing.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def sliced(
    job: TrialJob, *, train: int, val: int, batch_size: int, image_px: int, epochs: int
) -> TrialJob:
    """The job on the first pictures of its pack, without test scores and pictures.

    The slice lies in the job's ``work_dir``.
    """
    for plugin in job.plugins:
        load_plugin(Path(plugin), check=False)
    pack = write_slice(
        open_pack(job), job.work_dir / "pack", {"train": train, "val": val, "test": 1}
    )
    recipe = replace(
        job.trial.recipe,
        batch_size=batch_size,
        image_px=image_px,
        epochs=epochs,
        calibration_images=min(job.trial.recipe.calibration_images, train),
    )
    trial = replace(job.trial, recipe=recipe, data_digest=pack.digest)
    return replace(
        job,
        trial=trial,
        pack=pack.root,
        test=False,
        predictions=False,
        storage=None,
        checkpoint_every="1epochs",
        baselines={},
    )


def with_parent(job: TrialJob) -> TrialJob:
    """The job with a parent: for a swap without one, its source's network before any training."""
    trial = job.trial
    source = trial.cell.source
    if source is None or job.parent is not None:
        return job
    weights = resolve_weights(job.weights, trial.cell.backbone)
    own = replace(
        job,
        trial=replace(
            trial,
            cell=source,
            parent_key=None,
            parent_compatible=None,
            weights_digest=weights.digest,
        ),
    )
    path = job.work_dir / "parent.safetensors"
    with applied(trial.numerics):
        pack = open_pack(own)
        save_network(initial_network(own, pack), path, network_meta(own, pack))
    return replace(job, parent=path)


def run_quietly(job: TrialJob, on_epoch: OnEpoch | None = None) -> TrialResult:
    """`run_trial` into a tracker that keeps everything in memory and ``work_dir``."""
    trial: Trial = job.trial
    pack = PackedDataset.open(job.pack)
    tracker = MemoryTracker(job.work_dir / "tracked")
    study = "selftest"
    tags = trial_tags(
        trial, study=study, stage=trial.cell.strategy, data=pack.name, classes=pack.classes
    )
    run = tracker.child(study, tracker.study(study, {}), trial.cell.name, tags)
    return run_trial(job, run, on_epoch)
