"""All that a report holds, before it is written in any form."""

from __future__ import annotations

from dataclasses import dataclass, field

from sharedenc.report.deployments import Option
from sharedenc.report.evidence import Evidence
from sharedenc.report.findings import Finding
from sharedenc.report.pictures import Picture
from sharedenc.report.summary import Summary
from sharedenc.report.table_spec import Facts, Table


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A report.

    Attributes:
        published: It is of the published numbers alone: "ours" is what they give when computed
            again.
        refresh_s: Seconds after which an open page loads itself again; None once nothing changes.
    """

    facts: Facts
    tables: tuple[Table, ...]
    summary: Summary
    findings: tuple[Finding, ...] = ()
    options: tuple[Option, ...] = ()
    pictures: tuple[Picture, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)
    published: bool = False
    refresh_s: int | None = None
