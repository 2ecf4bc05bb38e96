"""What a study has done already, as far as that is known before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sharedenc.errors import SpecError, nearest
from sharedenc.spec import Trial
from sweeps.graph import Node, Resolver
from sweeps.ledger import Ledger, Reuse
from sweeps.rows import Row, Settled


@dataclass(frozen=True)
class Known:
    """By node id: what each node trains, where that is known, and what is done of it."""

    trials: dict[str, Trial]
    done: dict[str, Settled]


def look_up(
    ledger: Ledger,
    nodes: Sequence[Node],
    resolver: Resolver,
    *,
    reuse: Reuse = "strict",
    rerun: Sequence[str] = (),
) -> Known:
    """Look up every trial that is known, and those that become known by what is found.

    A search that has ended gives the rates of its final trials, a parent that is taken over the
    keys of its swaps, and so on until nothing more becomes known. Writes nothing.

    Args:
        rerun: Cells or ids (globs) that are trained again.

    Raises:
        SpecError: a pattern of ``rerun`` matches nothing.
    """
    again = asked_again(nodes, rerun)
    rows = {node.id: Row(node=node) for node in nodes}
    known = Known({}, {})
    while new := _now_known(nodes, resolver, rows, known.trials):
        known.trials.update(new)
        searches = {name: rows[name].node.search for name in new}
        found = ledger.lookup(
            list(new.items()),
            reuse=reuse,
            rerun=again,
            searches={name: search for name, search in searches.items() if search is not None},
        )
        known.done.update(found)
        for name, trial in new.items():
            row = rows[name]
            row.trial = trial
            if name in found:
                row.take_over(found[name])
                row.state, row.reason = found[name].state, found[name].reason
    return known


def _now_known(
    nodes: Sequence[Node], resolver: Resolver, rows: dict[str, Row], before: Collection[str]
) -> dict[str, Trial]:
    """Trials that are known by now, of nodes whose parents have been looked up."""
    new = {}
    for node in nodes:
        if node.id not in before and all(need in before for need in node.needs):
            trial = resolver.preview(node, rows)
            if trial is not None:
                new[node.id] = trial
    return new


def asked_again(nodes: Sequence[Node], patterns: Sequence[str]) -> set[str]:
    """Ids of the nodes whose cell or id matches one of the patterns of ``--rerun``.

    Raises:
        SpecError: a pattern matches nothing.
    """
    ids: set[str] = set()
    for pattern in patterns:
        matching = [
            n.id for n in nodes if any(fnmatchcase(x, pattern) for x in (n.cell.name, n.id))
        ]
        if not matching:
            hint = nearest(pattern, [node.id for node in nodes])
            raise SpecError(f"--rerun {pattern!r} matches none of the study's trials.{hint}")
        ids.update(matching)
    return ids
