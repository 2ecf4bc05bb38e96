"""`sharedenc models` as people and programs see it."""

from __future__ import annotations

import json

from click.testing import CliRunner

from sharedenc.cli import main


def test_json_rows_have_the_agreed_keys() -> None:
    arguments = ["models", "--json", "--num-classes", "3", "--backbones", "resnet18"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["graph"] for row in rows] == ["encoder", "seg", "det", "dual"]
    assert set(rows[0]) == {
        "backbone",
        "graph",
        "num_classes",
        "parameters",
        "gflops",
        "trainable",
    }
    assert set(rows[0]["trainable"]) == {"none", "frozen", "bias"}
    assert rows[3]["parameters"] == 11_892_098


def test_the_table_shows_counts_and_taps() -> None:
    result = CliRunner().invoke(main, ["models", "--backbones", "mobilenet_v3_large"])
    assert result.exit_code == 0, result.output
    for text in ("4,276,326", "features.13.block.0", "672", "det, seg"):
        assert text in result.output


def test_an_unknown_backbone_is_told_with_the_nearest() -> None:
    result = CliRunner().invoke(main, ["models", "--backbones", "densnet121"])
    assert result.exit_code == 2
    assert "Did you mean 'densenet121'?" in result.output
