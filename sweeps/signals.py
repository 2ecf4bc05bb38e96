"""How the driver tells workers on other machines to stop: a small named actor that they ask."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

NAMESPACE = "sharedenc"
WAIT_S = 10.0


class _Signals:
    """Reasons to stop: for everybody, or for the trials of one node."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def stop(self, reason: str, node: str = "") -> None:
        self._reasons.setdefault(node, reason)

    def reason(self, node: str) -> str:
        return self._reasons.get("") or self._reasons.get(node, "")


class Signals:
    """The driver's end; the actor ends with `close`, or with the driver."""

    def __init__(self) -> None:
        import ray

        self.name = f"signals-{uuid.uuid4().hex[:12]}"
        actor = ray.remote(num_cpus=0, max_restarts=-1)(_Signals)
        self._actor: Any = actor.options(name=self.name, namespace=NAMESPACE).remote()
        self._told: set[str] = set()

    def stop(self, reason: str, node: str = "") -> None:
        """Tell all trials, or those of one node, to save and stop; said once."""
        if node not in self._told:
            self._told.add(node)
            self._actor.stop.remote(reason, node)

    def close(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self._actor)


def listen(name: str) -> Callable[[], str]:
    """The worker's end: a function that asks the driver's actor for a reason to stop."""
    import ray

    actor = ray.get_actor(name, namespace=NAMESPACE)
    node = ray.get_runtime_context().get_node_id()

    def ask() -> str:
        try:
            reason: str = ray.get(actor.reason.remote(node), timeout=WAIT_S)
        except ray.exceptions.GetTimeoutError:
            return ""
        return reason

    return ask
