"""infra/ray-cluster.yaml against the schema that Ray's own launcher checks."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.infra.files import ROOT, load


@pytest.fixture(scope="module")
def config() -> Any:
    return load("ray-cluster.yaml")


def test_ray_s_launcher_takes_it(config: Any) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(copy.deepcopy(config))
    util.validate_config(prepared)
    wrong = {**prepared, "worker_nodes_typo": {}}
    with pytest.raises(Exception, match="worker_nodes_typo"):
        util.validate_config(wrong)


def test_the_head_is_on_demand_and_trains_nothing_while_workers_are_spot(config: Any) -> None:
    kinds = config["available_node_types"]
    head = kinds[config["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    for name, kind in kinds.items():
        if name != config["head_node_type"]:
            assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
            assert kind["min_workers"] == 0


def test_every_ray_start_asks_for_the_token(config: Any) -> None:
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [line for line in commands if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "/home/ubuntu/.ray/auth_token" in config["file_mounts"]
    assert not any("AUTH_TOKEN=" in line for line in commands)


def test_files_of_ours_that_it_copies_exist(config: Any) -> None:
    ours = [path for path in config["file_mounts"].values() if not path.startswith("~")]
    assert ours == ["infra/drain.sh", "infra/constraints-ci.txt"]
    assert all((ROOT / path).is_file() for path in ours)
