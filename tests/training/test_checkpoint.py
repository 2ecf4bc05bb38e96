"""Networks as files: whole, damaged, foreign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sharedenc.errors import CheckpointError
from sharedenc.models.build import build_network
from sharedenc.training.checkpoint import (
    encoder_state,
    load_network,
    network_tensors,
    save_network,
)

META: dict[str, Any] = {"backbone": "resnet18", "tasks": ["seg"], "num_classes": 4, "cell": "c"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    network = build_network("resnet18", ["seg"], 4, seed=3).to(memory_format=torch.channels_last)
    save_network(network, path, META)
    return path


def test_a_network_comes_back_with_its_meta(saved: Path) -> None:
    network, meta = load_network(saved)
    assert meta == META
    assert not network.training
    reference = build_network("resnet18", ["seg"], 4, seed=3).state_dict()
    state = network.state_dict()
    assert list(state) == list(reference)
    assert all(tensor.equal(reference[name]) for name, tensor in state.items())
    encoder = encoder_state(saved, "resnet18")
    assert set(encoder) == {n.removeprefix("encoder.") for n in state if n.startswith("encoder.")}


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "missing"])
def test_a_damaged_checkpoint_is_told(saved: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "best.safetensors"
    content = {"cut": saved.read_bytes()[:-1000], "garbage": b"\xff" * 4096, "empty": b""}
    if damage != "missing":
        path.write_bytes(content[damage])
    with pytest.raises(CheckpointError, match=r"best\.safetensors cannot be read"):
        load_network(path)


def test_foreign_files_are_told(saved: Path, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="--weights"):
        load_network(tmp_path / "plain.safetensors")
    network, _ = load_network(saved)
    for name, meta, words in (
        ("classes", META | {"num_classes": 7}, "of another network"),
        ("backbone", META | {"backbone": "resnet1"}, "Did you mean 'resnet18'"),
    ):
        save_network(network, tmp_path / name, meta)
        with pytest.raises(CheckpointError, match=words):
            load_network(tmp_path / name)
    with pytest.raises(CheckpointError, match="holds a resnet18 encoder"):
        encoder_state(saved, "densenet121")


def test_kept_tensors_do_not_follow_the_training() -> None:
    network = build_network("resnet18", ["seg"], 4, seed=3).to(memory_format=torch.channels_last)
    kept = network_tensors(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(1)
    assert all(kept[name].equal(before[name]) for name in before)
    assert all(tensor.is_contiguous() for tensor in kept.values())
