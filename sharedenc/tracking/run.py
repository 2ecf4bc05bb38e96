"""A run on an MLflow server, with a queue of what has not reached it yet."""

from __future__ import annotations

import json
import os
import tempfile
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

if TYPE_CHECKING:
    from mlflow import MlflowClient

SPOOL = "unsent.jsonl"
END_WAIT_S, STOPPED_WAIT_S = 600.0, 5.0
"""How long the end of a run waits for a server that is away; what is stopped is taken up again."""


class MlflowRun:
    """A run on a server, with a queue of messages that have not reached it yet."""

    def __init__(
        self, client: MlflowClient, run_id: str, *, patience: Patience | None = None
    ) -> None:
        self._client = client
        self._patience = patience
        self._run_id = run_id
        self._unsent: list[dict[str, Any]] = []
        self._spool: Path | None = None
        self._away = False

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
        for message in self._unsent:
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
        folder.mkdir(parents=True, exist_ok=True)
        self._spool = folder / SPOOL
        if self._spool.is_file():
            lines = self._spool.read_text().splitlines()
            self._unsent = [json.loads(line) for line in lines] + self._unsent
        self._flush(late=True)

    def end(self, state: str, reason: str | None = None) -> None:
        self.tags({STATE: state} | ({REASON: reason} if reason is not None else {}))
        self._say("end", {"status": RUN_STATUS[state]})
        # Whoever pressed Ctrl-C waits for this; everybody else has time.
        brief = state in ("stopped", "waiting")
        deadline = time.monotonic() + (STOPPED_WAIT_S if brief else END_WAIT_S)
        pause_s = 1.0
        while self._unsent and time.monotonic() < deadline:
            time.sleep(pause_s)
            pause_s = min(5.0, 1.5 * pause_s)
            self._flush(late=True)
        if self._unsent:
            where = self._spool or "memory, lost when this process ends"
            log.warning("run %s: %d unsent messages are in %s", self.run_id, self.unsent, where)

    def _say(
        self, kind: str, values: dict[str, Any], *, step: int = 0, at_ms: int | None = None
    ) -> None:
        message = {"run_id": self._run_id, "kind": kind, "values": values, "step": step}
        now = int(time.time() * 1000)
        self._unsent.append(message | {"ms": now if at_ms is None else at_ms})
        self._flush(late=len(self._unsent) > 1)

    def _flush(self, *, late: bool = False) -> None:
        """Send what waits, in order; on the first that finds no server, keep the rest on disk.

        ``late``: what waits was said earlier, so that a refusal cannot be told to who said it.
        """
        from mlflow.exceptions import MlflowException

        try:
            while self._unsent:
                message = self._unsent[0]
                try:
                    patiently(partial(self._send, message), self._patience)
                except (MlflowException, OSError) as error:
                    # A refused message is refused for ever: it must not block those behind it.
                    del self._unsent[0]
                    if not late:
                        raise refused(error) from error
                    log.warning("run %s: server refused %s: %s", self.run_id, message, error)
                else:
                    del self._unsent[0]
        except ServerAway as error:
            if not self._away:
                log.warning("run %s: MLflow is away, going on without it (%s)", self.run_id, error)
            self._away = True
            self._write_spool()
            if self._patience is not None:
                raise TrackingError(f"the MLflow server does not answer: {error}") from error
        else:
            self._away = False
            if self._spool is not None:
                self._spool.unlink(missing_ok=True)

    def _send(self, message: dict[str, Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run_id, kind, values = message["run_id"], message["kind"], message["values"]
        ms, step = message["ms"], message["step"]
        match kind:
            case "params":
                params = [Param(key, value) for key, value in values.items()]
                self._client.log_batch(run_id, params=params)
            case "metrics":
                points = [Metric(key, value, ms, step) for key, value in values.items()]
                self._client.log_batch(run_id, metrics=points)
            case "tags":
                tags = [RunTag(key, value) for key, value in values.items()]
                self._client.log_batch(run_id, tags=tags)
            case "points":
                points = [Metric(row[0], row[1], row[3], row[2]) for row in values["rows"]]
                self._client.log_batch(run_id, metrics=points)
            case "artifact":
                self._upload(run_id, Path(values["path"]), values["folder"] or None)
            case "end":
                self._client.set_terminated(run_id, status=values["status"], end_time=ms)

    def _upload(self, run_id: str, path: Path, folder: str | None) -> None:
        text = redacted(path)
        if text is None:
            self._client.log_artifact(run_id, str(path), folder)
            return
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / path.name
            copy.write_text(text)
            self._client.log_artifact(run_id, str(copy), folder)

    def _write_spool(self) -> None:
        if self._spool is None:
            return
        part = self._spool.with_suffix(".part")
        part.write_text("".join(json.dumps(message) + "\n" for message in self._unsent))
        os.replace(part, self._spool)
