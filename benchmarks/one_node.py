"""one-node: 1, 2 and 4 readers at once of one packed data set, each a process of one node.

A reader makes training batches, as a trial's data path does, and trains nothing.

Memory: what each further reader adds to the node's, by the kernel's proportional accounts (a page
that n processes map counts 1/n in each). The reference keeps the pictures in memory of its own, as
a data set with a RAM cache does; ours maps the pack's decoded pictures. The limit is the process
itself, with torch, before it has any data.

Speed: wall time per picture of n readers at once against one, both ours; the limit is what the
cores allow. A machine that others use too shows in ``load``.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from benchmarks.protocol import Duel, Unequal, load_average, result

IMAGES = (400, 1, 1)
COUNTS = (1, 2, 4)
TURN_S = 1.5
MB = 1e6

Mode = Literal["own copy", "mapped"]


def run(
    rounds: int,
    images: tuple[int, int, int] = IMAGES,
    counts: Sequence[int] = COUNTS,
    turn_s: float = TURN_S,
) -> list[dict[str, Any]]:
    """Two rows, memory and speed, for each count above one."""
    from sharedenc.data.decoded import decode_pack, decoded_bytes
    from sharedenc.data.packed import prepare
    from sharedenc.data.synthetic import write_synthetic

    load = load_average()
    with tempfile.TemporaryDirectory(prefix="bench-node-") as scratch:
        source = write_synthetic(Path(scratch) / "set", images)
        pack = prepare(source, Path(scratch) / "cache", progress=False)
        decode_pack(pack, shown=False)
        size = decoded_bytes(pack) / MB
        with readers(pack.root, "own copy", max(counts)) as group:
            copied = [group.memory(count) for count in counts]
            first = group.first_batches()
        with readers(pack.root, "mapped", max(counts)) as group:
            mapped = [group.memory(count) for count in counts]
            first |= group.first_batches()
            seconds = group.race(counts, rounds, turn_s)
    if len(first) != 1:
        raise Unequal(f"{len(first)} different first batches")
    load = max(load, load_average())
    rows = []
    for place, count in enumerate(counts):
        if count == 1:
            continue
        duel = Duel(_added(copied, counts, place), _added(mapped, counts, place), 1, load)
        case = f"memory that each reader beyond the first adds, {count} read {size:.0f} MB"
        check = "same first batch in every reader"
        base = mapped[place]["base"] / MB
        row = result("one-node", case, duel, unit="MB", check=check, limit=base)
        rows.append({**row, "memory": {"own copy": copied[place], "mapped": mapped[place]}})
        pace = Duel(1000 * seconds[counts[0]], 1000 * seconds[count], rounds, load)
        cores = len(os.sched_getaffinity(0))
        limit = pace.reference / min(count, cores)
        alone, together = 1000 / pace.reference, 1000 / pace.ours
        case = (
            f"{count} readers at once ({together:.0f} images/s) against 1 ({alone:.0f} images/s) "
            f"on {cores} cores, wall time"
        )
        row = result("one-node", case, pace, unit="ms/image", check=check, limit=limit)
        rows.append({**row, "images_per_s": together, "images_per_s_of_one": alone})
    return rows


def _added(memory: Sequence[dict[str, float]], counts: Sequence[int], place: int) -> float:
    """Megabytes per reader beyond the first."""
    more = memory[place]["pss"] - memory[0]["pss"]
    return more / (counts[place] - counts[0]) / MB


@contextmanager
def readers(pack: Path, mode: Mode, most: int) -> Iterator[Group]:
    """Up to ``most`` readers of a pack; all are gone afterwards."""
    with ExitStack() as stack:
        yield Group(pack, mode, most, stack)


class Group:
    """Readers that are told over their standard input what to do."""

    def __init__(self, pack: Path, mode: Mode, most: int, stack: ExitStack) -> None:
        self._command = [sys.executable, "-m", "benchmarks.one_node", str(pack), mode]
        self._most, self._stack = most, stack
        self._processes: list[subprocess.Popen[str]] = []
        self._firsts: set[str] = set()

    def memory(self, count: int) -> dict[str, float]:
        """Bytes of the first ``count`` processes, none beyond them being there yet.

        Together: ``pss`` (shared pages by their part), ``private``, ``shared`` (each one's view of
        it). And ``base``: private of the last one before it had any data, when the pages of its
        libraries were those of the others too.
        """
        assert len(self._processes) <= count <= self._most
        while len(self._processes) < count:
            self._start()
        found = [self._tell(process, "memory") for process in self._processes]
        names = ("pss", "private", "shared")
        sums = {name: sum(answer[name] for answer in found) for name in names}
        return sums | {"base": found[-1]["base"]}

    def first_batches(self) -> set[str]:
        """Digests of the first batch in each process."""
        return self._firsts

    def race(self, counts: Sequence[int], rounds: int, turn_s: float) -> dict[int, float]:
        """Least wall seconds per picture of so many processes at once, taken in turns."""
        best = dict.fromkeys(counts, float("inf"))
        for _ in range(rounds):
            for count in counts:
                running = self._processes[:count]
                for process in running:
                    self._send(process, f"read {turn_s}")
                rates = [1 / self._answer(process)["seconds"] for process in running]
                best[count] = min(best[count], 1 / sum(rates))
        return best

    def _start(self) -> None:
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._stack.callback(_end, process)
        self._processes.append(process)
        self._firsts.add(self._answer(process)["first"])

    def _tell(self, process: subprocess.Popen[str], what: str) -> dict[str, float]:
        self._send(process, what)
        return cast(dict[str, float], self._answer(process))

    def _send(self, process: subprocess.Popen[str], what: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{what}\n")
        process.stdin.flush()

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"a reading process ended: {' '.join(self._command)}")
        return cast(dict[str, Any], json.loads(line))


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def memory_of_this_process() -> dict[str, int]:
    """Bytes by the kernel's accounts: ``pss``, ``private``, ``shared``.

    Source: proc_pid_smaps(5). Linux only.
    """
    fields: dict[str, int] = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = 1024 * int(value.split()[0])
    return {
        "pss": fields["Pss"],
        "private": fields["Private_Clean"] + fields["Private_Dirty"],
        "shared": fields["Shared_Clean"] + fields["Shared_Dirty"],
    }


class _OwnCopy:
    """A split whose samples were all read into this process's memory."""

    def __init__(self, split: Any) -> None:
        self._samples = [split[index] for index in range(len(split))]
        for sample in self._samples:
            sample.image = sample.image.copy()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        return self._samples[index]


def _read(pack: Path, mode: Mode) -> None:
    """What a reading process does: one epoch, then as it is told."""
    import torch

    from sharedenc.data.batch import Batch, train_batches
    from sharedenc.data.packed import PackedDataset
    from sharedenc.spec import Recipe

    torch.set_num_threads(1)
    base = memory_of_this_process()["private"]
    split: Any = PackedDataset.open(pack).split("train")
    if mode == "own copy":
        split = _OwnCopy(split)

    def batches(epoch: int) -> Iterator[Batch]:
        return train_batches(split, Recipe(), seed=0, epoch=epoch)

    digest = ""
    for batch in batches(1):
        digest = digest or hashlib.sha256(batch.images.contiguous().numpy().tobytes()).hexdigest()
    print(json.dumps({"first": digest}), flush=True)
    epoch = 1
    for line in sys.stdin:
        what, _, argument = line.strip().partition(" ")
        if what == "memory":
            print(json.dumps(memory_of_this_process() | {"base": base}), flush=True)
            continue
        started, images = time.perf_counter(), 0
        while time.perf_counter() - started < float(argument):
            epoch += 1
            for batch in batches(epoch):
                images += len(batch)
                if time.perf_counter() - started >= float(argument):
                    break
        seconds = (time.perf_counter() - started) / images
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    _read(Path(sys.argv[1]), cast(Mode, sys.argv[2]))
