"""What is in a data set, counted from its pack."""

from __future__ import annotations

from typing import Any

import numpy as np

from sharedenc.data.dataset import SPLITS
from sharedenc.data.packed import PackedDataset


def data_stats(pack: PackedDataset) -> dict[str, Any]:
    """Return counts as plain data.

    Keys: ``name``, ``digest``, ``classes`` (names), ``class_list``, ``tasks``, ``rules``,
    ``warnings``, ``pack`` (its folder) and ``splits``: per split ``images``, ``objects`` (per
    class, crowd not counted), ``crowd``, ``width`` and ``height`` (smallest, median, largest,
    pixels), ``bytes``.
    """
    splits = {}
    for name in SPLITS:
        split = pack.split(name)
        objects, crowd = split.object_counts()
        sizes = split.sizes()
        ranges = [[int(side.min()), int(np.median(side)), int(side.max())] for side in (sizes.T)]
        splits[name] = {
            "images": len(split),
            "objects": objects,
            "crowd": crowd,
            "width": ranges[0],
            "height": ranges[1],
            "bytes": split.stored_bytes(),
        }
    return {
        "name": pack.name,
        "digest": pack.digest,
        "class_list": pack.classes.name,
        "classes": list(pack.classes.names),
        "tasks": list(pack.tasks),
        "rules": pack.rules.to_dict(),
        "splits": splits,
        "warnings": pack.warnings,
        "pack": str(pack.root),
    }
