"""The published numbers in the package are those of the source, and their errors are found."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sharedenc.report.doubts import doubts
from sharedenc.report.published import Published, inconsistencies, published
from sharedenc.report.statements import check

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
NUMBERS = [*(f"4.{i}" for i in range(1, 18)), "5.1", "A.1", "A.2"]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_number_is_the_one_of_the_source(number: str, shared_data: Path) -> None:
    path = shared_data.parent / "reference" / "thesis_tables.json"
    source: list[list[Any]] = json.loads(path.read_text())["tables"][number]["rows"]
    ours: list[list[Any]] = [
        [*labels, *row.values()] for labels, row in published().tables[number].cells.items()
    ]
    assert len(ours) == len(source)
    for row, wanted in zip(ours, source, strict=True):
        named = [METHODS.get(v, BACKBONES.get(v, v)) if isinstance(v, str) else v for v in row]
        # Labels are text, also the numbers of extra layers in Table 4.2.
        keys = sum(isinstance(value, str) for value in named)
        assert named == [*map(str, wanted[:keys]), *wanted[keys:]]


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
    found = doubts(published())
    places = [doubt.where for doubt in found]
    assert sorted(places) == sorted(
        [
            "4.2 change",
            "4.10 mobilenet_v3_large mIoU",
            "4.15 caption",
            # Counts of 3 classes in 5.1, of 21 in 4.5.
            *(f"4.5 {backbone} parameters" for backbone in BACKBONES),
            "A.2",
            "A.2 dual_latency",
            *2 * ["A.2 densenet121 int8"],
            "abstract",
            "section 4.1.2",
            "section 4.3, under Table 4.8",
            "section 4.4, under Table 4.11",
            "section 4.4, under Table 4.12",
            "section 5.1",
            "section 5.2.2",
        ]
    )
    assert inconsistencies(published()) == [doubt.text for doubt in found]


# Worked out by hand from the printed tables.
@pytest.mark.parametrize(
    ("where", "printed", "recomputed"),
    [
        ("4.2 change", "headed percentage points", "73.95 against 84.14 is -10.19 in percentage"),
        ("4.10 mobilenet_v3_large mIoU", "0.4596", "A.1 has 0.4956"),
        ("4.15 caption", "share-frozen", "dual"),
        ("A.2", "16 rows are printed", "only 8 of them differ"),
        ("A.2 dual_latency", "GPU time", "4.16 and 4.17 print its numbers as latencies"),
        ("section 4.1.2", "becomes larger", "30.46 (0), 24.23 (1), 23.61 (3)"),
        ("section 4.3, under Table 4.8", "recovers the most", "3.27 (resnet18), and 2.97"),
        ("section 4.4, under Table 4.12", "less of detection", "2.91 (densenet121), and"),
        ("section 5.1", "best backbone", "0.3797 (densenet121), and 0.3737 (efficientnet_v2_s)"),
        ("section 5.2.2", "42 % to 48 %", "42.88 (mobilenet_v3_large) for 42: cut off"),
        ("section 5.2.2", "42 % to 48 %", "48.56 (efficientnet_v2_s) for 48: cut off"),
        ("abstract", "up to 21 percentage points", "21.54 (efficientnet_v2_s) for 21: cut off"),
    ],
)
def test_a_doubt_says_what_is_printed_and_what_is_computed(
    where: str, printed: str, recomputed: str
) -> None:
    (found,) = (doubt for doubt in doubts(published()) if doubt.where == where)
    assert printed in found.printed
    assert recomputed in found.recomputed
    assert found.printed in found.text
    assert found.recomputed in found.text


def with_value(number: str, labels: tuple[str, ...], column: str, value: float) -> Published:
    """The published numbers with one of them changed."""
    whole = published()
    table = whole.tables[number]
    assert column in table.cells[labels]
    cells = {**table.cells, labels: {**table.cells[labels], column: value}}
    return replace(whole, tables={**whole.tables, number: replace(table, cells=cells)})


def places(numbers: Published) -> set[str]:
    return {doubt.where for doubt in doubts(numbers)}


@pytest.mark.parametrize(
    ("number", "labels", "column", "right", "where"),
    [
        ("4.10", ("mobilenet_v3_large",), "mIoU", 0.4956, {"4.10 mobilenet_v3_large mIoU"}),
        ("4.5", ("densenet121",), "parameters", 7.75, {"4.5 densenet121 parameters"}),
        ("A.2", ("densenet121", "int8"), "encoder_latency", 9.0, {"A.2 densenet121 int8"}),
        ("A.1", ("resnet18", "swap-bias"), "mIoU", 0.4509, {"section 4.3, under Table 4.8"}),
        (
            "A.1",
            ("densenet121", "swap-frozen"),
            "mAP50",
            0.3730,
            {"section 4.4, under Table 4.11", "section 5.1"},
        ),
    ],
)
def test_a_corrected_number_takes_its_doubt_away(
    number: str, labels: tuple[str, ...], column: str, right: float, where: set[str]
) -> None:
    before = places(published())
    assert where <= before
    assert before - places(with_value(number, labels, column, right)) == where


@pytest.mark.parametrize(
    ("number", "labels", "column", "wrong", "where"),
    [
        ("4.1", ("mIoU", "SegFormer - swapped"), "change", -58.3, "4.1 mIoU SegFormer - swapped"),
        ("4.2", ("1", "Supervised + frozen"), "change", -10.23, "4.2 1 Supervised + frozen"),
        ("4.3", ("LR-ASPP", "mIoU", "frozen"), "score", 0.6677, "4.3 LR-ASPP mIoU frozen"),
        ("4.7", ("resnet18",), "mAP_rel", -18.2, "4.7 resnet18 mAP_rel"),
        ("4.14", ("densenet121",), "pixel_acc", 0.9181, "4.14 densenet121 pixel_acc"),
        ("4.16", ("densenet121",), "dual", 23.38, "4.16 densenet121 dual"),
        ("A.1", ("resnet18", "dual"), "AP_0.75", 0.2297, "A.1 resnet18 dual mAP"),
        ("5.1", ("mobilenet_v3_large",), "det", 3.37, "section 5.2.2"),
        ("A.1", ("resnet18", "dual"), "mIoU", 0.5003, "section 4.5"),
        ("A.2", ("resnet18", "int8"), "dual_latency", 4.38, "section 4.6"),
        ("A.1", ("densenet121", "share-frozen"), "mAP", 0.1866, "section 4.4, under Table 4.11"),
        ("A.1", ("resnet18", "swap-frozen"), "mIoU", 0.3858, "section 5.2"),
    ],
)
def test_a_wrong_number_brings_a_doubt(
    number: str, labels: tuple[str, ...], column: str, wrong: float, where: str
) -> None:
    numbers = with_value(number, labels, column, wrong)
    new = {doubt.text for doubt in doubts(numbers)} - {d.text for d in doubts(published())}
    assert any(text.startswith(f"{where}: ") for text in new), new


def test_a_column_in_what_its_head_says_raises_no_doubt() -> None:
    # True percentage points of Table 4.2.
    points: dict[tuple[str, ...], float] = {
        ("0", "Supervised + frozen"): -10.19,
        ("0", "Unsupervised + frozen"): -25.63,
        ("1", "Supervised + frozen"): -10.23,
        ("1", "Unsupervised + frozen"): -20.41,
        ("3", "Supervised + frozen"): -10.45,
        ("3", "Unsupervised + frozen"): -20.02,
    }
    whole = published()
    table = whole.tables["4.2"]
    cells = {labels: {**row, "change": points.get(labels)} for labels, row in table.cells.items()}
    right = replace(whole, tables={**whole.tables, "4.2": replace(table, cells=cells)})
    assert not any(place.startswith("4.2") for place in places(right))
    once = replace(whole.tables["A.2"], copies=1, heads={"dual_latency": "latency"})
    single = replace(whole, tables={**whole.tables, "A.2": once})
    assert places(published()) - places(single) == {"A.2", "A.2 dual_latency"}


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        # 3.73 + 3.22 and 21.05 + 20.51 million: the text is right, to the last digit.
        ({"kind": "range", "printed": ["6.95", "41.56"]}, ""),
        ({"kind": "range", "printed": ["6.9", "41.6"]}, ""),
        ({"kind": "range", "printed": ["6.8", "41.6"]}, "6.95 (mobilenet_v3_large) for 6.8: not"),
        ({"kind": "range", "printed": ["6.95", "41"]}, "for 41: cut off after the last digit"),
        ({"kind": "most", "printed": ["41.56"]}, ""),
        ({"kind": "most", "printed": ["40"], "step": 5}, ""),
        ({"kind": "most", "printed": ["45"], "step": 5}, "for 45: not that"),
        # 23.07 + 6.95 + 41.56 + 14.97 = 86.55; a quarter is 21.64.
        ({"kind": "mean", "printed": ["21.64"]}, ""),
        ({"kind": "mean", "printed": ["21.7"]}, "the mean is 21.64 for 21.7"),
        ({"kind": "lowest", "at": "mobilenet_v3_large", "printed": ["6.95"]}, ""),
        ({"kind": "lowest", "at": "resnet18"}, "6.95 (mobilenet_v3_large), and 23.07 (resnet18)"),
        ({"kind": "highest", "at": "densenet121"}, "41.56 (efficientnet_v2_s), and 14.97"),
        ({"kind": "not highest", "at": "densenet121"}, ""),
        ({"kind": "not highest", "at": "efficientnet_v2_s"}, "is the highest"),
        ({"kind": "above", "than": 6}, ""),
        ({"kind": "above", "than": 7}, "6.95 (mobilenet_v3_large)"),
        ({"kind": "below", "than": 41.6}, ""),
        ({"kind": "below", "than": 41, "at": "resnet18"}, ""),
        ({"kind": "below", "than": 41}, "41.56 (efficientnet_v2_s)"),
        # In the order of the table: 23.07, 6.95, 41.56, 14.97.
        ({"kind": "rises"}, "23.07 (resnet18), 6.95 (mobilenet_v3_large), 41.56"),
    ],
)
def test_claims_hold_or_not(claim: dict[str, Any], says: str) -> None:
    of = [{"what": "parameters", "graphs": ["det", "seg"]}]
    found = check(published(), {**claim, "of": of})
    assert says in found
    assert bool(found) == bool(says)


def test_one_quantity_may_be_claimed_to_be_greater_than_another() -> None:
    both = [{"what": "parameters", "graphs": [graph]} for graph in ("det", "seg")]
    assert check(published(), {"kind": "greater", "of": both}) == ""
    other = check(published(), {"kind": "greater", "of": both[::-1]})
    assert "of seg is 7.22 (densenet121), and million parameters of det 7.75" in other


def test_saved_time_is_that_of_both_networks_one_after_the_other() -> None:
    # 1 - 6.684 / (5.429 + 5.564) = 39.2 % in FP32; 1 - 3.28 / (2.186 + 2.177) = 24.8 % in INT8.
    for precision, low in (("fp32", "36.5"), ("int8", "24.8")):
        claim = {"kind": "range", "of": [{"what": "saved time", "precision": precision}]}
        high = {"fp32": "46.8", "int8": "44.4"}[precision]
        assert check(published(), {**claim, "printed": [low, high]}) == ""


def test_a_head_stays_in_doubt_where_one_number_below_it_is_wrong_too() -> None:
    found = places(with_value("A.2", ("resnet18", "fp32"), "dual_latency", 6.9))
    assert {"A.2 dual_latency", "4.16 resnet18 dual"} <= found
