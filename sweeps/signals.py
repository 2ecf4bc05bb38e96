"""How the driver tells workers on other machines to stop: a small named actor that they ask."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any, Protocol

NAMESPACE = "sharedenc"
WAIT_S = 10.0


class _Signals:
    """Reasons to stop, for everybody or for the trials of one node; and the trials that are cut."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._cut: set[str] = set()

    def stop(self, reason: str, node: str = "") -> None:
        self._reasons.setdefault(node, reason)

    def reason(self, node: str) -> str:
        return self._reasons.get("") or self._reasons.get(node, "")

    def cut(self, trial: str) -> None:
        self._cut.add(trial)

    def is_cut(self, trial: str) -> bool:
        return trial in self._cut


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

    def cut(self, trial: str) -> None:
        """Tell one trial to stop; known to all who ask once this has returned.

        Should the actor be away the trial goes on to its end, which is only a waste.
        """
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._actor.cut.remote(trial), timeout=WAIT_S)

    def close(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self._actor)


class Listener(Protocol):
    """The worker's end."""

    def reason(self) -> str:
        """Why all trials here are to stop; empty to go on. May raise when the driver is away."""

    def is_cut(self, trial: str) -> bool:
        """Whether a trial is to stop that has just told its epoch."""


class Deaf:
    """Hears nothing: its driver is gone."""

    def reason(self) -> str:
        return ""

    def is_cut(self, trial: str) -> bool:
        return False


class _Ears:
    def __init__(self, actor: Any, node: str) -> None:
        self._actor, self._node = actor, node

    def reason(self) -> str:
        import ray

        try:
            reason: str = ray.get(self._actor.reason.remote(self._node), timeout=WAIT_S)
        except ray.exceptions.GetTimeoutError:
            return ""
        return reason

    def is_cut(self, trial: str) -> bool:
        import ray

        try:
            cut: bool = ray.get(self._actor.is_cut.remote(trial), timeout=WAIT_S)
        except ray.exceptions.RayError:
            return False
        return cut


def listen(name: str) -> Listener:
    """Listen to the driver's actor.

    Raises:
        ValueError: it is gone.
    """
    import ray

    actor = ray.get_actor(name, namespace=NAMESPACE)
    return _Ears(actor, ray.get_runtime_context().get_node_id())
