"""How to time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jetson_agent.errors import AgentError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to time; all of it stands in the certificate.

    Each of `builds` engines is timed `runs` times, `duration_s` after `warmup_s`; what is suspect
    then is timed again up to `repeats` times. `threads` is None for a backend without CPU threads.
    `run_deadline_s` is for one check or one run, `preflight_s` the longest wait for a quiet board.
    """

    backend: str
    runtime: str
    threads: int | None
    warmup_s: float = 1.0
    duration_s: float = 3.0
    runs: int = 3
    builds: int = 1
    repeats: int = 3
    build_deadline_s: float = 3600.0
    run_deadline_s: float = 300.0
    preflight_s: float = 300.0
    seed: int = 0
    workspace_mib: int = 4096
    cuda_graph: bool = False

    @property
    def text(self) -> str:
        """What of it makes a timing another timing, as in ``BenchResult.settings``.

        Workspace, deadlines and repeats are not in it: they decide whether there is a figure, and
        a retry may change them.
        """
        parts = [
            f"warmup={self.warmup_s:g}s",
            f"duration={self.duration_s:g}s",
            f"runs={self.runs}",
            f"builds={self.builds}",
        ]
        if self.cuda_graph:
            parts.append("cuda-graph")
        if self.seed:
            parts.append(f"seed={self.seed}")
        return " ".join(parts)


# trtexec chooses kernels by timing them, so each build may choose others; sessions are all alike.
DEFAULTS: dict[str, dict[str, Any]] = {
    "tensorrt": {"threads": None, "warmup_s": 2.0, "duration_s": 10.0, "runs": 3, "builds": 2},
}


def default_settings(backend: str, runtime: str, cpus: int, **given: Any) -> Settings:
    """The settings of a backend, apart from what is `given` and not None; else `cpus` threads.

    Raises:
        AgentError: threads for a backend that has none.
    """
    own = DEFAULTS.get(backend, {})
    if given.get("threads") is not None and "threads" in own:
        raise AgentError(f"backend {backend} has no CPU threads to set: leave --threads away")
    settings = Settings(backend=backend, runtime=runtime, threads=cpus)
    chosen = {name: value for name, value in given.items() if value is not None}
    return replace(settings, **{**own, **chosen})
