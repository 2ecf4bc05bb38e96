"""Frozen maps on disk: exact, within their budget, whole or not there, whoever else is at it."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from sharedenc.evaluation import taps as module
from sharedenc.evaluation.evaluate import READ, evaluate_members, evaluate_network
from sharedenc.evaluation.tap_file import DamagedTapError, dump, is_dense, load
from sharedenc.evaluation.taps import DAMAGED, TapCache, open_taps, taps_key
from sharedenc.models.build import build_network
from sharedenc.models.encoders import ENCODERS, LEVELS, ResNet18Encoder
from sharedenc.models.freeze import apply_freeze
from sharedenc.models.network import Network
from sharedenc.spec import BACKBONES, BackboneInfo, Recipe, Task
from sharedenc.training.numerics import place
from tests.evaluation.one_thread import CPU

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

RECIPE = Recipe(image_px=96, batch_size=4)
PLENTY = 2**30
KB = torch.zeros(256)  # a kibibyte of values


def kept(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def same(left: Tensor, right: Tensor) -> bool:
    """Equal bits (NaN and -0.0 included), type, shape and layout."""
    bits = [x.contiguous().view(torch.uint8) for x in (left, right)]
    return (
        left.dtype == right.dtype
        and left.stride() == right.stride()
        and left.shape == right.shape
        and torch.equal(*bits)
    )


def tensors() -> Iterator[Tensor]:
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45, -1.5, 3.0])
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for batch in (1, 3):
            values = torch.randn(batch, 5, 4, 6).to(dtype)
            values.view(-1)[: len(odd)] = odd.to(dtype)
            yield values
            yield values.contiguous(memory_format=torch.channels_last)
            yield values.transpose(2, 3)


def test_a_tensor_comes_back_with_its_bits_type_and_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "a.tap"
    for tensor in tensors():
        assert is_dense(tensor)
        path.write_bytes(b"".join(dump(tensor, 0.25)))
        back, seconds = load(path, lambda size: torch.empty(size, dtype=torch.uint8))
        assert same(back, tensor)
        assert seconds == 0.25
        for layout in (torch.contiguous_format, torch.channels_last):
            assert back.is_contiguous(memory_format=layout) == tensor.is_contiguous(
                memory_format=layout
            )
    assert not is_dense(torch.zeros(4, 4)[:, ::2])
    assert not is_dense(torch.zeros(1, 4).expand(3, 4))


def test_every_changed_byte_and_every_missing_end_is_found(tmp_path: Path) -> None:
    whole = b"".join(dump(torch.arange(12.0).view(3, 4), 0.5))
    path = tmp_path / "a.tap"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        load(path, lambda size: torch.empty(size, dtype=torch.uint8))

    read(whole)
    for at in range(len(whole)):
        with pytest.raises(DamagedTapError, match=r"a\.tap"):
            read(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(DamagedTapError, match=r"a\.tap"):
            read(whole[:at])
    with pytest.raises(DamagedTapError, match=r"a\.tap"):
        read(whole + b"x")
    path.unlink()
    with pytest.raises(DamagedTapError, match="No such file"):
        load(path, torch.empty)


def frozen(pack: PackedDataset, tasks: tuple[Task, ...], seed: int = 0) -> Network:
    made = build_network("resnet18", tasks, pack.classes.num_classes, seed=seed)
    made.encoder.load_state_dict(
        build_network("resnet18", ("det",), 2, seed=0).encoder.state_dict()
    )
    apply_freeze(made.encoder, "frozen")
    return made


class Counting:
    """Counts passes of a network's encoder."""

    def __init__(self, network: Network) -> None:
        self.passes = 0
        network.encoder.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.passes += 1


def opened(
    network: Network, pack: PackedDataset, folder: Path, budget: int = PLENTY, **more: Any
) -> TapCache | None:
    given = {"recipe": RECIPE, "numerics": CPU, "device": "cpu"} | more
    return open_taps(
        network.encoder, pack=pack, split="val", budget_bytes=budget, folder=folder, **given
    )


def scores(
    network: Network, pack: PackedDataset, taps: TapCache | None, numerics: Any = CPU
) -> Any:
    return evaluate_members(
        [network], pack.split("val"), [RECIPE], pack.classes, numerics, "cpu", taps=taps
    )[0]


@pytest.mark.parametrize(
    ("precision", "memory_format"),
    [("float32", "contiguous"), ("bfloat16", "channels_last"), ("float32", "channels_last")],
)
def test_scores_with_taps_are_those_without(
    tiny_pack: PackedDataset, tmp_path: Path, precision: Any, memory_format: Any
) -> None:
    numerics = replace(CPU, precision=precision, memory_format=memory_format)
    network = place(frozen(tiny_pack, ("det", "seg")), numerics, "cpu")
    split = tiny_pack.split("val")
    expected = evaluate_network(network, split, RECIPE, tiny_pack.classes, numerics, "cpu")
    counter = Counting(network)
    with opened(network, tiny_pack, tmp_path, numerics=numerics) as taps:
        assert scores(network, tiny_pack, taps, numerics) == expected
        assert counter.passes == 2  # six pictures in batches of four
        assert scores(network, tiny_pack, taps, numerics) == expected
        assert counter.passes == 2
    # Another process, or the next trial on this encoder.
    with opened(network, tiny_pack, tmp_path, numerics=numerics) as taps:
        assert scores(network, tiny_pack, taps, numerics) == expected
        assert counter.passes == 2


def test_pictures_are_not_decoded_when_their_maps_are_there(
    tiny_pack: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = frozen(tiny_pack, ("seg",))
    with opened(network, tiny_pack, tmp_path) as taps:
        expected = scores(network, tiny_pack, taps)
        monkeypatch.setattr(type(tiny_pack.split("val")), "decode", _must_not_be_called)
        assert scores(network, tiny_pack, taps) == expected


def _must_not_be_called(*_: object) -> None:
    raise AssertionError("a picture was decoded")


def test_only_the_maps_that_the_heads_read_are_kept(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    det, seg = frozen(tiny_pack, ("det",)), frozen(tiny_pack, ("seg",), seed=1)
    with opened(det, tiny_pack, tmp_path) as taps:
        scores(det, tiny_pack, taps)
        assert taps.stored(["mid", "high"]) == {0, 1}
        assert taps.stored(["low"]) == set()
    counter = Counting(seg)
    with opened(seg, tiny_pack, tmp_path) as taps:
        scores(seg, tiny_pack, taps)
        assert counter.passes == 2
        assert taps.stored(LEVELS) == {0, 1}


@pytest.mark.parametrize("task", ["det", "seg"])
def test_heads_read_the_maps_that_are_said(tiny_pack: PackedDataset, task: Task) -> None:
    network = frozen(tiny_pack, (task,)).eval()
    with torch.inference_mode():
        maps = network.encode(torch.randn(2, 3, 96, 96))
        whole = network.decode(maps, None)
        part = network.decode({level: maps[level] for level in READ[task]}, None)
    assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_a_damaged_file_is_set_aside_and_computed_anew(
    tiny_pack: PackedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = frozen(tiny_pack, ("det",))
    with opened(network, tiny_pack, tmp_path) as taps:
        expected = scores(network, tiny_pack, taps)
        (path,) = tmp_path.glob("*/000001-high.tap")
        good = path.read_bytes()
        path.write_bytes(good[:-100])
        assert scores(network, tiny_pack, taps) == expected
        assert path.with_suffix(DAMAGED).read_bytes() == good[:-100]
        assert load(path, lambda size: torch.empty(size, dtype=torch.uint8))[0].dim() == 4
        assert "computed anew" in caplog.text
        assert taps.stored(["mid", "high"]) == {0, 1}


def test_the_key_says_everything_that_decides_the_maps(tiny_pack: PackedDataset) -> None:
    network = frozen(tiny_pack, ("det",))

    def key(**more: Any) -> str:
        given = {"split": "val", "recipe": RECIPE, "numerics": CPU, "device": "cpu"} | more
        return taps_key(network.encoder, pack=tiny_pack, **given)

    first = key()
    assert key(recipe=replace(RECIPE, alpha=1.0, epochs=3, nms_iou=0.1)) == first
    others = [
        key(split="test"),
        key(recipe=replace(RECIPE, image_px=128)),
        key(recipe=replace(RECIPE, batch_size=2)),
        key(numerics=replace(CPU, precision="bfloat16")),
        key(numerics=replace(CPU, memory_format="channels_last")),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    others.append(key())
    torch.set_num_threads(threads)
    name, tensor = next(iter(network.encoder.state_dict().items()))
    assert name.endswith("weight")
    value = tensor.view(-1)[0].item()
    tensor.view(-1)[0] = value + 1e-6
    others.append(key())
    assert len({first, *others}) == 8
    tensor.view(-1)[0] = value
    assert key() == first


class Settable(ResNet18Encoder):
    """One class for many backbones; neither setting is in its state dict."""

    def __init__(self, *, dilation: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.body.conv1.dilation = (dilation, dilation)
        self.scale = scale
        # What many plugins hold: it shows its address, which says nothing of the maps.
        self.body.relu.extra_repr = object().__repr__


def test_two_encoders_of_one_class_that_differ_in_a_setting_have_keys_of_their_own(
    tiny_pack: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(name: str, digest: str = "", **settings: Any) -> str:
        monkeypatch.setitem(ENCODERS, name, lambda: Settable(**settings))
        monkeypatch.setitem(BACKBONES, name, BackboneInfo(name, None, "mine.py", digest))
        network = build_network(name, ("det",), 2, seed=0)
        apply_freeze(network.encoder, "frozen")
        return taps_key(
            network.encoder,
            pack=tiny_pack,
            split="val",
            recipe=RECIPE,
            numerics=CPU,
            device="cpu",
        )

    first = key("one")
    assert key("one") == first
    # Each differs from the first in one thing: what is printed, the name, the plugin, timm.
    others = [key("one", dilation=2), key("two", scale=2.0), key("one", digest="ab")]
    monkeypatch.setattr(module.metadata, "version", lambda name: f"{name} 9")
    others.append(key("one"))
    assert len({first, *others}) == 5


def test_taps_are_for_encoders_that_stay_as_they_are(
    tiny_pack: PackedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = frozen(tiny_pack, ("det",))
    assert opened(network, tiny_pack, tmp_path, budget=0) is None
    assert not list(tmp_path.iterdir())
    apply_freeze(network.encoder, "frozen", bn_mode="train")
    assert opened(network, tiny_pack, tmp_path) is None
    apply_freeze(network.encoder, "bias")
    assert opened(network, tiny_pack, tmp_path) is None
    apply_freeze(network.encoder, "frozen")
    (tmp_path / "file").touch()
    assert opened(network, tiny_pack, tmp_path / "file") is None
    assert "no frozen maps are kept" in caplog.text
    with opened(network, tiny_pack, tmp_path / "taps") as taps:
        with pytest.raises(ValueError, match="limit=3"):
            evaluate_members(
                [network],
                tiny_pack.split("val"),
                [RECIPE],
                tiny_pack.classes,
                CPU,
                "cpu",
                limit=3,
                taps=taps,
            )


def fill(folder: Path, key: str, budget: int, batches: int = 1) -> TapCache:
    """A cache with so many batches of about a kibibyte."""
    cache = TapCache(folder, budget, key)
    for number in range(batches):
        cache.write(number, {"high": KB}, ["high"], 1.0)
    return cache


def test_the_least_recently_used_key_goes_first(tmp_path: Path) -> None:
    for key in ("a", "b", "c"):
        fill(tmp_path, key, PLENTY).close()
        time.sleep(0.02)
    size = kept(tmp_path)
    TapCache(tmp_path, PLENTY, "a").close()  # used again
    fill(tmp_path, "d", size + size // 3).close()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"a", "b", "c", "d"}
    time.sleep(0.02)
    fill(tmp_path, "e", size + size // 3).close()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"a", "c", "d", "e"}
    assert kept(tmp_path) <= size + size // 3


def test_what_does_not_fit_is_not_kept_and_what_is_used_stays(tmp_path: Path) -> None:
    budget = 5000
    with fill(tmp_path, "a", budget, batches=9) as used:
        assert used.stored(["high"]) == {0, 1, 2, 3}
        assert kept(tmp_path) <= budget
        with fill(tmp_path, "b", budget, batches=9) as other:
            assert other.stored(["high"]) == set()
        assert used.stored(["high"]) == {0, 1, 2, 3}
    with fill(tmp_path, "b", budget, batches=9) as other:
        assert other.stored(["high"]) == {0, 1, 2, 3}
        assert not (tmp_path / "a").exists()
        assert kept(tmp_path) <= budget


def test_a_disk_that_is_nearly_full_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = module.shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(module, "SPARE_BYTES", free + 2**40)
    with fill(tmp_path, "a", PLENTY) as cache:
        assert cache.stored(["high"]) == set()


def test_one_writes_and_all_read(tmp_path: Path) -> None:
    with fill(tmp_path, "a", PLENTY) as writer, TapCache(tmp_path, PLENTY, "a") as reader:
        reader.write(1, {"high": KB}, ["high"], 1.0)
        assert reader.stored(["high"]) == writer.stored(["high"]) == {0}
        assert same(reader.read(0, ["high"])["high"], KB)
        writer.close()
        reader.write(1, {"high": KB}, ["high"], 1.0)
        assert reader.stored(["high"]) == {0, 1}


def test_reading_that_takes_longer_than_computing_ends(tmp_path: Path) -> None:
    with TapCache(tmp_path, PLENTY, "a") as cache:
        cache.write(0, {"high": KB}, ["high"], 0.0)
        assert cache.stored(["high"]) == {0}
        cache.read(0, ["high"])
        assert cache.stored(["high"]) == set()


def test_maps_with_gaps_in_memory_are_not_kept(tmp_path: Path) -> None:
    with TapCache(tmp_path, PLENTY, "a") as cache:
        cache.write(0, {"high": torch.zeros(4, 8)[:, ::2]}, ["high"], 1.0)
        assert cache.stored(["high"]) == set()


def test_a_gpus_maps_are_not_fetched_when_they_are_there_or_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: fetched.append(1) or tensor)
    with TapCache(tmp_path, PLENTY, "a") as cache:
        for _ in range(2):
            cache.write(0, {"high": KB}, ["high"], 0.0)
            assert len(fetched) == 1
        cache.write(1, {"high": torch.zeros(4, 8)[:, ::2]}, ["high"], 0.0)
        cache.read(0, ["high"])  # which is slower than 0 s
        cache.write(1, {"high": KB}, ["high"], 1.0)
        assert len(fetched) == 1


def failing(number: int) -> Any:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_folder_that_is_removed_costs_maps_and_not_the_trial(
    tiny_pack: PackedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = frozen(tiny_pack, ("det",))
    with opened(network, tiny_pack, tmp_path / "taps") as taps:
        expected = scores(network, tiny_pack, taps)
        assert taps is not None
        (own,) = (path for path in (tmp_path / "taps").iterdir() if path.is_dir())
        shutil.rmtree(own)
        assert scores(network, tiny_pack, taps) == expected
        assert caplog.text.count("no more frozen maps are kept") == 1
    caplog.clear()
    with opened(network, tiny_pack, tmp_path / "taps") as taps:
        assert scores(network, tiny_pack, taps) == expected
        assert taps is not None
        # It goes while maps are read, with the lock of all keys.
        there = taps.stored(["mid", "high"])
        shutil.rmtree(tmp_path / "taps")
        with pytest.raises(DamagedTapError):
            taps.read(min(there), ["mid", "high"])
        assert scores(network, tiny_pack, taps) == expected
    assert not (tmp_path / "taps").exists()


def test_before_anything_was_written_a_folder_may_go_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with TapCache(tmp_path / "taps", PLENTY, "a") as cache:
        shutil.rmtree(tmp_path / "taps")
        for number in range(3):
            cache.write(number, {"high": KB}, ["high"], 1.0)
        assert cache.stored(["high"]) == set()
    assert caplog.text.count("no more frozen maps are kept") == 1


def test_a_folder_that_becomes_read_only_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, "a", PLENTY).close()
    with TapCache(tmp_path, PLENTY, "a") as cache:
        # Permissions do not hold root, who runs some of these tests.
        for name in ("_open", "locked"):
            monkeypatch.setattr(module, name, failing(errno.EROFS))
        for number in range(1, 4):
            cache.write(number, {"high": KB}, ["high"], 1.0)
        assert caplog.text.count("no more frozen maps are kept") == 1
        assert cache.stored(["high"]) == {0}
        assert same(cache.read(0, ["high"])["high"], KB)
        (tmp_path / "a" / "000000-high.tap").write_bytes(b"cut")
        with pytest.raises(DamagedTapError):
            cache.read(0, ["high"])
    with pytest.raises(OSError, match="Read-only"):
        TapCache(tmp_path, PLENTY, "a")


def test_a_disk_that_fills_up_leaves_no_part_of_a_file_and_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with fill(tmp_path, "a", PLENTY) as cache:
        tries = []

        def full(path: Path, *_: object) -> Path:
            tries.append(path)
            assert path.suffix == ".part"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "replace", full)
        for number in range(1, 4):
            cache.write(number, {"high": KB}, ["high"], 1.0)
        assert len(tries) == 1
        assert not list(tmp_path.glob("*/*.part"))
        assert cache.stored(["high"]) == {0}
    assert caplog.text.count("No space left on device") == 1


def test_files_that_cannot_be_listed_are_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fill(tmp_path, "a", PLENTY) as cache:
        monkeypatch.setattr(Path, "glob", failing(errno.EMFILE))
        assert cache.stored(["high"]) == set()


WRITE_FOREVER = """
import sys, torch
from pathlib import Path
from sharedenc.evaluation.taps import TapCache
cache = TapCache(Path(sys.argv[1]), 2**40, "a")
print("begun", flush=True)
for number in range(10**6):
    cache.write(number, {"high": torch.full((300, 1000), float(number))}, ["high"], 1.0)
"""


def test_a_writer_that_is_killed_leaves_whole_files_and_another_goes_on(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("a/*.tap"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
    with TapCache(tmp_path, 2**40, "a") as cache:
        there = cache.stored(["high"])
        assert len(there) >= 5
        for number in there:
            assert (cache.read(number, ["high"])["high"] == number).all()
        part = tmp_path / "a" / f"{max(there) + 1:06d}-high.part"
        part.write_bytes(b"half")
        cache.write(max(there) + 1, {"high": KB}, ["high"], 1.0)
        assert same(cache.read(max(there) + 1, ["high"])["high"], KB)
        assert not list(tmp_path.glob("a/*.part"))


def test_many_at_once_keep_to_the_budget_and_to_what_they_wrote(tmp_path: Path) -> None:
    budget = 12_000

    def trial(seed: int) -> int:
        rng = random.Random(seed)
        read = 0
        for _ in range(40):
            key = rng.choice("abcde")
            tensor = torch.full((256,), float(ord(key)))
            with TapCache(tmp_path, budget, key) as cache:
                for number in range(4):
                    cache.write(number, {"high": tensor}, ["high"], 1.0)
                for number in cache.stored(["high"]):
                    assert same(cache.read(number, ["high"])["high"], tensor)
                    read += 1
        return read

    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(trial, range(4)))
    assert min(read) > 0
    assert kept(tmp_path) <= budget
    assert not list(tmp_path.glob("*/*.damaged"))
