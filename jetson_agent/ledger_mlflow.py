"""The ledger of claims on an MLflow server: a run whose params can be written once.

It is elected by the creation of an experiment ``bench-ledger/<device>`` together with a tag that
names the run: one transaction, and the server lets no two experiments have one name. So whoever
finds the experiment finds the ledger, and nobody waits for anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from jetson_agent.claims import Page
from jetson_agent.errors import ServerError
from jetson_agent.protocol import KIND_TAG, Seen

LEDGER_KIND = "bench-ledger"
LEDGER_TAG = "sharedenc.ledger"
LEDGER_NOTE = (
    "Names the run that holds the agents' claims on jobs of this device. It has no runs of its "
    "own; do not delete it while agents work."
)
TRIES = 5


class Desk(Protocol):
    """What a ledger needs of its registry."""

    def asking(self, action: str) -> AbstractContextManager[None]: ...

    def experiment(self, device: str) -> str: ...

    def forget(self, device: str) -> None: ...


class MlflowLedger:
    """The ledger of a device: one run, whose params the server lets be written once."""

    def __init__(self, desk: Desk, client: Any, device: str, now: Callable[[], float]) -> None:
        self._desk = desk
        self._client = client
        self._device = device
        self._run_id = ""
        self.now = now

    def read(self) -> Page:
        with self._desk.asking("read the claims"):
            data = self._client.get_run(self._run()).data
            return Page(entries=dict(data.params), notes=dict(data.tags))

    def write_once(self, name: str, value: str) -> bool:
        # Whoever gets a claim wants to know what is done by now.
        self._desk.forget(self._device)
        for _ in range(TRIES - 1):
            try:
                return self._write_once(name, value)
            except ServerError as error:
                if error.code != "BAD_REQUEST":
                    raise
                # Two first writes at one moment may both be refused.
        return self._write_once(name, value)

    def _write_once(self, name: str, value: str) -> bool:
        try:
            with self._desk.asking("take a claim"):
                self._client.log_param(self._run(), name, value)
        except ServerError:
            # Refused, or the answer was lost: what stands there decides.
            stored = self.read().entries.get(name)
            if stored is None:
                raise
            return stored == value
        return True

    def note(self, name: str, value: str) -> None:
        self._again("renew a claim", lambda: self._client.set_tag(self._run(), name, value))

    def seen(self, agent: str, facts: Mapping[str, Any]) -> None:
        name, value = Seen(agent=agent, at=self.now(), facts=dict(facts)).to_tag()
        self._again(
            "say that this agent lives",
            lambda: self._client.set_experiment_tag(
                self._desk.experiment(self._device), name, value
            ),
        )

    def forget(self) -> None:
        """Look for the ledger anew."""
        self._run_id = ""

    def elected(self, key: str) -> list[str]:
        """The runs that were elected for a key, in order: the last one counts."""
        entries = self.read().entries
        found: list[str] = []
        while run_id := entries.get(f"run.{key}.{len(found) + 1}"):
            found.append(run_id)
        return found

    def elect(self, key: str, number: int, run_id: str) -> bool:
        """Have `run_id` count for a key as the `number`-th; False if another run was faster."""
        return self.write_once(f"run.{key}.{number}", run_id)

    def _again(self, action: str, request: Callable[[], object]) -> None:
        for attempt in range(TRIES):
            try:
                with self._desk.asking(action):
                    request()
                return
            except ServerError as error:
                # Simultaneous first writes of a tag: the loser's database error comes as this.
                if error.code != "BAD_REQUEST" or attempt == TRIES - 1:
                    raise

    def _run(self) -> str:
        """Id of the ledger run, which is made if need be."""
        if self._run_id:
            return self._run_id
        name = f"bench-ledger/{self._device}"
        found = self._client.get_experiment_by_name(name)
        if found is None:
            made = self._client.create_run(
                self._desk.experiment(self._device),
                start_time=int(self.now() * 1000),
                tags={KIND_TAG: LEDGER_KIND},
                run_name="ledger",
            ).info.run_id
            tags = {LEDGER_TAG: made, "mlflow.note.content": LEDGER_NOTE}
            try:
                self._client.create_experiment(name, tags=tags)
            except Exception:
                # Another process was faster, if it is there now.
                if self._client.get_experiment_by_name(name) is None:
                    raise
            found = self._client.get_experiment_by_name(name)
            if found.tags.get(LEDGER_TAG) != made:
                self._client.set_terminated(made, "KILLED")
        active_id(found)
        run_id = str(found.tags.get(LEDGER_TAG, ""))
        if not run_id:
            raise ServerError(
                f"experiment {name} names no ledger (tag {LEDGER_TAG}): delete it for good"
            )
        if self._client.get_run(run_id).info.lifecycle_stage == "deleted":
            raise ServerError(
                f"run {run_id}, which holds the claims of {self._device}, is deleted on the "
                "server: restore it, or name the device otherwise with --device"
            )
        self._run_id = run_id
        return run_id


def active_id(experiment: Any) -> str:
    """Id of an experiment that is not deleted."""
    if experiment.lifecycle_stage == "deleted":
        raise ServerError(
            f"experiment {experiment.name} is deleted on the server: restore it, or name the "
            "device otherwise with --device"
        )
    return str(experiment.experiment_id)
