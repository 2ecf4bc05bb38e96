"""Trials that train together in one process: one pass over the data, one pass of the encoder.

Each has its own run, state, optimiser, schedule, early stop, best network, test scores and uploads,
and gives what it would give alone, to the bit in float32 on a CPU. A trial alone is a group of one.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence

from sharedenc.data.batch import train_batches
from sharedenc.data.loaders import Loaders
from sharedenc.data.packed import PackedDataset, cache_dir
from sharedenc.errors import SpecError
from sharedenc.evaluation.evaluate import SUMMARY, evaluate_members
from sharedenc.evaluation.taps import TapCache, open_taps
from sharedenc.tracking import RunHandle
from sharedenc.tracking.run import end_wait_s
from sharedenc.training import memory
from sharedenc.training.allocator import freed_memory_kept
from sharedenc.training.fusion import fusion_key
from sharedenc.training.initialise import initial_network
from sharedenc.training.job import OnEpoch, Outcome, TrialJob, TrialResult, TrialStoppedError
from sharedenc.training.learner import Learner
from sharedenc.training.loop import Shares, fit
from sharedenc.training.member import Member, network_on
from sharedenc.training.numerics import applied, seed_everything
from sharedenc.training.record import end_run

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often what waits for a server looks whether it is to stop."""

Ending = TrialResult | Exception
OnEnding = Callable[[Member, Ending], None]


def run_together(
    jobs: Sequence[TrialJob],
    runs: Sequence[RunHandle],
    on_epochs: Sequence[OnEpoch | None],
    on_end: Callable[[int, Outcome], None] | None = None,
) -> list[Outcome]:
    """Run trials of one frozen encoder together, and give each a named end in its run.

    What a trial's own part raises (heads, losses, its state, its run) ends that one and the others
    go on; what data or encoder raise ends all, and so does a reason of any job's ``stop``. A
    trial may go on here from where it was alone, and the other way round.

    Args:
        jobs: Of equal `fusion_key`, or a single one of any kind.
        runs: Where each of them is recorded.
        on_epochs: Told of each one's epochs; True cuts that one.
        on_end: Gets the place in ``jobs`` and the outcome of each as soon as it has ended.

    Raises:
        SpecError: the trials cannot share an encoder, or one is there twice.
        KeyboardInterrupt, SystemExit: as they came; the runs that were not over are marked as
            stopped, and the last saved states are on disk.
    """
    _check_group(jobs)
    members = [Member(*parts) for parts in zip(jobs, runs, on_epochs, strict=True)]
    outcomes: dict[int, Outcome] = {}
    late = _Late(jobs)

    def record(member: Member, ending: Ending) -> None:
        index = members.index(member)
        last = len(outcomes) + 1 == len(jobs)
        outcomes[index] = end_run(
            ending,
            member.job,
            member.run,
            epochs_done=member.epochs,
            fixed_bytes=member.fixed_bytes,
            # The others would stand still for as long as this one waits for its server.
            wait_s=late.wait_s(last=last),
        )
        if not last:
            late.add(member.run, outcomes[index].state)
        if on_end is not None:
            on_end(index, outcomes[index])

    try:
        begun = []
        for member in members:
            try:
                member.begin([run.run_id for run in runs])
            except Exception as error:
                record(member, error)
            else:
                begun.append(member)
        train_group(begun, record)
        late.deliver()
    except (KeyboardInterrupt, SystemExit) as error:
        for index, run in enumerate(runs):
            if index not in outcomes:
                _end_interrupted(run, error)
        raise
    return [outcomes[index] for index in range(len(jobs))]


def _end_interrupted(run: RunHandle, error: BaseException) -> None:
    try:
        run.end("stopped", f"interrupted ({type(error).__name__})")
    except Exception as second:
        log.warning("the end of run %s could not be recorded: %s", run.run_id, second)


class _Late:
    """Runs that ended before the last one did, and what their server has not got yet.

    That is on the disk, as what a single trial has not sent; and it is sent with the same patience,
    once nobody stands still for it.
    """

    def __init__(self, jobs: Sequence[TrialJob]) -> None:
        self._stops = _stops(jobs)
        self._runs: list[tuple[RunHandle, float]] = []
        self._since = 0.0

    def wait_s(self, *, last: bool) -> float | None:
        """How long the end of a run may wait, see `RunHandle.end`; the last one as if alone."""
        if not last:
            return 0.0
        self._since = time.monotonic()
        return None

    def add(self, run: RunHandle, state: str) -> None:
        """Take note of a run that has ended in this state, and did not wait."""
        self._runs.append((run, end_wait_s("stopped" if state == "preempted" else state)))

    def deliver(self) -> None:
        """Send what is left, in the time that the last one had too; briefly after a stop."""
        for run, wait_s in self._runs:
            deadline = self._since + wait_s
            try:
                sent = run.deliver(0.0)
                while not sent and (pause_s := self._pause_s(deadline)):
                    sent = run.deliver(pause_s)
            except Exception as error:
                log.warning("run %s: what it told could not be sent: %s", run.run_id, error)

    def _pause_s(self, deadline: float) -> float:
        """How long to wait before looking again whether all are to stop; 0: no longer."""
        if any(stop() for stop in self._stops):
            return 0.0
        return min(max(deadline - time.monotonic(), 0.0), LOOK_S)


def _stops(jobs: Iterable[TrialJob]) -> list[Callable[[], str]]:
    """What stops these; a function that stops several of them is there once."""
    return list({id(job.stop): job.stop for job in jobs}.values())


def _check_group(jobs: Sequence[TrialJob]) -> None:
    if len(jobs) == 1:
        return
    trials = [job.trial for job in jobs]
    names = ", ".join(trial.cell.name for trial in trials)
    keys = {fusion_key(trial, trial.parent_key) for trial in trials}
    if len(keys) != 1 or None in keys:
        raise SpecError(
            f"{names or 'no trials'} cannot train together: that takes trials of one frozen "
            "encoder in evaluation mode, on the same pictures, with the same seed and numerics. "
            "Run them one by one."
        )
    if len({trial.key for trial in trials}) != len(trials):
        raise SpecError(f"a trial is there twice among {names}; name each once.")


def train_group(members: Sequence[Member], on_ending: OnEnding) -> None:
    """Train trials to their ends; each one's result, or what was raised, goes to ``on_ending``."""
    group = _Group(members, on_ending)
    try:
        group.run()
    except Exception as error:
        group.end_all(error)


class _Group:
    """The members that have not ended, and what they share."""

    def __init__(self, members: Sequence[Member], on_ending: OnEnding) -> None:
        self._left = list(members)
        self._on_ending = on_ending
        self._stops = _stops(member.job for member in members)
        most = max((member.job.workers for member in members), default=0)
        self._loaders = {split: Loaders(most) for split in ("train", "val", "test")}
        self._shares = Shares()

    def run(self) -> None:
        """From saved states to uploads.

        Raises:
            TrialStoppedError: a job's ``stop`` gave a reason; all states are saved.
            Exception: what the shared part raised.
        """
        if not self._left:
            return
        trial, device = self._left[0].job.trial, self._left[0].job.device
        with applied(trial.numerics), freed_memory_kept(), contextlib.ExitStack() as stack:
            seed_everything(trial.seed)
            memory.reset_peak(device)
            for member in list(self._left):
                with self._kept_apart(member):
                    member.open()
            self._build()
            if not self._left:
                return
            first = self._left[0]
            taps = None
            if any(member.learner.trains for member in self._left):
                taps = open_taps(
                    first.learner.network.encoder,
                    pack=first.pack,
                    split="val",
                    recipe=trial.recipe,
                    numerics=trial.numerics,
                    device=device,
                    budget_bytes=first.job.taps_budget_bytes,
                    folder=cache_dir(first.job.cache_dir) / "taps",
                )
            if taps is not None:
                stack.enter_context(taps)
            learners = [member.learner for member in self._left]
            self._shares.charge(learners)
            train = first.pack.split("train")
            fit(
                learners,
                numerics=trial.numerics,
                device=device,
                batches=lambda epoch, skip: train_batches(
                    train,
                    trial.recipe,
                    seed=trial.seed,
                    epoch=epoch,
                    workers=self._loaders["train"],
                    skip=skip,
                    pin=device.startswith("cuda"),
                ),
                validate=lambda those: self._validate(those, first.pack, taps),
                shares=self._shares,
                on_end=self._finish,
                check_stop=self._check_stop,
            )

    def end_all(self, error: Exception) -> None:
        """End everybody who is left with what the shared part raised."""
        for member in list(self._left):
            self._end(member, error)

    def _build(self) -> None:
        """Build one encoder, and each member's heads on it."""
        if not self._left:
            return
        members = list(self._left)
        first = members[0]
        network = initial_network(first.job, first.pack)
        for member in members:
            with self._kept_apart(member):
                own = network if member is first else network_on(network.encoder, member)
                member.build(own, beside=len(members) > 1)

    def _check_stop(self) -> None:
        for stop in self._stops:
            if reason := stop():
                raise TrialStoppedError(reason)

    def _evaluate(
        self, learners: Sequence[Learner], pack: PackedDataset, split: str, taps: TapCache | None
    ) -> list[dict[str, float] | Exception]:
        return evaluate_members(
            [learner.network for learner in learners],
            pack.split(split),
            [learner.recipe for learner in learners],
            pack.classes,
            learners[0].numerics,
            str(learners[0].device),
            workers=self._loaders[split],
            before_batch=self._check_stop,
            taps=taps,
        )

    def _validate(
        self, learners: Sequence[Learner], pack: PackedDataset, taps: TapCache | None
    ) -> list[dict[str, float] | Exception]:
        return [
            scores
            if isinstance(scores, Exception)
            else {name: scores[name] for name in SUMMARY if name in scores}
            for scores in self._evaluate(learners, pack, "val", taps)
        ]

    def _finish(self, learners: Sequence[Learner]) -> None:
        """Test, record and upload what has ended: one pass over the test pictures for all."""
        ready = []
        for member in [member for member in self._left if member.learner in learners]:
            with self._kept_apart(member):
                if member.learner.error is not None:
                    raise member.learner.error
                member.load_best(beside=len(self._left) > 1)
                ready.append(member)
            self._shares.charge([member.learner])
        tested = [member for member in ready if member.done and member.job.test]
        tests: dict[int, dict[str, float] | Exception] = {}
        if tested:
            those = [member.learner for member in tested]
            scores = self._evaluate(those, tested[0].pack, "test", None)
            tests = dict(zip(map(id, tested), scores, strict=True))
            self._shares.charge(those)
        for member in ready:
            try:
                test = tests.get(id(member), {})
                if isinstance(test, Exception):
                    raise test
                pages = member.page()
                self._shares.charge([member.learner])
                ending: Ending = member.finish(test, pages)
            except Exception as error:
                ending = error
            self._shares.charge([member.learner])
            self._end(member, ending)

    def _end(self, member: Member, ending: Ending) -> None:
        self._left.remove(member)
        self._on_ending(member, ending)
        if member.built:
            # Nobody else is to be charged for how long it took to tell that.
            self._shares.charge([member.learner])
        if isinstance(ending, Exception):
            # What its step had made would otherwise stay until all others have ended.
            traceback.clear_frames(ending.__traceback__)

    @contextlib.contextmanager
    def _kept_apart(self, member: Member) -> Iterator[None]:
        """End one member with what is raised in its own part."""
        try:
            yield
        except Exception as error:
            self._end(member, error)
