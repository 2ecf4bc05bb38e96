"""One trial from start to end: build, train, keep the best, test, record.

A trial alone is a group of one; see `sharedenc.training.together`.
"""

from __future__ import annotations

from sharedenc.tracking import RunHandle
from sharedenc.training.job import EpochReport, OnEpoch, Outcome, TrialJob, TrialResult
from sharedenc.training.member import Member
from sharedenc.training.record import network_meta
from sharedenc.training.together import Ending, run_together, train_group

__all__ = [
    "EpochReport",
    "OnEpoch",
    "Outcome",
    "TrialJob",
    "TrialResult",
    "network_meta",
    "run_and_record",
    "run_together",
    "run_trial",
]


def run_and_record(job: TrialJob, run: RunHandle, on_epoch: OnEpoch | None = None) -> Outcome:
    """Run a trial and give it a named end in ``run``, whatever is raised.

    A failure becomes tags and the Outcome, and so does a stop that was asked for. KeyboardInterrupt
    and SystemExit are raised again once the run is marked as stopped; the last saved state is on
    disk in any case.
    """
    (outcome,) = run_together([job], [run], [on_epoch])
    return outcome


def run_trial(job: TrialJob, run: RunHandle, on_epoch: OnEpoch | None = None) -> TrialResult:
    """Train one trial, test its best network, and upload what the layout of a run asks for.

    A second call with the same ``work_dir`` or ``storage`` goes on from the last saved state. Rows
    of metrics that the run has already are not sent again, and those that it lacks are.

    Raises:
        TrialStoppedError: the job's ``stop`` gave a reason; the state is saved.
        SharedencError: one of its kinds, by what went wrong.
    """
    endings: list[Ending] = []
    train_group([Member(job, run, on_epoch)], lambda _, ending: endings.append(ending))
    (ending,) = endings
    if isinstance(ending, Exception):
        raise ending
    return ending
