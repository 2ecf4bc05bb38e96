"""Rows of metrics that are sent while the training goes on: nobody waits, and nothing is lost."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from sharedenc.tracking import SPOOL, MlflowRun

RUN = "a" * 32


class Client:
    """Stands for a server that answers when it is let, and refuses metrics of one name."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.asked = threading.Event()
        self.refused = ""
        self.away = False
        self.requests: list[list[Any]] = []
        self.ended = ""

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self.asked.set()
        assert self.may_answer.wait(60)
        if self.away:
            raise MlflowException("nobody answers")
        if any(metric.key == self.refused for metric in metrics):
            raise MlflowException("no such name", error_code=1000)
        self.requests.append(
            [
                run_id,
                *((m.key, m.value, m.step) for m in metrics),
                *(x.key for x in (*params, *tags)),
            ]
        )

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self.ended = status


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def run(client: Client, tmp_path: Path) -> MlflowRun:
    run = MlflowRun(client, RUN)  # type: ignore[arg-type]
    run.keep_in(tmp_path)
    return run


def spooled(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line)["values"] for line in (folder / SPOOL).read_text().splitlines()]


def test_nobody_waits_for_a_slow_server_and_the_rows_are_on_the_disk(
    run: MlflowRun, client: Client, tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        run.metrics({"loss": 1.0 / step, "score": step}, step)
    assert client.asked.wait(60)
    assert spooled(tmp_path) == [{"loss": 1.0 / step, "score": float(step)} for step in (1, 2, 3)]
    assert (run.unsent, client.requests) == (3, [])
    client.may_answer.set()
    run.end("done")
    rows = [row for request in client.requests for row in request[1:] if row[0] != "s"]
    assert rows[:6] == [(n, v, s) for s in (1, 2, 3) for n, v in (("loss", 1.0 / s), ("score", s))]
    # The first may have left alone; what came meanwhile leaves in one request.
    assert len(client.requests) <= 3
    assert (run.unsent, client.ended) == (0, "FINISHED")
    assert not (tmp_path / SPOOL).exists()


def test_what_is_said_otherwise_comes_after_the_rows_that_wait(
    run: MlflowRun, client: Client
) -> None:
    run.metrics({"loss": 1.0}, 1)
    assert client.asked.wait(60)
    run.metrics({"loss": 0.5}, 2)
    threading.Timer(0.2, client.may_answer.set).start()
    run.tags({"late": "yes"})
    assert client.requests[-1] == [RUN, "late"]
    assert [row for request in client.requests[:-1] for row in request[1:]] == [
        ("loss", 1.0, 1),
        ("loss", 0.5, 2),
    ]
    run.end("done")


def test_a_process_that_is_killed_leaves_its_rows_to_the_next(
    run: MlflowRun, client: Client, tmp_path: Path
) -> None:
    run.metrics({"loss": 1.0}, 1)
    run.metrics({"loss": 0.5}, 2)
    # The process ends here, in the middle of its third line.
    with (tmp_path / SPOOL).open("a") as file:
        file.write('{"run_id": "aa')
    again = Client()
    again.may_answer.set()
    MlflowRun(again, "b" * 32).keep_in(tmp_path)  # type: ignore[arg-type]
    assert again.requests == [[RUN, ("loss", 1.0, 1), ("loss", 0.5, 2)]]
    assert not (tmp_path / SPOOL).exists()
    client.may_answer.set()
    run.end("done")


def test_a_refused_row_takes_no_other_with_it(
    run: MlflowRun, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.refused = "bad"
    run.metrics({"loss": 1.0}, 1)
    assert client.asked.wait(60)
    for name, step in (("good", 2), ("bad", 3), ("loss", 4)):
        run.metrics({name: float(step)}, step)
    with caplog.at_level(logging.WARNING):
        client.may_answer.set()
        run.end("done")
    rows = [row for request in client.requests for row in request[1:] if isinstance(row, tuple)]
    assert rows == [("loss", 1.0, 1), ("good", 2.0, 2), ("loss", 4.0, 4)]
    assert "server refused" in caplog.text
    assert "'bad': 3.0" in caplog.text


def test_a_server_that_is_away_gets_everything_with_the_end(
    run: MlflowRun, client: Client, tmp_path: Path
) -> None:
    client.away = True
    client.may_answer.set()
    for step in (1, 2):
        run.metrics({"loss": 1.0 / step}, step)
    sender = run._sender
    if sender is not None:
        sender.join(60)
    assert run.unsent == 2
    assert spooled(tmp_path) == [{"loss": 1.0}, {"loss": 0.5}]
    client.away = False
    run.end("done")
    assert client.requests[0] == [RUN, ("loss", 1.0, 1), ("loss", 0.5, 2)]
    assert client.ended == "FINISHED"


def test_an_end_that_may_not_wait_leaves_the_rest_to_be_delivered(
    run: MlflowRun, client: Client, tmp_path: Path
) -> None:
    client.away = True
    client.may_answer.set()
    run.metrics({"loss": 1.0}, 1)
    started = time.monotonic()
    run.end("done", wait_s=0.0)
    assert not run.deliver(0.0)
    assert time.monotonic() - started < 20.0
    assert (run.unsent, client.ended) == (3, "")
    assert len(spooled(tmp_path)) == 3
    threading.Timer(0.5, lambda: setattr(client, "away", False)).start()
    assert run.deliver(60.0)
    assert (run.unsent, client.ended) == (0, "FINISHED")
    assert client.requests[0] == [RUN, ("loss", 1.0, 1)]
    assert not (tmp_path / SPOOL).exists()
    assert run.deliver(0.0)


def test_rows_of_two_runs_do_not_share_a_request(client: Client, tmp_path: Path) -> None:
    common = {"kind": "metrics", "step": 1, "ms": 5}
    rows = [common | {"run_id": name * 32, "values": {"loss": 0.5}} for name in "cd"]
    (tmp_path / SPOOL).write_text("".join(json.dumps(row) + "\n" for row in rows))
    client.may_answer.set()
    MlflowRun(client, "d" * 32).keep_in(tmp_path)  # type: ignore[arg-type]
    assert client.requests == [["c" * 32, ("loss", 0.5, 1)], ["d" * 32, ("loss", 0.5, 1)]]
