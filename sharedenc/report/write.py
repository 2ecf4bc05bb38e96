"""Write a report: one page, and every table and figure as files of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sharedenc.errors import SharedencError
from sharedenc.report.changes import Figure
from sharedenc.report.collect import StudyRows, collect
from sharedenc.report.contents import Contents
from sharedenc.report.deployments import options
from sharedenc.report.evidence import Evidence, gather
from sharedenc.report.findings import Finding, findings
from sharedenc.report.latex import latex
from sharedenc.report.pictures import Picture, pictures
from sharedenc.report.published import inconsistencies, published
from sharedenc.report.summary import Summary, summarise
from sharedenc.report.table_spec import ENCODER_BIASES, Count, Facts, Table
from sharedenc.report.tables import build_tables, is_synthetic
from sharedenc.report.text import REASONS, csv_text, markdown
from sharedenc.report.theme import standalone
from sharedenc.report.thesis import published_facts
from sharedenc.report.writing import csv_of, escaped, markdown_table, replace_file


@dataclass(frozen=True)
class ReportPaths:
    """What was written: the page, three files per table and three per figure."""

    folder: Path
    index: Path
    overview: Path
    tables: dict[str, dict[str, Path]]
    figures: dict[str, dict[str, Path]]
    summary: Summary
    findings: Path
    deployments: Path
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for ``--json``."""
        return {
            "folder": str(self.folder),
            "index": str(self.index),
            "overview": str(self.overview),
            "tables": _texts(self.tables),
            "figures": _texts(self.figures),
            "findings": str(self.findings),
            "deployments": str(self.deployments),
            "summary": asdict(self.summary),
            "notes": list(self.notes),
        }


def _texts(files: dict[str, dict[str, Path]]) -> dict[str, dict[str, str]]:
    return {name: {kind: str(p) for kind, p in found.items()} for name, found in files.items()}


def write_report(
    uri: str,
    study: str,
    out: Path,
    *,
    predictions: bool = True,
    curves: bool = True,
    refresh_s: int | None = None,
    rows: StudyRows | None = None,
    shown: bool = False,
) -> tuple[Contents, ReportPaths]:
    """Read ``study`` from the MLflow server at ``uri`` and write its report into ``out``.

    Args:
        predictions: Fetch what each network predicts on the same photos.
        curves: Fetch the training curves.
        refresh_s: Seconds after which an open page loads itself again, while trials still run.
        rows: What was read already.
        shown: Show on standard error how far reading is.

    Raises:
        SpecError: there is no such study, or it has no cells.
        TrackingError: the server cannot be reached.
        SharedencError: the folder cannot be written.
    """
    rows = rows or collect(uri, study)
    # A folder that cannot be written is told before minutes of reading and drawing.
    _make(out)
    evidence = gather(uri, rows, predictions=predictions, curves=curves, shown=shown)
    contents = assemble(rows, count_parameters(), evidence, refresh_s=refresh_s)
    return contents, write_contents(contents, out)


def write_published(out: Path) -> ReportPaths:
    """Write a report of the published numbers alone.

    Raises:
        SharedencError: the folder cannot be written.
    """
    _make(out)
    facts = published_facts(count_parameters())
    return write_contents(_contents(facts, facts, Evidence(), published=True), out)


def assemble(
    rows: StudyRows,
    count: Count,
    evidence: Evidence | None = None,
    *,
    refresh_s: int | None = None,
) -> Contents:
    """Everything that a study's report holds; ``count`` gives a graph's parameters."""
    facts = Facts.of(rows, count)
    beside = published_facts(count)
    return _contents(facts, beside, evidence or Evidence(), refresh_s=refresh_s)


def _contents(
    facts: Facts,
    beside: Facts,
    evidence: Evidence,
    *,
    published: bool = False,
    refresh_s: int | None = None,
) -> Contents:
    timed = tuple(options(facts))
    # Beside drawn shapes the published scores would only stretch the axes.
    shown = None if published or is_synthetic(facts.rows) else beside
    return Contents(
        facts=facts,
        tables=tuple(build_tables(facts, published=published)),
        summary=summarise(facts),
        findings=tuple(findings(facts, beside)),
        options=timed,
        pictures=tuple(pictures(facts, timed, shown, evidence.curves)),
        evidence=evidence,
        published=published,
        refresh_s=refresh_s,
    )


def count_parameters() -> Count:
    """Counts on the package's own networks; each is built once, without memory behind it."""
    from sharedenc.models.build import meta_network
    from sharedenc.models.counting import parameters_of

    network = cache(meta_network)

    def count(backbone: str, graph: str, num_classes: int) -> int:
        whole = network(backbone, num_classes)
        if graph == ENCODER_BIASES:
            named = whole.encoder.named_parameters()
            return sum(value.numel() for name, value in named if name.endswith(".bias"))
        det, seg = parameters_of(whole.det_head), parameters_of(whole.seg_head)
        heads = {"encoder": 0, "det": det, "seg": seg, "dual": det + seg}
        return parameters_of(whole.encoder) + heads[graph]

    return count


def write_contents(contents: Contents, out: Path) -> ReportPaths:
    """Write every form of a report into ``out``; the page comes last.

    Raises:
        SharedencError: the folder cannot be written.
    """
    from sharedenc.report.html import page

    rows = contents.facts.rows
    _make(out)
    try:
        tables = {t.spec.number: _write_table(t, rows, out / "tables") for t in contents.tables}
        figures = {p.number: _write_picture(p, out / "figures") for p in contents.pictures}
        replace_file(out / "findings.csv", _findings_csv(contents.findings).encode())
        replace_file(out / "deployments.csv", _deployments_csv(contents).encode())
        replace_file(out / "report.md", _overview(contents).encode())
        replace_file(out / "index.html", page(contents).encode())
    except OSError as error:
        raise _cannot_write(out, error) from error
    return ReportPaths(
        out,
        out / "index.html",
        out / "report.md",
        tables,
        figures,
        contents.summary,
        out / "findings.csv",
        out / "deployments.csv",
        (*contents.evidence.notes, *(inconsistencies(published()) if contents.published else ())),
    )


def _make(out: Path) -> None:
    try:
        for folder in (out, out / "tables", out / "figures"):
            folder.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> SharedencError:
    return SharedencError(
        f"the report cannot be written to {out}: {error}. Give a folder of your own by --out DIR."
    )


def _write_table(table: Table, rows: StudyRows, folder: Path) -> dict[str, Path]:
    texts = {
        "md": markdown(table, rows),
        "csv": csv_text(table, rows),
        "tex": latex(table, rows),
    }
    return {
        kind: replace_file(folder / f"table_{table.spec.number}.{kind}", text.encode())
        for kind, text in texts.items()
    }


def _write_picture(picture: Picture, folder: Path) -> dict[str, Path]:
    files = {
        "svg": standalone(picture.svg).encode(),
        "png": picture.png,
        "csv": csv_of([picture.columns, *picture.rows]).encode(),
    }
    return {
        kind: replace_file(folder / f"figure_{picture.number}.{kind}", content)
        for kind, content in files.items()
    }


def _findings_csv(found: Sequence[Finding]) -> str:
    columns = ("id", "claim", "where", "published", "this study", "verdict", "clear", "why", "note")
    lines = (
        (
            *(f.id, f.claim, f.where, f.published.text, f.ours.text),
            *(f.verdict, f.ours.clear, f.why, f.note),
        )
        for f in found
    )
    return csv_of([columns, *lines])


def _deployments_csv(contents: Contents) -> str:
    figures: tuple[tuple[str, Callable[[Any], Figure]], ...] = (
        ("latency (ms)", lambda option: option.latency),
        ("mIoU", lambda option: option.mIoU),
        ("mAP", lambda option: option.mAP),
        ("INT8 change of mIoU (%)", lambda option: option.drop_mIoU),
        ("INT8 change of mAP (%)", lambda option: option.drop_mAP),
        ("memory (MiB)", lambda option: option.memory),
        ("parameters (M)", lambda option: option.deployment.parameters),
    )
    columns = ["deployment", "passes", "board", "precision", "latency of"]
    columns += [*(name for name, _ in figures), "on the front", "models", REASONS]
    lines: list[Sequence[object]] = [columns]
    for option in contents.options:
        values = [(name, read(option)) for name, read in figures]
        lines.append(
            [
                option.deployment.name,
                option.deployment.passes,
                option.board,
                option.precision,
                option.stat,
                *(figure.value for _, figure in values),
                "yes" if option.on_front else "no",
                " ".join(f"{m.model}/{m.version}" for m in option.models),
                "; ".join(f"{n}: {f.told}" for n, f in values if f.told),
            ]
        )
    return csv_of(lines)


def _overview(contents: Contents) -> str:
    """The whole report as Markdown."""
    rows = contents.facts.rows
    parts = [f"# {escaped(rows.study)}\n"]
    if contents.findings:
        parts.append(_markdown_findings(contents.findings))
    parts += [markdown(table, rows) for table in contents.tables]
    doubts = inconsistencies(published())
    if doubts:
        head = "## Where the published numbers do not agree among themselves\n"
        parts.append("\n".join([head, *(f"- {escaped(doubt)}" for doubt in doubts), ""]))
    return "\n".join(parts)


def _markdown_findings(found: Sequence[Finding]) -> str:
    rows = []
    for finding in found:
        verdict = f"**{finding.verdict}**" if finding.ours.clear else finding.verdict
        why = " ".join(text for text in (finding.why, finding.note) if text)
        texts = (finding.claim, finding.where, finding.published.text, finding.ours.text)
        cells = [*map(escaped, texts), f"{verdict}: {escaped(why)}" if why else verdict]
        rows.append(cells)
    heads = ("claim", "where", "published numbers", "this study", "verdict")
    lines = ["## Findings", "", *markdown_table(heads, rows)]
    return "\n".join(lines) + "\n"
