"""Checkpoint and resume files: whole, damaged, foreign, interrupted."""

from __future__ import annotations

import os
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
    load_resume,
    save_network,
    save_resume,
    write_atomic,
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


def test_a_resume_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    assert load_resume(path, "k") is None
    save_resume(path, {"key": "k", "t": torch.arange(3), "history": [{"a": 0.1}]})
    state = load_resume(path, "k")
    assert state is not None
    assert state["t"].tolist() == [0, 1, 2]
    assert state["history"] == [{"a": 0.1}]


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "list"])
def test_a_damaged_resume_file_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "last.pt"
    save_resume(path, {"key": "k", "t": torch.zeros(1000)})
    if damage == "list":
        torch.save([1, 2], path)
    else:
        content = {"cut": path.read_bytes()[:-700], "garbage": b"\x80\x02spam" * 9, "empty": b""}
        path.write_bytes(content[damage])
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read.*Remove it"):
        load_resume(path, "k")


class Trap:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch trapped",)


def test_a_resume_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"key": "k", "version": 1, "trap": Trap()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError):
        load_resume(tmp_path / "last.pt", "k")
    assert not (tmp_path / "trapped").exists()


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
