"""How well two sets of outputs of one network agree: as numbers, as boxes and as masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from jetson_agent.decode import (
    DET_OUTPUTS,
    SEG_OUTPUT,
    Decoding,
    Detections,
    detections,
    iou,
    label_mask,
)

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]
# Boxes count from this score on: below it lie hundreds that nobody would show.
SHOWN_SCORE = 0.3
MATCH_IOU = 0.9
MATCH_SCORE = 0.05
# Of a box without area, cut off by the border of the photo, no share can overlap.
MATCH_PX = 0.5
# A class on fewer pixels is all border, and borders move first.
MASK_CLASS_SHARE = 0.005


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """One output: `largest_error` in its own unit, `relative` as a share of the reference's std."""

    cosine: float
    largest_error: float
    std: float
    relative: float


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes above `SHOWN_SCORE` of either side, and how many have a match on the other side."""

    reference_shown: int
    reference_matched: int
    shown: int
    matched: int

    @property
    def reference_share(self) -> float:
        """Share of the reference's boxes that have a match; 1 without any."""
        return self.reference_matched / self.reference_shown if self.reference_shown else 1.0

    @property
    def share(self) -> float:
        """The same of this side's boxes."""
        return self.matched / self.shown if self.shown else 1.0


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Share of equal pixels; mean IoU between both over the classes that either shows enough of."""

    pixels: float
    miou: float
    iou: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All comparisons of one pair; `not_compared` has what could not be decoded, and why."""

    numbers: dict[str, Numbers]
    boxes: Boxes | None = None
    masks: Masks | None = None
    not_compared: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for the certificate."""
        found: dict[str, Any] = {"outputs": {o: asdict(v) for o, v in self.numbers.items()}}
        for head in ("boxes", "masks"):
            if (value := getattr(self, head)) is not None:
                found[head] = asdict(value)
        return found | ({"not_compared": self.not_compared} if self.not_compared else {})


def numbers(ours: Array, theirs: Array) -> Numbers:
    """Compare one output with the reference's `theirs`, each as one vector."""
    one, other = (value.astype(np.float64).ravel() for value in (ours, theirs))
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    cosine = float(one @ other) / lengths if lengths else float(np.array_equal(one, other))
    std = float(other.std())
    error = float(np.abs(one - other).max())
    # A constant output has no deviation of its own; its size is the next best scale.
    scale = std or float(np.abs(other).max()) or 1.0
    return Numbers(cosine=cosine, largest_error=error, std=std, relative=error / scale)


def why_no_boxes(outputs: Outputs, strides: Mapping[str, int], decoding: Decoding) -> str:
    """Why outputs that a detection head gives cannot be decoded, or nothing."""
    assert decoding.boxes is not None
    if any(strides[name] > 1 for name in DET_OUTPUTS):
        return "the reference stores these outputs thinned"
    for name, size in zip(DET_OUTPUTS, (len(decoding.labels), 4), strict=True):
        if outputs[name].shape[1:] != (len(decoding.boxes.anchors), size):
            return f"{name} does not fit the file's anchors and classes"
    return ""


def boxes(ours: Outputs, theirs: Outputs, decoding: Decoding) -> Boxes:
    """Compare decoded detections of all images; a match may be any box of the other side."""
    rule = decoding.boxes
    assert rule is not None
    logits, offsets = DET_OUTPUTS
    counts = np.zeros((2, 2), np.int64)
    for at in range(len(theirs[logits])):
        found, wanted = (
            detections(side[logits][at], side[offsets][at], rule, decoding.image_px)
            for side in (ours, theirs)
        )
        counts += [_matched(wanted, found), _matched(found, wanted)]
    (reference_shown, reference_matched), (shown, matched) = counts.tolist()
    return Boxes(
        reference_shown=reference_shown,
        reference_matched=reference_matched,
        shown=shown,
        matched=matched,
    )


def _matched(ones: Detections, others: Detections) -> tuple[int, int]:
    """How many of `ones` are shown, and how many of these have a match among `others`."""
    shown = found = 0
    for box, score, label in zip(ones.boxes, ones.scores, ones.labels, strict=True):
        if score <= SHOWN_SCORE:
            continue
        shown += 1
        alike = (others.labels == label) & (np.abs(others.scores - score) <= MATCH_SCORE)
        close = np.abs(others.boxes[alike] - box).max(axis=1, initial=0) <= MATCH_PX
        found += bool((close | (iou(box, others.boxes[alike]) >= MATCH_IOU)).any())
    return shown, found


def masks(ours: Outputs, theirs: Outputs, decoding: Decoding) -> Masks:
    """Compare the labels of all pixels."""
    found, wanted = (
        np.stack([label_mask(image) for image in side[SEG_OUTPUT]]) for side in (ours, theirs)
    )
    by_class: dict[str, float] = {}
    for label, name in enumerate(decoding.labels):
        one, other = found == label, wanted == label
        if max(one.mean(), other.mean()) >= MASK_CLASS_SHARE:
            by_class[name] = float((one & other).sum() / (one | other).sum())
    return Masks(
        pixels=float((found == wanted).mean()),
        # With hundreds of classes it may be that none has enough pixels.
        miou=float(np.mean(list(by_class.values()))) if by_class else 1.0,
        iou=by_class,
    )


def compare(
    ours: dict[str, Array],
    theirs: dict[str, Array],
    strides: Mapping[str, int],
    decoding: Decoding | None,
) -> Figures:
    """Compare all outputs ``[N, ...]`` of `theirs`; without `decoding` only as numbers.

    Args:
        strides: By output, how much both are thinned along their last two axes.
    """
    found = Figures(numbers={o: numbers(ours[o], theirs[o]) for o in theirs})
    if decoding is None:
        return found
    if decoding.boxes is not None and all(name in theirs for name in DET_OUTPUTS):
        if reason := why_no_boxes(theirs, strides, decoding):
            found.not_compared["boxes"] = reason
        else:
            found = replace(found, boxes=boxes(ours, theirs, decoding))
    if (logits := theirs.get(SEG_OUTPUT)) is not None:
        if logits.ndim != 4 or logits.shape[1] != len(decoding.labels):
            found.not_compared["masks"] = f"{SEG_OUTPUT} does not fit the file's classes"
        else:
            found = replace(found, masks=masks(ours, theirs, decoding))
    return found
