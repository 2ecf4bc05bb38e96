"""Parameters and FLOPs against the published tables and hand-computed counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sharedenc.models.build import build_network, count_parameters, model_rows, trainable_parameters
from sharedenc.models.counting import forward_flops, training_flops
from sharedenc.models.freeze import apply_freeze

BACKBONES = ("resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121")

# Exact counts, in the order of BACKBONES.
PARAMETERS = {
    ("encoder", 21): (11_176_512, 2_971_952, 20_177_488, 6_953_856),
    ("seg", 21): (11_313_258, 3_221_538, 20_509_498, 7_221_674),
    ("det", 21): (11_968_004, 4_026_740, 21_418_772, 8_096_580),
    ("dual", 21): (12_104_750, 4_276_326, 21_750_782, 8_364_398),
    ("seg", 3): (11_308_614, 3_218_478, 20_506_006, 7_217_030),
    ("det", 3): (11_759_996, 3_725_420, 21_051_788, 7_750_332),
    ("dual", 3): (11_892_098, 3_971_946, 21_380_306, 8_013_506),
}
# Trainable counts at 21 classes by graph and freeze mode.
TRAINABLE = {
    ("seg", "frozen"): (136_746, 249_586, 332_010, 267_818),
    ("det", "frozen"): (791_492, 1_054_788, 1_241_284, 1_142_724),
    ("seg", "bias"): (141_546, 266_866, 444_138, 309_642),
    ("det", "bias"): (796_292, 1_072_068, 1_353_412, 1_184_548),
    ("encoder", "bias"): (4_800, 17_280, 112_128, 41_824),
    ("encoder", "frozen"): (0, 0, 0, 0),
}
BN_BETA = (4_800, 12_200, 76_936, 41_824)
# Printed in Tables 4.4, 4.5 (21 classes) and 5.1 (3 classes), in millions.
PRINTED = {
    ("seg", 21): (11.31, 3.22, 20.51, 7.22),
    ("det", 21): (11.97, 4.03, 21.42, 8.10),
    ("encoder", 3): (11.18, 2.97, 20.18, 6.95),
    ("det", 3): (11.76, 3.73, 21.05, 7.75),
    ("seg", 3): (11.31, 3.22, 20.51, 7.22),
    ("dual", 3): (11.89, 3.97, 21.38, 8.01),
}
ENCODER_GMAC = (3.701, 0.435, 5.810, 5.782)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str, int], dict[str, Any]]:
    return {
        (row["backbone"], row["graph"], row["num_classes"]): row
        for num_classes in (21, 3)
        for row in model_rows(num_classes, BACKBONES)
    }


@pytest.mark.parametrize(("graph", "num_classes"), PARAMETERS)
def test_parameters_are_exact(
    rows: dict[tuple[str, str, int], dict[str, Any]], graph: str, num_classes: int
) -> None:
    got = tuple(rows[name, graph, num_classes]["parameters"] for name in BACKBONES)
    assert got == PARAMETERS[graph, num_classes]


@pytest.mark.parametrize(("graph", "num_classes"), PRINTED)
def test_parameters_are_those_printed(
    rows: dict[tuple[str, str, int], dict[str, Any]], graph: str, num_classes: int
) -> None:
    got = tuple(round(rows[name, graph, num_classes]["parameters"] / 1e6, 2) for name in BACKBONES)
    assert got == PRINTED[graph, num_classes]


@pytest.mark.parametrize(("graph", "freeze"), TRAINABLE)
def test_trainable_parameters_per_freeze_mode(
    rows: dict[tuple[str, str, int], dict[str, Any]], graph: str, freeze: str
) -> None:
    got = tuple(rows[name, graph, 21]["trainable"][freeze] for name in BACKBONES)
    assert got == TRAINABLE[graph, freeze]
    whole = [rows[name, graph, 21] for name in BACKBONES]
    assert [row["trainable"]["none"] for row in whole] == [row["parameters"] for row in whole]


def test_bias_set_bn_beta_leaves_squeeze_excitation_biases_out() -> None:
    with torch.device("meta"):
        networks = [build_network(name, ("seg",), 21, seed=0) for name in BACKBONES]
    got = tuple(trainable_parameters(n.encoder, "bias", "bn_beta") for n in networks)
    assert got == BN_BETA


def test_published_tables_agree_with_the_counts(
    rows: dict[tuple[str, str, int], dict[str, Any]], shared_data: Path
) -> None:
    path = shared_data.parent / "reference" / "thesis_tables.json"
    tables = json.loads(path.read_text())["tables"]
    printed = {}
    for table, graphs, num_classes in (
        ("4.4", {"parameters": "seg"}, 21),
        ("4.5", {"parameters": "det"}, 21),
        (
            "5.1",
            {"backbone": "encoder", "detection": "det", "segmentation": "seg", "dual_head": "dual"},
            3,
        ),
    ):
        columns = [column["name"] for column in tables[table]["columns"]]
        for name, row in zip(BACKBONES, tables[table]["rows"], strict=True):
            for column, graph in graphs.items():
                printed[name, graph, num_classes] = row[columns.index(column)]
    assert len(printed) == 24
    assert {key: round(rows[key]["parameters"] / 1e6, 2) for key in printed} == printed


def test_encoder_flops_are_twice_the_analytic_multiply_adds(
    rows: dict[tuple[str, str, int], dict[str, Any]],
) -> None:
    got = [rows[name, "encoder", 21]["gflops"] for name in BACKBONES]
    assert got == pytest.approx([2 * gmac for gmac in ENCODER_GMAC], abs=2e-3)


def test_head_flops_are_those_of_the_taps(
    rows: dict[tuple[str, str, int], dict[str, Any]],
) -> None:
    for name, seg, det in zip(
        BACKBONES, (0.030, 0.036, 0.046, 0.044), (0.095, 0.189, 0.255, 0.241), strict=True
    ):
        encoder = rows[name, "encoder", 21]["gflops"]
        assert rows[name, "seg", 21]["gflops"] - encoder == pytest.approx(seg, abs=6e-4)
        assert rows[name, "det", 21]["gflops"] - encoder == pytest.approx(det, abs=6e-4)
        both = rows[name, "dual", 21]["gflops"] - encoder
        assert both == pytest.approx(seg + det, abs=1.2e-3)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_large", "efficientnet_v2_s"])
def test_full_training_costs_three_forwards(backbone: str) -> None:
    # torch's own formula for the backward of grouped convolutions gives 14 here for EfficientNet.
    with torch.device("meta"):
        network = build_network(backbone, ("det", "seg"), 21, seed=0)
    ratio = training_flops(network) / sum(forward_flops(network).values())
    assert 2.9 < ratio <= 3.0


def test_training_flops_follow_the_freeze_mode() -> None:
    with torch.device("meta"):
        network = build_network("resnet18", ("det",), 21, seed=0)
    gflops = {}
    for mode in ("none", "bias", "frozen"):
        apply_freeze(network.encoder, mode)
        gflops[mode] = training_flops(network) / 1e9
    assert gflops == pytest.approx({"none": 22.0, "bias": 14.6, "frozen": 7.66}, rel=0.01)


def test_one_count_by_name() -> None:
    assert count_parameters("mobilenet_v3_large", "dual", 21) == 4_276_326
