"""The training loop: epochs of steps and validation, of one network or of several heads at once.

Several networks train together when they have one frozen encoder: each batch is made once and goes
through the encoder once, and then each of them takes its own step, as it would alone. What one of
them raises ends that one; what data or encoder raise ends all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from sharedenc.data.batch import Batch
from sharedenc.spec import Numerics
from sharedenc.training.job import TrialStoppedError
from sharedenc.training.learner import Learner
from sharedenc.training.numerics import encode
from sharedenc.training.prefetch import on_device

Validate = Callable[[Sequence[Learner]], Sequence[Mapping[str, float] | Exception]]
"""Gives metrics without prefix, ``loss`` among them, or what a network's own part raised."""


class Shares:
    """Splits the time of a process among those that it passes for, so that the parts add up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def charge(self, learners: Sequence[Learner]) -> float:
        """Charge the time since the last call to these in equal parts; returns one part."""
        now = self._clock()
        part = (now - self._last) / len(learners)
        self._last = now
        for learner in learners:
            learner.spent_s += part
        return part


def fit(
    learners: Sequence[Learner],
    *,
    numerics: Numerics,
    device: str,
    batches: Callable[[int, int], Iterable[Batch]],
    validate: Validate,
    shares: Shares,
    on_end: Callable[[Sequence[Learner]], None] = lambda _: None,
    check_stop: Callable[[], None] = lambda: None,
) -> None:
    """Train until for each the recipe's epochs are done, early stopping strikes or it is cut.

    After each epoch: validation, and for each learner what `Learner.end_epoch` does. A training
    that is interrupted goes on from its last saved step, with the result it would have had, to the
    same bits. Learners that stand at different steps take part from their own step on: those that
    are behind train first.

    Args:
        learners: With one encoder, the same module; one that trains has one learner.
        batches: Gives the batches of an epoch (from 1) after the first so many.
        shares: Charges the learners for the time that is spent on them.
        on_end: Gets learners as soon as they have ended, those of one epoch together.
        check_stop: Asked before each batch; raises TrialStoppedError when all are to save and end.

    Raises:
        TrialStoppedError: as ``check_stop`` (or ``validate``) raised it; all states are saved.
        Exception: what data or encoder raised.
    """
    reported: set[int] = set()

    def report_ends() -> None:
        ended = [one for one in learners if not one.trains and id(one) not in reported]
        reported.update(map(id, ended))
        if ended:
            on_end(ended)

    try:
        report_ends()
        while training := [one for one in learners if one.trains]:
            epochs_done, skip = min(one.place for one in training)
            here = [one for one in training if one.progress.epoch == epochs_done]
            train_epoch(
                here,
                batches(epochs_done + 1, skip),
                numerics=numerics,
                device=device,
                shares=shares,
                on_failure=report_ends,
                check_stop=check_stop,
            )
            here = [one for one in here if one.trains]
            if here:
                _end_epoch(here, validate(here), shares)
            report_ends()
    except TrialStoppedError:
        for one in learners:
            if one.trains:
                with kept_apart(one):
                    one.save_if_behind()
        report_ends()
        raise


def train_epoch(
    learners: Sequence[Learner],
    batches: Iterable[Batch],
    *,
    numerics: Numerics,
    device: str,
    shares: Shares,
    on_failure: Callable[[], None] = lambda: None,
    check_stop: Callable[[], None] = lambda: None,
) -> None:
    """Take one step per batch with each learner that has come to it.

    On a CPU each is charged its own step. On a GPU a step is only queued, and the next one to read
    its losses waits for what all have queued: there a batch is charged in equal parts.

    Args:
        learners: In one epoch; the first batch is the next one of those that are furthest behind.
        on_failure: Called when a learner has raised something.
    """
    queued = torch.device(device).type != "cpu"
    for one in learners:
        one.network.train()
    before = min((one.progress.step for one in learners), default=0)
    for number, batch in enumerate(on_device(batches, device), start=before):
        check_stop()
        active = [one for one in learners if one.trains and one.progress.step == number]
        if not active:
            if not any(one.trains for one in learners):
                return
            continue
        maps = encode(active[0].network, batch.images, numerics)
        shared_s = 0.0 if queued else shares.charge(active)
        here = active
        for one in active:
            with kept_apart(one):
                one.step(maps, batch)
            if not queued:
                one.progress.train_s += shared_s + shares.charge([one])
            if not one.trains:
                if queued:
                    _charge_training(here, shares)
                    here = [other for other in active if other.trains]
                on_failure()
        if queued and here:
            _charge_training(here, shares)
        for one in active:
            if one.trains:
                with kept_apart(one):
                    one.after_step()
                shares.charge([one])
                if not one.trains:
                    on_failure()


def _charge_training(learners: Sequence[Learner], shares: Shares) -> None:
    """Charge these for what they have trained at once, in equal parts."""
    part = shares.charge(learners)
    for one in learners:
        one.progress.train_s += part


def _end_epoch(
    learners: Sequence[Learner],
    validated: Sequence[Mapping[str, float] | Exception],
    shares: Shares,
) -> None:
    validated_s = shares.charge(learners)
    for one, metrics in zip(learners, validated, strict=True):
        with kept_apart(one):
            if isinstance(metrics, Exception):
                raise metrics
            one.end_epoch(metrics, validated_s, members=len(learners))
        shares.charge([one])


@contextmanager
def kept_apart(learner: Learner) -> Iterator[None]:
    """Keep to one learner what is raised in its own part."""
    try:
        yield
    except Exception as error:
        learner.error = error
