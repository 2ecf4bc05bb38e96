"""Where a study's numbers come from, as rows for people. Nothing here reads a server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from sharedenc.redact import hide_credentials
from sharedenc.report.collect import SUPERSEDED, RunData, StudyRows, TrialRow
from sharedenc.report.evidence import Provenance
from sharedenc.tracking import REUSED_FROM

INVOCATION = "sharedenc.invocation."
MOST_FAILURES, MOST_CLASSES = 20, 100
LIBRARIES = ("sharedenc", "code", "python", "torch", "torchvision", "cuda", "cudnn")
"""In this order; all others follow."""

Rows = list[tuple[str, tuple[str, ...]]]


def provenance(rows: StudyRows, runs: Sequence[RunData]) -> Provenance:
    """What stands behind a study's numbers; ``runs`` are those of its experiment.

    Versions, devices and settings are those of the trials that fill the tables; where trials
    differ, each value says of how many.
    """
    by_id = {run.run_id: run for run in runs}
    parents = [run for run in runs if run.tags.get("sharedenc.kind") == "study"]
    tags = dict(parents[0].tags) if parents else {}
    trials = [run for run in runs if run.tags.get("sharedenc.kind") == "trial"]
    trained = [by_id[row.run_id] for row in rows.final if row.run_id in by_id]
    trained = [run for run in trained if run.params] or [run for run in trials if run.params]
    settings = _json(tags.get("sharedenc.settings"))
    found: Rows = [
        ("study", _study(rows, settings)),
        ("data set", _some(rows.data)),
        ("digest of the data", _some(rows.data_digest)),
        (f"classes ({len(rows.classes)}, without background)", _classes(rows.classes)),
        ("invocations", _invocations(tags)),
        ("runs from", _period(trained)),
        ("trials", _trials(rows)),
        ("failed", _failures(rows)),
        ("retries", _retries(trials)),
        ("not in the tables", _left_out(rows, trials)),
        ("taken over from other studies", _reused(trained)),
        ("seeds", _counted(run.params.get("seed") for run in trained)),
        ("learning rates", _rates(rows)),
        ("where the rates come from", _rate_source(settings, rows)),
        ("trained on", _counted(run.tags.get("sharedenc.device_name") for run in trained)),
        *_software(trained),
        ("versions of the parts", _parts(trained)),
        *_numerics(trained),
        ("initial weights (SHA-256)", _counted(run.params.get("weights") for run in trained)),
        ("timed on", _timed(rows)),
    ]
    return Provenance(rows=tuple((name, values) for name, values in found if values))


def _some(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


def _json(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:  # a tag that was too long for the server is cut
        return {}
    return found if isinstance(found, dict) else {}


def _counted(values: Iterable[str | None]) -> tuple[str, ...]:
    """Each value once, the most frequent first; with its count where they differ."""
    counts = Counter(value for value in values if value)
    if len(counts) == 1:
        return tuple(counts)
    return tuple(f"{value} ({_trial_count(count)})" for value, count in counts.most_common())


def _trial_count(count: int) -> str:
    return f"{count} trial" + ("" if count == 1 else "s")


def _study(rows: StudyRows, settings: Mapping[str, Any]) -> tuple[str, ...]:
    kind = settings.get("kind")
    return (f"{rows.study} (kind {kind})" if kind else rows.study,)


def _classes(names: Sequence[str]) -> tuple[str, ...]:
    if len(names) <= MOST_CLASSES:
        return _some(", ".join(names))
    left = len(names) - MOST_CLASSES
    return (f"{', '.join(names[:MOST_CLASSES])} and {left} more",)


def _invocations(tags: Mapping[str, str]) -> tuple[str, ...]:
    found = sorted(name for name in tags if name.startswith(INVOCATION))
    return tuple(
        f"{name.removeprefix(INVOCATION)}: {hide_credentials(tags[name])}" for name in found
    )


def _period(runs: Sequence[RunData]) -> tuple[str, ...]:
    starts = [run.start_ms for run in runs if run.start_ms]
    ends = [run.end_ms for run in runs if run.end_ms]
    if not starts:
        return ()
    end = f"to {_when(max(ends))}" if ends else "on"
    return (f"{_when(min(starts))} {end} (UTC)",)


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M")


def _trials(rows: StudyRows) -> tuple[str, ...]:
    found = [_states("", rows.final), _states("learning-rate searches: ", rows.search)]
    return tuple(text for text in found if text)


def _states(what: str, trials: Sequence[TrialRow]) -> str:
    counts = Counter(row.state for row in trials)
    return what + ", ".join(f"{n} {state}" for state, n in counts.most_common()) if counts else ""


def _failures(rows: StudyRows) -> tuple[str, ...]:
    lines = []
    for row in (*rows.final, *rows.search):
        if row.state == "failed":
            seed = "" if row.seed is None else f", seed {row.seed}"
            kind = f" ({row.failure_kind})" if row.failure_kind else ""
            reason = hide_credentials(row.reason.splitlines()[0]) if row.reason else "no reason"
            lines.append(f"{row.cell}{seed}{kind}: {reason}")
    if len(lines) > MOST_FAILURES:
        lines[MOST_FAILURES:] = [f"and {len(lines) - MOST_FAILURES} more"]
    return tuple(lines)


def _retries(trials: Sequence[RunData]) -> tuple[str, ...]:
    attempts = [run.tags.get("sharedenc.attempt", "") for run in trials]
    again = [int(text) - 1 for text in attempts if text.isdigit() and int(text) > 1]
    if not again:
        return ("none",) if trials else ()
    return (f"{sum(again)} more attempts of {_trial_count(len(again))}",)


def _left_out(rows: StudyRows, trials: Sequence[RunData]) -> tuple[str, ...]:
    reasons = Counter(reason for _, reason in rows.left_out)
    lines = [f"{_trial_count(count)}: {reason}" for reason, count in reasons.most_common()]
    superseded = sum(1 for run in trials if run.tags.get(SUPERSEDED))
    if superseded:
        lines.append(f"{_trial_count(superseded)}: a newer training replaced it")
    return tuple(lines)


def _reused(runs: Sequence[RunData]) -> tuple[str, ...]:
    count = sum(1 for run in runs if run.tags.get(REUSED_FROM))
    return (_trial_count(count),) if count else ()


def _rates(rows: StudyRows) -> tuple[str, ...]:
    """The rates of each backbone's finished trials."""
    found: dict[str, set[float]] = {}
    for row in rows.final:
        if row.lr is not None and row.state == "done":
            found.setdefault(row.backbone, set()).add(row.lr)
    return tuple(
        f"{backbone}: {', '.join(f'{lr:g}' for lr in sorted(rates))}"
        for backbone, rates in found.items()
    )


def _rate_source(settings: Mapping[str, Any], rows: StudyRows) -> tuple[str, ...]:
    """What the study's settings say; a rate is given, searched or published, in this order."""
    if not settings:
        return ()
    lines = []
    given = settings.get("lr")
    if isinstance(given, dict) and given:
        lines.append("given: " + ", ".join(f"{name}={rate:g}" for name, rate in given.items()))
    sources = {
        "published": "the thesis's Table 3.5",
        "backbone": "a search for each backbone, on its baselines",
        "cell": "a search for each cell",
    }
    how = settings.get("lr_search")
    if how in sources:
        lines.append(sources[str(how)])
    elif not lines:
        searched = sorted({row.backbone for row in rows.search})
        lines.append("the thesis's Table 3.5")
        if searched:
            lines[-1] = f"searched for {', '.join(searched)}; else {lines[-1]}"
    return tuple(lines)


def _software(runs: Sequence[RunData]) -> Rows:
    told = [_json(run.tags.get("sharedenc.software")) for run in runs]
    if not any(told):
        torch = _counted(run.params.get("numerics.torch") for run in runs)
        return [("torch", torch)] if torch else []
    names = list(dict.fromkeys([*LIBRARIES, *(name for found in told for name in found)]))
    silent = sum(1 for found in told if not found)
    rows: Rows = []
    for name in names:
        values = _counted(str(found[name]) for found in told if name in found)
        title = "digest of the code" if name == "code" else name
        rows.append((title, values))
    if silent:
        rows.append(("versions not told", (f"{_trial_count(silent)} of an earlier version",)))
    return rows


def _parts(runs: Sequence[RunData]) -> tuple[str, ...]:
    """The hand-bumped results version of each component, as the trials' keys hold them."""
    seen: dict[str, set[int]] = {}
    for run in runs:
        parts = _json(run.tags.get("sharedenc.content")).get("components")
        for name, version in (parts if isinstance(parts, dict) else {}).items():
            seen.setdefault(name, set()).add(int(version))
    lines = [f"{name} {'/'.join(map(str, sorted(found)))}" for name, found in seen.items()]
    return _some(", ".join(lines))


def _numerics(runs: Sequence[RunData]) -> Rows:
    names = dict.fromkeys(name for run in runs for name in run.params if "numerics." in name)
    return [
        (name.replace("_", " "), _counted(run.params.get(name) for run in runs))
        for name in names
        if name.startswith("numerics.") and name != "numerics.torch"
    ]


def _timed(rows: StudyRows) -> tuple[str, ...]:
    """Each device, power mode and tool, and how many valid timings it gave."""
    boards: dict[str, list[bool]] = {}
    for row in rows.timings:
        mode = f", {row.mode}" if row.mode else ""
        tool = f"{row.backend} {row.runtime}".strip()
        name = f"{row.device}{mode}, {tool}" + (" (stale)" if row.stale else "")
        boards.setdefault(name, []).append(row.verdict == "valid")
    return tuple(f"{name}: {sum(v)} of {len(v)} timings valid" for name, v in boards.items())
