"""The loop on a network of a few weights: resuming, cutting, failing by name."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sharedenc.data.batch import Batch
from sharedenc.errors import NonFiniteLossError
from sharedenc.spec import Numerics, Recipe
from sharedenc.training import learner
from sharedenc.training.interval import Interval
from sharedenc.training.job import EpochReport, TrialStoppedError
from sharedenc.training.keeper import Keeper
from sharedenc.training.learner import Learner, Progress, make_optimizer
from sharedenc.training.loop import Shares, fit
from sharedenc.training.loss_reader import LossReader
from sharedenc.training.numerics import rng_state, set_rng_state
from sharedenc.training.state_file import read_state, write_state

CPU = Numerics(
    device="cpu",
    precision="float32",
    memory_format="contiguous",
    tf32=False,
    cpu_threads=1,
    sample_path="fast",
    torch="",
)


class Toy(nn.Module):
    """Per-pixel classes from colours, with dropout: training needs torch's random numbers."""

    tasks = ("seg",)
    det_head = None

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(3, 8, 1)
        self.dropout = nn.Dropout(0.3)
        self.classes = nn.Conv2d(8, 4, 1)

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        return {"high": self.hidden(x).relu()}

    def decode(self, maps: dict[str, Tensor], size: None) -> dict[str, Tensor]:
        return {"seg_logits": self.classes(self.dropout(maps["high"]))}


def make_network() -> Any:
    torch.manual_seed(0)
    return Toy()


def toy_batches(epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(3):
        images = torch.randint(0, 256, (2, 3, 8, 8), generator=generator, dtype=torch.uint8)
        masks = images.long().sum(dim=1).div(192, rounding_mode="floor").to(torch.uint8)
        none = [torch.zeros(0, 4)] * 2
        yield Batch(images, none, [torch.zeros(0).long()] * 2, masks, [1, 2], [(8, 8)] * 2)


@dataclass
class Stop:
    """Asks a training to stop, or breaks it off, before its n-th step or validation batch."""

    at: int = 0
    error: type[BaseException] = TrialStoppedError
    asked: int = 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked == self.at:
            raise self.error("stop")


def train(
    folder: Path,
    network: Any,
    *,
    epochs: int = 10,
    losses: Mapping[int, float] | None = None,
    stop: Stop | None = None,
    every: str = "10m",
    cut_after: int = 0,
    key: str = "k",
    patience: int = 25,
) -> Progress:
    epoch_now = 0
    stop = stop or Stop()

    def batches(epoch: int, skip: int) -> Iterator[Batch]:
        nonlocal epoch_now
        epoch_now = epoch
        yield from islice(toy_batches(epoch), skip, None)

    def validate(_: Sequence[Learner]) -> list[dict[str, float]]:
        stop()
        if losses is not None:
            return [{"loss": losses[epoch_now]}]
        return [{"loss": sum(float(p.detach().square().sum()) for p in network.parameters())}]

    def on_epoch(report: EpochReport) -> bool:
        return report.epoch == cut_after

    keeper = Keeper(folder, key, every=Interval.parse(every))
    toy = Learner(
        network,
        name="toy/baseline/seg",
        recipe=Recipe(epochs=epochs, plateau_patience=1, early_stop_patience=patience),
        lr=0.05,
        numerics=CPU,
        on_epoch=on_epoch,
        keeper=keeper,
        keep_best=lambda: keeper.keep_best(network, {}),
        state=keeper.load(),
    )
    fit(
        [toy],
        numerics=CPU,
        device="cpu",
        batches=batches,
        validate=validate,
        shares=Shares(),
        check_stop=stop,
    )
    if toy.error is not None:
        raise toy.error
    return toy.progress


def without_speed(progress: Progress) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if name != "images_per_s"}
        for row in progress.history
    ]


def assert_same_bits(first: Any, second: Any) -> None:
    for name, tensor in first.state_dict().items():
        assert tensor.equal(second.state_dict()[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Progress]:
    """Ten epochs of three steps, undisturbed: folder, network, progress."""
    network = make_network()
    folder = tmp_path_factory.mktemp("whole")
    return folder, network, train(folder, network)


def test_the_undisturbed_training_changes_its_rate(whole: tuple[Path, Any, Progress]) -> None:
    assert len({row["lr"] for row in whole[2].history}) > 1
    assert len(list(whole[0].glob("state-*"))) == 1


# Four asks to an epoch: before each of three steps, and in validation.
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 18, 20, 37, 40])
def test_stopping_at_any_step_and_going_on_gives_the_same_bits(
    tmp_path: Path, at: int, whole: tuple[Path, Any, Progress]
) -> None:
    with pytest.raises(TrialStoppedError, match="stop"):
        train(tmp_path, make_network(), stop=Stop(at))
    torch.manual_seed(99)
    network = make_network()
    rest = Stop()
    resumed = train(tmp_path, network, stop=rest)
    # Nothing that was saved is done again.
    assert rest.asked == 40 - (at - 1)
    reference = whole[2]
    assert without_speed(resumed) == without_speed(reference)
    assert (resumed.epoch, resumed.best_epoch) == (10, reference.best_epoch)
    assert_same_bits(whole[1], network)
    best = [next(folder.glob("best-*")).read_bytes() for folder in (tmp_path, whole[0])]
    assert best[0] == best[1]


# Nineteen steps are done; saved are all of them, fifteen (five epochs without the last one's
# validation), eighteen (six epochs), or none.
@pytest.mark.parametrize(
    ("every", "left"), [("1steps", 15), ("5steps", 21), ("2epochs", 16), ("10m", 40)]
)
def test_a_training_that_breaks_off_loses_what_was_not_saved_yet(
    tmp_path: Path, every: str, left: int, whole: tuple[Path, Any, Progress]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, make_network(), stop=Stop(26, KeyboardInterrupt), every=every)
    network = make_network()
    rest = Stop()
    resumed = train(tmp_path, network, stop=rest)
    assert rest.asked == left
    assert without_speed(resumed) == without_speed(whole[2])
    assert_same_bits(whole[1], network)


def test_a_training_that_is_cut_goes_on_when_it_is_asked_for_again(
    tmp_path: Path, whole: tuple[Path, Any, Progress]
) -> None:
    assert train(tmp_path, make_network(), cut_after=5).end == "stopped"
    network = make_network()
    rest = Stop()
    assert train(tmp_path, network, stop=rest).end == "done"
    assert rest.asked == 20
    assert_same_bits(whole[1], network)


def test_a_state_of_before_members_were_counted_is_taken_up(
    tmp_path: Path, whole: tuple[Path, Any, Progress]
) -> None:
    train(tmp_path, make_network(), cut_after=5)
    (path,) = tmp_path.glob("state-*")
    content = read_state(path)
    assert content.pop("members") == [1] * 5
    write_state(path, content)
    progress = train(tmp_path, make_network())
    assert progress.members == [0] * 5 + [1] * 5
    assert without_speed(progress) == without_speed(whole[2])


def test_numbers_that_a_plugin_draws_are_the_same_after_a_stop(tmp_path: Path) -> None:
    device = torch.device("cpu")
    write_state(tmp_path / "state", rng_state(device))
    state = read_state(tmp_path / "state")
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    set_rng_state(state, device)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = train(tmp_path, make_network(), epochs=2)
    again = train(tmp_path, make_network(), epochs=2, stop=Stop(1, KeyboardInterrupt))
    assert (again.end, again.history) == ("done", first.history)


def test_early_stopping_ends_the_training(tmp_path: Path) -> None:
    losses = {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.0, 5: 9.0, 6: 1.0}
    progress = train(tmp_path, make_network(), losses=losses, patience=3)
    assert (progress.epoch, progress.best_epoch, progress.end) == (5, 2, "done")


def test_a_loss_that_is_not_a_number_names_cell_epoch_step_and_task(tmp_path: Path) -> None:
    network = make_network()
    with torch.no_grad():
        network.classes.bias[0] = math.nan
    with pytest.raises(
        NonFiniteLossError,
        match=r"seg loss is nan in toy/baseline/seg, epoch 1, "
        r"step 1",
    ):
        train(tmp_path, network)
    with pytest.raises(NonFiniteLossError, match="epoch 1, validation"):
        train(tmp_path, make_network(), losses={1: math.inf})


def test_only_what_trains_is_optimised() -> None:
    network = make_network()
    network.hidden.requires_grad_(False)
    frozen = network.hidden.weight.clone()
    optimizer = make_optimizer(network, Recipe(weight_decay=0.5), 0.1, CPU)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == 36
    (batch, *_) = toy_batches(1)
    maps = network.encode(batch.images.float())
    network.decode(maps, None)["seg_logits"].square().mean().backward()
    optimizer.step()
    assert network.hidden.weight.equal(frozen)


def test_losses_that_are_read_late_are_all_read_before_anything_is_told_or_saved(
    tmp_path: Path, whole: tuple[Path, Any, Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, whose losses are read when the next step has begun."""
    monkeypatch.setattr(learner, "LossReader", partial(LossReader, late=1))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, make_network(), stop=Stop(19, KeyboardInterrupt), every="1steps")
    network = make_network()
    assert without_speed(train(tmp_path, network)) == without_speed(whole[2])
    assert_same_bits(whole[1], network)

    broken = make_network()
    with torch.no_grad():
        broken.classes.bias[0] = math.nan
    folder = tmp_path / "broken"
    with pytest.raises(NonFiniteLossError, match="epoch 1, step 1"):
        train(folder, broken, every="1steps")
    assert not list(folder.glob("state-*"))
