"""Find objects in a picture with an exported network, without torch and without this package.

    pip install numpy onnxruntime pillow
    python decode_onnx.py model.onnx picture.jpg [lowest score]

The file says itself how its input is made and how its outputs are read: class names, normalisation,
anchors and thresholds are JSON in its metadata. Works for the graphs `det` and `dual`; of a `dual`
graph, `seg_logits` gives the label of each pixel: `seg_logits[0].argmax(0)`.
"""

from __future__ import annotations

import base64
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

Found = tuple[int, float, np.ndarray]


def prepare(picture: Image.Image, spec: dict) -> np.ndarray:
    """The network's input, float32 [1, 3, S, S]: squashed to a square, then normalised."""
    height, width = spec["shape"][2:]
    squashed = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(squashed, np.float32) / 255
    normalised = (pixels - np.float32(spec["mean"])) / np.float32(spec["std"])
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])


def decode(offsets: np.ndarray, spec: dict, side: int) -> np.ndarray:
    """Boxes [A, 4] (x1, y1, x2, y2 in pixels of the input) from the raw offsets [A, 4]."""
    anchors = np.frombuffer(base64.b64decode(spec["anchors"]), "<f4").reshape(-1, 4)
    anchor_size = anchors[:, 2:] - anchors[:, :2]
    anchor_centre = anchors[:, :2] + anchor_size / 2
    offsets = offsets / np.float32(spec["coder_weights"])
    centre = anchor_centre + offsets[:, :2] * anchor_size
    half = np.exp(np.minimum(offsets[:, 2:], spec["clip"])) * anchor_size / 2
    return np.concatenate([centre - half, centre + half], axis=1).clip(0, side)


def suppress(boxes: np.ndarray, iou_limit: float) -> list[int]:
    """Positions that survive non-maximum suppression; boxes [N, 4] come by falling score."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.arange(len(boxes))
    kept = []
    while len(left):
        best, rest = left[0], left[1:]
        kept.append(int(best))
        corner1 = np.maximum(boxes[best, :2], boxes[rest, :2])
        corner2 = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (corner2 - corner1).clip(0).prod(axis=1)
        union = area[best] + area[rest] - shared
        # Two boxes without area share nothing and suppress nothing.
        left = rest[shared <= iou_limit * union]
    return kept


def select(logits: np.ndarray, boxes: np.ndarray, rule: dict) -> list[Found]:
    """(label, score, box) of what is found, best first, from logits [A, C] and boxes [A, 4]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = powers / powers.sum(axis=1, keepdims=True)
    found = []
    for label in range(1, scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")[: rule["top_k"]]
        order = order[scores[order, label] > rule["score_threshold"]]
        for position in suppress(boxes[order], rule["nms_iou"]):
            anchor = order[position]
            found.append((label, float(scores[anchor, label]), boxes[anchor]))
    return sorted(found, key=lambda one: -one[1])[: rule["detections_per_image"]]


def detect(model_path: str, picture: Image.Image) -> list[tuple[str, float, list[float]]]:
    """(class name, score, box in pixels of the picture) of everything found, best first."""
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    classes = json.loads(metadata["sharedenc.classes"])  # by label, 0 is the background
    input_spec = json.loads(metadata["sharedenc.input"])
    box_spec = json.loads(metadata["sharedenc.boxes"])
    rule = json.loads(metadata["sharedenc.postprocess"])
    logits, offsets = session.run(
        ["cls_logits", "bbox_regression"], {input_spec["name"]: prepare(picture, input_spec)}
    )
    side = input_spec["shape"][3]
    boxes = decode(offsets[0], box_spec, side)
    scale = np.array([picture.width, picture.height] * 2) / side
    return [
        (classes[label], score, [float(v) for v in box * scale])
        for label, score, box in select(logits[0], boxes, rule)
    ]


if __name__ == "__main__":
    lowest = float(sys.argv[3]) if len(sys.argv) > 3 else 0.3
    with Image.open(sys.argv[2]) as opened:
        results = detect(sys.argv[1], opened)
    for name, score, box in results:
        if score >= lowest:
            print(f"{score:.3f} {name:16} " + " ".join(f"{v:7.1f}" for v in box))
