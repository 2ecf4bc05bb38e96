"""The loop on a network of a few weights: resuming, cutting, failing by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharedenc.data.batch import Batch
from sharedenc.errors import CheckpointError, NonFiniteLossError
from sharedenc.spec import Numerics, Recipe
from sharedenc.training.job import EpochReport
from sharedenc.training.loop import Progress, fit, make_optimizer

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

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"seg_logits": self.classes(self.dropout(self.hidden(x).relu()))}


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


def train(
    folder: Path,
    network: Any,
    *,
    epochs: int = 10,
    losses: Mapping[int, float] | None = None,
    interrupt_in: int = 0,
    cut_after: int = 0,
    key: str = "k",
    patience: int = 25,
) -> Progress:
    epoch_now = 0

    def batches(epoch: int) -> Iterator[Batch]:
        nonlocal epoch_now
        epoch_now = epoch
        if epoch == interrupt_in:
            yield next(toy_batches(epoch))
            raise KeyboardInterrupt
        yield from toy_batches(epoch)

    def validate() -> dict[str, float]:
        if losses is not None:
            return {"loss": losses[epoch_now]}
        return {"loss": sum(float(p.detach().square().sum()) for p in network.parameters())}

    def on_epoch(report: EpochReport) -> bool:
        return report.epoch == cut_after

    return fit(
        network,
        recipe=Recipe(epochs=epochs, plateau_patience=1, early_stop_patience=patience),
        lr=0.05,
        numerics=CPU,
        device="cpu",
        name="toy/baseline/seg",
        key=key,
        batches=batches,
        validate=validate,
        keep_best=lambda: None,
        on_epoch=on_epoch,
        resume_file=folder / "last.pt",
    )


def without_speed(progress: Progress) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if name != "images_per_s"}
        for row in progress.history
    ]


@pytest.mark.parametrize("how", ["interrupted", "cut"])
def test_ten_epochs_equal_five_plus_resume_plus_five(tmp_path: Path, how: str) -> None:
    whole = make_network()
    reference = train(tmp_path / "whole", whole)
    first = make_network()
    if how == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", first, interrupt_in=6)
    else:
        assert train(tmp_path / "parts", first, cut_after=5).end == "stopped"
    torch.manual_seed(99)
    second = make_network()
    resumed = train(tmp_path / "parts", second)
    assert without_speed(resumed) == without_speed(reference)
    assert (resumed.epoch, resumed.best_epoch) == (10, reference.best_epoch)
    assert len({row["lr"] for row in reference.history}) > 1
    for name, tensor in whole.state_dict().items():
        assert tensor.equal(second.state_dict()[name]), name


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = train(tmp_path, make_network(), epochs=2)
    again = train(tmp_path, make_network(), epochs=2, interrupt_in=1)
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


def test_a_resume_file_of_another_trial_is_refused(tmp_path: Path) -> None:
    train(tmp_path, make_network(), epochs=1, key="one")
    with pytest.raises(CheckpointError, match="belongs to trial one and not to two"):
        train(tmp_path, make_network(), epochs=1, key="two")


def test_only_what_trains_is_optimised() -> None:
    network = make_network()
    network.hidden.requires_grad_(False)
    frozen = network.hidden.weight.clone()
    optimizer = make_optimizer(network, Recipe(weight_decay=0.5), 0.1)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == 36
    (batch, *_) = toy_batches(1)
    network(batch.images.float())["seg_logits"].square().mean().backward()
    optimizer.step()
    assert network.hidden.weight.equal(frozen)
