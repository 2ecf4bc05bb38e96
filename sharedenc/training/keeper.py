"""Keeps a trial's state: when it is saved, where, how many, and which one a trial goes on from.

In the trial's folder, and below ``checkpoints/<key>`` of a storage, lie the last two states and the
best networks that they name. A state counts when its bytes have their digest and its best network
has the one that the state names; what does not is set aside with a warning, and the state before
it is taken. The best network waits in memory for the next save, since it is worth nothing without
the state that it belongs to.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sharedenc.errors import CheckpointError
from sharedenc.files import file_sha256, link_atomic, remove_parts, write_atomic
from sharedenc.models.network import Network
from sharedenc.storage import Storage, StorageError
from sharedenc.training.checkpoint import BEST, network_bytes, network_tensors
from sharedenc.training.interval import DEFAULT_INTERVAL, Interval
from sharedenc.training.state_file import (
    VERSION,
    DamagedStateError,
    StateName,
    best_name,
    is_best_name,
    read_state,
    read_values,
    write_state,
)

log = logging.getLogger(__name__)

GENERATIONS = 2
OLD_FILE = "last.pt"
"""The state of the first release: written after whole epochs, without a digest."""
DAMAGED = ".damaged"

State = dict[str, Any]


def has_state(folder: Path) -> bool:
    """Whether a trial's folder holds something to go on from."""
    return any(folder.glob("state-*.ckpt")) or (folder / OLD_FILE).exists()


def fetch_best(storage: Storage, key: str, folder: Path) -> Path | None:
    """Fetch the best network of a finished trial into ``folder``; None when it is not there whole.

    Raises:
        StorageError: the storage cannot be reached.
    """
    return finished_best(folder, key, storage)


def finished_best(folder: Path, key: str, storage: Storage | None = None) -> Path | None:
    """The best network of a finished trial, from its folder or a storage; None without one."""
    keeper = Keeper(folder, key, storage=storage)
    state = keeper.load()
    return None if state is None or state["end"] != "done" else keeper.publish_best()


class Keeper:
    """The states of one trial.

    Args:
        folder: The trial's own folder on this machine.
        key: The trial's content key; states of another trial are refused.
        every: Time, steps or epochs between two saves.
        storage: Where copies go that outlive the machine.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        *,
        every: Interval | None = None,
        storage: Storage | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.key, self.storage = folder, key, storage
        self._every = every or Interval.parse(DEFAULT_INTERVAL)
        self._clock = clock
        self._place = f"checkpoints/{key}"
        self._stored: set[str] = set()
        self._best = ""
        self._waiting: Callable[[], bytes] | None = None
        self._steps = self._epochs = 0
        self._saved_at = clock()

    # --- going on ---

    def load(self) -> State | None:
        """Return the newest whole state, its best network beside it; None to begin at the start.

        Raises:
            CheckpointError: a state belongs to another trial.
            StorageError: the storage cannot be reached.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_parts(self.folder, "state-")
        remove_parts(self.folder, "best")
        if self.storage is not None:
            self._stored = {Path(name).name for name in self.storage.list(self._place)}
        names = {path.name for path in self.folder.iterdir()} | self._stored
        for name in sorted(filter(None, map(StateName.parse, names)), reverse=True):
            state = self._read(str(name))
            if state is not None and self._find_best(state, str(name)):
                self._best = state["best"]
                return state
        return self._read_old()

    def discard(self) -> None:
        """Remove everything that an earlier attempt left, in the storage too: begin anew."""
        for path in self.folder.glob("*"):
            if _is_ours(path.name) or path.name in (BEST, OLD_FILE):
                path.unlink()
        if self.storage is not None:
            for name in self.storage.list(self._place):
                self.storage.remove(name)

    # --- while training ---

    def keep_best(
        self, network: Network, meta: Mapping[str, Any], *, encoder_changes: bool = True
    ) -> None:
        """Remember the network as it is now; written with the next state.

        Of an encoder that never changes no copy waits: it is read when the file is written.
        """
        meta = dict(meta)
        kept = network_tensors(network, encoder=encoder_changes)

        def content() -> bytes:
            # In the order of the network's names, whatever was kept of it.
            whole = kept if encoder_changes else network_tensors(network) | kept
            return network_bytes(whole, meta)

        self._waiting = content

    def after_step(self, state: Callable[[], State]) -> None:
        """Take note of a training step; save when it is time."""
        self._steps += 1
        self._save_in_time(state)

    def after_epoch(self, state: Callable[[], State]) -> None:
        """Take note of the end of an epoch; save when it is time."""
        self._epochs += 1
        self._save_in_time(state)

    @property
    def behind(self) -> bool:
        """Whether the trial has gone on since it was saved."""
        return self._steps + self._epochs > 0

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the best network, then the state that names it, then copies of both.

        A storage that is away is told in the log, and tried again with the next state.

        Raises:
            OSError: this machine's disk is full or broken.
        """
        if self._waiting is not None:
            content = self._waiting()
            self._best = hashlib.sha256(content).hexdigest()
            write_atomic(self.folder / best_name(self._best), content)
            self._waiting = None
        name = StateName(state["epoch"], state["step"], self._best)
        whole = {**state, "version": VERSION, "key": self.key, "best": self._best}
        write_state(self.folder / str(name), whole)
        for old in _superseded(path.name for path in self.folder.iterdir()):
            (self.folder / old).unlink(missing_ok=True)
        self._copy(name)
        self._steps = self._epochs = 0
        self._saved_at = self._clock()

    # --- at the end ---

    def publish_best(self) -> Path:
        """Put the best network of the saved state under its lasting name and return the path."""
        target = self.folder / BEST
        source = self.folder / best_name(self._best)
        if source.exists():
            link_atomic(source, target)
        return target

    def settle(self) -> None:
        """Leave only the last state and ``best.safetensors``: the trial is done and recorded."""
        names = sorted(filter(None, (StateName.parse(p.name) for p in self.folder.iterdir())))
        if not names:
            return
        self._copy(names[-1])
        for path in self.folder.iterdir():
            if _is_ours(path.name) and path.name != str(names[-1]):
                path.unlink(missing_ok=True)
        (self.folder / OLD_FILE).unlink(missing_ok=True)

    def _save_in_time(self, state: Callable[[], State]) -> None:
        seconds = self._clock() - self._saved_at
        if self._every.passed(seconds=seconds, steps=self._steps, epochs=self._epochs):
            self.save(state())

    def _read(self, name: str) -> State | None:
        """A state from the folder, or where that one is damaged or missing from the storage."""
        path = self.folder / name
        if path.exists():
            state = self._decoded(path)
            if state is not None:
                return state
        if not self._fetch(name):
            return None
        state = self._decoded(path)
        if state is None:
            self._forget(name)
        return state

    def _decoded(self, path: Path) -> State | None:
        try:
            state = read_state(path)
        except DamagedStateError as error:
            self._set_aside(path, str(error))
            return None
        if state["key"] != self.key:
            raise CheckpointError(
                f"{path} belongs to trial {str(state['key'])[:16]} and not to {self.key[:16]}. "
                "Remove it to start this trial from the beginning."
            )
        return state

    def _find_best(self, state: State, name: str) -> bool:
        """Whether the network that a state names lies in the folder now, to the byte."""
        sha256 = state["best"]
        if not sha256:
            return True
        path = self.folder / best_name(sha256)
        if self._is_whole(path, sha256):
            return True
        if self._is_whole(self.folder / BEST, sha256):
            if state["end"] != "done":  # the lasting name may get a better one
                link_atomic(self.folder / BEST, path)
            return True
        if self._fetch(path.name) and self._is_whole(path, sha256):
            return True
        self._forget(path.name)
        self._forget(name)
        self._set_aside(self.folder / name, f"its best network {path.name} is missing or damaged")
        return False

    def _is_whole(self, path: Path, sha256: str) -> bool:
        if not path.exists() or file_sha256(path) == sha256:
            return path.exists()
        if path.name != BEST:
            self._set_aside(path, "its bytes are not those that were written")
        return False

    def _read_old(self) -> State | None:
        path = self.folder / OLD_FILE
        if not path.exists():
            return None
        try:
            old = read_values(path.read_bytes())
            if old.get("version") != 1 or old.get("key") != self.key:
                raise DamagedStateError("it is no state of this trial")
            best = file_sha256(self.folder / BEST) if old["best_epoch"] else ""
            state = _from_version_1(old, best)
        except (DamagedStateError, OSError, KeyError) as error:
            self._set_aside(path, str(error))
            return None
        if best:
            link_atomic(self.folder / BEST, self.folder / best_name(best))
        self._best = best
        return state

    def _set_aside(self, path: Path, why: str) -> None:
        log.warning("%s is damaged (%s): it is set aside as %s%s", path, why, path.name, DAMAGED)
        os.replace(path, path.with_name(path.name + DAMAGED))

    def _copy(self, name: StateName) -> None:
        if self.storage is None:
            return
        try:
            for file in filter(None, (name.best_file, str(name))):
                # A state that was just written replaces the one of its name.
                if file not in self._stored or (file == str(name) and self.behind):
                    local = self.folder / file
                    if file == name.best_file and not local.exists():
                        local = self.folder / BEST
                    self.storage.put(local, f"{self._place}/{file}")
                    self._stored.add(file)
            for old in _superseded(self._stored):
                self._forget(old)
        except StorageError as error:
            log.warning("%s: %s is on this machine only", error, name)

    def _fetch(self, name: str) -> bool:
        if self.storage is None or name not in self._stored:
            return False
        return self.storage.get(f"{self._place}/{name}", self.folder / name)

    def _forget(self, name: str) -> None:
        if self.storage is not None and name in self._stored:
            self.storage.remove(f"{self._place}/{name}")
            self._stored.discard(name)


def _is_ours(name: str) -> bool:
    return StateName.parse(name) is not None or is_best_name(name)


def _superseded(names: Iterable[str]) -> list[str]:
    """Of the files in a place, those that belong to none of its last states."""
    ours = [name for name in names if _is_ours(name)]
    states = sorted(filter(None, map(StateName.parse, ours)))[-GENERATIONS:]
    kept = {str(state) for state in states} | {state.best_file for state in states}
    return [name for name in ours if name not in kept]


def _from_version_1(old: State, best: str) -> State:
    rng_cuda = old.get("rng_cuda") or [None]
    state = {name: value for name, value in old.items() if not name.startswith("rng")}
    if "rng" in old:
        state["rng"] = {"torch": old["rng"], "cuda": rng_cuda[0]}
    epochs = len(old["history"])
    return state | {
        "best": best,
        "step": 0,
        "images": 0,
        "sums": {},
        "train_s": 0.0,
        "said_ms": [None] * epochs,
        "epoch_s": [0.0] * epochs,
    }
