"""Decoding in numpy, against torch's and torchvision's."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from jetson_agent.decode import (
    BoxRule,
    decode_boxes,
    detections,
    iou,
    label_mask,
    read_decoding,
    suppress,
)
from jetson_agent.errors import AgentError
from sharedenc.export.metadata import describe, describe_boxes
from sharedenc.models.boxes import MAX_LOG_SCALE, WEIGHTS, postprocess
from sharedenc.spec import Recipe

IMAGE_PX = 96
CLASSES = ["cat", "dog", "rubber duck"]


def random_anchors(rng: np.random.Generator, count: int) -> Any:
    centre = rng.uniform(0, IMAGE_PX, (count, 2))
    half = rng.uniform(4, 40, (count, 2))
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def rule_of(recipe: Recipe, anchors: Any) -> BoxRule:
    return BoxRule(
        anchors=anchors,
        coder_weights=WEIGHTS,
        clip=MAX_LOG_SCALE,
        score_threshold=recipe.score_threshold,
        nms_iou=recipe.nms_iou,
        top_k=recipe.top_k,
        detections_per_image=recipe.detections_per_image,
    )


def metadata_of(anchors: Any, recipe: dict[str, Any]) -> dict[str, str]:
    means = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.1]}
    return describe(
        graph="det",
        meta={"classes": CLASSES, "recipe": recipe, **means},
        image_px=IMAGE_PX,
        outputs={"cls_logits": [1, len(anchors), 4], "bbox_regression": [1, len(anchors), 4]},
        boxes=describe_boxes(anchors, coder_weights=WEIGHTS, clip=MAX_LOG_SCALE, generator={}),
        architecture="0" * 64,
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(image_px=IMAGE_PX),
        Recipe(image_px=IMAGE_PX, score_threshold=0.2, nms_iou=0.3, detections_per_image=7),
        Recipe(image_px=IMAGE_PX, score_threshold=0.0, nms_iou=0.9, top_k=11),
    ],
)
def test_boxes_labels_and_scores_are_those_of_torch(seed: int, recipe: Recipe) -> None:
    rng = np.random.default_rng(seed)
    anchors = random_anchors(rng, 500)
    logits = (rng.standard_normal((1, 500, 6)) * 3).astype(np.float32)
    offsets = (rng.standard_normal((1, 500, 4)) * 6).astype(np.float32)
    # Growth by more than the clip, as an untrained network has it.
    offsets[0, :20, 2:] = 60
    (theirs,) = postprocess(
        torch.from_numpy(logits),
        torch.from_numpy(offsets),
        torch.from_numpy(anchors),
        IMAGE_PX,
        recipe,
    )
    ours = detections(logits[0], offsets[0], rule_of(recipe, anchors), IMAGE_PX)
    assert len(ours.labels) > 5
    np.testing.assert_array_equal(ours.labels, theirs.labels.numpy())
    np.testing.assert_allclose(ours.scores, theirs.scores.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours.boxes, theirs.boxes.numpy(), atol=1e-4)


def test_a_box_worked_by_hand() -> None:
    anchors = np.array([[10, 20, 30, 60]], np.float32)
    rule = rule_of(Recipe(image_px=IMAGE_PX), anchors)
    # Centre (20, 40), size 20 x 40: to the right by half a width, up by a quarter; twice as wide.
    offsets = np.array([[5.0, -2.5, 5 * np.log(2), 0.0]], np.float32)
    np.testing.assert_allclose(
        decode_boxes(offsets, rule, IMAGE_PX), [[10, 10, 50, 50]], rtol=0, atol=1e-4
    )


def test_nothing_above_the_threshold_is_nothing_found() -> None:
    anchors = random_anchors(np.random.default_rng(0), 5)
    rule = replace(rule_of(Recipe(image_px=IMAGE_PX), anchors), score_threshold=0.99)
    found = detections(np.zeros((5, 4), np.float32), np.zeros((5, 4), np.float32), rule, IMAGE_PX)
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)


def test_boxes_without_area_suppress_nothing() -> None:
    flat = np.array([[5, 5, 5, 9], [5, 5, 5, 9], [0, 0, 4, 4], [0, 0, 4, 3.9]], np.float32)
    assert suppress(flat, 0.5).tolist() == [0, 1, 2]


def test_overlaps_are_those_of_torchvision() -> None:
    boxes = random_anchors(np.random.default_rng(3), 40)
    theirs = box_iou(torch.from_numpy(boxes[:1]), torch.from_numpy(boxes)).numpy()[0]
    np.testing.assert_allclose(iou(boxes[0], boxes), theirs, atol=1e-6)
    assert iou(np.zeros(4, np.float32), np.zeros((1, 4), np.float32)).tolist() == [0.0]


def test_a_mask_has_the_label_with_the_largest_value() -> None:
    logits = np.zeros((3, 2, 2), np.float32)
    logits[2, 0, 1] = logits[1, 1, 1] = 1
    assert label_mask(logits).tolist() == [[0, 2], [0, 1]]


def test_what_an_export_writes_is_read_back() -> None:
    anchors = random_anchors(np.random.default_rng(1), 30)
    decoding = read_decoding(
        metadata_of(anchors, {"top_k": 17, "score_threshold": 0.25, "nms_iou": 0.4}), "m.onnx"
    )
    assert decoding.labels == ("background", *CLASSES)
    assert decoding.image_px == IMAGE_PX
    assert decoding.mean == (0.5, 0.4, 0.3)
    assert decoding.std == (0.2, 0.3, 0.1)
    assert decoding.boxes is not None
    np.testing.assert_array_equal(decoding.boxes.anchors, anchors)
    assert (decoding.boxes.top_k, decoding.boxes.score_threshold) == (17, 0.25)
    assert (decoding.boxes.nms_iou, decoding.boxes.coder_weights) == (0.4, WEIGHTS)


def broken_metadata() -> list[tuple[str, str | None]]:
    return [
        ("sharedenc.input", None),
        ("sharedenc.input", "[" * 100_000),
        ("sharedenc.input", json.dumps({"name": "images", "shape": [1, 3, 8, 9]})),
        ("sharedenc.classes", "[]"),
        ("sharedenc.classes", "7"),
        ("sharedenc.postprocess", None),
        ("sharedenc.boxes", json.dumps({"anchors": "AAAA", "anchors_sha256": "0" * 64})),
        ("sharedenc.boxes", "not json"),
    ]


@pytest.mark.parametrize(("key", "value"), broken_metadata())
def test_damaged_metadata_is_an_error_that_names_the_file(key: str, value: str | None) -> None:
    entries = metadata_of(random_anchors(np.random.default_rng(1), 3), {})
    entries.pop(key)
    if value is not None:
        entries[key] = value
    with pytest.raises(AgentError, match=r"^m\.onnx lacks the metadata"):
        read_decoding(entries, "m.onnx")
