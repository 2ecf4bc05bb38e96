"""What a trial occupies and what a machine offers.

Memory is estimated from measured peaks: linear in batch and pixels on top of a fixed part. On a
CPU the estimate keeps trials from being packed beyond the machine. On a GPU a trial has the whole
device, unless ``--pack`` shares it by the peaks that trials of each kind really had.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sharedenc.errors import SpecError
from sharedenc.spec import Cell, Numerics, Recipe
from sweeps.flops import seconds_per_image
from sweeps.order import Demand, Machine

if TYPE_CHECKING:
    from sweeps.graph import Node

GIB = 2**30
REFERENCE_PX = 320

# A Python process with torch, MLflow client and data in memory.
PROCESS_GIB = 1.2

# Memory is estimated, and what is free varies from minute to minute: a trial may ask for this much
# more than the largest machine has and gets the whole of it.
TOLERANCE = 1.15

# What each further trial adds to one that trains already when they share an encoder: its heads,
# their optimiser's moments, the best of them, scores of the validation set. Activations do not add
# up, since one makes its step after the other. Measured as 7 to 20 MiB at 320 px, batch 16; a large
# validation set has more to remember.
MEMBER_BYTES = GIB // 16

# Of a packed GPU: a context with kernels and libraries per process, what the allocator holds
# beyond the peak that it reports, and a rest that is never given away.
CONTEXT_GIB = 0.7
ALLOCATOR = 1.15
HEADROOM = 0.05
# More trials on one device than this only fight for its cores.
MOST_ON_ONE_GPU = 4
# Ray counts resources in ten-thousandths.
RAY_STEP = 10_000
# Measured with Ray 2.60: when shares of 0.3334 are given back, a few ten-thousandths of one device
# end up on another, which then takes three of them.
RAY_DRIFT = 0.01


@dataclass(frozen=True)
class Cost:
    """GiB by which the peak resident set grows with each image of a batch, both heads, 320 px.

    ``float32``, ``bfloat16``: encoder trained. ``frozen``: it keeps no activations.
    """

    float32: float
    bfloat16: float
    frozen: float


# Measured with torch 2.14, channels_last, batch 32, as peaks of dual networks whose freed memory
# stays with the process; bfloat16, but for MobileNetV3, as it was without that, and a tenth more.
COSTS: dict[str, Cost] = {
    "resnet18": Cost(0.13, 0.12, 0.045),
    "mobilenet_v3_large": Cost(0.16, 0.13, 0.06),
    "efficientnet_v2_s": Cost(0.37, 0.33, 0.06),
    "densenet121": Cost(0.37, 0.25, 0.06),
}
# For a backbone from outside: as the largest known one, since too much only costs parallelism.
UNKNOWN = Cost(0.40, 0.35, 0.10)


def memory_bytes(cell: Cell, recipe: Recipe, numerics: Numerics) -> int:
    """Estimated peak of a trial's resident memory on a CPU."""
    cost = COSTS.get(cell.backbone, UNKNOWN)
    per_image = cost.bfloat16 if numerics.precision == "bfloat16" else cost.float32
    if cell.freeze == "frozen":
        per_image = min(per_image, cost.frozen)
    pixels = (recipe.image_px / REFERENCE_PX) ** 2
    return int((PROCESS_GIB + per_image * recipe.batch_size * pixels) * GIB)


def work_seconds(
    cell: Cell, recipe: Recipe, images: tuple[int, int, int], device: str = "cpu"
) -> float:
    """First estimate of a trial's duration, all epochs; ``images`` of training, validation, test.

    On a CPU with one thread. `sweeps.estimates.Estimates` knows early stopping and learns.
    """
    train, val, test = images
    step_s, image_s = seconds_per_image(cell, recipe, device)
    return 3.0 + recipe.epochs * (train * step_s + val * image_s) + test * image_s


def demand(cell: Cell, recipe: Recipe, numerics: Numerics, cpus_per_gpu: float = 2.0) -> Demand:
    """What a trial asks for: its threads and memory on a CPU, one whole GPU otherwise."""
    if numerics.device == "cuda":
        return Demand(cpus=cpus_per_gpu, gpus=1.0, memory=int(2 * PROCESS_GIB * GIB))
    return Demand(cpus=float(recipe.cpu_threads), memory=memory_bytes(cell, recipe, numerics))


def fit(demands: Sequence[Demand], machines: Sequence[Machine]) -> list[Demand]:
    """Fit demands to machines, so that every trial has at least one that it could run on.

    When every machine could run the largest demand in each of its slots, all ask for that much:
    then any trial can take over any worker process, which saves starting a new one.

    Raises:
        SpecError: no machine has the cores, GPUs or memory of a trial.
    """
    cores = min((m.cpus / m.gpus for m in machines if m.gpus), default=None)
    fitted = []
    for item in demands:
        if item.gpus and cores is not None:
            # A trial's loaders have its GPU's part of the cores, which nothing else wants; it
            # starts as few as keep its steps from waiting.
            item = replace(item, cpus=math.floor(cores * item.gpus * RAY_STEP) / RAY_STEP)
        able = [m for m in machines if replace(m, memory=item.memory).holds(item)]
        room = max((m.memory for m in able), default=0)
        if not able or item.memory > room * TOLERANCE:
            raise SpecError(_too_large(item, machines))
        fitted.append(replace(item, memory=min(item.memory, room)))
    if len({(d.cpus, d.gpus) for d in fitted}) != 1:
        return fitted
    largest = max(fitted, key=lambda d: d.memory)
    if all(m.memory >= largest.memory * slots(m, largest) for m in machines):
        return [largest] * len(fitted)
    return fitted


def _too_large(item: Demand, machines: Sequence[Machine]) -> str:
    """Which demand no machine can hold, what the largest one has, and what to lower."""
    largest = max(machines, key=lambda m: (m.gpus, m.cpus, m.memory))
    asked = f"a trial asks for {_counts(item)} and {item.memory / GIB:.1f} GiB of memory"
    has = f"the largest machine has {_counts(largest)} and {largest.memory / GIB:.1f} GiB free"
    if item.gpus > largest.gpus:
        what = "use a machine with a GPU, or train on CPUs with --device cpu"
    elif item.cpus > largest.cpus:
        what = "lower --cpu-threads or use a machine with more cores"
    else:
        share = max(largest.memory - PROCESS_GIB * GIB, 0) / max(item.memory - PROCESS_GIB * GIB, 1)
        what = (
            f"lower --batch-size to {share:.0%} of what it is or --image-px, use a machine with "
            "more memory, or set --memory-gib if the machine has more than that"
        )
    return f"{asked}, but {has}; {what}"


def _counts(what: Demand | Machine) -> str:
    return f"{what.cpus:g} CPU cores and {what.gpus:g} GPUs"


def slots(machine: Machine, demand: Demand) -> int:
    """How many trials of this demand a machine's cores and GPUs could hold at once."""
    by_cpu = machine.cpus // demand.cpus if demand.cpus else float("inf")
    by_gpu = machine.gpus // demand.gpus if demand.gpus else float("inf")
    return int(min(by_cpu, by_gpu))


class Peaked(Protocol):
    """A finished trial whose peak of memory was measured; the ledger's `Measured` has it."""

    @property
    def cell(self) -> Cell: ...
    @property
    def image_px(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def peak_memory_bytes(self) -> int: ...


Peaks = Mapping[tuple[str, int, int], int]
"""Largest measured peak in bytes by cell name, image size and batch size."""


def peaks_of(measured: Iterable[Peaked]) -> dict[tuple[str, int, int], int]:
    """What was measured, kind by kind; the largest of each counts. Same device and precision."""
    peaks: dict[tuple[str, int, int], int] = {}
    for row in measured:
        key = (row.cell.name, row.image_px, row.batch_size)
        if row.peak_memory_bytes > peaks.get(key, 0):
            peaks[key] = row.peak_memory_bytes
    return peaks


def gpu_share(peak: int | None, device_bytes: int) -> float:
    """Part of a GPU that a trial of this peak needs, as Ray accepts it; 1.0 where none is known.

    Shares of trials that add up to at most 1 fit together: each holds the peak, what the allocator
    keeps beyond it and a context, out of the device less its headroom.
    """
    if peak is None or device_bytes <= 0:
        return 1.0
    share = math.ceil(_needed(peak) / _usable(device_bytes) * RAY_STEP - 1e-6) / RAY_STEP
    # Ray knows no 1.3 devices, and one trial cannot use two: whoever needs half gets a whole one.
    if share > 0.5:
        return 1.0
    share = max(share, RAY_STEP // MOST_ON_ONE_GPU / RAY_STEP)
    # One more of them than fit must miss by more than Ray's books drift.
    one_too_many = math.floor(1 / share) + 1
    return max(share, math.ceil((1 + RAY_DRIFT) / one_too_many * RAY_STEP) / RAY_STEP)


def share_width(peak: int, share: float, device_bytes: int, most: int) -> int:
    """How many trials of one frozen encoder a share of a GPU has memory for, ``most`` at most.

    ``peak`` is that of one of them alone, which the share holds.
    """
    left = share * _usable(device_bytes) - _needed(peak)
    return min(1 + max(int(left // MEMBER_BYTES), 0), most)


def _needed(peak: int) -> float:
    return peak * ALLOCATOR + CONTEXT_GIB * GIB


def _usable(device_bytes: int) -> float:
    return device_bytes * (1 - HEADROOM)


def pack(
    nodes: Sequence[Node], peaks: Peaks, device_bytes: int, cpus_per_gpu: float
) -> dict[str, Demand]:
    """Demands that share GPUs by measured peaks, by node id; cores and loaders are divided too.

    Args:
        peaks: From `peaks_of`; a kind without one gets a whole device, and is measured by that.
        device_bytes: Memory of the smallest GPU.
        cpus_per_gpu: Cores that a machine has for each of its GPUs.
    """
    packed = {}
    for node in nodes:
        key = (node.cell.name, node.recipe.image_px, node.recipe.batch_size)
        share = gpu_share(peaks.get(key), device_bytes)
        if node.demand.gpus != 1.0 or share == 1.0:
            packed[node.id] = node.demand
            continue
        cpus = math.floor(min(cpus_per_gpu * share, node.demand.cpus) * RAY_STEP) / RAY_STEP
        packed[node.id] = replace(node.demand, gpus=share, cpus=cpus)
    return packed


def per_gpu(machines: Sequence[Machine]) -> list[Machine]:
    """A machine for each GPU, with its part of the cores and of the memory.

    Shares of different GPUs do not add up: two halves on two devices hold no whole trial. With
    machines of one GPU each the policy sees that. Ids become ``<node>/gpu<k>``, see `node_of`.
    """
    split = []
    for machine in machines:
        count = int(machine.gpus)
        if count <= 1:
            split.append(machine)
            continue
        split += [
            Machine(
                cpus=math.floor(machine.cpus / count * RAY_STEP) / RAY_STEP,
                gpus=1.0,
                memory=machine.memory // count,
                id=f"{machine.id}/gpu{k}",
            )
            for k in range(count)
        ]
    return split


def node_of(machine_id: str) -> str:
    """Ray's node id of a machine of `per_gpu`."""
    return machine_id.partition("/gpu")[0]


def threads(demand: Demand) -> int:
    """Threads that a trial's libraries may use, so that all trials of a machine fit its cores."""
    return max(1, int(demand.cpus))


def loaders(demand: Demand, workers: int | None) -> int:
    """Most data loading processes of a trial: what was asked for, within its share of cores.

    It uses as few as keep its steps from waiting, see `sharedenc.data.loaders`. On a GPU one core
    drives the device and the others may load, asked for (a number) or not (None). On a CPU the
    trial computes on its cores, and has loaders only where they were asked for.
    """
    if not demand.gpus:
        return workers or 0
    share = max(0, int(demand.cpus) - 1)
    return share if workers is None else min(workers, share)


def local_machine(cpus: float | None = None, memory_gib: float | None = None) -> Machine:
    """This machine's cores (those this process may use), free memory and GPUs."""
    memory = int(memory_gib * GIB) if memory_gib else int(0.9 * available_memory())
    cores = cpus or len(os.sched_getaffinity(0))
    return Machine(cpus=float(cores), gpus=float(count_gpus()), memory=memory)


def available_memory() -> int:
    """Bytes that can be used without swapping: the kernel's estimate, or the container's limit."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except OSError:
        return available
    return available if limit == "max" else max(min(available, int(limit) - used), 0)


def count_gpus() -> int:
    """NVIDIA devices that this process may see, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([item for item in visible.split(",") if item.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def gpu_memory() -> int:
    """Bytes of this machine's smallest GPU, by `nvidia-smi`; 0 where there is none."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    sizes = [int(line) for line in answer.stdout.split() if line.isdigit()]
    return min(sizes, default=0) * 2**20
