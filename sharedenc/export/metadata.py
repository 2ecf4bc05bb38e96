"""What rides in an ONNX file's own metadata, so that the file can be used without this package.

Every entry is a string under a key of `sharedenc.*`; structured ones are JSON. `sharedenc.classes`
lists the names by index, background first. `docs/examples/decode_onnx.py` reads a file by it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sharedenc
from sharedenc.errors import ExportError
from sharedenc.spec import Recipe

PREFIX = "sharedenc."
BACKGROUND = "background"
# Each file says its own architecture, so that a file alone is enough to know its timings.
ARCHITECTURE = PREFIX + "architecture"
# Provenance that is copied from a checkpoint's meta as it is.
COPIED = ("backbone", "cell", "key", "study", "run_id", "data", "data_digest", "class_list")
DECODING = (
    "per anchor with centre (ax, ay), width aw and height ah: cx = ax + dx / w0 * aw, "
    "cy = ay + dy / w1 * ah, w = aw * exp(min(dw / w2, clip)), h = ah * exp(min(dh / w3, clip)); "
    "box = (cx - w/2, cy - h/2, cx + w/2, cy + h/2), clipped to the input; w0..w3 = coder_weights"
)
SELECTION = (
    "softmax of cls_logits over classes; per class but background: scores above score_threshold, "
    "the top_k best, non-maximum suppression at nms_iou; then the detections_per_image best"
)


@dataclass(frozen=True)
class Postprocess:
    """How raw detections become boxes: thresholds of the recipe that the network was made with."""

    score_threshold: float
    nms_iou: float
    top_k: int
    detections_per_image: int

    @classmethod
    def of(cls, recipe: Recipe) -> Postprocess:
        return cls(
            recipe.score_threshold, recipe.nms_iou, recipe.top_k, recipe.detections_per_image
        )


@dataclass(frozen=True)
class GraphMetadata:
    """The part of the metadata that running the file needs.

    ``labels`` has background first; ``anchors`` is ``[A, 4]`` xyxy float32 in input pixels, and it
    and ``postprocess`` are ``None`` in a graph without a detection head.
    """

    graph: str
    labels: tuple[str, ...]
    image_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    anchors: NDArray[np.float32] | None
    postprocess: Postprocess | None
    raw: Mapping[str, str]


def describe(
    *,
    graph: str,
    meta: Mapping[str, Any],
    image_px: int,
    architecture: str,
    outputs: Mapping[str, Sequence[int]],
    boxes: Mapping[str, Any] | None,
) -> dict[str, str]:
    """The metadata of one exported graph.

    Args:
        architecture: `architecture_digest` of the graph.
        meta: a checkpoint's meta; ``recipe`` in it (a mapping) gives the thresholds.
        outputs: shape of each output, by name, in the graph's order.
        boxes: `describe_boxes` of a graph with a detection head.
    """
    entries = {PREFIX + name: str(meta[name]) for name in COPIED if meta.get(name)}
    entries[PREFIX + "version"] = sharedenc.__version__
    entries[PREFIX + "graph"] = graph
    entries[ARCHITECTURE] = architecture
    entries[PREFIX + "classes"] = _json([BACKGROUND, *meta["classes"]])
    entries[PREFIX + "input"] = _json(
        {
            "name": "images",
            "layout": "NCHW",
            "shape": [1, 3, image_px, image_px],
            "type": "float32",
            "channels": "RGB",
            "resize": "bilinear with antialiasing to the input's size, aspect ratio not kept",
            "normalise": "(pixel / 255 - mean) / std, per channel, done before the graph",
            "mean": [float(v) for v in meta["mean"]],
            "std": [float(v) for v in meta["std"]],
        }
    )
    entries[PREFIX + "outputs"] = _json({name: list(shape) for name, shape in outputs.items()})
    if boxes is not None:
        thresholds = Postprocess.of(Recipe.from_dict(meta.get("recipe") or {}))
        entries[PREFIX + "boxes"] = _json({**boxes, "decoding": DECODING})
        entries[PREFIX + "postprocess"] = _json({**vars(thresholds), "selection": SELECTION})
    return entries


def describe_boxes(
    anchors: NDArray[np.float32],
    *,
    coder_weights: Sequence[float],
    clip: float,
    generator: Mapping[str, Any],
) -> dict[str, Any]:
    """Anchors (``[A, 4]`` xyxy in input pixels) and how offsets refer to them."""
    data = np.ascontiguousarray(anchors, dtype="<f4").tobytes()
    return {
        "anchors": base64.b64encode(data).decode("ascii"),
        "anchors_type": "base64 of little-endian float32 [count, 4], x1 y1 x2 y2 in input pixels",
        "anchors_sha256": hashlib.sha256(data).hexdigest(),
        "count": len(anchors),
        "generator": dict(generator),
        "coder_weights": [float(w) for w in coder_weights],
        "clip": float(clip),
    }


def read_metadata(raw: Mapping[str, str], where: str) -> GraphMetadata:
    """Read what `describe` wrote.

    Raises:
        ExportError: entries are missing or damaged; the file is another program's or was edited.
    """
    try:
        given = json.loads(raw[PREFIX + "input"])
        boxes = json.loads(raw[PREFIX + "boxes"]) if PREFIX + "boxes" in raw else None
        thresholds = json.loads(raw[PREFIX + "postprocess"]) if boxes is not None else {}
        thresholds.pop("selection", None)
        return GraphMetadata(
            graph=raw[PREFIX + "graph"],
            labels=tuple(json.loads(raw[PREFIX + "classes"])),
            image_px=int(given["shape"][-1]),
            mean=tuple(given["mean"]),
            std=tuple(given["std"]),
            anchors=None if boxes is None else _anchors(boxes),
            postprocess=Postprocess(**thresholds) if boxes is not None else None,
            raw=dict(raw),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ExportError(
            f"{where} lacks the metadata of a sharedenc export or has it damaged ({error}). "
            "Use a file that `sharedenc export` wrote."
        ) from error


def _anchors(boxes: Mapping[str, Any]) -> NDArray[np.float32]:
    data = base64.b64decode(boxes["anchors"], validate=True)
    if hashlib.sha256(data).hexdigest() != boxes["anchors_sha256"]:
        raise ValueError("the anchors do not match their sha256")
    return np.frombuffer(data, dtype="<f4").reshape(int(boxes["count"]), 4)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
