"""Calibrated batch-norm statistics: from the cache the bits that are computed, never others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sharedenc.data.packed import PackedDataset
from sharedenc.models.build import build_network
from sharedenc.models.encoders import Encoder
from sharedenc.models.weights import calibrate_batchnorm
from sharedenc.spec import Cell, Recipe, Trial, resolve_numerics
from sharedenc.training.calibrated import calibrate, calibration_key, state_digest
from sharedenc.training.initialise import initial_network
from sharedenc.training.job import TrialJob
from sharedenc.training.numerics import applied

KEY = "e" * 64


def encoder(layout: torch.memory_format = torch.contiguous_format) -> Encoder:
    part = build_network("resnet18", ("seg",), 3, seed=5).encoder
    return part.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def pictures() -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(3)
    for _ in range(2):
        yield torch.rand((2, 3, 64, 64), generator=draw)


def never() -> Iterator[Tensor]:
    raise AssertionError("the pass over the images was to be saved")


def job(pack: PackedDataset, folder: Path, cell: str = "resnet18/share-frozen/seg") -> TrialJob:
    parsed = Cell.parse(cell)
    settings = {"image_px": 64, "batch_size": 4, "calibration_images": 8, "precision": "float32"}
    recipe = Recipe.from_dict(settings)
    trial = Trial(
        cell=parsed,
        recipe=recipe,
        lr=1e-3,
        seed=0,
        data_digest=pack.digest,
        weights_digest="none",
        numerics=resolve_numerics(recipe, parsed.backbone, "cpu", "2.14"),
    )
    return TrialJob(
        trial=trial, pack=pack.root, weights="none", parent=None, work_dir=folder, device="cpu"
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kept_statistics_have_the_bits_of_computed_ones(
    tmp_path: Path, layout: torch.memory_format
) -> None:
    plain, first, second = encoder(layout), encoder(layout), encoder(layout)
    calibrate_batchnorm(plain, pictures())
    assert not calibrate(first, pictures, tmp_path, KEY)
    rng = torch.get_rng_state()
    assert calibrate(second, never, tmp_path, KEY)
    assert torch.get_rng_state().equal(rng)
    for other in (first, second):
        for name, tensor in plain.state_dict().items():
            assert other.state_dict()[name].equal(tensor), name
            assert other.state_dict()[name].stride() == tensor.stride(), name
    images = next(pictures()).contiguous(memory_format=layout)
    expected = plain.eval()(images)["high"]
    assert second.eval()(images)["high"].equal(expected)


def _changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-300] ^= 1
    path.write_bytes(bytes(data))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_changed, _cut, _emptied])
def test_a_damaged_file_is_told_and_computed_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    plain = encoder()
    calibrate_batchnorm(plain, pictures())
    calibrate(encoder(), pictures, tmp_path, KEY)
    (file,) = tmp_path.glob("*.stats")
    damage(file)
    again = encoder()
    with caplog.at_level(logging.WARNING):
        assert not calibrate(again, pictures, tmp_path, KEY)
    assert "is damaged" in caplog.text
    assert state_digest(again) == state_digest(plain)
    assert calibrate(encoder(), never, tmp_path, KEY)


def test_a_file_of_another_key_or_encoder_is_not_taken(tmp_path: Path) -> None:
    calibrate(encoder(), pictures, tmp_path, KEY)
    (file,) = tmp_path.glob("*.stats")
    other = build_network("densenet121", ("seg",), 3, seed=5).encoder
    assert not calibrate(other, pictures, tmp_path, KEY)
    file.rename(tmp_path / f"{'d' * 32}.stats")
    assert not calibrate(encoder(), pictures, tmp_path, "d" * 64)


def test_where_nothing_can_be_kept_they_are_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    plain, other = encoder(), encoder()
    calibrate_batchnorm(plain, pictures())
    assert not calibrate(other, pictures, tmp_path / "file" / "below", KEY)
    assert state_digest(other) == state_digest(plain)


def test_of_several_at_once_one_computes_and_all_have_the_same(tmp_path: Path) -> None:
    at_once = threading.Barrier(3)

    def one(part: Encoder) -> tuple[bool, str]:
        at_once.wait(60)
        # Each opens the lock for itself, as processes do.
        return calibrate(part, pictures, tmp_path, KEY), state_digest(part)

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(one, [encoder() for _ in range(3)]))
    assert sorted(read for read, _ in answers) == [False, True, True]
    assert len({digest for _, digest in answers}) == 1


def test_the_key_says_what_the_statistics_depend_on_and_nothing_else(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    trial = job(tiny_pack, tmp_path).trial
    part = encoder()
    key = calibration_key(trial, part)
    same = [
        replace(trial, lr=1e-2),
        replace(trial, recipe=replace(trial.recipe, epochs=7, alpha=2.0, flip_p=0.1)),
        replace(trial, cell=Cell.parse("resnet18/dual")),
    ]
    assert {calibration_key(other, part) for other in same} == {key}
    different = [
        replace(trial, data_digest="1" * 64),
        replace(trial, recipe=replace(trial.recipe, image_px=96)),
        replace(trial, recipe=replace(trial.recipe, batch_size=2)),
        replace(trial, recipe=replace(trial.recipe, calibration_images=4)),
        replace(trial, numerics=replace(trial.numerics, memory_format="contiguous")),
        replace(trial, numerics=replace(trial.numerics, cpu_threads=2)),
        replace(trial, components={**trial.components, "transforms": 99}),
    ]
    keys = {calibration_key(other, part) for other in different}
    keys.add(calibration_key(trial, build_network("resnet18", ("seg",), 3, seed=6).encoder))
    assert len(keys) == len(different) + 1
    assert key not in keys


def test_a_trial_starts_from_the_same_bits_with_and_without_the_cache(
    tiny_pack: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAREDENC_CACHE", str(tmp_path / "cache"))
    work = job(tiny_pack, tmp_path, "mobilenet_v3_large/dual")
    with applied(work.trial.numerics):
        computed = initial_network(work, tiny_pack)
        read = initial_network(work, tiny_pack)
    assert len(list((tmp_path / "cache" / "calibrated").glob("*.stats"))) == 1
    for name, tensor in computed.state_dict().items():
        assert read.state_dict()[name].equal(tensor), name
