"""Errors that a user can act on: each says what came, what is allowed and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

FailureKind = Literal["code", "data", "oom", "machine"]


class SharedencError(Exception):
    """Base of all errors that are told to the user without a traceback.

    ``exit_code`` is the process's exit status; ``kind`` sorts a failed trial.
    """

    exit_code = 1
    kind: FailureKind = "code"


class SpecError(SharedencError):
    """A name, an option or a setting that does not exist or cannot be combined."""

    exit_code = 2


class DataError(SharedencError):
    """A data set, picture or annotation that cannot be used."""

    exit_code = 3
    kind: FailureKind = "data"


class WeightsError(SharedencError):
    """Pretrained weights that cannot be had or do not fit."""

    exit_code = 4
    kind = "data"


class CheckpointError(SharedencError):
    """A checkpoint that is missing, cut or of another network."""

    exit_code = 5
    kind: FailureKind = "data"


class NonFiniteLossError(SharedencError):
    """A loss became NaN or infinite."""

    exit_code = 6


class ExportError(SharedencError):
    """An export that is wrong, dead or unreadable."""

    exit_code = 7


class TrackingError(SharedencError):
    """The tracking server cannot be reached or refuses."""

    exit_code = 8
    kind = "machine"


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(value, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_choice(field: str, value: str, allowed: Iterable[str]) -> None:
    """Raise `SpecError` unless ``value`` is one of ``allowed``."""
    names = sorted(allowed)
    if value not in names:
        hint = nearest(value, names)
        raise SpecError(f"{field}={value!r} is not one of {', '.join(names)}.{hint}")
