"""How often a trial saves its state: ``--checkpoint-every``. No torch in here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from sharedenc.errors import SpecError

Unit = Literal["seconds", "steps", "epochs"]

DEFAULT_INTERVAL = "10m"
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_EXAMPLES = "90s, 10m, 1h, 100steps or 2epochs"


@dataclass(frozen=True)
class Interval:
    """A time, or a number of steps or epochs, after which a trial's state is saved again."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Interval:
        """Read ``10m``, ``90s``, ``1h``, ``100steps`` or ``2epochs``.

        Raises:
            SpecError: it is none of these, or not above 0.
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
        if found is None:
            raise SpecError(f"checkpoint_every={text!r} is no interval; give {_EXAMPLES}.")
        amount, unit = float(found[1]), found[2]
        if amount <= 0:
            raise SpecError(f"checkpoint_every={text!r} must be above 0; give {_EXAMPLES}.")
        if unit in _SECONDS:
            return cls(amount * _SECONDS[unit], "seconds")
        for counted in get_args(Unit)[1:]:
            if unit in (counted, counted[:-1]):
                if not amount.is_integer():
                    raise SpecError(f"checkpoint_every={text!r} must be a whole number of {unit}.")
                return cls(amount, counted)
        raise SpecError(
            f"checkpoint_every={text!r} has the unknown unit {unit!r}; give {_EXAMPLES}."
        )

    def passed(self, *, seconds: float, steps: int, epochs: int) -> bool:
        """Whether it is over, counted from the last save."""
        return {"seconds": seconds, "steps": steps, "epochs": epochs}[self.unit] >= self.amount
