"""Which numerics a device should have, from measured steps: a pure function of the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sharedenc.spec import DeviceKind

PRECISIONS = ("float32", "tf32", "bfloat16")
MEMORY_FORMATS = ("contiguous", "channels_last")
# Below this a difference is noise, and no reason to change what keys are made of.
MARGIN = 0.03
# A variant whose first loss is further from float32's is wrong, however fast.
LOSS_TOLERANCE = 0.02

Table = Mapping[tuple[str, DeviceKind], tuple[str, str]]
Switches = Mapping[tuple[str, DeviceKind], bool]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to take a training step. The defaults are what a GPU's trials do."""

    precision: str
    memory_format: str
    boxes: str = "batched"  # or by_image
    compile_loss: bool = False
    fused: bool = True
    prefetch: bool = True
    late: bool = True

    @property
    def name(self) -> str:
        """Precision and memory format, and what differs from the default."""
        others = {
            self.boxes.replace("_", " "): self.boxes != "batched",
            "compiled loss": self.compile_loss,
            "plain AdamW": not self.fused,
            "no prefetch": not self.prefetch,
            "losses read at once": not self.late,
        }
        parts = [
            self.precision,
            self.memory_format,
            *(n for n, differs in others.items() if differs),
        ]
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A variant's step on one backbone: ms, first loss, peak bytes, or what went wrong."""

    backbone: str
    variant: Variant
    ms: float = 0.0
    loss: float = 0.0
    peak_bytes: int = 0
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the variant's beside them."""
        values: dict[str, Any] = asdict(self)
        variant: dict[str, Any] = values.pop("variant")
        return values | variant | {"name": self.variant.name}


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One entry of a table in `sharedenc/spec.py`, as it is and as it should be.

    ``now_ms`` is None where what is chosen now failed, or gave a wrong loss.
    """

    table: str
    backbone: str
    kind: DeviceKind
    now: Any
    then: Any
    now_ms: float | None
    then_ms: float

    def lines(self) -> list[str]:
        """As in a diff: what goes, what comes."""
        entry = f"{self.table}[{self.backbone!r}, {self.kind!r}]"
        was, gain = "failed", ""
        if self.now_ms is not None:
            was, gain = f"{self.now_ms:.1f} ms", f", {self.now_ms / self.then_ms:.2f}x"
        return [
            f"- {entry} = {self.now!r}  # {was}",
            f"+ {entry} = {self.then!r}  # {self.then_ms:.1f} ms{gain}",
        ]


def basic_variants(kind: DeviceKind) -> list[Variant]:
    """Every precision in every memory format; a CPU has no TF32."""
    return [
        Variant(precision=precision, memory_format=layout)
        for precision in PRECISIONS
        if precision != "tf32" or kind == "cuda"
        for layout in MEMORY_FORMATS
    ]


def switched(base: Variant) -> list[Variant]:
    """The variant with one thing changed each."""
    return [
        replace(base, compile_loss=True),
        replace(base, boxes="by_image"),
        replace(base, fused=False),
        replace(base, prefetch=False),
        replace(base, late=False),
    ]


def right(rows: Sequence[Measured]) -> list[Measured]:
    """Rows without an error whose loss is float32's, as far as the precision goes.

    That of the plain step: a variant of it that is wrong is no measure of itself.
    """
    exact = {
        row.backbone: row.loss
        # The last one counts, which is the contiguous one where that works.
        for layout in reversed(MEMORY_FORMATS)
        for row in rows
        if row.variant == Variant(precision="float32", memory_format=layout) and not row.error
    }
    return [
        row
        for row in rows
        if not row.error
        and row.backbone in exact
        and abs(row.loss - exact[row.backbone]) <= LOSS_TOLERANCE * abs(exact[row.backbone])
    ]


def fastest(rows: Sequence[Measured], backbone: str) -> Variant:
    """The fastest right variant that ``auto`` may choose, of those with nothing else changed.

    TF32 is asked for, never chosen.

    Raises:
        ValueError: none of the backbone's variants is right.
    """
    open_to_auto = [
        row
        for row in right(rows)
        if row.backbone == backbone
        and row.variant.precision != "tf32"
        and row.variant in basic_variants("cuda")
    ]
    if not open_to_auto:
        errors = "; ".join(f"{r.variant.name}: {r.error or r.loss}" for r in rows)
        raise ValueError(f"{backbone}: no variant gave a right loss. {errors}")
    return min(open_to_auto, key=lambda row: row.ms).variant


def propose(
    rows: Sequence[Measured], kind: DeviceKind, numerics: Table, compile_loss: Switches
) -> list[Proposal]:
    """Changes to both tables that pay by more than `MARGIN`; one for all backbones where all agree.

    Args:
        rows: Measured on one device, `basic_variants` and `switched` ones of any backbones.
        numerics: `sharedenc.spec.AUTO_NUMERICS`.
        compile_loss: `sharedenc.spec.AUTO_COMPILE_LOSS`.
    """
    proposals: list[tuple[str, str, Any, Any, float | None, float]] = []
    good = right(rows)
    for backbone in dict.fromkeys(row.backbone for row in good):
        times = {row.variant: row.ms for row in good if row.backbone == backbone}
        best = fastest(rows, backbone)
        now = numerics.get((backbone, kind), numerics["*", kind])
        then = (best.precision, best.memory_format)
        # What is chosen now may have failed on this device: anything is better.
        now_ms = times.get(Variant(precision=now[0], memory_format=now[1]))
        proposals.append(("AUTO_NUMERICS", backbone, now, then, now_ms, times[best]))
        compiled = times.get(replace(best, compile_loss=True))
        if compiled is not None:
            on = compile_loss.get((backbone, kind), compile_loss["*", kind])
            of = {False: times[best], True: compiled}
            proposals.append(("AUTO_COMPILE_LOSS", backbone, on, not on, of[on], of[not on]))
    found = [
        Proposal(
            table=table, backbone=backbone, kind=kind, now=now, then=then, now_ms=was, then_ms=ms
        )
        for table, backbone, now, then, was, ms in proposals
        if now != then and (was is None or was > (1 + MARGIN) * ms)
    ]
    return _joined(found, {row.backbone for row in rows})


def _joined(found: list[Proposal], backbones: set[str]) -> list[Proposal]:
    """One proposal for ``*`` in place of equal ones of all backbones, if there are several."""
    joined = []
    for table in dict.fromkeys(one.table for one in found):
        here = [one for one in found if one.table == table]
        same = len({(str(one.now), str(one.then)) for one in here}) == 1
        if same and len(backbones) > 1 and {one.backbone for one in here} == backbones:
            times = [one.now_ms for one in here if one.now_ms is not None]
            now_ms = sum(times) if len(times) == len(here) else None
            then_ms = sum(one.then_ms for one in here)
            joined.append(replace(here[0], backbone="*", now_ms=now_ms, then_ms=then_ms))
        else:
            joined += here
    return joined
