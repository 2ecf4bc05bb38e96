"""One trial from its saved state to its uploads, as one of a group that trains together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sharedenc.data.packed import PackedDataset
from sharedenc.evaluation.page import prediction_page
from sharedenc.models.build import build_network
from sharedenc.models.encoders import Encoder
from sharedenc.models.network import Network
from sharedenc.models.plugins import load_plugin
from sharedenc.storage import open_storage
from sharedenc.tracking import RunHandle
from sharedenc.training import checkpoint, memory
from sharedenc.training.device import device_name
from sharedenc.training.fusion import fusion_key
from sharedenc.training.initialise import count, open_pack
from sharedenc.training.interval import Interval
from sharedenc.training.job import (
    TOGETHER,
    EpochReport,
    OnEpoch,
    TrialJob,
    TrialResult,
    rank,
    score,
    trial_params,
)
from sharedenc.training.keeper import Keeper
from sharedenc.training.learner import Learner
from sharedenc.training.numerics import place
from sharedenc.training.record import Rows, network_meta, trial_result, upload
from sharedenc.training.software import software


class Member:
    """A trial of a group. It is begun, opened, built, trained by `fit`, and finished.

    ``epochs`` are those done, of earlier attempts too; ``fixed_bytes`` is the memory that does not
    depend on the batch, once that is known; ``built`` says that there is a ``learner``.
    """

    pack: PackedDataset
    learner: Learner

    def __init__(self, job: TrialJob, run: RunHandle, on_epoch: OnEpoch | None) -> None:
        self.job, self.run = job, run
        self.epochs = 0
        self.fixed_bytes = 0
        self.built = False
        self._on_epoch = on_epoch

    def begin(self, together: Sequence[str]) -> None:
        """Tell the run what is to be trained, where, and with which other runs.

        Args:
            together: All runs of the group, its own among them.
        """
        self.run.keep_in(self.job.work_dir)
        self.run.tags(
            {
                "sharedenc.state": "running",
                "sharedenc.reason": "",
                "sharedenc.device_name": device_name(self.job.device),
                "sharedenc.software": software(),
                # An earlier attempt may have had others.
                TOGETHER: json.dumps(list(together)) if len(together) > 1 else "",
            }
        )
        self.run.params(trial_params(self.job.trial))

    def open(self) -> None:
        """Read the state to go on from, if there is one, and open the data."""
        for plugin in self.job.plugins:
            load_plugin(Path(plugin), check=False)
        self._keeper = _keeper(self.job)
        self._state = self._keeper.load()
        if self._state is not None:
            self.epochs = self._state["epoch"]
        self.pack = open_pack(self.job)

    def build(self, network: Network, *, beside: bool = False) -> None:
        """Take a network to train, put it where its state says, and tell the run what it lacks.

        Args:
            beside: Whether others have the same encoder.

        Raises:
            OtherEncoderError: they do, and the state is of another one.
        """
        job, state = self.job, self._state
        self._parameters = count(network)
        self.fixed_bytes = memory.fixed_bytes(self._parameters)
        self._rows = Rows(self.run, self._parameters)
        if state is not None:
            self._rows.say_history(state["history"], state["said_ms"])
        meta = network_meta(job, self.pack)
        encoder_changes = fusion_key(job.trial, job.trial.parent_key) is None
        self.learner = Learner(
            network,
            name=job.trial.cell.name,
            recipe=job.trial.recipe,
            lr=job.trial.lr,
            numerics=job.trial.numerics,
            on_epoch=self._tell,
            keeper=self._keeper,
            keep_best=lambda: self._keeper.keep_best(
                network, meta, encoder_changes=encoder_changes
            ),
            state=state,
            beside=beside,
        )
        self.built = True
        self._state = None

    def load_best(self, *, beside: bool = False) -> None:
        """Publish the best network; a trial that is done goes on with it, to its test.

        Args:
            beside: Whether others that have not ended have the same encoder.

        Raises:
            OtherEncoderError: they do, and that of the best network is another one.
        """
        best = self._keeper.publish_best()
        if self.done and (self.job.test or self.job.predictions):
            tensors, _ = checkpoint.read_checkpoint(best)
            if beside:
                checkpoint.check_encoder(self.learner.network.encoder, tensors, best)
            checkpoint.load_state(self.learner.network, tensors, best)

    @property
    def done(self) -> bool:
        """Whether the training ended by itself, and was not cut."""
        return self.learner.progress.end == "done"

    def page(self) -> Sequence[Path]:
        """Draw the page of predictions, if one is wanted."""
        job = self.job
        if not (self.done and job.predictions):
            return ()
        return prediction_page(
            self.learner.network,
            self.pack.split("test"),
            job.trial.recipe,
            self.pack.classes,
            job.trial.numerics,
            job.device,
            job.work_dir / "page.png",
        )

    def finish(self, test: dict[str, float], pages: Sequence[Path]) -> TrialResult:
        """Tell the run how it went, and upload what the layout of a run asks for."""
        learner = self.learner
        result = trial_result(self.job, learner.progress, self._parameters, test, learner.spent_s)
        known = {
            "epoch_s": [seconds for seconds in learner.progress.epoch_s if seconds > 0],
            # Of what is made once for all: what a trial would take alone follows from both.
            "epoch_share": [1.0 / members for members in learner.progress.members if members > 0],
        }
        means = {name: sum(each) / len(each) for name, each in known.items() if each}
        self._rows.say_end(result, means)
        if result.state == "done":
            if self.job.keep:
                upload(self.job, self.run, result, pages)
            self._keeper.settle()
        return result

    def _tell(self, report: EpochReport) -> bool:
        cell = self.job.trial.cell
        report.metrics["score"] = score(cell, report.metrics, "val/")
        self._rows.say(report.epoch, report.metrics, report.at_ms)
        self.epochs = report.epoch
        ranked = replace(report, rank=rank(cell, report.metrics, self.job.baselines))
        return self._on_epoch is not None and self._on_epoch(ranked)


def network_on(encoder: Encoder, member: Member) -> Network:
    """The initial network of a member, with an encoder that is there already."""
    trial = member.job.trial
    classes = member.pack.classes.num_classes
    network = build_network(trial.cell.backbone, trial.cell.tasks, classes, seed=trial.seed)
    network = place(network, trial.numerics, member.job.device)
    network.encoder = encoder
    return network


def _keeper(job: TrialJob) -> Keeper:
    keeper = Keeper(
        job.work_dir,
        job.trial.key,
        every=Interval.parse(job.checkpoint_every),
        storage=None if job.storage is None else open_storage(job.storage),
    )
    if job.fresh:
        keeper.discard()
    return keeper
