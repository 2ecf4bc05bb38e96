"""Which part of two trials' contents differs: why one cannot stand for the other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sharedenc.tracking import RunRecord

MOST = 4
"""Differences that are told one by one."""
_DIGESTS = ("data", "weights", "parent", "backbone_digest")
_WEIGHT = {"data": 20, "weights": 5, "parent": 3}
"""How far apart a part sets two trials; 1 for each other setting."""


@dataclass(frozen=True)
class Difference:
    """One part of the content, as the finished trial had it and as it is asked for now."""

    part: str
    had: str | None
    now: str | None

    def __str__(self) -> str:
        if self.part in _DIGESTS:
            return f"{self.part} {_short(self.had)} -> {_short(self.now)}"
        return f"{self.part} {_or(self.had)} -> {_or(self.now)}"


def differences(had: Mapping[str, str], now: Mapping[str, str]) -> list[Difference]:
    """Parts of two flat contents that differ, in the order of their names."""
    return [
        Difference(part, had.get(part), now.get(part))
        for part in sorted(had.keys() | now.keys())
        if had.get(part) != now.get(part)
    ]


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A trial's content as texts by dotted names: ``recipe.epochs`` -> ``24``."""
    found: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = str(value)
    return found


def content_of(record: RunRecord, now: Mapping[str, str]) -> dict[str, str]:
    """The flat content of a recorded trial.

    Runs of version 0.1 have no tag for it; their params say it as far as ``now`` asks.
    """
    text = record.tags.get("sharedenc.content")
    if text:
        try:
            return flat(json.loads(text))
        except ValueError:
            pass
    params, tags = record.params, record.tags
    known = {n: v for n, v in params.items() if n in now and n.startswith(("recipe.", "numerics."))}
    known |= {name: params[name] for name in ("lr", "seed", "weights") if name in params}
    known |= {
        name: tags[tag]
        for name, tag in (("cell", "sharedenc.cell"), ("data", "sharedenc.data_digest"))
        if tag in tags
    }
    # What those runs did not write down cannot be told to differ.
    return {n: v for n, v in now.items() if n not in known and not _written(n)} | known


def _written(part: str) -> bool:
    return part.startswith(("recipe.", "numerics.")) or part in ("lr", "seed", "weights")


def nearest(now: Mapping[str, str], records: Iterable[RunRecord]) -> list[Difference] | None:
    """Differences to the record that has the fewest; None when there is none."""
    best: list[Difference] | None = None
    for record in records:
        found = differences(content_of(record, now), now)
        if best is None or _distance(found) < _distance(best):
            best = found
    return best


def told(found: list[Difference]) -> str:
    """Differences in one line."""
    if not found:
        return "its content is the same, but its key is of another version"
    more = len(found) - MOST
    return ", ".join(map(str, found[:MOST])) + (f" and {more} more" if more > 0 else "")


def _distance(found: list[Difference]) -> int:
    return sum(_WEIGHT.get(difference.part, 1) for difference in found)


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def _or(text: str | None) -> str:
    return "none" if text is None else text
