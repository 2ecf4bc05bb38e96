from __future__ import annotations

from pathlib import Path

import pytest

from jetson_agent.board import software
from tests.agent import fake_board


def test_the_real_release_files_are_read(tmp_path: Path, shared_data: Path) -> None:
    for path in sorted((shared_data / "jetson_samples").glob("nv_tegra_release_*.txt")):
        board = fake_board.build(tmp_path / path.stem)
        board.write("etc/nv_tegra_release", path.read_bytes())
        release = software.l4t(board.root, {})
        assert f"_r{release}" in path.stem
        assert software.jetpack(release) == "6.2.1"


@pytest.mark.parametrize(
    ("release", "jetpack"),
    [
        ("35.4.1", "5.1.2"),
        ("36.4.3", "6.2"),
        ("36.4.4", "6.2.1"),
        ("36.4.7", "6.2.1"),
        ("36.5.0", "6.2.2"),
        ("36.9.9", ""),
        ("", ""),
    ],
)
def test_jetpack_follows_from_l4t_and_is_not_guessed(release: str, jetpack: str) -> None:
    assert software.jetpack(release) == jetpack


def test_without_the_release_file_the_package_tells(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, l4t="36.4.7")
    board.remove("etc/nv_tegra_release")
    assert software.l4t(tmp_path, software.packages(tmp_path)) == "36.4.7"
    assert software.l4t(tmp_path, {}) == ""


def test_versions_come_from_dpkgs_list(tmp_path: Path) -> None:
    fake_board.build(tmp_path)
    found = software.packages(tmp_path)
    assert found["libnvinfer10"] == "10.3.0.30-1+cuda12.5"
    assert software.tensorrt(found) == "10.3.0.30"
    assert software.cuda(tmp_path, {}) == "12.6.68"
    (tmp_path / "usr/local/cuda/version.json").unlink()
    assert software.cuda(tmp_path, found) == "12.6.68"


def test_a_package_that_was_removed_is_not_there(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    board.write(
        "var/lib/dpkg/status",
        "Package: libnvinfer8\nStatus: deinstall ok config-files\nVersion: 8.6.2.3-1\n\n"
        "Package: libnvinfer-bin\nStatus: install ok installed\nVersion: 1:10.7.0.23-1+cuda12.6\n",
    )
    found = software.packages(tmp_path)
    assert set(found) == {"libnvinfer-bin"}
    assert software.tensorrt(found) == "10.7.0.23"
    assert software.tensorrt({}) == ""


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"cuda": 3}', '{"cuda": {"version": "?"}}', "[" * 100_000]
)
def test_a_broken_version_file_tells_nothing(tmp_path: Path, text: str) -> None:
    board = fake_board.build(tmp_path, "x86")
    board.write("usr/local/cuda/version.json", text)
    assert software.cuda(tmp_path, {}) == ""


def test_an_older_version_file_has_the_kit_only(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, "x86")
    board.write("usr/local/cuda/version.json", '{"cuda": {"version": "11.4.19"}}')
    assert software.cuda(tmp_path, {}) == "11.4.19"


def test_an_upgrade_is_seen_at_the_next_look(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    assert software.tensorrt(software.packages(tmp_path)) == "10.3.0.30"
    status = (tmp_path / "var/lib/dpkg/status").read_text()
    board.write("var/lib/dpkg/status", status.replace("10.3.0.30", "10.4.0.26"))
    assert software.tensorrt(software.packages(tmp_path)) == "10.4.0.26"
