"""Trials that train together give what they give alone, and none ends another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sharedenc.errors import DataError, SpecError
from sharedenc.models.build import build_network
from sharedenc.models.encoders import Encoder
from sharedenc.models.freeze import apply_freeze
from sharedenc.spec import TASKS, Trial
from sharedenc.tracking.memory import MemoryRun
from sharedenc.training.job import EpochReport, Outcome
from sharedenc.training.learner import Learner, Progress
from sharedenc.training.loop import Shares
from sharedenc.training.together import LOOK_S
from tests.training.trials import Bench, Stop, comparable

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

SMALL = "mobilenet_v3_large"
NO_PAGES: dict[str, Any] = {"predictions": False}
STEPS, VAL_BATCHES, TEST_BATCHES = 3, 2, 2
"""Of an epoch, a validation and a test of the tiny data at a batch size of 4."""


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Module fixtures run before the environment of a single test is set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHAREDENC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def bench(tiny_pack: PackedDataset, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tiny_pack, tmp_path)
    yield bench
    bench.tracker.close()


def group(bench: Bench, layout: str = "contiguous") -> list[Trial]:
    """Both tasks, several rates, lengths, ends and ways to step."""

    def trial(cell: str, lr: float, **more: Any) -> Trial:
        return bench.trial(f"{SMALL}/{cell}", lr=lr, memory_format=layout, **more)

    return [
        trial("share-frozen/det", 1e-3, epochs=3),
        trial("share-frozen/det", 4e-3, epochs=2, grad_clip=0.5, weight_decay=0.1),
        trial("share-frozen/seg", 1e-3, epochs=4, scheduler="cosine"),
        # So high a rate that an epoch comes out worse than the one before.
        trial("share-frozen/seg", 3.0, epochs=4, early_stop_patience=1, plateau_patience=0),
        trial("dual-frozen", 2e-3, epochs=3, alpha=2.0, beta1=0.8, top_k=50),
    ]


@dataclass
class Alone:
    """Trials that were trained one by one."""

    outcomes: list[Outcome]
    best: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, bench: Bench, trials: list[Trial]) -> Alone:
        outcomes = [bench.run(t, f"alone/{n}", **NO_PAGES)[0] for n, t in enumerate(trials)]
        return cls(outcomes, [best(outcome) for outcome in outcomes])


@pytest.fixture(scope="module")
def alone(tiny_pack: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    bench = Bench(tiny_pack, tmp_path_factory.mktemp("alone"))
    yield Alone.of(bench, group(bench))
    bench.tracker.close()


def best(outcome: Outcome) -> bytes:
    assert outcome.result is not None, outcome.traceback
    return Path(outcome.result.checkpoint).read_bytes()


def assert_same(outcome: Outcome, alone: Alone, index: int) -> None:
    """Losses, scores, history, schedule, best epoch and the network's bytes are those of alone."""
    reference = alone.outcomes[index].result
    assert outcome.state == "done", outcome.traceback
    assert outcome.result is not None
    assert reference is not None
    assert comparable(outcome.result.history) == comparable(reference.history)
    for name in ("key", "epochs", "best_epoch", "score", "val", "test", "parameters"):
        assert getattr(outcome.result, name) == getattr(reference, name), name
    assert best(outcome) == alone.best[index]


class Passes:
    """Counts the encoder's passes, in training and in scoring."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.images = 0
        self._encode = Encoder.__call__

        def counted(encoder: Encoder, x: torch.Tensor) -> Any:
            self.images += len(x)
            return self._encode(encoder, x)

        patch.setattr(Encoder, "__call__", counted)


@pytest.mark.parametrize(
    "layout", ["contiguous", pytest.param("channels_last", marks=pytest.mark.slow)]
)
def test_a_group_gives_what_each_trial_gives_alone(bench: Bench, alone: Alone, layout: str) -> None:
    trials = group(bench, layout)
    if layout != "contiguous":
        alone = Alone.of(bench, trials)
    order: list[int] = []
    outcomes, records = bench.together(
        trials, "t", on_end=lambda index, _: order.append(index), **NO_PAGES
    )
    for index, outcome in enumerate(outcomes):
        assert_same(outcome, alone, index)
    lengths = [outcome.epochs_done for outcome in outcomes]
    assert lengths[:3] == [3, 2, 4]
    assert 1 < lengths[3] < 4, "the early stop has to strike within the test's epochs"
    # Each ends when it is over, and not when the last one is.
    assert [lengths[index] for index in order] == sorted(lengths)
    ids = [record.run_id for record in records]
    for trial, record in zip(trials, records, strict=True):
        assert json.loads(record.tags["sharedenc.together"]) == ids
        assert record.tags["sharedenc.key"] == trial.key
        assert (record.status, record.tags["sharedenc.state"]) == ("FINISHED", "done")
        files = {"checkpoint/best.safetensors", "trial.json", "result.json"}
        assert set(bench.tracker.files(record.run_id)) == files
        assert set(json.loads(record.tags["sharedenc.sha256"])) == files
    rows = [bench.rows(record)["val/loss"] for record in records]
    assert rows == [list(range(1, length + 1)) for length in lengths]


def test_pictures_go_through_the_encoder_once_for_all(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [
        bench.trial(f"{SMALL}/{cell}", lr=lr, epochs=2)
        for cell in ("share-frozen/det", "share-frozen/seg")
        for lr in (1e-3, 2e-3)
    ]
    # No statistics of an earlier calibration are there.
    monkeypatch.setenv("SHAREDENC_CACHE", str(bench.folder / "cache"))
    passes = Passes(monkeypatch)
    outcomes, _ = bench.together(trials, "t", taps_budget_bytes=0, **NO_PAGES)
    assert [outcome.state for outcome in outcomes] == ["done"] * 4
    # Calibration, two epochs with their validation, one test.
    assert passes.images == 8 + 2 * (12 + 6) + 6


def test_a_group_draws_its_own_pages(bench: Bench) -> None:
    trials = [bench.trial(f"{SMALL}/share-frozen/{task}", epochs=1) for task in TASKS]
    _, records = bench.together(trials, "t")
    for trial, record in zip(trials, records, strict=True):
        assert "predictions/page.png" in bench.tracker.files(record.run_id)
        page = (bench.tracker.folder / record.run_id / "predictions/page.png").read_bytes()
        alone, single = bench.run(trial, f"alone-{trial.cell.task}")
        assert alone.state == "done"
        path = bench.tracker.folder / single.run_id / "predictions/page.png"
        assert path.read_bytes() == page
        assert single.tags["sharedenc.together"] == ""


def test_members_go_on_from_different_places(bench: Bench, alone: Alone) -> None:
    """From the start, within an epoch, before a validation, after an epoch, and from the end."""
    trials = group(bench)
    epoch = STEPS + VAL_BATCHES
    asks = {1: 3, 2: epoch + 3, 3: STEPS + 1, 4: epoch + 1}
    for index, at in asks.items():
        stopped, _ = bench.run(trials[index], f"t/{index}", stop=Stop(at, "SIGTERM"), **NO_PAGES)
        assert stopped.state == "stopped"
    names = {n: next((bench.folder / f"t/{n}").glob("state-*")).name[6:21] for n in asks}
    assert names == {
        1: "000000-00000002",
        2: "000001-00000002",
        3: "000000-00000003",
        4: "000001-00000000",
    }
    outcomes, records = bench.together(trials, "t", **NO_PAGES)
    for index, outcome in enumerate(outcomes):
        assert_same(outcome, alone, index)
    # Rows of epochs before this run was there are told too, and none is told twice.
    assert [bench.rows(record)["val/loss"] for record in records] == [
        list(range(1, outcome.epochs_done + 1)) for outcome in outcomes
    ]
    again, _ = bench.together(trials, "t", **NO_PAGES)
    for index, outcome in enumerate(again):
        assert_same(outcome, alone, index)


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(2, marks=pytest.mark.slow),
        STEPS + VAL_BATCHES + 2,
        pytest.param(STEPS + VAL_BATCHES + 4, marks=pytest.mark.slow),
    ],
)
def test_a_group_that_is_stopped_goes_on_together_or_alone(
    bench: Bench, alone: Alone, at: int
) -> None:
    trials = group(bench)
    stop = Stop(at, "preempted: node")
    outcomes, records = bench.together(trials, "t", stop=stop, **NO_PAGES)
    assert stop.asked == at
    assert {outcome.state for outcome in outcomes} == {"preempted"}
    assert {record.tags["sharedenc.reason"] for record in records} == {"preempted: node"}
    assert {record.status for record in records} == {"KILLED"}
    rest, _ = bench.together(trials[:3], "t", **NO_PAGES)
    for index, outcome in enumerate(rest):
        assert_same(outcome, alone, index)
    for index in (3, 4):
        outcome, _ = bench.run(trials[index], f"t/{index}", **NO_PAGES)
        assert_same(outcome, alone, index)


def test_a_stop_while_the_first_to_end_is_tested_saves_the_others(
    bench: Bench, alone: Alone
) -> None:
    trials = group(bench)[:2]
    # The second trial has two epochs; its test is asked for next.
    stop = Stop(2 * (STEPS + VAL_BATCHES) + 1, "SIGTERM")
    outcomes, _ = bench.together(trials, "t", stop=stop, **NO_PAGES)
    assert [(o.state, o.epochs_done) for o in outcomes] == [("stopped", 2), ("stopped", 2)]
    asked = Stop()
    rest, _ = bench.together(trials, "t", stop=asked, **NO_PAGES)
    for index, outcome in enumerate(rest):
        assert_same(outcome, alone, index)
    # One epoch of the first, and a test of each.
    assert asked.asked == STEPS + VAL_BATCHES + 2 * TEST_BATCHES


def explode(_: EpochReport) -> bool:
    raise RuntimeError("a bug of this one")


def test_a_loss_that_is_not_a_number_ends_one_only(bench: Bench, alone: Alone) -> None:
    trials = group(bench)
    trials[1:1] = [
        bench.trial(f"{SMALL}/share-frozen/seg", lr=1e30, epochs=3, memory_format="contiguous")
    ]
    ends: list[tuple[int, str]] = []
    outcomes, records = bench.together(
        trials, "t", on_end=lambda index, outcome: ends.append((index, outcome.state)), **NO_PAGES
    )
    assert ends[0] == (1, "failed")
    failed = outcomes.pop(1)
    assert (failed.kind, failed.error, failed.epochs_done) == ("code", "NonFiniteLossError", 0)
    assert failed.reason is not None
    assert f"{SMALL}/share-frozen/seg, epoch 1, step 2" in failed.reason
    assert records[1].status == "FAILED"
    assert "NonFiniteLossError" in records[1].tags["sharedenc.traceback"]
    for index, outcome in enumerate(outcomes):
        assert_same(outcome, alone, index)


def test_what_one_raises_or_is_told_ends_that_one_only(
    bench: Bench, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = group(bench)
    from sharedenc.training import member

    whole_upload: Callable[..., None] = member.upload

    def upload(job: Any, *rest: Any) -> None:
        if job.trial.key == trials[4].key:
            raise OSError(5, "Input/output error")
        whole_upload(job, *rest)

    monkeypatch.setattr(member, "upload", upload)
    on_epochs = [None, lambda report: report.epoch == 1, None, explode, None]
    outcomes, _ = bench.together(trials, "t", on_epochs, **NO_PAGES)
    assert [outcome.state for outcome in outcomes] == [
        "done",
        "stopped",
        "done",
        "failed",
        "failed",
    ]
    assert [outcome.epochs_done for outcome in outcomes] == [3, 1, 4, 1, 3]
    assert (outcomes[3].error, outcomes[3].reason) == ("RuntimeError", "a bug of this one")
    assert (outcomes[4].error, outcomes[4].kind) == ("OSError", "machine")
    assert_same(outcomes[0], alone, 0)
    assert_same(outcomes[2], alone, 2)
    monkeypatch.undo()
    # A cut or failed one goes on as if nothing had been.
    for index in (1, 3, 4):
        outcome, _ = bench.run(trials[index], f"t/{index}", **NO_PAGES)
        assert_same(outcome, alone, index)


def test_a_head_that_raises_ends_one_only(
    bench: Bench, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = group(bench)
    from sharedenc.training.member import Member

    build = Member.build

    def with_a_bug(member: Member, network: Any, **more: Any) -> None:
        """One head breaks in its fourth step, another in the second validation."""
        build(member, network, **more)
        calls = 0

        def count(head: torch.nn.Module, *_: Any) -> None:
            nonlocal calls
            calls += 1
            if head.training == in_training and calls == at:
                raise ZeroDivisionError("the head's own bug")

        breaks = {trials[0].key: (True, STEPS + VAL_BATCHES + 1)}
        breaks |= {trials[2].key: (False, 2 * STEPS + VAL_BATCHES + 1)}
        if member.job.trial.key in breaks:
            in_training, at = breaks[member.job.trial.key]
            (head,) = (h for h in (network.det_head, network.seg_head) if h is not None)
            head.register_forward_pre_hook(count)

    monkeypatch.setattr(Member, "build", with_a_bug)
    outcomes, _ = bench.together(trials, "t", **NO_PAGES)
    assert [(o.state, o.error, o.epochs_done) for o in outcomes[:3:2]] == [
        ("failed", "ZeroDivisionError", 1)
    ] * 2
    for index in (1, 3, 4):
        assert_same(outcomes[index], alone, index)
    monkeypatch.undo()
    for index in (0, 2):
        outcome, _ = bench.run(trials[index], f"t/{index}", **NO_PAGES)
        assert_same(outcome, alone, index)


def test_one_that_cannot_begin_ends_alone(bench: Bench, alone: Alone) -> None:
    trials = group(bench)
    first = bench.folder / "t/0"
    first.parent.mkdir()
    first.write_text("a file where the trial's folder should be")
    outcomes, _ = bench.together(trials[:3], "t", **NO_PAGES)
    assert (outcomes[0].state, outcomes[0].error) == ("failed", "FileExistsError")
    for index in (1, 2):
        assert_same(outcomes[index], alone, index)


def test_what_the_data_raise_ends_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from sharedenc.training import together

    whole: Callable[..., Any] = together.train_batches

    def failing(*parts: Any, epoch: int, **more: Any) -> Any:
        if epoch == 3:
            raise DataError("picture 7 is broken")
        return whole(*parts, epoch=epoch, **more)

    monkeypatch.setattr(together, "train_batches", failing)
    outcomes, records = bench.together(group(bench), "t", **NO_PAGES)
    # The second and the fourth have ended after their second epoch.
    assert [outcome.state for outcome in outcomes] == ["failed", "done", "failed", "done", "failed"]
    assert {(o.kind, o.reason, o.epochs_done) for o in outcomes[::2]} == {
        ("data", "picture 7 is broken", 2)
    }
    assert {record.status for record in records[::2]} == {"FAILED"}


def test_an_interrupt_marks_every_run_and_is_raised(bench: Bench) -> None:
    def interrupt(_: EpochReport) -> bool:
        raise KeyboardInterrupt

    trials = group(bench)[:3]
    with pytest.raises(KeyboardInterrupt):
        bench.together(trials, "t", [None, interrupt, None], **NO_PAGES)
    runs = [run for run in bench.tracker.runs("bench") if "sharedenc.key" in run.tags]
    assert {run.tags["sharedenc.state"] for run in runs} == {"stopped"}
    assert {run.tags["sharedenc.reason"] for run in runs} == {"interrupted (KeyboardInterrupt)"}


def test_trials_without_a_common_frozen_encoder_are_refused(bench: Bench) -> None:
    frozen = bench.trial(f"{SMALL}/share-frozen/det")
    for other in (
        bench.trial(f"{SMALL}/share-bias/det"),
        bench.trial("resnet18/share-frozen/det"),
        bench.trial(f"{SMALL}/share-frozen/seg", batch_size=2),
        replace(frozen, seed=1),
    ):
        with pytest.raises(SpecError, match="cannot train together"):
            bench.together([frozen, other], "t")
    with pytest.raises(SpecError, match="cannot train together"):
        bench.together([bench.trial(f"{SMALL}/baseline/det", lr=lr) for lr in (1, 2)], "t")
    with pytest.raises(SpecError, match="twice"):
        bench.together([frozen, frozen], "t")


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_large"])
def test_a_step_of_frozen_heads_draws_no_random_numbers(backbone: str) -> None:
    """Otherwise one head's step would change what its neighbours draw."""
    network = build_network(backbone, TASKS, 3, seed=0)
    apply_freeze(network.encoder, "frozen")
    network.train()
    before = torch.get_rng_state()
    outputs = network(torch.zeros(2, 3, 64, 64))
    torch.autograd.backward([output.sum() for output in outputs.values()])
    assert torch.get_rng_state().equal(before)


class Ends:
    """Notes the ends of runs whose server is away until it has been asked so many times."""

    def __init__(self, patch: pytest.MonkeyPatch, asks: int = 0) -> None:
        self.told: list[tuple[str, str, float | None]] = []
        self._asks, self._end = asks, MemoryRun.end
        patch.setattr(MemoryRun, "end", lambda run, *parts, **more: self.end(run, *parts, **more))
        patch.setattr(MemoryRun, "deliver", lambda run, wait_s: self.deliver(run, wait_s))

    def end(
        self,
        run: MemoryRun,
        state: str,
        reason: str | None = None,
        *,
        wait_s: float | None = None,
    ) -> None:
        self.told.append((state, run.run_id, wait_s))
        self._end(run, state, reason)

    def deliver(self, run: MemoryRun, wait_s: float) -> bool:
        self.told.append(("deliver", run.run_id, wait_s))
        self._asks -= 1
        return self._asks < 0


def of_lengths(bench: Bench, *epochs: int) -> list[Trial]:
    cell = f"{SMALL}/share-frozen/seg"
    return [bench.trial(cell, lr=(n + 1) * 1e-3, epochs=e) for n, e in enumerate(epochs)]


def test_nobody_waits_for_the_server_of_another_until_all_have_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = Ends(monkeypatch, asks=2)
    _, records = bench.together(of_lengths(bench, 1, 1, 2), "t", test=False, **NO_PAGES)
    first, second, last = (record.run_id for record in records)
    # The last of them ends as one that trains alone; then the others get that time, too.
    assert ends.told[:3] == [("done", first, 0.0), ("done", second, 0.0), ("done", last, None)]
    assert [run for _, run, _ in ends.told[3:]] == [first, first, first, second]
    assert [wait_s for *_, wait_s in ends.told[3:]] == [0.0, LOOK_S, LOOK_S, 0.0]


def test_what_is_told_to_stop_does_not_wait_for_a_server(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = Ends(monkeypatch, asks=1000)
    stop = Stop(STEPS + VAL_BATCHES + 2, "preempted: node", lasting=True)
    bench.together(of_lengths(bench, 1, 2, 2), "t", stop=stop, test=False, **NO_PAGES)
    assert [state for state, *_ in ends.told[:3]] == ["done", "stopped", "stopped"]
    # Each is tried once more, and none of them waits.
    assert [(state, wait_s) for state, _, wait_s in ends.told[3:]] == [("deliver", 0.0)] * 2


def test_what_an_end_takes_is_charged_to_the_one_that_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharedenc.training import together

    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    def on_end(index: int, outcome: Outcome) -> None:
        """As a worker whose driver is slow to answer."""
        nonlocal now
        now += 1e6

    monkeypatch.setattr(together, "Shares", lambda: Shares(clock))
    outcomes, _ = bench.together(of_lengths(bench, 1, 1, 2), "t", on_end=on_end, **NO_PAGES)
    seconds = [outcome.result.seconds for outcome in outcomes if outcome.result is not None]
    assert len(seconds) == 3
    assert max(seconds) < 1e4


def test_a_run_says_how_many_trained_each_epoch(bench: Bench) -> None:
    trials = of_lengths(bench, 1, 3)
    told: list[list[int]] = [[], []]

    def listener(index: int) -> Callable[[EpochReport], bool]:
        def on_epoch(report: EpochReport) -> bool:
            told[index].append(report.members)
            return False

        return on_epoch

    _, records = bench.together(trials, "t", [listener(0), listener(1)], **NO_PAGES)
    assert told == [[2], [2, 1, 1]]
    shares = [record.metrics["epoch_share"] for record in records]
    assert shares == pytest.approx([1 / 2, (1 / 2 + 1 + 1) / 3])
    assert "epoch_share" in bench.run(trials[0], "alone", **NO_PAGES)[1].metrics


def test_only_those_of_one_epoch_count_as_its_members(bench: Bench) -> None:
    """One that is an epoch further waits for the other, which trains that epoch alone."""
    trials = of_lengths(bench, 2, 3)
    first_epoch = STEPS + VAL_BATCHES
    bench.run(trials[1], "t/1", stop=Stop(first_epoch + 1, "SIGTERM"), **NO_PAGES)
    told: list[tuple[int, int]] = []

    def on_epoch(report: EpochReport) -> bool:
        told.append((report.epoch, report.members))
        return False

    bench.together(trials, "t", [on_epoch, None], **NO_PAGES)
    assert told == [(1, 1), (2, 2)]


def test_one_that_goes_on_alone_no_longer_says_that_it_trains_with_others(bench: Bench) -> None:
    trials = of_lengths(bench, 2, 3)
    stop = Stop(STEPS + VAL_BATCHES + 2, "preempted: node")
    _, records = bench.together(trials, "t", stop=stop, **NO_PAGES)
    assert json.loads(records[0].tags["sharedenc.together"]) == [r.run_id for r in records]
    outcome, record = bench.run(trials[0], "t/0", run_id=records[0].run_id, **NO_PAGES)
    assert outcome.state == "done"
    assert record.tags["sharedenc.together"] == ""
    # One epoch of two, and one alone.
    assert record.metrics["epoch_share"] == pytest.approx((1 / 2 + 1) / 2)


def test_one_that_was_saved_with_another_encoder_does_not_change_that_of_the_others(
    bench: Bench, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a calibration on another machine, which may differ in the last bit."""
    from sharedenc.training import together

    trials = group(bench)[:4]
    build = together.initial_network

    def elsewhere(*parts: Any) -> Any:
        network = build(*parts)
        statistic = next(b for n, b in network.encoder.named_buffers() if n.endswith("running_var"))
        statistic[0].nextafter_(torch.tensor(torch.inf))
        return network

    with monkeypatch.context() as patch:
        patch.setattr(together, "initial_network", elsewhere)
        # The first is in the middle, the third one has only its test left.
        bench.run(trials[0], "t/0", stop=Stop(STEPS + VAL_BATCHES + 2, "SIGTERM"), **NO_PAGES)
        bench.run(trials[2], "t/2", **NO_PAGES)
        expected = [bench.run(trials[n], f"elsewhere/{n}", **NO_PAGES)[0] for n in (0, 2)]
    outcomes, _ = bench.together(trials, "t", **NO_PAGES)
    for index in (1, 3):
        assert_same(outcomes[index], alone, index)
    for index in (0, 2):
        # Of a kind that a sweep tries again, alone.
        assert (outcomes[index].state, outcomes[index].kind) == ("failed", "machine")
        assert "another encoder" in str(outcomes[index].reason)
    # By themselves they go on with the encoder that they began with.
    for place, index in enumerate((0, 2)):
        outcome, _ = bench.run(trials[index], f"t/{index}", **NO_PAGES)
        assert outcome.state == "done"
        assert best(outcome) == best(expected[place])
        reference = expected[place].result
        assert outcome.result is not None
        assert reference is not None
        assert outcome.result.test == reference.test


def test_the_shares_of_time_add_up() -> None:
    now = 0.0
    shares = Shares(lambda: now)
    first, second, third = (Learner.__new__(Learner) for _ in range(3))
    for learner in (first, second, third):
        learner.spent_s = 0.0
    now = 6.0
    assert shares.charge([first, second, third]) == 2.0
    now = 7.0
    assert shares.charge([second]) == 1.0
    now = 8.0
    assert shares.charge([first, second]) == 0.5
    spent = [learner.spent_s for learner in (first, second, third)]
    assert spent == [2.5, 3.5, 2.0]
    assert sum(spent) == now


class FakeLearner:
    """Queues its step in a second, or fails in it; the device works for four when it is waited for.

    On a GPU that is only once the first one reads its losses, which are a step old.
    """

    def __init__(self, clock: list[float], waits_s: float = 0.0, fails_at: int = 0) -> None:
        self.network = torch.nn.Identity()
        self.progress = Progress()
        self.spent_s = 0.0
        self.error: Exception | None = None
        self._clock, self._waits_s, self._fails_at = clock, waits_s, fails_at

    @property
    def trains(self) -> bool:
        return self.error is None

    def step(self, maps: Any, batch: Any) -> None:
        self._clock[0] += 1.0 + self._waits_s
        self.progress.step += 1
        if self.progress.step == self._fails_at:
            raise ZeroDivisionError

    def after_step(self) -> None:
        """Save, which is no part of the training's speed."""
        self._clock[0] += 0.5


@pytest.fixture
def fake_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str, list[FakeLearner], list[float]], None]:
    from sharedenc.training import loop

    monkeypatch.setattr(loop, "on_device", lambda batches, device: batches)

    def run(device: str, learners: list[FakeLearner], clock: list[float]) -> None:
        def encode(*_: Any) -> dict[str, Any]:
            clock[0] += 3.0
            return {}

        monkeypatch.setattr(loop, "encode", encode)
        loop.train_epoch(
            learners,  # type: ignore[arg-type]
            [SimpleNamespace(images=None)] * 2,  # type: ignore[list-item]
            numerics=None,  # type: ignore[arg-type]
            device=device,
            shares=Shares(lambda: clock[0]),
        )

    return run


FakeSteps = Callable[[str, list[FakeLearner], list[float]], None]


def test_on_a_gpu_the_time_of_a_batch_is_charged_in_equal_parts(fake_steps: FakeSteps) -> None:
    """Steps are only queued: who waits for the device waits for the work of all."""
    clock = [0.0]
    learners = [FakeLearner(clock, 4.0), FakeLearner(clock), FakeLearner(clock)]
    fake_steps("cuda", learners, clock)
    # Of each of two batches 3 s for the encoder, 5 + 1 + 1 s for the steps.
    assert [one.progress.train_s for one in learners] == pytest.approx([20 / 3] * 3)
    assert [one.spent_s for one in learners] == pytest.approx([20 / 3 + 1.0] * 3)
    assert sum(one.spent_s for one in learners) == pytest.approx(clock[0])


def test_on_a_gpu_one_that_fails_has_its_part_of_the_batch(fake_steps: FakeSteps) -> None:
    clock = [0.0]
    learners = [FakeLearner(clock, 4.0), FakeLearner(clock, fails_at=1), FakeLearner(clock)]
    fake_steps("cuda", learners, clock)
    assert isinstance(learners[1].error, ZeroDivisionError)
    assert sum(one.spent_s for one in learners) == pytest.approx(clock[0])
    # Up to its failure 3 + 5 + 1 s for three, then 1 s for two, and 3 + 5 + 1 s for these.
    expected = [3.0 + 1 / 2 + 9 / 2, 3.0, 3.0 + 1 / 2 + 9 / 2]
    assert [one.progress.train_s for one in learners] == pytest.approx(expected)


def test_on_a_cpu_each_is_charged_its_own_step(fake_steps: FakeSteps) -> None:
    clock = [0.0]
    learners = [FakeLearner(clock, 4.0), FakeLearner(clock), FakeLearner(clock)]
    fake_steps("cpu", learners, clock)
    assert [one.progress.train_s for one in learners] == pytest.approx([12.0, 4.0, 4.0])
    assert [one.spent_s for one in learners] == pytest.approx([13.0, 5.0, 5.0])
