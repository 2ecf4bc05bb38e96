from __future__ import annotations

import json
from pathlib import Path

from jetson_agent.board.facts import describe
from tests.agent import fake_board


def test_a_board_tells_its_state_in_one_object(tmp_path: Path) -> None:
    board = fake_board.build(
        tmp_path, pinned=False, mode="MODE_50W", temperature_c=51.5, power_w=9.0, gpu_load=0.25
    )
    board.over_current(2, 7)
    board.alarm(2)
    found = describe(tmp_path, ["MODE_50W-floating", "MAXN-pinned"])
    assert found["power_mode"] == "MODE_50W"
    assert len(found["power_modes"]) == 4
    assert found["modes_without_figures"] == ["MODE_15W", "MODE_30W"]
    assert (found["clock_policy"], found["floating"]) == ("floating", ["GPU", "CPU"])
    assert found["junction_c"] == 51.5
    assert round(found["power_w"], 6) == 9.0
    assert found["rail_limits_a"]["VDD_CPU_CV"] == {"max": 32.76, "crit": 32.76}
    assert found["throttle"]["since_boot"]["oc2"] == 7
    assert found["throttle"]["alarms"] == ["VDD_CPU_CV crit"]
    assert found["gpu_load"] == 0.25
    assert found["tegrastats"] is None
    assert json.loads(json.dumps(found)) == found


def test_a_plain_machine_tells_nothing_that_it_does_not_have(tmp_path: Path) -> None:
    found = describe(fake_board.build(tmp_path, "x86").root)
    assert found["memory_gib"]["total"] > 15
    assert found["clock_policy"] == "unknown"
    assert [found[name] for name in ("power_w", "junction_c", "gpu_load", "floating")] == [None] * 4
    assert found["power_modes"] == []
