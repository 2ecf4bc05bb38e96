from __future__ import annotations

from pathlib import Path

import pytest

from jetson_agent.board import modes
from jetson_agent.board.modes import PowerMode
from tests.agent import fake_board


def test_modes_have_names_and_caps(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path, mode="MODE_30W")
    found = modes.power_modes(board.root)
    assert [mode.name for mode in found] == ["MAXN", "MODE_15W", "MODE_30W", "MODE_50W"]
    # MAXN has -1 and 0 in place of caps.
    assert found[0] == PowerMode(number=0, name="MAXN", cores=12)
    assert found[2] == PowerMode(
        number=2,
        name="MODE_30W",
        cores=8,
        cpu_max_mhz=1728.0,
        gpu_max_mhz=612.0,
        emc_max_mhz=2133.0,
    )
    assert (modes.mode_number(board.root), modes.mode_name(board.root)) == (2, "MODE_30W")


def test_a_mode_in_a_comment_is_no_mode(tmp_path: Path) -> None:
    board = fake_board.build(tmp_path)
    assert "NAME=COMMENT" in (board.root / "etc/nvpmodel.conf").read_text()
    board.write("var/lib/nvpmodel/status", "pmode:0009\n")
    assert modes.mode_name(board.root) == "nvpmodel-9"


@pytest.mark.parametrize("status", ["", "pmode:", "pmode:123456", "nonsense"])
def test_without_a_mode_there_is_no_name(tmp_path: Path, status: str) -> None:
    board = fake_board.build(tmp_path)
    board.write("var/lib/nvpmodel/status", status)
    assert modes.mode_number(board.root) is None
    assert modes.mode_name(board.root) == ""


@pytest.mark.parametrize(
    ("measured", "missing"),
    [
        ([], ["15W", "25W", "MAXN_SUPER"]),
        (["15W-pinned"], ["25W", "MAXN_SUPER"]),
        (["15W-floating-4t", "MAXN_SUPER"], ["25W"]),
        (["25W_2CORE-pinned", "5W-pinned"], ["15W", "25W", "MAXN_SUPER"]),
    ],
)
def test_modes_in_which_nothing_was_measured(
    tmp_path: Path, measured: list[str], missing: list[str]
) -> None:
    board = fake_board.build(tmp_path, "orin-nano")
    assert [mode.name for mode in modes.without_figures(board.root, measured)] == missing
