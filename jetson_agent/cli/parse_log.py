"""`jetson-agent parse-log`: what a `trtexec` log says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jetson_agent.errors import AgentError

if TYPE_CHECKING:
    from jetson_agent.trtexec_log import Report


@click.command(name="parse-log", epilog="Example: jetson-agent parse-log trtexec.log --json")
@click.argument(
    "file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def parse_log(file: Path, as_json: bool) -> None:
    """Read the log of a trtexec run, of TensorRT 8.2 to 11; - reads standard input.

    Values that are not in the log are null. Of several runs in one log the last one is shown. Exit
    code 0 whether that run passed or failed, 1 if there is no output of trtexec at all.
    """
    from jetson_agent.trtexec_log import LOOKED_FOR, parse

    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    report = parse(data.decode(errors="replace"))
    if not report.recognised:
        raise AgentError(f"{file} holds no output of trtexec. Looked for: {LOOKED_FOR}.")
    click.echo(json.dumps(report.to_dict(), allow_nan=False) if as_json else table(report))


def table(report: Report) -> str:
    """The report for a person; a dash is what the log does not say."""
    from jetson_agent.trtexec_log import PARTS

    verdict = {True: "passed", False: "failed", None: "no verdict"}[report.passed]
    tag = f" {report.build_tag}" if report.build_tag else ""
    rows = [
        ("verdict", verdict + (f" (the last of {report.runs} runs)" if report.runs > 1 else "")),
        ("tensorrt", f"{report.tensorrt_version or '-'}{tag}"),
        ("device", report.device or "-"),
        ("precision", report.build.precision or "-"),
        ("command", report.command or "-"),
        ("throughput", _number(report.throughput_qps, "queries/s")),
        ("queries", _number(report.queries, f"over {_number(report.walltime_s, 's')}")),
        ("build", _number(report.build.build_s, "s")),
        ("engine", _number(report.build.engine_mib, "MiB")),
        ("context", _number(report.build.context_mib, "MiB")),
    ]
    lines = [f"{name:<11} {value}" for name, value in rows]
    parts = {name: values for name in PARTS.values() if (values := getattr(report, name))}
    if parts:
        columns = list(dict.fromkeys(key for values in parts.values() for key in values))
        lines += ["", f"{'ms':<15}" + "".join(f"{column:>11}" for column in columns)]
        for name, values in parts.items():
            cells = (_number(values.get(column)) for column in columns)
            lines.append(f"{name.removesuffix('_ms'):<15}" + "".join(f"{c:>11}" for c in cells))
    lines += (
        ["", *(f"warning: {warning}" for warning in report.warnings)] if report.warnings else []
    )
    if failure := report.failure:
        node = f", node {failure.node}" if failure.node else ""
        lines += ["", f"failure: {failure.kind}{node}", *(f"  {line}" for line in failure.lines)]
    return "\n".join(lines)


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.6g} {unit}".rstrip()
