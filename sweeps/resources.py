"""What a trial occupies and what a machine offers.

Memory is estimated from measured peaks: linear in batch and pixels on top of a fixed part. On a
CPU the estimate keeps trials from being packed beyond the machine; on a GPU a trial has the
whole device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sharedenc.errors import SpecError
from sharedenc.spec import Cell, Numerics, Recipe
from sweeps.order import Demand, Machine

GIB = 2**30
REFERENCE_PX = 320

# A Python process with torch, MLflow client and data in memory.
PROCESS_GIB = 1.2


@dataclass(frozen=True)
class Cost:
    """One training step of both heads at 320 px, per image of a batch.

    ``float32``, ``bfloat16``: GiB by which the peak resident set grows, encoder trained.
    ``frozen``: the same with a frozen encoder, which keeps no activations. ``seconds``: one core.
    """

    float32: float
    bfloat16: float
    frozen: float
    seconds: float


# Measured with torch 2.14 on CPUs with bfloat16 units, channels_last: bfloat16 as the peak of whole
# trials at batch 32 (whichever task is larger), float32 at batches of 4 and 8. The memory figures
# carry over to other CPUs; the times only order trials and guess the time left.
COSTS: dict[str, Cost] = {
    "resnet18": Cost(0.13, 0.11, 0.045, 0.20),
    "mobilenet_v3_large": Cost(0.145, 0.10, 0.06, 0.17),
    "efficientnet_v2_s": Cost(0.40, 0.30, 0.06, 0.50),
    "densenet121": Cost(0.36, 0.23, 0.06, 0.45),
}
# For a backbone from outside: as the largest known one, since too much only costs parallelism.
UNKNOWN = Cost(0.40, 0.30, 0.10, 0.50)

# Part of a full step's time: a frozen encoder has no backward pass; tuned biases need the
# gradient of every layer's input, but of no weight.
FREEZE_TIME = {"frozen": 0.4, "bias": 0.75, "none": 1.0}
EVALUATION_TIME = 0.4


def memory_bytes(cell: Cell, recipe: Recipe, numerics: Numerics) -> int:
    """Estimated peak of a trial's resident memory on a CPU."""
    cost = COSTS.get(cell.backbone, UNKNOWN)
    per_image = cost.bfloat16 if numerics.precision == "bfloat16" else cost.float32
    if cell.freeze == "frozen":
        per_image = min(per_image, cost.frozen)
    pixels = (recipe.image_px / REFERENCE_PX) ** 2
    return int((PROCESS_GIB + per_image * recipe.batch_size * pixels) * GIB)


def work_seconds(cell: Cell, recipe: Recipe, images: tuple[int, int, int]) -> float:
    """Estimated duration of a trial on one core; ``images`` of training, validation, test."""
    cost = COSTS.get(cell.backbone, UNKNOWN).seconds
    pixels = (recipe.image_px / REFERENCE_PX) ** 2
    train, val, test = images
    step = FREEZE_TIME.get(cell.freeze, 1.0) * train + EVALUATION_TIME * val
    return 3.0 + cost * pixels * (recipe.epochs * step + EVALUATION_TIME * test)


def demand(cell: Cell, recipe: Recipe, numerics: Numerics, cpus_per_gpu: float = 2.0) -> Demand:
    """What a trial asks for: its threads and memory on a CPU, one whole GPU otherwise."""
    if numerics.device == "cuda":
        return Demand(cpus=cpus_per_gpu, gpus=1.0, memory=int(2 * PROCESS_GIB * GIB))
    return Demand(cpus=float(recipe.cpu_threads), memory=memory_bytes(cell, recipe, numerics))


def fit(demands: Sequence[Demand], machines: Sequence[Machine]) -> list[Demand]:
    """Fit demands to machines: a trial larger than any machine gets a whole one to itself.

    When every machine could run the largest demand in each of its slots, all ask for that much:
    then any trial can take over any worker process, which saves starting a new one.

    Raises:
        SpecError: no machine has the cores or GPUs of a trial.
    """
    clamped = []
    # Loaders are given what there is: a trial never waits for a core while a GPU is free.
    cores = [machine.cpus / machine.gpus for machine in machines if machine.gpus]
    for item in demands:
        if item.gpus and cores:
            item = replace(item, cpus=min(item.cpus, *cores))
        able = [m for m in machines if m.holds(replace(item, memory=0))]
        if not able:
            raise SpecError(
                f"a trial asks for {item.cpus:g} CPU cores and {item.gpus:g} GPUs, but the "
                f"largest machine has {max(m.cpus for m in machines):g} and "
                f"{max(m.gpus for m in machines):g}; lower --cpu-threads or use another machine"
            )
        clamped.append(replace(item, memory=min(item.memory, max(m.memory for m in able))))
    if len({(d.cpus, d.gpus) for d in clamped}) != 1:
        return clamped
    largest = max(clamped, key=lambda d: d.memory)
    if all(m.memory >= largest.memory * slots(m, largest) for m in machines):
        return [largest] * len(clamped)
    return clamped


def slots(machine: Machine, demand: Demand) -> int:
    """How many trials of this demand a machine's cores and GPUs could hold at once."""
    by_cpu = machine.cpus // demand.cpus if demand.cpus else float("inf")
    by_gpu = machine.gpus // demand.gpus if demand.gpus else float("inf")
    return int(min(by_cpu, by_gpu))


def local_machine(cpus: float | None = None, memory_gib: float | None = None) -> Machine:
    """This machine's cores (those this process may use), free memory and GPUs."""
    memory = int(memory_gib * GIB) if memory_gib else int(0.9 * available_memory())
    cores = cpus or len(os.sched_getaffinity(0))
    return Machine(cpus=float(cores), gpus=float(count_gpus()), memory=memory)


def available_memory() -> int:
    """Bytes that can be used without swapping: the kernel's estimate, or the container's limit."""
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
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
