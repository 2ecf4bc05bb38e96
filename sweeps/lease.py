"""One sweep of a study at a time: the lease on its parent run, held by the driver.

Every sweep that wants the study puts a claim of its own among the parent run's tags. Which claim
holds is Lamport's bakery: numbers are drawn, the lowest one that lives is served. It needs no
compare-and-set, which MLflow does not have. A claim lives as long as its heartbeat changes, as
seen by the observer's own monotonic clock: clocks of two machines are never compared.

Source: L. Lamport, "A new solution of Dijkstra's concurrent programming problem", CACM 1974
"""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from sharedenc.errors import TrackingError
from sharedenc.tracking import Tracker

TAG = "sharedenc.lease."
BEAT_S = 5.0
"""Time between two heartbeats."""
SILENT_S = 60.0
"""A claim whose heartbeat has not changed for so long is dead."""
LOOK_S, GAP_S = 0.5, 5.0
"""Time between two looks at others; after a longer gap (no answer, a sleeping laptop) silence
counts from anew."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Who wants or has the study. ``ticket`` 0: still drawing its number.

    ``place`` tells process tables apart: boot and process-number space of the machine; ``born`` is
    the process's start in clock ticks since boot, so that a later owner of the number differs.
    """

    id: str
    user: str
    host: str
    place: str
    pid: int
    born: int
    since: str
    ticket: int = 0
    beat: int = 0

    @classmethod
    def mine(cls) -> Claim:
        """A claim of this process."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = str(os.getuid())
        pid = os.getpid()
        return cls(
            id=uuid.uuid4().hex[:12],
            user=user,
            host=socket.gethostname(),
            place=this_place(),
            pid=pid,
            born=birth(pid) or 0,
            since=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        )

    @property
    def tag(self) -> str:
        """Name of the tag that holds it."""
        return TAG + self.id

    def dead_here(self) -> bool | None:
        """Whether its process is gone; None where that cannot be seen: it is of another place."""
        if not self.place or self.place != this_place():
            return None
        return birth(self.pid) != self.born

    def __str__(self) -> str:
        return f"{self.user} on {self.host}, process {self.pid}, since {self.since}"


_FIELDS = {item.name for item in fields(Claim)}


def claims(tags: Mapping[str, str]) -> list[Claim]:
    """The claims among a parent run's tags; what cannot be read is none."""
    found = []
    for name, text in tags.items():
        if name.startswith(TAG):
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                values = {n: v for n, v in json.loads(text).items() if n in _FIELDS}
                found.append(Claim(**values))
    return found


def this_place() -> str:
    """What two processes share that see the same process numbers; empty when not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def birth(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None when there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


@dataclass
class Lease:
    """The right to run a study, while the block runs.

    Args:
        tracker: Where the parent run is; better one without patience, for the heartbeat.
        parent_id: The study's parent run.
        study: Its name, for what is told.
        note: Told when a dead sweep's lease is taken over, or when this one waits to see.
        beat_s, silent_s: See `BEAT_S` and `SILENT_S`.

    Raises:
        TrackingError: from the start of the block, when another sweep has the study; from
            `check`, when this one lost it.
    """

    tracker: Tracker
    parent_id: str
    study: str
    note: Callable[[str], None] = lambda text: None
    beat_s: float = BEAT_S
    silent_s: float = SILENT_S
    claim: Claim = field(default_factory=Claim.mine)
    clock: Callable[[], float] = time.monotonic
    _lost: str = ""
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _heard: dict[str, tuple[int, float]] = field(default_factory=dict)
    _looked: float = -math.inf

    def __enter__(self) -> Lease:
        self._draw()
        try:
            self._await_turn()
        except BaseException:
            self._withdraw()
            raise
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * self.beat_s)
        self._withdraw()

    def check(self) -> None:
        """Raise TrackingError when another sweep has taken this study over. Costs nothing."""
        if self._lost:
            raise TrackingError(self._lost)

    def _draw(self) -> None:
        """Say that a number is being drawn, then draw one above all that are there."""
        self._write()
        highest = max((claim.ticket for claim in self._others()), default=0)
        self.claim = replace(self.claim, ticket=highest + 1)
        self._write()

    def _await_turn(self) -> None:
        """Return when no living claim comes first; refuse as soon as one that does shows life."""
        told = False
        while True:
            first = [claim for claim in self._others() if self._comes_first(claim)]
            now = self.clock()
            if now - self._looked > GAP_S:
                self._heard = {name: (beat, now) for name, (beat, _) in self._heard.items()}
            self._looked = now
            for claim in list(first):
                if self._is_dead(claim):
                    self.note(f"taking over study {self.study} from a sweep that died: {claim}")
                    self.tracker.untag(self.parent_id, [claim.tag])
                    self._heard.pop(claim.id, None)
                    first.remove(claim)
            if not first:
                return
            alive = next((claim for claim in first if self._is_alive(claim)), None)
            if alive is not None and alive.ticket:
                raise TrackingError(self._refusal(alive))
            if not told and any(claim.dead_here() is None for claim in first):
                told = True
                self.note(
                    f"study {self.study} has a sweep elsewhere ({first[0]}); "
                    f"looking for up to {self.silent_s:.0f} s whether it lives"
                )
            self._ended.wait(min(LOOK_S, self.silent_s / 4))
            self.claim = replace(self.claim, beat=self.claim.beat + 1)
            self._write()

    def _comes_first(self, claim: Claim) -> bool:
        """A claim without a number may yet turn out to be the lower one."""
        mine = (self.claim.ticket, self.claim.id)
        return claim.ticket == 0 or (claim.ticket, claim.id) < mine

    def _is_dead(self, claim: Claim) -> bool:
        gone = claim.dead_here()
        if gone is not None:
            return gone
        beat, since = self._heard.setdefault(claim.id, (claim.beat, self.clock()))
        return beat == claim.beat and self.clock() - since >= self.silent_s

    def _is_alive(self, claim: Claim) -> bool:
        """Whether it has been seen to live: its process here, or a heartbeat that changed."""
        gone = claim.dead_here()
        if gone is not None:
            return not gone
        return self._heard[claim.id][0] != claim.beat

    def _refusal(self, other: Claim) -> str:
        return (
            f"study {self.study!r} is being run by another sweep: {other}. Wait until it has "
            f"ended or stop it (kill -INT {other.pid} on {other.host}; it saves first), then run "
            f"this command again: nothing that is done is trained twice. Or give this sweep a "
            f"--name of its own. `sharedenc sweep status {self.study}` shows where it stands."
        )

    def _others(self) -> list[Claim]:
        found = claims(self.tracker.record(self.parent_id).tags)
        return [claim for claim in found if claim.id != self.claim.id]

    def _write(self) -> None:
        self.tracker.tag(self.parent_id, {self.claim.tag: json.dumps(asdict(self.claim))})

    def _withdraw(self) -> None:
        # A server that is away keeps the claim; whoever comes next sees that it is dead.
        with contextlib.suppress(TrackingError):
            self.tracker.untag(self.parent_id, [self.claim.tag])

    def _keep(self) -> None:
        while not self._ended.wait(self.beat_s):
            try:
                tags = self.tracker.record(self.parent_id).tags
                if self.claim.tag not in tags:
                    self._lost = (
                        f"study {self.study!r} was taken over by another sweep while this one gave "
                        f"no sign of life for {self.silent_s:.0f} s; this one stops. Run the "
                        "command again when the other one has ended."
                    )
                    return
                self.claim = replace(self.claim, beat=self.claim.beat + 1)
                self._write()
            except TrackingError:
                continue
