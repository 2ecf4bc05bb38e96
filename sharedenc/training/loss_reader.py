"""What the losses of each step were, read without making a GPU wait for it.

``float(loss)`` stops the program until the device has done everything before, and then the device
stops until the program has queued the next step. On a GPU the losses of a step are copied as one
tensor and looked at one step later, when they have long been there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepLosses:
    """The losses of one step by name; ``images`` is the size of its batch."""

    step: int
    images: int
    values: dict[str, float]


@dataclass(frozen=True)
class _Waiting:
    step: int
    images: int
    names: tuple[str, ...]
    values: Tensor
    copied: torch.cuda.Event | None

    def read(self) -> StepLosses:
        if self.copied is not None:
            self.copied.synchronize()
        values = dict(zip(self.names, self.values.tolist(), strict=True))
        return StepLosses(self.step, self.images, values)


class LossReader:
    """A queue of losses: on a CPU each can be read at once, on a GPU once the next one is there."""

    def __init__(self, device: torch.device | str, *, late: int | None = None) -> None:
        """``late`` is by how many steps; by default 1 on a GPU and 0 on a CPU."""
        self._on_cpu = torch.device(device).type == "cpu"
        self._late = late if late is not None else int(not self._on_cpu)
        self._waiting: deque[_Waiting] = deque()

    def put(self, step: int, images: int, losses: Mapping[str, Tensor]) -> None:
        """Note the losses (scalars) of a step; nothing is waited for."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        copied = None
        if not self._on_cpu:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            target = torch.empty(values.shape, pin_memory=True)
            values = target.copy_(values, non_blocking=True)
            copied.record()
        self._waiting.append(_Waiting(step, images, tuple(losses), values, copied))

    def take(self, *, all: bool = False) -> list[StepLosses]:
        """What can be read now, in the order of the steps, each once; ``all`` waits for the last.

        To be called with ``all`` before a state is saved and at the end of an epoch.
        """
        keep = 0 if all else self._late
        return [self._waiting.popleft().read() for _ in range(max(0, len(self._waiting) - keep))]
