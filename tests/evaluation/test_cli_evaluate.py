"""`sharedenc evaluate`: figures, the table, and one error per kind of bad file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sharedenc.cli import main

TRUTH: dict[str, Any] = {
    "images": [{"id": 5, "height": 50, "width": 50}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 100}
    ],
}
FOUND = [{"image_id": 5, "category_id": 3, "bbox": [0, 0, 10, 8], "score": 0.9}]


def call(folder: Path, truth: object, found: object, *options: str) -> Result:
    """Run the command on two files; bytes are written as they are."""
    paths = [folder / "truth.json", folder / "found.json"]
    for path, content in zip(paths, (truth, found), strict=True):
        if content is not None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            path.write_bytes(data)
    options = ("--annotations", str(paths[0]), "--detections", str(paths[1]), *options)
    return CliRunner().invoke(main, ["evaluate", *options])


def test_json_is_one_object_with_the_documented_keys(tmp_path: Path) -> None:
    result = call(tmp_path, TRUTH, FOUND, "--json")
    assert result.exit_code == 0
    row = json.loads(result.stdout)
    assert set(row) == {"iou_type", "stats", "ap_per_iou", "per_class"}
    assert list(row["stats"]) == (
        "AP AP50 AP75 AP_small AP_medium AP_large AR_1 AR_10 AR_100 AR_small AR_medium AR_large"
    ).split(" ")
    assert row["ap_per_iou"] == pytest.approx([1.0] * 7 + [0.0] * 3)
    assert row["per_class"] == pytest.approx({"cat": 0.7, "dog": -1})


def test_the_table_shows_figures_and_a_dash_where_undefined(tmp_path: Path) -> None:
    lines = call(tmp_path, TRUTH, FOUND).stdout.splitlines()
    cells = {line.split()[1]: line.split()[3] for line in lines if line.count("│") == 3}
    assert (cells["AP"], cells["AP_large"], cells["0.85"]) == ("0.700", "-", "0.000")
    assert (cells["cat"], cells["dog"]) == ("0.700", "-")


def test_no_detections_are_zero_with_a_warning(tmp_path: Path) -> None:
    result = call(tmp_path, TRUTH, [], "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["stats"]["AP"] == 0
    assert "holds no detections" in result.stderr


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (None, FOUND, "truth.json does not exist"),
        (b"", FOUND, "truth.json is not valid JSON"),
        (b"[" * 100_000, FOUND, "truth.json is not valid JSON"),
        (TRUTH, b"[{", "found.json is not valid JSON"),
        (TRUTH, {"a": 1}, "found.json holds a JSON dict; a COCO results file"),
        ([], FOUND, "truth.json holds a JSON list; a COCO instances file"),
        ({}, FOUND, "no list 'images'"),
        (TRUTH, [FOUND[0] | {"image_id": 6}], "image id 6"),
        (TRUTH | {"images": [], "annotations": []}, [], "0 images and 2 categories"),
    ],
)
def test_a_bad_file_is_one_clear_error(
    tmp_path: Path, truth: object, found: object, message: str
) -> None:
    result = call(tmp_path, truth, found, "--json")
    assert (result.exit_code, result.stdout) == (3, "")
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert re.search(message, line), line
