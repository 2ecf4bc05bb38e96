"""The published numbers in the package are those of the source, and their errors are found."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sharedenc.report.published import inconsistencies, published

# The source's names of what our file calls by our words.
BACKBONES = {
    "resnet18": "ResNet18",
    "mobilenet_v3_large": "MobileNetV3-Large",
    "efficientnet_v2_s": "EfficientNetV2-S",
    "densenet121": "DenseNet121",
}
METHODS = {
    "baseline": "Baseline",
    "swap-frozen": "Swap-A",
    "swap-bias": "Swap-B",
    "share-frozen": "Share-A",
    "share-bias": "Share-B",
    "dual": "Dual",
}
NUMBERS = [*(f"4.{i}" for i in range(4, 18)), "5.1", "A.1", "A.2"]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_number_is_the_one_of_the_source(number: str, shared_data: Path) -> None:
    path = shared_data.parent / "reference" / "thesis_tables.json"
    source: list[list[Any]] = json.loads(path.read_text())["tables"][number]["rows"]
    ours = [[*labels, *row.values()] for labels, row in published().tables[number].cells.items()]
    assert len(ours) == len(source)
    for row, wanted in zip(ours, source, strict=True):
        named = [METHODS.get(v, BACKBONES.get(v, v)) if isinstance(v, str) else v for v in row]
        assert named == wanted


def test_a_score_table_repeats_the_overview_where_the_source_is_consistent() -> None:
    numbers = published()
    assert numbers.value("4.8", ("densenet121",), "mIoU") == 0.515
    assert numbers.value("A.1", ("densenet121", "swap-bias"), "mIoU") == 0.515
    assert numbers.value("A.2", ("efficientnet_v2_s", "int8"), "encoder_latency") is None


def test_ap_falls_with_the_iou_threshold_in_every_row() -> None:
    for row in published().tables["A.1"].cells.values():
        steps = [row["mAP50"], *(row[f"AP_0.{i}"] for i in range(55, 100, 5))]
        assert all(a is not None and b is not None and a > b for a, b in pairwise(steps))


def test_computing_again_finds_the_known_inconsistencies_and_no_rounding() -> None:
    found = inconsistencies(published())
    scores = [text for text in found if text.startswith("4.10")]
    assert scores == ["4.10 mobilenet_v3_large mIoU: 0.4596, but A.1 has 0.4956"]
    # Four detection counts (3 classes in 5.1, 21 in 4.5) and one anomaly of an encoder.
    assert sum(text.startswith("4.5 ") for text in found) == 4
    assert sum(text.startswith("A.2 densenet121 int8") for text in found) == 2
    assert len(found) == 7
