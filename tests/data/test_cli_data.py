"""The commands `data` and `weights`, run in this process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import pytest
from click.testing import CliRunner, Result

from sharedenc.cli import main
from sharedenc.data.fetch import WEIGHTS, Remote
from tests.data.small_sets import coco_content, write_set
from tests.data.test_fetch import Server, server  # noqa: F401


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def test_draw_prepare_and_count(tmp_path: Path) -> None:
    drawn = run("data", "synthetic", "--out", tmp_path / "set", "--images", "4,3,3", "--seed", 5)
    assert drawn.exit_code == 0
    assert "4 train, 3 val, 3 test" in drawn.stdout
    out = tmp_path / "pack"
    prepared = run("data", "prepare", "--data", tmp_path / "set", "--out", out)
    assert (prepared.exit_code, str(out) in prepared.stdout) == (0, True)
    counted = run("data", "stats", "--data", tmp_path / "set", "--json")
    stats = json.loads(counted.stdout)
    assert {name: split["images"] for name, split in stats["splits"].items()} == {
        "train": 4,
        "val": 3,
        "test": 3,
    }
    assert stats["digest"] in prepared.stdout
    assert json.loads(run("data", "stats", "--data", out, "--json").stdout)["pack"] == str(out)


def test_stats_for_people_name_every_class_and_warn_on_standard_error(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", {"ignore": ["kiwi"]})
    result = run("data", "stats", "--data", root, "--cache-dir", tmp_path / "cache")
    assert result.exit_code == 0
    for name in ("fig", "pear", "images", "digest"):
        assert f"\n{name}" in result.stdout
    assert "kiwi" not in result.stdout
    assert (tmp_path / "cache" / "packs").is_dir()


def test_show_writes_a_picture(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    out = tmp_path / "sheet.png"
    result = run("data", "show", "--data", root, "--out", out, "--count", 2, "--augmented")
    assert result.exit_code == 0, result.stderr
    assert cv2.imread(str(out)).std() > 0


def test_rules_of_the_command_line_beat_those_of_the_file(tmp_path: Path) -> None:
    own = {"rules": {"overlap": "paint_small_last", "split_seed": 7}, "val": 0.25}
    root = write_set(tmp_path / "set", own, train=coco_content(8))

    def stats(*args: object, data: Path = root) -> dict[str, Any]:
        told = run("data", "stats", "--data", data, "--json", *args)
        assert told.exit_code == 0, told.stderr
        found: dict[str, Any] = json.loads(told.stdout)
        return found

    plain = stats()
    assert (plain["rules"]["overlap"], plain["rules"]["split_seed"]) == ("paint_small_last", 7)
    asked = ["--val-fraction", 0.5, "--crowd-seg", "class", "--empty-images", "keep"]
    other = stats(*asked, "--split-seed", 1)
    assert other["rules"] == {
        "overlap": "paint_small_last",
        "crowd_seg": "class",
        "val_fraction": 0.5,
        "split_seed": 1,
        "empty_images": "keep",
    }
    assert other["splits"]["val"]["images"] == 4
    assert other["digest"] != plain["digest"]
    pack = Path(plain["pack"])
    assert stats("--split-seed", 7, data=pack)["digest"] == plain["digest"]
    refused = run("data", "stats", "--data", pack, "--split-seed", 1)
    assert (refused.exit_code, "made with split_seed=7" in refused.stderr) == (3, True)


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("synthetic", "--out", "x", "--images", "4,3"), 2, "must be one number or three"),
        (("synthetic", "--out", "x", "--images", "many"), 2, "must be one number or three"),
        (("synthetic", "--out", "x", "--images", "0"), 2, "must be one number or three"),
        (("stats",), 2, "--data is missing"),
        (("fetch", "cocoo", "--out", "x"), 2, "Did you mean 'coco'"),
        (("stats", "--data", "."), 3, "has no known layout"),
        (("stats", "--data", ".", "--overlap", "ignor"), 2, "Did you mean 'ignore'"),
        (("stats", "--data", ".", "--val-fraction", "2"), 2, "must lie between 0 and 1"),
        (("show", "--data", ".", "--out", "x.bla"), 2, "--out x.bla must end in .png"),
    ],
)
def test_wrong_use_is_told_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("data", *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert told in result.stderr


def test_weights_are_fetched_and_the_option_is_told(
    server: Server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = b"weights"
    remote = Remote("https://x/r-1.pth", sha256_start=hashlib.sha256(body).hexdigest()[:8])
    monkeypatch.setitem(WEIGHTS, "resnet18", remote)
    monkeypatch.setenv("SHAREDENC_FETCH_BASE_URL", server.url)
    server.files["r-1.pth"] = body
    args = ("weights", "fetch", "--out", tmp_path, "--backbone", "resnet18")
    assert f"--weights resnet18={tmp_path}/r-1.pth" in run(*args).stdout
    assert json.loads(run(*args, "--json").stdout) == {"resnet18": f"{tmp_path}/r-1.pth"}
