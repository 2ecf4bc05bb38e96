"""A self-test from start to end: check after check, a report after each of them."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sharedenc.data.packed import prepare
from sharedenc.errors import SpecError
from sharedenc.files import write_atomic
from sharedenc.selftest.checks import Bench, CheckFailedError, Item, epochs_of
from sharedenc.selftest.child import Child, ChildDiedError
from sharedenc.selftest.report import markdown
from sharedenc.selftest.rows import failed
from sharedenc.selftest.scrub import private_words, scrub
from sharedenc.selftest.settings import SelftestSettings
from sharedenc.selftest.slices import write_slice

Status = Literal["passed", "failed", "not compared", "left out"]
Verdict = Literal["passed", "failed", "incomplete", "interrupted", "running"]
REPORT_VERSION = 1
OF_OK: dict[bool | None, Status] = {True: "passed", False: "failed", None: "not compared"}
EXIT_CODES: dict[Verdict, int] = {"passed": 0, "failed": 1, "incomplete": 1, "interrupted": 130}


@dataclass
class Row:
    """How one check ended; ``figures`` are its measurements."""

    group: str
    name: str
    status: Status
    seconds: float = 0.0
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    kind: str | None = None
    error: str = ""
    traceback: str = ""


OnRow = Callable[[int, int, Row], None]


@dataclass
class Report:
    """The report so far; `write` puts it into a folder that can be sent as it is."""

    settings: SelftestSettings
    environment: dict[str, Any]
    data: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    verdict: Verdict = "running"

    @property
    def exit_code(self) -> int:
        """0 when every check ran and none failed, 130 when interrupted, else 1."""
        return EXIT_CODES.get(self.verdict, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data without a trace of who ran it where."""
        settings = self.settings
        folders = [settings.data, settings.out, *filter(None, [settings.cache_dir])]
        values = {
            "report": "sharedenc selftest",
            "version": REPORT_VERSION,
            "verdict": self.verdict,
            "minutes": round(self.seconds / 60, 2),
            "settings": settings.shown(),
            "environment": self.environment,
            "data": self.data,
            "checks": [asdict(row) for row in self.rows],
        }
        cleaned: dict[str, Any] = scrub(values, private_words(folders))
        return cleaned

    def write(self) -> None:
        """Write ``report.json`` and ``report.md``, each whole or not at all."""
        values = self.to_dict()
        out = self.settings.out
        write_atomic(out / "report.json", (json.dumps(values, indent=1) + "\n").encode())
        write_atomic(out / "report.md", markdown(values).encode())


def run_selftest(settings: SelftestSettings, on_row: OnRow | None = None) -> Report:
    """Run every check that the budget has time for, and keep the report up to date on the disk.

    KeyboardInterrupt ends it: the report then says what was left out and ``interrupted``.

    Raises:
        SpecError: the device is not there.
        DataError: the data set cannot be used.
    """
    started = time.monotonic()
    settings.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(
            prefix=".work-", dir=settings.out, ignore_cleanup_errors=True
        ) as folder,
        Child() as child,
    ):
        environment = _environment(child, settings.device)
        bench = _bench(settings, Path(folder), child)
        data = {
            "name": bench.pack.name,
            "digest": bench.pack.digest,
            "class_list": bench.pack.classes.name,
            "tasks": list(bench.pack.tasks),
        }
        report = Report(settings, environment, data)
        items = list(bench.items())
        try:
            _run_all(report, items, started, on_row)
        except KeyboardInterrupt:
            _leave_out(report, items, "interrupted")
            report.verdict = "interrupted"
        else:
            report.verdict = _verdict(report.rows)
    report.seconds = time.monotonic() - started
    report.write()
    return report


def _environment(child: Child, device: str) -> dict[str, Any]:
    try:
        found = child.call({"do": "environment", "device": device}, deadline_s=300)
    except ChildDiedError as error:
        raise SpecError(f"torch cannot be started here: {error}. {error.said[-500:]}") from error
    if device.startswith("cuda") and not found.get("cuda_available"):
        raise SpecError(
            f"--device {device}: torch {found.get('torch', '')} sees no CUDA device here. Look at "
            "`nvidia-smi` and at which torch is installed (a CPU-only build has no CUDA), or give "
            "--device cpu."
        )
    return found


def _bench(settings: SelftestSettings, folder: Path, child: Child) -> Bench:
    pack = prepare(settings.data, settings.cache_dir)
    part = write_slice(
        pack,
        folder / "pack",
        {
            "train": settings.steps // epochs_of(settings.steps) * settings.batch_size,
            "val": settings.val_images,
            "test": 1,
        },
    )
    return Bench(settings, pack, part, folder, child)


def _run_all(report: Report, items: list[Item], started: float, on_row: OnRow | None) -> None:
    budget_s = report.settings.budget_minutes * 60
    for number, item in enumerate(items, start=1):
        if time.monotonic() - started > budget_s:
            reason = f"no time left of {report.settings.budget_minutes:g} minutes"
            row = Row(item.group, item.name, "left out", reason=reason)
        else:
            row = _run(item)
        report.rows.append(row)
        report.seconds = time.monotonic() - started
        if row.status != "left out":
            report.write()
        if on_row is not None:
            on_row(number, len(items), row)


def _run(item: Item) -> Row:
    began = time.monotonic()
    row = Row(item.group, item.name, "passed")
    try:
        row.figures = item.do()
        if "ok" in row.figures:
            row.status = OF_OK[row.figures["ok"]]
            row.reason = row.figures["reason"]
    except CheckFailedError as error:
        row.status, row.reason, row.figures = "failed", str(error), error.figures
        row.kind = error.more.get("kind")
        row.error = error.more.get("error", "")
        row.traceback = error.more.get("traceback", "")
    except Exception as error:
        found = failed(item.name, error)
        row.status, row.reason, row.error = "failed", found.reason, found.error
        row.kind, row.traceback = found.kind, found.traceback
    row.seconds = time.monotonic() - began
    return row


def _leave_out(report: Report, items: list[Item], reason: str) -> None:
    for item in items[len(report.rows) :]:
        report.rows.append(Row(item.group, item.name, "left out", reason=reason))


def _verdict(rows: list[Row]) -> Verdict:
    if any(row.status == "failed" for row in rows):
        return "failed"
    return "incomplete" if any(row.status == "left out" for row in rows) else "passed"
