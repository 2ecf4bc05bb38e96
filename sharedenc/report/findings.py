"""The claims of the reference study, tested on numbers: the published ones and a study's own.

Each claim of `claims.CLAIMS` is checked twice by the same function, on the published numbers and
on the study's. The verdict compares the study with the *claim*:

- ``agrees``: the claim holds in this study; every comparison that it rests on does.
- ``differs``: it does not; at least one of its comparisons says the opposite.
- ``cannot tell``: nothing speaks against it, but a number is missing, two sides are equal, or
  several seeds leave 0 inside the interval of one of its comparisons.

With one seed the sign of a difference decides, and nothing is clear. Where the published numbers
do not bear out a claim that was made on them, ``why`` says so; the verdict stays one on the claim.
Intervals are at 95 % each, not corrected for their number.
A claim on "every backbone" is tested on those that the study has. One that names the first of the
backbones is tested among the published ones that the study has, and needs two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sharedenc.report.claims.checks import Observation
from sharedenc.report.claims.claims import CLAIMS, Claim
from sharedenc.report.published import published
from sharedenc.report.table_spec import Facts
from sharedenc.report.tables import is_published_data, published_head

__all__ = ["Finding", "Observation", "Verdict", "findings"]

Verdict = Literal["agrees", "differs", "cannot tell"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim beside what the published numbers and this study say of it.

    Attributes:
        where: The section of the reference study.
        verdict: What this study says of the claim.
        why: What limits the verdict, empty where nothing does.
        note: How the claim is tested, where it leaves that open.
    """

    id: str
    claim: str
    where: str
    published: Observation
    ours: Observation
    verdict: Verdict
    why: str = ""
    note: str = ""


def findings(facts: Facts, published: Facts) -> list[Finding]:
    """Test every claim on a study's numbers and on the published ones."""
    return [_finding(claim, facts, published) for claim in CLAIMS]


def _finding(claim: Claim, facts: Facts, reference: Facts) -> Finding:
    printed, ours = claim.check(reference), claim.check(facts)
    verdicts: dict[bool | None, Verdict] = {True: "agrees", False: "differs", None: "cannot tell"}
    return Finding(
        id=claim.id,
        claim=claim.claim,
        where=claim.where,
        published=printed,
        ours=ours,
        verdict=verdicts[ours.holds],
        why=_why(claim, facts, printed, ours),
        note=claim.note,
    )


def _why(claim: Claim, facts: Facts, printed: Observation, ours: Observation) -> str:
    """What a reader must know before the verdict counts for anything."""
    reasons = []
    if printed.holds is False:
        reasons.append("The published numbers themselves do not bear the claim out.")
    elif printed.holds is None:
        reasons.append("The published numbers cannot tell either way.")
    if claim.basis == "scores" and not is_published_data(facts.rows, published()):
        reasons.append(
            f"Other data: {facts.rows.data} with {len(facts.rows.classes)} classes, not the "
            "published data set and classes."
        )
    if claim.basis == "timings" and ours.holds is not None:
        head = published_head("device", facts.rows, published())
        if head != "published":
            reasons.append("Timed on another device or in another way than the published numbers.")
    return " ".join(reasons)
