"""Counts of a data set."""

from __future__ import annotations

from pathlib import Path

from sharedenc.data.packed import prepare
from sharedenc.data.stats import data_stats
from tests.data.small_sets import SIZE, box_object, coco_content, write_set

FIG, PEAR, KIWI = 0, 7, 31


def test_counts_are_those_of_the_annotations(tmp_path: Path) -> None:
    objects = [box_object(0, PEAR, (1, 1, 9, 9)), box_object(0, PEAR, (20, 1, 9, 9))]
    objects += [box_object(1, KIWI, (1, 1, 9, 9)), box_object(1, FIG, (9, 9, 9, 9), iscrowd=1)]
    root = write_set(tmp_path / "set", train=coco_content(3, objects))
    pack = prepare(root, tmp_path / "cache", progress=False)
    stats = data_stats(pack)
    assert (stats["name"], stats["classes"]) == ("fruit", ["fig", "pear", "kiwi"])
    assert (stats["digest"], stats["tasks"]) == (pack.digest, ["det", "seg"])
    train = stats["splits"]["train"]
    assert (train["images"], train["crowd"]) == (2, 1)
    assert train["objects"] == {"fig": 0, "pear": 2, "kiwi": 1}
    assert (train["width"], train["height"]) == ([SIZE[1]] * 3, [SIZE[0]] * 3)
    stored = sum((pack.root / f"train.{kind}").stat().st_size for kind in ("images", "masks"))
    assert train["bytes"] == stored
    assert any("no object of: fig" in warning for warning in stats["warnings"])
