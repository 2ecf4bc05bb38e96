"""A run on an MLflow server, with a queue of what has not reached it yet."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedenc.errors import TrackingError
from sharedenc.redact import redacted
from sharedenc.tracking.patience import ServerAway, guarded, patiently, refused
from sharedenc.tracking.seam import (
    MAX_METRICS,
    MAX_PARAM,
    MAX_PARAMS,
    MAX_TAG,
    REASON,
    RUN_STATUS,
    STATE,
    Patience,
    Point,
    as_texts,
    log,
    metric_name,
)
from sharedenc.tracking.spool import NAME, Message, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

SPOOL = NAME
POINTS = ("metrics", "points")
"""Messages that nobody waits for."""
END_WAIT_S, STOPPED_WAIT_S = 600.0, 5.0
"""How long the end of a run waits for a server that is away; what is stopped is taken up again."""


def end_wait_s(state: str) -> float:
    """How long the end of a run in this state waits by default for a server that is away."""
    # Whoever pressed Ctrl-C waits for this; everybody else has time.
    return STOPPED_WAIT_S if state in ("stopped", "waiting") else END_WAIT_S


class MlflowRun:
    """A run on a server, with a queue of messages that have not reached it yet.

    Once a folder keeps what is unsent, a row of metrics goes there and a thread sends it, while the
    training goes on; everything else is sent before its method returns, after what waits.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, *, patience: Patience | None = None
    ) -> None:
        self._client = client
        self._patience = patience
        self._run_id = run_id
        self._unsent: list[Message] = []
        self._spool: Spool | None = None
        self._away = False
        # One sends at a time; the queue and its file change together.
        self._sending, self._queue = threading.Lock(), threading.Lock()
        self._sender: threading.Thread | None = None

    @property
    def run_id(self) -> str:
        return self._run_id

    @property
    def unsent(self) -> int:
        """Number of messages that have not reached the server."""
        return len(self._unsent)

    def params(self, values: Mapping[str, Any]) -> None:
        texts = list(as_texts(values, MAX_PARAM).items())
        for start in range(0, len(texts), MAX_PARAMS):
            self._say("params", dict(texts[start : start + MAX_PARAMS]))

    def metrics(self, values: Mapping[str, float], step: int, at_ms: int | None = None) -> None:
        items = [(metric_name(name), float(value)) for name, value in values.items()]
        for start in range(0, len(items), MAX_METRICS):
            self._say("metrics", dict(items[start : start + MAX_METRICS]), step=step, at_ms=at_ms)

    def points(self, points: Sequence[Point]) -> None:
        rows = [[metric_name(p.name), float(p.value), p.step, p.at_ms] for p in points]
        for start in range(0, len(rows), MAX_METRICS):
            self._say("points", {"rows": rows[start : start + MAX_METRICS]})

    def logged_steps(self, metric: str = "score") -> set[int]:
        name = metric_name(metric)
        waiting: set[int] = set()
        for message in tuple(self._unsent):
            if message["kind"] == "metrics" and name in message["values"]:
                waiting.add(int(message["step"]))
            elif message["kind"] == "points":
                waiting |= {int(row[2]) for row in message["values"]["rows"] if row[0] == name}
        try:
            points = guarded(lambda: self._client.get_metric_history(self._run_id, name))
        except ServerAway as error:
            log.warning("run %s: MLflow is away, its steps are not known (%s)", self.run_id, error)
            return waiting
        return waiting | {int(point.step) for point in points}

    def tags(self, values: Mapping[str, Any]) -> None:
        texts = list(as_texts(values, MAX_TAG).items())
        for start in range(0, len(texts), MAX_PARAMS):
            self._say("tags", dict(texts[start : start + MAX_PARAMS]))

    def artifact(self, path: Path, folder: str = "") -> None:
        if not path.is_file():
            raise TrackingError(f"artifact {path} is not a file.")
        self._say("artifact", {"path": str(path.resolve()), "folder": folder})

    def keep_in(self, folder: Path) -> None:
        with self._queue:
            self._spool = Spool(folder)
            self._unsent[:0] = self._spool.read()
        self._flush()

    def end(self, state: str, reason: str | None = None, *, wait_s: float | None = None) -> None:
        self.tags({STATE: state} | ({REASON: reason} if reason is not None else {}))
        self._say("end", {"status": RUN_STATUS[state]})
        if wait_s is None:
            wait_s = end_wait_s(state)
        if not self._wait(wait_s):
            where = self._spool.path if self._spool else "memory, lost when this process ends"
            log.warning("run %s: %d unsent messages are in %s", self.run_id, self.unsent, where)

    def deliver(self, wait_s: float) -> bool:
        if self._unsent:
            self._flush()
        return self._wait(wait_s)

    def _wait(self, wait_s: float) -> bool:
        """Try again for so long to send what waits; False if some of it waits still."""
        deadline = time.monotonic() + wait_s
        pause_s = 1.0
        while self._unsent and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(pause_s, left_s))
            pause_s = min(5.0, 1.5 * pause_s)
            self._flush()
        return not self._unsent

    def _say(
        self, kind: str, values: dict[str, Any], *, step: int = 0, at_ms: int | None = None
    ) -> None:
        message = {"run_id": self._run_id, "kind": kind, "values": values, "step": step}
        now = int(time.time() * 1000)
        message["ms"] = now if at_ms is None else at_ms
        with self._queue:
            self._unsent.append(message)
            if self._spool is not None and self._patience is None and kind in POINTS:
                self._spool.add(message)
                if self._sender is None:
                    self._sender = threading.Thread(target=self._deliver, daemon=True)
                    self._sender.start()
                return
        self._flush(message)

    def _deliver(self) -> None:
        """Send what waits, and what comes in the meantime; there is a thread only as long."""
        more = True
        while more:
            more = False
            try:
                self._flush()
                more = not self._away
            finally:
                # What cannot be sent now is sent with the next message.
                with self._queue:
                    more = more and bool(self._unsent)
                    if not more:
                        self._sender = None

    def _flush(self, said: Message | None = None) -> None:
        """Send what waits, in order; on the first that finds no server, keep the rest on disk.

        Args:
            said: The message whose refusal is to be raised: whoever said it is waiting.
        """
        from mlflow.exceptions import MlflowException

        with self._sending:
            apart = False
            try:
                while self._unsent:
                    group = self._unsent[:1] if apart else self._group()
                    try:
                        patiently(partial(self._send, group), self._patience)
                    except (MlflowException, OSError) as error:
                        if len(group) > 1:  # one of them is refused: the others are not to suffer
                            apart = True
                            continue
                        # A refused message is refused for ever: it must not block those behind it.
                        self._sent(group)
                        if group[0] is said:
                            raise refused(error) from error
                        log.warning("run %s: server refused %s: %s", self.run_id, group[0], error)
                    else:
                        self._sent(group)
            except ServerAway as error:
                if not self._away:
                    log.warning(
                        "run %s: MLflow is away, going on without it (%s)", self.run_id, error
                    )
                self._away = True
                with self._queue:
                    if self._spool is not None:
                        self._spool.replace(self._unsent)
                if self._patience is not None:
                    raise TrackingError(f"the MLflow server does not answer: {error}") from error
            else:
                self._away = False

    def _group(self) -> list[Message]:
        """What goes in one request: a message, or as many rows of metrics as it takes."""
        count, values = 0, 0
        for message in tuple(self._unsent):
            rows = len(_metrics(message))
            of_run = message["run_id"] == self._unsent[0]["run_id"]
            if not rows or not of_run or values + rows > MAX_METRICS:
                break
            count, values = count + 1, values + rows
        return self._unsent[: max(1, count)]

    def _sent(self, group: Sequence[Message]) -> None:
        with self._queue:
            del self._unsent[: len(group)]
            if self._spool is not None and not self._unsent:
                self._spool.replace(())

    def _send(self, group: Sequence[Message]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        message = group[0]
        run_id, kind, values = message["run_id"], message["kind"], message["values"]
        match kind:
            case "params":
                params = [Param(key, value) for key, value in values.items()]
                self._client.log_batch(run_id, params=params)
            case "metrics" | "points":
                points = [Metric(*row) for message in group for row in _metrics(message)]
                self._client.log_batch(run_id, metrics=points)
            case "tags":
                tags = [RunTag(key, value) for key, value in values.items()]
                self._client.log_batch(run_id, tags=tags)
            case "artifact":
                self._upload(run_id, Path(values["path"]), values["folder"] or None)
            case "end":
                self._client.set_terminated(run_id, status=values["status"], end_time=message["ms"])

    def _upload(self, run_id: str, path: Path, folder: str | None) -> None:
        text = redacted(path)
        if text is None:
            self._client.log_artifact(run_id, str(path), folder)
            return
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / path.name
            copy.write_text(text)
            self._client.log_artifact(run_id, str(copy), folder)


def _metrics(message: Message) -> list[tuple[str, float, int, int]]:
    """Name, value, time (epoch ms) and step of every value of a message; none of other kinds."""
    values = message["values"]
    match message["kind"]:
        case "metrics":
            return [(name, value, message["ms"], message["step"]) for name, value in values.items()]
        case "points":
            return [(name, value, ms, step) for name, value, step, ms in values["rows"]]
    return []
