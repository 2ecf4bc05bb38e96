"""No content of any file of a board breaks the agent, and nothing is invented from rubbish."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetson_agent import preflight
from jetson_agent.board.facts import describe
from jetson_agent.board.files import matching, read_bytes, read_int, read_text
from jetson_agent.conditions import Watch
from jetson_agent.identity import identify
from jetson_agent.preflight import Limits
from jetson_agent.verdict import Spread, judge
from tests.agent import fake_board

NUMBERS = st.sampled_from(
    [b"", b"-1", b"1" * 400, b"nan", b"inf", b"1e309", b"\xd9\xa3", b"\xc2\xb2", b"0x10", b"1 2"]
)
CONTENT = st.one_of(st.binary(max_size=200), NUMBERS)
NOW = Limits(deadline_s=0.0, window_s=0.0)


def look_at_everything(root: Path) -> None:
    """Every reader once; the results must be finite numbers and plain JSON."""
    device = identify(root=root)
    assert device.name
    ready = preflight.wait(device, root, NOW, threading.Event())
    with Watch(root, interval_s=60.0, idle_s=0) as watch:
        pass
    found = watch.result(1.0) | {"preflight": ready.to_dict()}
    facts = describe(root, ["MAXN"])
    json.dumps([asdict(device), found, facts], allow_nan=False)
    metrics = {"latency_ms/p50": 1.0, "gpu_compute_ms/p50": 1.0, "n": 100.0}
    judge(metrics, Spread(within=0.0, between=None, cov=0.0), found, 2)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> fake_board.FakeBoard:
    return fake_board.build(tmp_path_factory.mktemp("fuzz"))


def files_of(root: Path) -> list[Path]:
    """Each kind of file once: of twelve cores the first will do."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and "/cpu1" not in str(path)
    )


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_random_bytes_in_any_files_raise_nothing(
    board: fake_board.FakeBoard, data: st.DataObject
) -> None:
    files = files_of(board.root)
    chosen = data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=6, unique=True))
    kept = {path: path.read_bytes() for path in chosen}
    try:
        for path in chosen:
            path.write_bytes(data.draw(CONTENT))
        look_at_everything(board.root)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def gone(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [gone, folder, loop, pipe])
def test_a_file_of_the_wrong_kind_raises_and_blocks_nothing(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    board = fake_board.build(tmp_path)
    for path in files_of(board.root):
        change(path)
    look_at_everything(board.root)


@pytest.mark.parametrize("place", ["sys/class", "sys/bus/i2c/devices", "proc", "etc", "var"])
def test_a_file_in_place_of_a_folder_raises_nothing(tmp_path: Path, place: str) -> None:
    board = fake_board.build(tmp_path)
    shutil.rmtree(board.root / place)
    (board.root / place).write_text("no folder")
    look_at_everything(board.root)


@pytest.mark.parametrize(
    ("text", "number"),
    [("42\n", 42), ("-256000", -256000), ("+7", 7), ("1_000", None), ("٣", None), ("1.5", None)],
)
def test_a_number_is_decimal_digits_and_nothing_else(
    tmp_path: Path, text: str, number: int | None
) -> None:
    (tmp_path / "n").write_text(text)
    assert read_int(tmp_path / "n") == number


def test_entries_come_in_numerical_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"hwmon{number}").touch()
    (tmp_path / "other").touch()
    assert [path.name for path in matching(tmp_path, "hwmon*")] == ["hwmon1", "hwmon2", "hwmon10"]
    assert matching(tmp_path / "nowhere", "*") == []


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 5_000_000)
    assert len(read_bytes(tmp_path / "big", 1000)) == 1000
    assert len(read_bytes(tmp_path / "big", 10_000_000)) == 5_000_000
    assert read_text(tmp_path / "nul\0in name") == ""
