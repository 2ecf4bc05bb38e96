"""What a study's trials must know of data, weights and machines; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sharedenc.spec import Cell, DeviceKind, Recipe, Task, Trial, resolve_numerics


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts that keys are made of, and those that estimates are made of.

    ``images`` counts training, validation and test images; ``weights`` holds the digest of each
    backbone's initial encoder.
    """

    data_name: str
    data_digest: str
    tasks: tuple[Task, ...]
    images: tuple[int, int, int]
    weights: Mapping[str, str]
    device_kind: DeviceKind
    torch_version: str

    def trial(
        self, cell: Cell, recipe: Recipe, lr: float, seed: int, parent: Trial | None = None
    ) -> Trial:
        """The trial of a cell on this data; ``parent`` is the one that a swap starts from."""
        return Trial(
            cell=cell,
            recipe=recipe,
            lr=lr,
            seed=seed,
            data_digest=self.data_digest,
            weights_digest=self.weights[cell.backbone],
            numerics=resolve_numerics(recipe, cell.backbone, self.device_kind, self.torch_version),
            parent_key=None if parent is None else parent.key,
            parent_compatible=None if parent is None else parent.compatible_key,
        )

    def blocked(self, cell: Cell) -> str | None:
        """Why this data set cannot train a cell; None when it can."""
        missing = [task for task in cell.tasks if task not in self.tasks]
        if not missing:
            return None
        what = {"seg": "masks", "det": "boxes"}[missing[0]]
        return f"data set {self.data_name!r} has no {what}, which {missing[0]} needs"
