"""States of a trial: when they are saved, whole or not, here or in a storage."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sharedenc.errors import CheckpointError, SpecError
from sharedenc.models.build import build_network
from sharedenc.storage import FolderStorage, StorageError
from sharedenc.training.checkpoint import network_bytes, network_tensors, read_checkpoint
from sharedenc.training.interval import Interval
from sharedenc.training.keeper import Keeper, fetch_best, has_state
from sharedenc.training.state_file import DamagedStateError, StateName, read_state, write_state

KEY = "f" * 64


def network(value: float) -> Any:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def state(epoch: int, step: int = 0, end: str = "") -> dict[str, Any]:
    return {"epoch": epoch, "step": step, "end": end, "tensor": torch.full((3,), float(epoch))}


def saved(folder: Path, epochs: int, storage: FolderStorage | None = None) -> Keeper:
    """A keeper after ``epochs`` epochs, each one the best and each one saved."""
    keeper = Keeper(folder, KEY, every=Interval(1, "epochs"), storage=storage)
    keeper.load()
    for epoch in range(1, epochs + 1):
        keeper.keep_best(network(float(epoch)), {"epoch": epoch})
        keeper.after_epoch(lambda epoch=epoch: state(epoch))  # type: ignore[misc]
    return keeper


def states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.ckpt"))


def bests(folder: Path) -> dict[float, Path]:
    """The best networks in a folder by the value that they are filled with."""
    paths = folder.glob("best-*.safetensors")
    return {float(read_checkpoint(path)[0]["bias"][0]): path for path in paths}


def loaded(folder: Path, storage: FolderStorage | None = None) -> tuple[int, float] | None:
    """Epoch of the state that a trial would go on from, and the value of its best network."""
    keeper = Keeper(folder, KEY, storage=storage)
    found = keeper.load()
    if found is None:
        return None
    assert found["tensor"].tolist() == [float(found["epoch"])] * 3
    best = keeper.publish_best()
    return found["epoch"], float(read_checkpoint(best)[0]["bias"][0])


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "storage")


def test_two_generations_are_kept_and_the_last_one_counts(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    assert not has_state(tmp_path)
    saved(folder, 4)
    assert has_state(folder)
    assert [StateName.parse(path.name).epoch for path in states(folder)] == [3, 4]  # type: ignore[union-attr]
    assert set(bests(folder)) == {3.0, 4.0}
    assert loaded(folder) == (4, 4.0)


def test_a_best_network_that_two_states_share_is_one_file(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 1)
    for epoch in (2, 3, 4):
        keeper.after_epoch(lambda epoch=epoch: state(epoch))  # type: ignore[misc]
    assert (set(bests(tmp_path)), loaded(tmp_path)) == ({1.0}, (4, 1.0))


@pytest.mark.parametrize("what", ["cut state", "changed state", "empty state", "cut best", "gone"])
def test_a_damaged_generation_is_set_aside_and_the_older_one_taken(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 3)
    newest, best = states(tmp_path)[-1], bests(tmp_path)[3.0]
    content = newest.read_bytes()
    match what:
        case "cut state":
            newest.write_bytes(content[:-100])
        case "changed state":
            newest.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
        case "empty state":
            newest.write_bytes(b"")
        case "cut best":
            best.write_bytes(best.read_bytes()[:-1])
        case "gone":
            best.unlink()
    with caplog.at_level(logging.WARNING):
        assert loaded(tmp_path) == (2, 2.0)
    assert f"{newest.name} is damaged" in caplog.text
    assert (tmp_path / f"{newest.name}.damaged").exists()
    assert loaded(tmp_path) == (2, 2.0)
    saved(tmp_path, 4)
    assert loaded(tmp_path) == (4, 4.0)


def test_a_frozen_encoder_does_not_wait_in_memory_with_the_best_heads(tmp_path: Path) -> None:
    """Many trials may wait at once, and all of them have the same encoder."""
    whole = build_network("resnet18", ["det", "seg"], 3, seed=0)
    meta = {"epoch": 1}
    expected = network_bytes(network_tensors(whole), meta)
    for folder, frozen in ((tmp_path / "whole", False), (tmp_path / "heads", True)):
        keeper = Keeper(folder, KEY)
        keeper.keep_best(whole, meta, encoder_changes=not frozen)
        assert whole.det_head is not None
        parameter = next(whole.det_head.parameters())
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(1.0)
        keeper.save(state(1))
        assert keeper.publish_best().read_bytes() == expected
        with torch.no_grad():
            parameter.copy_(before)
    keeper = Keeper(tmp_path / "third", KEY)
    keeper.keep_best(whole, meta, encoder_changes=False)
    statistic = next(whole.encoder.buffers())
    statistic.add_(1.0)
    keeper.save(state(1))
    # What is written is the encoder as it is then: no copy of it was made before.
    tensors, _ = read_checkpoint(keeper.publish_best())
    name = next(name for name, _ in whole.named_buffers())
    assert tensors[name].equal(statistic)


def test_without_a_whole_generation_a_trial_begins_anew(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    for path in states(tmp_path):
        path.write_bytes(b"sharedenc state 2 nonsense")
    assert loaded(tmp_path) is None


def power_cut_at(call: int, action: Callable[[], None], *, tear: bool) -> bool:
    """Run ``action`` in a process that vanishes at its ``call``-th step of writing files.

    With ``tear``, the file that is about to be put on the disk loses its second half first: what a
    power cut does to pages that were not written yet. Returns whether it vanished.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, 77), f"the writer ended with {code}"
        return code == 77
    calls = 0

    def before(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                if tear and name == "replace":
                    os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
                    original(*arguments)
                os._exit(77)
            return original(*arguments)

        return step

    try:
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, before(getattr(os, name), name))
        action()
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)


@pytest.mark.parametrize("tear", [False, True])
def test_a_power_cut_at_any_point_of_a_save_leaves_a_whole_state(
    tmp_path: Path, tear: bool, storage: FolderStorage
) -> None:
    saved(tmp_path / "before", 2, storage)
    found: list[tuple[int, float]] = []
    for call in range(1, 100):
        folder, copy = tmp_path / f"trial-{call}", tmp_path / f"storage-{call}"
        shutil.copytree(tmp_path / "before", folder)
        shutil.copytree(storage.folder, copy)
        keeper = Keeper(folder, KEY, every=Interval(1, "epochs"), storage=FolderStorage(copy))
        assert keeper.load() is not None

        def save(keeper: Keeper = keeper) -> None:
            keeper.keep_best(network(3.0), {})
            keeper.after_epoch(lambda: state(3))

        vanished = power_cut_at(call, save, tear=tear)
        here, there = loaded(folder), loaded(tmp_path / f"other-{call}", FolderStorage(copy))
        assert {here, there} <= {(2, 2.0), (3, 3.0)}
        assert not list(folder.glob(".*"))
        found += [value for value in (here, there) if value]
        if not vanished:
            assert (here, there) == ((3, 3.0), (3, 3.0))
            break
    assert call > 8
    assert set(found) == {(2, 2.0), (3, 3.0)}


def test_a_trial_goes_on_from_the_storage_on_another_machine(
    tmp_path: Path, storage: FolderStorage
) -> None:
    saved(tmp_path / "one", 3, storage)
    assert loaded(tmp_path / "two", storage) == (3, 3.0)
    names = storage.list()
    assert len(names) == 4
    assert all(name.startswith(f"checkpoints/{KEY}/") for name in names)


def test_the_one_that_is_further_counts_wherever_it_is(
    tmp_path: Path, storage: FolderStorage
) -> None:
    saved(tmp_path / "one", 2, storage)
    saved(tmp_path / "two", 5, storage)
    assert loaded(tmp_path / "one", storage) == (5, 5.0)
    saved(tmp_path / "three", 7)
    assert loaded(tmp_path / "three", storage) == (7, 7.0)


def test_a_damaged_file_is_fetched_again(tmp_path: Path, storage: FolderStorage) -> None:
    saved(tmp_path / "one", 3, storage)
    states(tmp_path / "one")[-1].write_bytes(b"")
    bests(tmp_path / "one")[3.0].unlink()
    assert loaded(tmp_path / "one", storage) == (3, 3.0)


def test_a_damaged_copy_is_removed_and_the_older_one_taken(
    tmp_path: Path, storage: FolderStorage
) -> None:
    saved(tmp_path / "one", 3, storage)
    newest = states(storage.folder / "checkpoints" / KEY)[-1]
    newest.write_bytes(newest.read_bytes()[:-10])
    assert loaded(tmp_path / "two", storage) == (2, 2.0)
    assert not newest.exists()


class Away(FolderStorage):
    """A storage that can be cut off."""

    away = False

    def put(self, local: Path, name: str) -> None:
        if self.away:
            raise StorageError("away")
        super().put(local, name)


def test_a_storage_that_is_away_for_a_while_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Away(tmp_path / "storage")
    keeper = saved(tmp_path / "trial", 2, storage)
    storage.away = True
    keeper.keep_best(network(3.0), {})
    with caplog.at_level(logging.WARNING):
        keeper.after_epoch(lambda: state(3))
    assert "is on this machine only" in caplog.text
    assert loaded(tmp_path / "trial") == (3, 3.0)
    assert loaded(tmp_path / "other", storage) == (2, 2.0)
    storage.away = False
    keeper.after_epoch(lambda: state(4, end="done"))
    assert loaded(tmp_path / "another", storage) == (4, 3.0)


def test_at_the_end_one_state_and_one_network_are_left(
    tmp_path: Path, storage: FolderStorage
) -> None:
    keeper = saved(tmp_path / "trial", 3, storage)
    assert fetch_best(storage, KEY, tmp_path / "early") is None
    keeper.after_epoch(lambda: state(4, end="done"))
    keeper.publish_best()
    keeper.settle()
    names = sorted(path.name for path in (tmp_path / "trial").iterdir())
    assert names == ["best.safetensors", states(tmp_path / "trial")[0].name]
    assert loaded(tmp_path / "trial") == (4, 3.0)
    assert sorted(path.name for path in (tmp_path / "trial").iterdir()) == names
    fetched = fetch_best(storage, KEY, tmp_path / "elsewhere")
    assert fetched is not None
    assert fetched.read_bytes() == (tmp_path / "trial" / "best.safetensors").read_bytes()
    assert fetch_best(storage, "0" * 64, tmp_path / "unknown") is None


def test_a_finished_trial_reaches_a_storage_that_is_named_later(
    tmp_path: Path, storage: FolderStorage
) -> None:
    keeper = saved(tmp_path / "trial", 2)
    keeper.after_epoch(lambda: state(3, end="done"))
    keeper.publish_best()
    keeper.settle()
    again = Keeper(tmp_path / "trial", KEY, storage=storage)
    again.load()
    again.settle()
    assert fetch_best(storage, KEY, tmp_path / "elsewhere") is not None


def test_a_trial_that_begins_anew_forgets(tmp_path: Path, storage: FolderStorage) -> None:
    keeper = saved(tmp_path / "trial", 3, storage)
    (tmp_path / "trial" / "result.json").write_text("{}")
    keeper.discard()
    assert loaded(tmp_path / "trial", storage) is None
    assert [path.name for path in (tmp_path / "trial").iterdir()] == ["result.json"]


def test_a_state_of_another_trial_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"belongs to trial f{16} and not to e{16}"):
        Keeper(tmp_path, "e" * 64).load()


def test_a_state_of_the_first_release_is_taken(tmp_path: Path) -> None:
    first = saved(tmp_path / "first", 1)
    first.publish_best()
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(tmp_path / "first" / "best.safetensors", folder)
    old = {
        **{"version": 1, "key": KEY, "epoch": 2, "best_epoch": 1, "end": "", "seconds": 3.0},
        **{"history": [{"a": 1.0}, {"a": 2.0}], "rng": torch.get_rng_state(), "rng_cuda": []},
        **{"network": {}, "optimizer": {}, "schedule": {}, "stopper": {}},
    }
    torch.save(old, folder / "last.pt")
    found = Keeper(folder, KEY).load()
    assert found is not None
    assert (found["epoch"], found["step"], found["history"]) == (2, 0, old["history"])
    assert found["rng"]["torch"].equal(old["rng"])
    assert set(bests(folder)) == {1.0}
    for damage in (b"spam", b""):
        (folder / "last.pt").write_bytes(damage)
        assert Keeper(folder, KEY).load() is None
        assert (folder / "last.pt.damaged").exists()


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("100s", [(0, 11), (1, 10), (2, 9)]),
        ("4steps", [(epoch, step) for epoch in range(3) for step in (4, 8, 12)]),
        ("2epochs", [(2, 0)]),
        ("1h", []),
    ],
)
def test_states_are_saved_when_it_is_time(
    tmp_path: Path, every: str, expected: list[tuple[int, int]]
) -> None:
    now = 1e9
    keeper = Keeper(tmp_path, KEY, every=Interval.parse(every), clock=lambda: now)
    seen: list[tuple[int, int]] = []
    epoch = step = 0

    def present() -> dict[str, Any]:
        seen.append((epoch, step))
        return state(epoch, step)

    # Three epochs of twelve steps; eleven steps take 101.2 seconds.
    for _ in range(3):
        for _ in range(12):
            now += 9.2
            step += 1
            keeper.after_step(present)
        epoch, step = epoch + 1, 0
        keeper.after_epoch(present)
    assert seen == expected


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("10m", 600, "seconds"),
        ("90s", 90, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("2epochs", 2, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("100steps", 100, "steps"),
    ],
)
def test_intervals_are_read(text: str, amount: float, unit: str) -> None:
    assert Interval.parse(text) == Interval(amount, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "0s", "1.5steps", "3days", "ten minutes"])
def test_what_is_no_interval_is_told(text: str) -> None:
    with pytest.raises(SpecError, match=r"checkpoint_every=.*(give 90s, 10m|a whole number)"):
        Interval.parse(text)


class Trap:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch trapped",)


def test_a_state_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_state(tmp_path / "state", {"trap": Trap()})
    with pytest.raises(DamagedStateError):
        read_state(tmp_path / "state")
    assert not (tmp_path / "trapped").exists()


def test_a_state_has_the_bytes_that_it_has_had_since_version_2(tmp_path: Path) -> None:
    content = {"tensor": torch.arange(70_000.0), "epoch": 3, "names": ["a", ("b", None)]}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    write_state(tmp_path / "state", content)
    expected = f"sharedenc state 2 {digest}\n".encode() + buffer.getvalue()
    assert (tmp_path / "state").read_bytes() == expected
    read = read_state(tmp_path / "state")
    assert read.pop("tensor").equal(content.pop("tensor"))
    assert read == content


def test_a_state_that_cannot_be_serialised_leaves_the_one_before(tmp_path: Path) -> None:
    write_state(tmp_path / "state", {"epoch": 1})
    with pytest.raises((TypeError, AttributeError, RuntimeError)):
        write_state(tmp_path / "state", {"tensor": torch.zeros(5000), "no": (x for x in ())})
    assert read_state(tmp_path / "state") == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_names_sort_by_progress_and_name_their_best_network() -> None:
    names = [StateName(2, 0, ""), StateName(1, 900, "ab" * 32), StateName(10, 1, "cd" * 32)]
    texts = sorted(map(str, names))
    assert [text.split("-")[1:3] for text in texts] == [
        ["000001", "00000900"],
        ["000002", "00000000"],
        ["000010", "00000001"],
    ]
    assert StateName.parse(texts[0]) == StateName(1, 900, "abababababababab")
    assert names[1].best_file == "best-abababababababab.safetensors"
    assert names[0].best_file == ""
    assert StateName.parse("state-000001-00000900-none.ckpt.damaged") is None
