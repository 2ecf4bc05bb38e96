"""The self-test's report as Markdown, from its JSON form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VERDICTS = {
    "passed": "Passed: every check ran and none failed.",
    "failed": "Failed: see the checks marked so.",
    "incomplete": "Incomplete: nothing failed, but there was no time for every check.",
    "interrupted": "Interrupted: this report is partial.",
    "running": "Not finished: this report is partial; the self-test still runs, or was killed.",
}


def markdown(report: Mapping[str, Any]) -> str:
    """Return the page; ``report`` is `sharedenc.selftest.run.Report.to_dict`."""
    checks: list[Mapping[str, Any]] = report["checks"]
    lines = ["# sharedenc selftest", "", VERDICTS[report["verdict"]], ""]
    lines += [_tally(checks, report["minutes"]), ""]
    lines += ["## Machine", "", *_table(("what", "value"), _machine(report)), ""]
    lines += ["## Data", "", *_data(report, checks), ""]
    lines += ["## Training", "", *_training(checks), ""]
    lines += ["## Other checks", "", *_others(checks), ""]
    lines += _troubles(checks)
    return "\n".join(lines).rstrip() + "\n"


def _tally(checks: Sequence[Mapping[str, Any]], minutes: float) -> str:
    counts: dict[str, int] = {}
    for check in checks:
        counts[check["status"]] = counts.get(check["status"], 0) + 1
    parts = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{len(checks)} checks in {minutes:.1f} minutes: {parts}."


def _machine(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    about, settings = report["environment"], report["settings"]
    gpu = about.get("gpu")
    if gpu:
        yield "GPU", f"{gpu['name']}, {_gib(gpu['memory_bytes'])} ({_gib(gpu['free_bytes'])} free)"
        yield "compute capability", gpu["capability"]
    if about.get("driver"):
        yield "driver", about["driver"]
    yield "torch", f"{about['torch']} (CUDA {about['cuda_of_torch']})"
    yield "processor", f"{about['processor']}, {about['cores']} cores"
    yield "memory", _gib(about["memory_bytes"])
    yield "system", f"{about['system']}, Python {about['versions']['python']}"
    yield "sharedenc", f"{about['sharedenc']} (code {about['code']})"
    for name, value in settings.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield name.replace("_", " "), shown


def _data(report: Mapping[str, Any], checks: Sequence[Mapping[str, Any]]) -> list[str]:
    data = report["data"]
    lines = [f"`{data['name']}`, digest `{data['digest'][:16]}`, classes {data['class_list']}.", ""]
    for check in checks:
        if check["group"] == "data" and "splits" in check["figures"]:
            splits = check["figures"]["splits"]
            rows = [
                (name, str(row["images"]), str(sum(row["objects"].values())), str(row["crowd"]))
                for name, row in splits.items()
            ]
            lines += _table(("split", "images", "objects", "crowd regions"), rows)
            said = check["reason"] or "the images are those of Table 3.2"
            lines += ["", f"{check['status']}: {said}"]
            for year, counts in check["figures"].get("rules", {}).items():
                lines.append(f"- {year}: {', '.join(f'{k} {v}' for k, v in counts.items())}")
    return lines


def _training(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for check in checks:
        if check["group"] != "training":
            continue
        cell, _, precision = check["name"].rpartition(" ")
        figures = check["figures"]
        if figures:
            numbers = (
                f"{figures['loss_first']:.4g}",
                f"{figures['loss_last']:.4g}",
                f"{figures['images_per_s']:.1f}",
                _gib(figures["peak_memory_bytes"]),
            )
        else:
            numbers = ("", "", "", "")
        rows.append((cell, precision, check["status"], *numbers, f"{check['seconds']:.1f}"))
    header = ("cell", "precision", "status", "first loss", "last loss", "images/s", "peak", "s")
    return _table(header, rows)


def _others(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for check in checks:
        if check["group"] in ("data", "training"):
            continue
        shown = [
            f"{name.replace('_', ' ')} {_short(value)}"
            for name, value in check["figures"].items()
            if not isinstance(value, dict)
        ]
        rows.append((check["group"], check["name"], check["status"], ", ".join(shown)))
    return _table(("group", "check", "status", "figures"), rows)


def _troubles(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for check in checks:
        if check["status"] != "failed":
            continue
        lines += [f"### {check['group']}: {check['name']}", "", check["reason"], ""]
        if check["traceback"]:
            lines += ["```text", check["traceback"].rstrip(), "```", ""]
    return ["## Failed", "", *lines] if lines else []


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), line(["---"] * len(header)), *(line(row) for row in rows)]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(_short(item) for item in value)
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool) and value > 10_000_000:
        return _gib(value)
    return str(value)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
