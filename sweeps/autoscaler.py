"""Tells a cluster that can grow what a sweep could use, so that it grows to that and no further."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sweeps.order import Demand

# How Ray begins the type of a node that no autoscaler has started.
MADE_UP = ("node_", "local_")


def can_grow() -> bool:
    """Whether the cluster that this process has joined has an autoscaler that adds machines.

    Ray says it nowhere. But an autoscaler names the types of its nodes, while a cluster that was
    started by hand has none: there Ray makes one up for each node, of the node's id.
    """
    return any(not name.startswith(MADE_UP) for name in _node_types() if name)


def _node_types() -> list[str]:
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        nodes = [*status.active_nodes, *status.idle_nodes]
        return [node.ray_node_type_name for node in nodes]
    told = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report = json.loads(told).get("autoscaler_report") if told else None
    return list(report["active_nodes"]) if report else []


def bundle(demand: Demand) -> dict[str, float]:
    """A demand in Ray's words."""
    wanted = {"CPU": demand.cpus, "GPU": demand.gpus, "memory": float(demand.memory)}
    return {name: value for name, value in wanted.items() if value}


class DemandTeller:
    """Says what is wanted whenever it has changed; Ray keeps a request until the next one."""

    def __init__(self) -> None:
        self._told: list[dict[str, float]] | None = None

    def tell(self, demands: Sequence[Demand]) -> None:
        """What everything that runs or could run now asks for together."""
        bundles = sorted((bundle(demand) for demand in demands), key=_order)
        if bundles != self._told:
            self._told = bundles
            _request(bundles)

    def withdraw(self) -> None:
        """Nothing is wanted any more: idle machines may go."""
        if self._told:
            self.tell([])


def _request(bundles: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)


def _order(wanted: dict[str, float]) -> list[Any]:
    return sorted(wanted.items())
