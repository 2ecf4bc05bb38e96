"""The confusion matrix against a pixel loop, and the rules for ignored and absent classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sharedenc.data.classes import ClassList
from sharedenc.evaluation.segmentation import ConfusionMatrix

CLASSES = ClassList(name="three", names=("cat", "dog", "bird"))


@pytest.mark.parametrize("num_classes", [4, 21, 300])
def test_counts_equal_a_pixel_by_pixel_loop(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    dtype = np.uint8 if num_classes < 255 else np.int64
    matrix, expected = ConfusionMatrix(num_classes), np.zeros((num_classes, num_classes), int)
    for _ in range(3):
        pred = rng.integers(0, num_classes, (2, 9, 11)).astype(dtype)
        target = rng.integers(0, num_classes, (2, 9, 11)).astype(dtype)
        target[rng.random(target.shape) < 0.2] = 255
        matrix.update(pred, target)
        for guess, truth in zip(pred.ravel().tolist(), target.ravel().tolist(), strict=True):
            if truth != 255:
                expected[truth, guess] += 1
    np.testing.assert_array_equal(matrix.counts, expected)


@pytest.mark.parametrize("num_classes", [2, 21, 255])
def test_bytes_are_counted_as_numbers_of_any_type_are(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    pred = rng.integers(0, num_classes, (3, 40, 31)).astype(np.uint8)
    target = rng.integers(0, num_classes, (3, 40, 31)).astype(np.uint8)
    target[rng.random(target.shape) < 0.2] = 255
    # What is predicted where nothing is labelled may be anything.
    pred[target == 255] = rng.integers(0, 256, int((target == 255).sum()))
    # Whole pictures, turned ones, and none.
    for turn in (lambda x: x, lambda x: x.transpose(2, 0, 1), lambda x: x[:, ::2], lambda x: x[:0]):
        counts = []
        for dtype in (np.uint8, np.int64, np.int16):
            matrix = ConfusionMatrix(num_classes)
            matrix.update(turn(pred).astype(dtype), turn(target).astype(dtype))
            counts.append(matrix.counts)
        np.testing.assert_array_equal(counts[0], counts[1])
        np.testing.assert_array_equal(counts[0], counts[2])
        assert counts[0].sum() == (turn(target) != 255).sum()


def test_more_pixels_than_a_float_can_count_are_counted() -> None:
    matrix = ConfusionMatrix(3)
    target = np.ones(2**24 + 5, np.uint8)
    target[-2:] = 255
    matrix.update(np.full_like(target, 2), target)
    assert matrix.counts[1, 2] == matrix.counts.sum() == 2**24 + 3


def test_figures_of_a_hand_worked_map() -> None:
    matrix = ConfusionMatrix(4)
    target = torch.tensor([[0, 0, 1], [1, 1, 255]], dtype=torch.uint8)
    pred = torch.tensor([[0, 1, 1], [1, 3, 0]])
    matrix.update(pred, target)
    result = matrix.result(CLASSES)
    # background 1 of 2; cat 2 of (3 + 1); dog never there; bird only predicted.
    assert result.iou_per_class == {"background": 0.5, "cat": 0.5}
    assert result.absent == ("dog", "bird")
    assert result.mIoU == 0.5
    assert result.pixel_acc == pytest.approx(3 / 5)


def test_a_map_without_a_labelled_pixel_is_undefined_not_nan() -> None:
    matrix = ConfusionMatrix(4)
    matrix.update(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    result = matrix.result(CLASSES)
    assert (result.mIoU, result.pixel_acc, result.iou_per_class) == (-1, -1, {})


def test_wrong_shapes_and_values_are_refused() -> None:
    matrix = ConfusionMatrix(4)
    with pytest.raises(ValueError, match=r"\(2, 2\), target \(2, 3\)"):
        matrix.update(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match=r"target has values 0..4, classes are 0..3"):
        matrix.update(np.zeros((1, 2), int), np.array([[0, 4]]))
    with pytest.raises(ValueError, match=r"target has values 0..4, classes are 0..3"):
        matrix.update(np.zeros((1, 2), np.uint8), np.array([[0, 4]], np.uint8))
    with pytest.raises(ValueError, match=r"pred has values 0..200, classes are 0..3"):
        matrix.update(np.array([[0, 200]], np.uint8), np.array([[0, 3]], np.uint8))
    with pytest.raises(ValueError, match=r"pred has values 0..5, classes are 0..3"):
        matrix.update(np.array([[0, 5]], np.uint8), np.array([[0, 0]], np.uint8))
    assert matrix.counts.sum() == 0
    with pytest.raises(ValueError, match="pred has values -1"):
        matrix.update(np.array([[-1, 0]]), np.array([[0, 0]]))
    with pytest.raises(ValueError, match="4 names with background for 7"):
        ConfusionMatrix(7).result(CLASSES)
