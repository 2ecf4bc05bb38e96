"""Right, then fast: does an engine compute what ONNX Runtime computes from the same file?

The folder of an export carries a few photos and ONNX Runtime's outputs for each of its ONNX files;
the very engine that is timed runs the same photos. Raw outputs are compared as numbers and,
decoded by the file's own metadata, as boxes and masks. How far they may be apart is a table, wider
where the network itself makes much of little: the engine also runs the photos with its precision's
rounding put on them as noise (an untrained network with many batch norms magnifies it a
thousandfold), and may be off by a stated multiple of what that changes, within a stated end.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jetson_agent.agreement import (
    MATCH_IOU,
    MATCH_SCORE,
    Array,
    Figures,
    compare,
    numbers,
)
from jetson_agent.decode import Decoding, read_decoding
from jetson_agent.errors import AgentError
from jetson_agent.protocol import Checked

Run = Callable[[dict[str, Array]], dict[str, Array]]
MAX_REFERENCE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an engine may be from ONNX Runtime on the same file.

    `cosine` is the least of an output as one vector; `relative` the most that any value may be off,
    as a share of the reference's standard deviation; `boxes` the least share of boxes that have a
    match, both ways; `pixels` the least share of equal pixels, `miou` of the masks' mean IoU.

    `noise` is relative noise on the photos, and `factor` times what it changes is allowed too, but
    never a cosine under `least_cosine` or an error over `most_relative`.
    """

    cosine: float
    relative: float
    boxes: float
    pixels: float
    miou: float
    noise: float
    factor: float
    least_cosine: float
    most_relative: float


# fp32: other kernels (Winograd among them) add in another order. Measured between two ways of ONNX
#   Runtime: 1.5e-4 of the standard deviation at most, 1e-2 for the worst untrained network.
# tf32, fp16: products with 10 bits of mantissa, 2**-11 relative, in each of 20 to 400 layers.
#   Noise of one such rounding on the photo changes a fresh MobileNetV3 by 0.5 standard deviations.
# int8: both sides round to the same steps, but a value on the border of one may fall to either
#   side, and a step is 1/127 of a layer's range. Measured between ONNX Runtime's ways to compute
#   one INT8 file, fresh weights: cosine 0.982 to 0.999, 0.2 to 2.3 standard deviations; between
#   its releases 1.23 and 1.32, a fresh ResNet18: cosine 0.989, 4.8 standard deviations.
# int8_fp16: both.
_HALF = Tolerance(
    cosine=0.999,
    relative=0.1,
    boxes=0.95,
    pixels=0.99,
    miou=0.95,
    noise=2**-11,
    factor=4.0,
    least_cosine=0.95,
    most_relative=4.0,
)
_INT8 = Tolerance(
    cosine=0.99,
    relative=1.0,
    boxes=0.8,
    pixels=0.95,
    miou=0.8,
    noise=2**-11,
    factor=4.0,
    least_cosine=0.7,
    most_relative=12.0,
)
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(
        cosine=0.9999,
        relative=2e-3,
        boxes=0.99,
        pixels=0.999,
        miou=0.99,
        noise=2**-23,
        factor=4.0,
        least_cosine=0.999,
        most_relative=0.1,
    ),
    "tf32": _HALF,
    "fp16": _HALF,
    "int8": _INT8,
    "int8_fp16": _INT8,
}
MEANINGLESS = {
    "int8-unscaled": "its outputs are meaningless: its ranges are made up, not calibrated"
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """What came of it; `details` has every figure, the limits and what was not compared."""

    checked: Checked
    reasons: list[str]
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for another process and the certificate."""
        return {"checked": self.checked, "reasons": self.reasons, "details": self.details}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Check:
        return cls(**value)


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """The photos ``[N, 3, S, S]``, and per output its values ``[N, ...]`` and stride."""

    images: Array
    outputs: dict[str, Array]
    strides: dict[str, int]


def check_outputs(
    reference: Path | None,
    file: str,
    run: Run,
    precision: str,
    metadata: Mapping[str, str],
) -> Check:
    """Run the reference photos and compare.

    Args:
        reference: ``reference.npz`` of the export: ``images`` and, for ONNX file F and output O,
            ``F:O``; with ``F:O:stride`` s > 1 only every s-th value of the last two axes.
        file: Name of the ONNX file that the engine was built from.
        run: The engine: inputs by name to outputs by name, one photo at a time. It is called for
            each photo, for the first one again, and for each with noise.
        metadata: The ONNX file's own metadata.

    Raises:
        BackendError: what `run` raises.
    """
    if precision in MEANINGLESS:
        return Check(checked="unchecked", reasons=[MEANINGLESS[precision]])
    if precision not in TOLERANCES:
        return Check(checked="unchecked", reasons=[f"there is no tolerance for {precision}"])
    if reference is None or not reference.is_file():
        return Check(checked="unchecked", reasons=["the export carries no reference outputs"])
    try:
        wanted = _read(reference, file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = f"{reference.name} cannot be read ({type(error).__name__}: {error})"
        return Check(checked="unchecked", reasons=[reason])
    if not wanted.outputs or not len(wanted.images):
        reason = f"{reference.name} has no outputs of {file}"
        return Check(checked="unchecked", reasons=[reason])
    details: dict[str, Any] = {"images": len(wanted.images)}
    try:
        decoding: Decoding | None = read_decoding(metadata, file)
    except AgentError as error:
        decoding, details["not_decoded"] = None, str(error)
    name = decoding.input_name if decoding else "images"

    def outputs_of(images: Array) -> tuple[dict[str, Array], list[str]]:
        runs = [run({name: images[at : at + 1]}) for at in range(len(images))]
        return _collect(runs, wanted)

    got, reasons = outputs_of(wanted.images)
    if not reasons:
        again, reasons = outputs_of(wanted.images[:1])
    if not reasons:
        tolerance = TOLERANCES[precision]
        random = np.random.default_rng(0).uniform(-1, 1, wanted.images.shape)
        noise = (1 + random * tolerance.noise).astype(np.float32)
        shaken, reasons = outputs_of(wanted.images * noise)
    if reasons:
        return Check(checked="wrong", reasons=reasons, details=details)
    figures = compare(got, wanted.outputs, wanted.strides, decoding)
    own = compare(shaken, got, wanted.strides, decoding)
    details |= {"tolerance": asdict(tolerance), **figures.to_json(), "noise": own.to_json()}
    for output, value in again.items():
        moved = numbers(value, got[output][:1]).relative
        if moved > tolerance.relative:
            reasons.append(
                f"output {output} moves by {moved:.3g} of its standard deviation when the same "
                "photo is run twice: the engine is not deterministic"
            )
    reasons += _judge(figures, own, tolerance)
    return Check(checked="wrong" if reasons else "right", reasons=reasons, details=details)


def _read(reference: Path, file: str) -> _Reference:
    with zipfile.ZipFile(reference) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_REFERENCE_BYTES:
        raise ValueError(f"{size} bytes; at most {MAX_REFERENCE_BYTES} are read")
    outputs: dict[str, Array] = {}
    strides: dict[str, int] = {}
    prefix, suffix = f"{file}:", ":stride"
    with np.load(reference, allow_pickle=False) as stored:
        images = stored["images"].astype(np.float32)
        for key in stored.files:
            if not key.startswith(prefix):
                continue
            output = key[len(prefix) :]
            if output.endswith(suffix):
                strides[output[: -len(suffix)]] = int(stored[key])
            else:
                outputs[output] = stored[key].astype(np.float32)
    for output, values in outputs.items():
        if len(values) != len(images):
            raise ValueError(f"{output} has {len(values)} images instead of {len(images)}")
        if strides.setdefault(output, 1) < 1:
            raise ValueError(f"{output} has stride {strides[output]}")
    return _Reference(images=images, outputs=outputs, strides=strides)


def _collect(
    runs: list[dict[str, Array]], wanted: _Reference
) -> tuple[dict[str, Array], list[str]]:
    """Outputs of all photos, thinned as the reference is; and what cannot be compared at all."""
    got: dict[str, Array] = {}
    problems: list[str] = []
    for output, values in wanted.outputs.items():
        if any(output not in run for run in runs):
            has = ", ".join(sorted(runs[0])) or "none"
            problems.append(f"output {output} is missing; the engine has {has}")
            continue
        step = wanted.strides[output]
        thinned = [np.asarray(run[output]) for run in runs]
        if step > 1:
            thinned = [value[..., ::step, ::step] for value in thinned]
        shape = (1, *values.shape[1:])
        if came := sorted({value.shape for value in thinned} - {shape}):
            thin = f" (every {step}th value)" if step > 1 else ""
            problems.append(f"output {output} has shape {came[0]} instead of {shape}{thin}")
            continue
        got[output] = np.concatenate(thinned).astype(np.float32)
        if bad := int(np.count_nonzero(~np.isfinite(got[output]))):
            problems.append(f"output {output}: {bad} of {got[output].size} values are not finite")
    return got, problems


def _judge(found: Figures, own: Figures, tolerance: Tolerance) -> list[str]:
    """What is beyond the tolerance; `own` is what noise changes in the engine's own outputs."""
    factor = tolerance.factor
    reasons = []
    for output, value in found.numbers.items():
        # An angle grows as the noise does, its cosine falls as the square.
        noisy = 1 - factor**2 * (1 - own.numbers[output].cosine)
        least = max(tolerance.least_cosine, min(tolerance.cosine, noisy))
        if not value.cosine >= least:
            reasons.append(f"output {output} has cosine {value.cosine:.5f}, not {least:.5g}")
        changed = factor * own.numbers[output].relative
        most = min(tolerance.most_relative, max(tolerance.relative, changed))
        if not value.relative <= most:
            reasons.append(
                f"output {output} is off by {value.relative:.3g} of its standard deviation; "
                f"at most {most:.3g} is allowed"
            )
    if found.boxes is not None and own.boxes is not None:
        b, o = found.boxes, own.boxes
        for shown, matched, noisy, whose in (
            (b.reference_shown, b.reference_matched, o.reference_share, "the reference"),
            (b.shown, b.matched, o.share, "the engine"),
        ):
            least = min(tolerance.boxes, 1 - factor * (1 - noisy))
            # One may always differ: suppression decides between candidates that are almost equal.
            if shown - matched > max(1.0, (1 - least) * shown):
                reasons.append(
                    f"{shown - matched} of {shown} boxes of {whose} have no match on the other "
                    f"side (same class, IoU {MATCH_IOU}, score within {MATCH_SCORE}); a share of "
                    f"{least:.3g} must have one"
                )
    if found.masks is not None and own.masks is not None:
        for what in ("pixels", "miou"):
            noisy = 1 - factor * (1 - getattr(own.masks, what))
            least = min(getattr(tolerance, what), noisy)
            value_of = getattr(found.masks, what)
            if value_of < least:
                text = "share of equal pixels" if what == "pixels" else "mIoU between the masks"
                reasons.append(f"the {text} is {value_of:.4f}; at least {least:.4g} is due")
    return reasons
