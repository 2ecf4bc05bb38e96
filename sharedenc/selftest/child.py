"""A child process that does one request after the other, and outlives none of its failures.

A crash of an engine, a kernel that kills for memory, or a device that stops answering ends the
child; the next request gets a new one. What the child can do stands in `sharedenc.selftest.serve`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from sharedenc.errors import FailureKind, SharedencError
from sharedenc.selftest.rows import Checked

MAX_SAID = 4000


class ChildDiedError(SharedencError):
    """The child ended, or was ended, before it answered; ``said`` are its last words."""

    def __init__(self, message: str, said: str, kind: FailureKind) -> None:
        super().__init__(message)
        self.said, self.kind = said, kind

    def row(self, cell: str) -> Checked:
        """The row of the cell that was being checked."""
        return Checked(
            cell=cell,
            ok=False,
            kind=self.kind,
            error="ChildDied",
            reason=str(self),
            traceback=self.said,
        )


class Child:
    """The parent's side. A context manager; the process starts with the first request."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def call(
        self,
        request: Mapping[str, Any],
        on_event: Callable[[dict[str, Any]], None] | None = None,
        deadline_s: float | None = None,
    ) -> dict[str, Any]:
        """Send one request, hand its events to ``on_event``, return the answer.

        Raises:
            ChildDiedError: the process ended, or the deadline passed and it was ended.
        """
        process = self._process or self._start()
        until = None if deadline_s is None else time.monotonic() + deadline_s
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        while True:
            line = self._next(until)
            if line is None:
                raise self._died(deadline_s)
            message: dict[str, Any] = json.loads(line)
            if "answer" in message:
                answer: dict[str, Any] = message["answer"]
                return answer
            if on_event is not None:
                on_event(message)

    def kill(self) -> None:
        """End the process and its loader processes, as a lost machine would."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for file in (process.stdin, process.stdout, self._said):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def _start(self) -> subprocess.Popen[str]:
        self._said = tempfile.TemporaryFile("w+", errors="replace")
        self._lines = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sharedenc.selftest.serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=self._environment,
            # Ctrl-C is for the parent, which ends the whole group.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        threading.Thread(
            target=_read, args=(self._process.stdout, self._lines), daemon=True
        ).start()
        return self._process

    def _next(self, until: float | None) -> str | None:
        wait_s = None if until is None else max(0.0, until - time.monotonic())
        try:
            return self._lines.get(timeout=wait_s)
        except queue.Empty:
            return None

    def _died(self, deadline_s: float | None) -> ChildDiedError:
        process, said = self._process, self._said
        if process is None or said is None:
            return ChildDiedError("the process was ended", "", "machine")
        try:
            status: int | None = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            status = None
        said.seek(0)
        last = said.read()[-MAX_SAID:].strip()
        self.kill()
        if status is None:
            return ChildDiedError(f"no answer within {deadline_s:.0f} s", last, "machine")
        name = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        # The kernel's out-of-memory killer leaves no other trace than SIGKILL.
        kind: FailureKind = "oom" if status == -signal.SIGKILL else "code"
        return ChildDiedError(f"the process ended with {name}", last, kind)


def _read(file: IO[str], lines: queue.Queue[str | None]) -> None:
    with contextlib.suppress(ValueError, OSError):  # closed while reading
        for line in file:
            lines.put(line)
    lines.put(None)
