"""Which board, tool and statistic a question is about, from what its asker said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jetson_agent.protocol import slug
from sharedenc.errors import SharedencError, SpecError, nearest
from sharedenc.report.boards import DEFAULT_STAT, Board, Timings, split_stat
from sharedenc.report.table_spec import Facts
from sharedenc.report.thesis import PUBLISHED

_UNSCALED = "int8-unscaled"


@dataclass(frozen=True)
class Chosen:
    """A board and statistic; ``notes`` say what was taken that was not asked for."""

    board: Board
    stat: str
    notes: tuple[str, ...]


def choose_board(
    facts: Facts,
    timings: Timings,
    *,
    device: str | None,
    mode: str | None,
    precision: str | None,
    stat: str | None,
) -> Chosen:
    """The one board that was meant; of several tools the newest TensorRT goes before.

    Raises:
        SpecError: a name fits none or several, or what is left open is not the only one.
        SharedencError: nothing was timed.
    """
    study, boards = facts.rows.study, list(timings.boards)
    if not boards:
        raise SharedencError(
            f"nothing of study {study!r} was timed yet: run `jetson-agent run` on a board, or "
            "bring its figures in by `sharedenc timings import`"
        )
    boards = _narrow(boards, "device", device, lambda board: board.device)
    boards = _narrow(boards, "mode", mode, lambda board: board.mode)
    notes: list[str] = []
    if _means_unscaled(study, boards, precision):
        precision = _UNSCALED
        notes.append(
            "int8 means int8-unscaled here: the published INT8 was timed with scales that TensorRT "
            "made up, for its speed alone"
        )
    # A part of a precision's name is another precision.
    boards = _narrow(boards, "precision", precision, lambda board: board.precision, exact)
    stat, taken = _stat(study, timings, boards, stat)
    notes.extend(taken)
    able = [board for board in boards if stat in timings.stats(board)]
    if len(able) > 1:
        others = ", ".join(board.family for board in able[1:])
        notes.append(f"timed by {others} too; these are the figures of {able[0].family}")
    return Chosen(able[0], stat, tuple(notes))


def exact(what: str, asked: str, names: Iterable[str]) -> str:
    """The name, if it is one of them.

    Raises:
        SpecError: it is not.
    """
    known = sorted(set(names))
    if asked not in known:
        raise _unknown(what, asked, known)
    return asked


def match(what: str, asked: str, names: Iterable[str]) -> str:
    """The one name that was meant: in full, or a part or some words of it, whatever the case.

    Raises:
        SpecError: none or several fit.
    """
    known, wanted = sorted(set(names)), slug(asked)
    if asked in known:
        return asked
    rules: tuple[Callable[[str], bool], ...] = (
        lambda name: name == wanted,
        lambda name: wanted in name,
        lambda name: set(wanted.split("-")) <= set(name.split("-")),
    )
    for fits in rules:
        found = [name for name in known if name and fits(slug(name))]
        if len(found) == 1:
            return found[0]
        if found:
            raise SpecError(f"{what}={asked!r} may be {' or '.join(found)}: name one of them")
    if known == [""]:
        raise SpecError(f"{what}={asked!r}: the timings name no {what}, so leave it out")
    raise _unknown(what, asked, known)


def _unknown(what: str, asked: str, known: Sequence[str]) -> SpecError:
    return SpecError(
        f"{what}={asked!r} was not timed; there is {', '.join(filter(None, known))}."
        f"{nearest(asked, known)}"
    )


def _narrow(
    boards: Sequence[Board],
    what: str,
    asked: str | None,
    read: Callable[[Board], str],
    find: Callable[[str, str, Iterable[str]], str] = match,
) -> list[Board]:
    names = list(dict.fromkeys(read(board) for board in boards))
    if asked is None and len(names) > 1:
        # A timing that was brought in may name none.
        told = ", ".join(name or f"none (--{what} '')" for name in names)
        raise SpecError(f"several {what}s were timed: {told}. Choose one: --{what}")
    name = names[0] if asked is None else find(what, asked, names)
    return [board for board in boards if read(board) == name]


def _means_unscaled(study: str, boards: Sequence[Board], precision: str | None) -> bool:
    timed = {board.precision for board in boards}
    return study == PUBLISHED and precision == "int8" and "int8" not in timed and _UNSCALED in timed


def _stat(
    study: str, timings: Timings, boards: Sequence[Board], asked: str | None
) -> tuple[str, list[str]]:
    """The statistic, and a note where it is not the one that a limit means by itself."""
    timed = list(dict.fromkeys(stat for board in boards for stat in timings.stats(board)))
    stat = asked or DEFAULT_STAT
    split_stat(stat)
    if stat in timed:
        return stat, []
    if asked is None and study == PUBLISHED and timed:
        only = "one published" if len(timed) == 1 else "first published"
        return timed[0], [f"{timed[0]} is the {only}; {DEFAULT_STAT} is not known"]
    board = boards[0]
    where = f"{board.device}{f', {board.mode}' if board.mode else ''} in {board.precision}"
    if not timed:
        raise SharedencError(
            f"no timing on {where} can be trusted; `sharedenc timings list` shows why"
        )
    raise SpecError(f"{stat} was not timed on {where}; there is {', '.join(timed)} (--stat)")
