"""An agent whose power is cut at a step of its choice: ``STATE SERVER TIMED NUMBERS``.

Every write to the disk that matters is a step: a sync, a rename, a deletion. This process starts
one agent after another in processes of its own; each dies at its step, without any clean-up, and is
followed by one that lives. `TIMED` is a file with one line per timing. For each number one JSON
line is printed: how many steps there were, and whether the agent died.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

DIED = 77


def with_power_until(step: int, work: Callable[[], None]) -> None:
    """Call `work`; the process is gone at its `step`-th step, from 1."""
    count = itertools.count(1)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if next(count) == step:
                os._exit(DIED)
            return function(*arguments, **keywords)

        return call

    with (
        mock.patch("os.fsync", counted(os.fsync)),
        mock.patch("os.replace", counted(os.replace)),
        mock.patch("os.unlink", counted(os.unlink)),
    ):
        work()


def in_process(work: Callable[[], None]) -> int:
    """Exit status of `work` in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def agent(state: Path, server: str, timed: Path) -> None:
    """One pass of an agent on a real server, with a pretended timing."""
    from jetson_agent.agent import Agent
    from jetson_agent.artifacts import Artifacts
    from jetson_agent.attempt import Workbench
    from jetson_agent.cli.serving import agent_name
    from jetson_agent.journal import Journal
    from jetson_agent.outbox import Outbox
    from jetson_agent.registry_mlflow import MlflowRegistry
    from jetson_agent.stopping import StopFlag
    from tests.agent.pretending import bench_of, device, timing_of

    def time_model(_model: Path, *_rest: Any, **more: Any) -> Any:
        with timed.open("a") as stream:
            stream.write("timed\n")
        more["note"]("PREFLIGHT")
        more["note"]("BUILT")
        return timing_of()

    stopping = StopFlag()
    state.mkdir(exist_ok=True)
    Agent(
        registry=MlflowRegistry(server),
        outbox=Outbox(state, server),
        journal=Journal(state, server),
        workbench=Workbench(
            artifacts=Artifacts(state / "cache"),
            engines=state / "engines",
            say=lambda _text: None,
            stopping=stopping,
            time_model=time_model,
        ),
        look=lambda: bench_of(device=device(state.name)),
        name=agent_name(state),
        say=lambda _text: None,
        stopping=stopping,
        select=[os.environ["SELECT"]],
    ).once()


def main() -> None:
    base, server = Path(sys.argv[1]), sys.argv[2]
    import mlflow  # noqa: F401  (once for all the processes that are forked from this one)

    step = 0
    died = True
    while died:
        step += 1
        # A device of its own for each cut: the server is the same.
        state = base / f"cut-{base.name}-{step}"
        timed = base / f"timed-{step}"

        def work(state: Path = state, timed: Path = timed, step: int = step) -> None:
            with_power_until(step, lambda: agent(state, server, timed))

        status = in_process(work)
        died = status == DIED
        second = in_process(lambda state=state, timed=timed: agent(state, server, timed))
        lines = timed.read_text().splitlines() if timed.exists() else []
        row = {"step": step, "device": state.name, "first": status, "second": second}
        print(json.dumps({**row, "timed": len(lines)}), flush=True)


if __name__ == "__main__":
    main()
