"""Where networks were timed, and which of their latencies may be quoted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jetson_agent.protocol import COMPARISON, LOADS, PRECISIONS, QUANTIZED
from sharedenc.errors import SpecError
from sharedenc.report.changes import Figure, joined
from sharedenc.report.collect import TimingRow
from sharedenc.report.table_spec import Facts
from sharedenc.report.timing_tables import timed_figure

STATISTICS = ("p50", "p90", "p95", "p99", "mean", "min", "max")
# What an application sees of a latency.
DEFAULT_STAT = "p99-single"
# What is shown where nobody says which: the first that was timed.
_SHOWN = (DEFAULT_STAT, "p50-stream", "p50-single")
_GRAPHS = ("seg", "det", "dual")
IN_ONE_RUN = "both networks in one run"


@dataclass(frozen=True, kw_only=True)
class Board:
    """A device in a power mode with one tool, at one precision: what one choice is made on.

    ``name`` is that of `TimingRow.board`.
    """

    device: str
    mode: str
    name: str
    family: str
    backend: str
    precision: str

    @property
    def int8_kind(self) -> str:
        """Which scores of an export belong to the INT8 file that is timed here."""
        return "int8-cpu" if self.backend == "onnxruntime" else "int8-trt"

    @property
    def quantised(self) -> bool:
        """Whether a file with scales of its own is timed."""
        return self.precision in QUANTIZED


class Timings:
    """A study's timings by network, board and load."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._rows = {(r.backbone, r.graph, r.setup, r.precision): r for r in facts.rows.timings}
        families = facts.families
        found = {_board(row): None for row in facts.rows.timings if row.graph in _GRAPHS}
        self.boards: tuple[Board, ...] = tuple(
            sorted(
                found,
                key=lambda board: (
                    families.index(board.family),
                    board.device,
                    board.mode,
                    _place(board.precision),
                ),
            )
        )

    def stats(self, board: Board) -> list[str]:
        """The statistics that some network has there, the ones to quote first."""
        found = {
            f"{statistic}-{row.load}"
            for row in self._of(board)
            if row.has_figure
            for statistic in STATISTICS
            if f"latency_ms/{statistic}" in row.metrics
        }
        every = [f"{statistic}-{load}" for load in LOADS for statistic in STATISTICS]
        return [stat for stat in (*_SHOWN, *(s for s in every if s not in _SHOWN)) if stat in found]

    def shown(self, board: Board) -> str:
        """The statistic to show where nobody says which."""
        return next(iter(self.stats(board)), DEFAULT_STAT)

    def latency(self, backbone: str, graphs: Sequence[str], board: Board, stat: str) -> Figure:
        """Milliseconds that the graphs take one after the other.

        Two networks count by the sum of their own figures. (Of a percentile that is cautious: the
        sum of two p99s is exceeded by at most 2 % of the pictures.) Their median in one run is
        taken instead where there is one that is not more doubtful, and the mark says so.
        """
        rows = self.rows(backbone, graphs, board, stat)
        statistic, load = split_stat(stat)
        if len(rows) == 1 and rows[0].graph == COMPARISON:
            found = timed_figure(rows[0], "pair_ms/p50")
            return Figure.of([_known(found)], mark=joined([IN_ONE_RUN, found.mark]))
        by_graph = {row.graph: row for row in rows}
        parts = [self._part(backbone, g, by_graph.get(g), statistic, load) for g in graphs]
        missing = [part for part in parts if part.value is None]
        if missing:
            return Figure.missing(joined(part.why for part in missing))
        # To the nanosecond, so that a limit of just this sum is kept.
        return Figure.of(
            [round(sum(map(_known, parts)), 6)], mark=joined(part.mark for part in parts)
        )

    def memory(self, backbone: str, graphs: Sequence[str], board: Board, stat: str) -> Figure:
        """MiB of the graphs' engines and execution contexts, all of which stay loaded."""
        setup = f"{board.name}, {split_stat(stat)[1]}"
        total = 0.0
        for graph in graphs:
            row = self._rows.get((backbone, graph, setup, board.precision))
            if row is None:
                return Figure.missing(f"not timed yet: {graph}")
            parts = [row.metrics.get(name) for name in ("engine_mib", "context_mib")]
            if None in parts:
                return Figure.missing(f"{board.family} does not tell it")
            total += sum(part or 0.0 for part in parts)
        return Figure.of([round(total, 3)])

    def rows(
        self, backbone: str, graphs: Sequence[str], board: Board, stat: str
    ) -> tuple[TimingRow, ...]:
        """The timings that a latency rests on."""
        statistic, load = split_stat(stat)
        setup = f"{board.name}, {load}"
        found = [self._rows.get((backbone, graph, setup, board.precision)) for graph in graphs]
        alone = tuple(row for row in found if row is not None)
        both = self._rows.get((backbone, COMPARISON, setup, board.precision))
        if len(graphs) == 2 and statistic == "p50" and both is not None:
            doubt = timed_figure(both, "pair_ms/p50")
            sums = [timed_figure(row, "latency_ms/p50") for row in alone]
            whole = len(sums) == len(graphs) and all(part.value is not None for part in sums)
            clean = whole and not any(part.mark for part in sums)
            if doubt.value is not None and not (doubt.mark and clean):
                return (both,)
        return alone

    def _of(self, board: Board) -> list[TimingRow]:
        return [r for r in self._rows.values() if r.graph in _GRAPHS and _board(r) == board]

    def _part(
        self, backbone: str, graph: str, row: TimingRow | None, statistic: str, load: str
    ) -> Figure:
        if row is None:
            registered = (backbone, graph) in self._facts.rows.registered
            return Figure.missing(f"{'not timed yet' if registered else 'not exported'}: {graph}")
        figure = timed_figure(row, f"latency_ms/{statistic}")
        if figure.value is not None:
            return figure
        if row.has_figure:
            return Figure.missing(f"no {statistic}: too few queries of {graph} were timed")
        return Figure.missing(f"{row.verdict}: {graph}{f', {row.reason}' if row.reason else ''}")


def split_stat(stat: str) -> tuple[str, str]:
    """``p99-single`` as statistic and load.

    Raises:
        SpecError: it is not of that form.
    """
    statistic, _, load = stat.partition("-")
    if statistic not in STATISTICS or load not in LOADS:
        raise SpecError(
            f"stat={stat!r} is no statistic of a latency; it is one of {', '.join(STATISTICS)} "
            f"with one of {', '.join(LOADS)}, such as {DEFAULT_STAT}"
        )
    return statistic, load


def _board(row: TimingRow) -> Board:
    return Board(
        device=row.device,
        mode=row.mode,
        name=row.board,
        family=row.family,
        backend=row.backend,
        precision=row.precision,
    )


def _place(precision: str) -> tuple[int, str]:
    known = precision in PRECISIONS
    return (PRECISIONS.index(precision) if known else len(PRECISIONS)), precision


def _known(figure: Figure) -> float:
    assert figure.value is not None
    return figure.value
