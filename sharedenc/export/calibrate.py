"""The range of every float value of a graph, measured on photos; once for all recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from sharedenc.errors import ExportError
from sharedenc.export.onnx import INPUT, read_model

# Outliers cost every other value its resolution, and what lies beyond a range is cut. Signal to
# noise in dB of cls_logits, bbox_regression and seg_logits, recipe `trt`, a MobileNetV3-Large dual
# network trained on 273 photos, mean over 10 other photos and the worst of them, 16 photos here:
#   99.99 % of a photo, mean over photos: 29.7 21.5 25.5, worst 25.1 18.9 21.8
#   99.99 %, 90 % of the photos (this):   29.0 20.5 24.5, worst 26.6 18.2 22.5
#   99.99 %, largest:                     28.5 20.0 24.0, worst 25.8 18.0 21.4
#   99.9 %, largest:                      29.1 21.0 25.5, worst 24.7 18.3 21.6
# Extremes of all photos lost 3 to 5 dB against 99.99 % (without float layers). With random weights,
# where photos differ more, the mean over photos is worse (EfficientNetV2-S: worst 0.6 0.6 4.9, this
# 1.3 1.2 6.6), and the largest grows with each photo more.
PERCENTILE = 99.99
SAMPLE = 2**18
PHOTOS = 0.9
# Slices per value that is left out at an end: more of them bound it closer.
SLICES = 64
METHOD = (
    f"percentiles {100 - PERCENTILE:.2f} and {PERCENTILE} of each photo; of these, what contains "
    f"{100 * PHOTOS:.0f} % of the photos"
)


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """``values``: lowest and highest value by tensor name, always with 0 between them."""

    values: dict[str, tuple[float, float]]
    images: int
    method: str = METHOD

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON keeps."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Ranges:
        """Read `to_dict`.

        Raises:
            ExportError: keys are missing or of another kind.
        """
        try:
            values = {
                str(n): (float(low), float(high)) for n, (low, high) in data["values"].items()
            }
            return cls(values=values, images=int(data["images"]), method=str(data["method"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ExportError(
                f"the calibration ranges are damaged ({error!r}). Calibrate again."
            ) from error


def calibrate(
    path: Path,
    images: Iterable[NDArray[np.float32]],
    *,
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Run a float file on photos, one at a time, and take the range of every float value in it.

    Args:
        images: normalised photos ``[3, S, S]`` float32 (an array ``[N, 3, S, S]`` is that too), of
            the training split; read once, never held together.
        progress: called with the number of photos done.

    Raises:
        ExportError: no photo, another size than the file's input, or a value that is not finite.
    """
    model = onnx.shape_inference.infer_shapes(read_model(path))
    names = float_values(model)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rows: list[list[tuple[float, float]]] = []
    for image in images:
        batch = np.ascontiguousarray(image, dtype=np.float32)[None]
        if list(batch.shape) != shape:
            raise ExportError(
                f"a calibration photo is {list(batch.shape[1:])}, but {path.name} takes "
                f"{shape[1:]}. Resize the photos to the network's size."
            )
        rows.append([_extent(value) for value in (batch, *session.run(names, {INPUT: batch}))])
        if progress is not None:
            progress(len(rows))
    if not rows:
        raise ExportError("there is no calibration photo; take at least one of the training split.")
    finite = np.isfinite(rows).all(axis=(0, 2))
    if not finite.all():
        bad = [INPUT, *names][int(np.argmin(finite))]
        raise ExportError(f"value {bad!r} of {path.name} is not finite: the weights are broken.")
    lows = np.quantile(np.asarray(rows)[:, :, 0], 1 - PHOTOS, axis=0)
    highs = np.quantile(np.asarray(rows)[:, :, 1], PHOTOS, axis=0)
    return Ranges(
        values={
            name: (min(float(low), 0.0), max(float(high), 0.0))
            for name, low, high in zip([INPUT, *names], lows, highs, strict=True)
        },
        images=len(rows),
    )


def float_values(model: onnx.ModelProto) -> list[str]:
    """Names of all float values that nodes compute, in order; shapes must have been inferred."""
    known = {v.name: v for v in [*model.graph.value_info, *model.graph.output]}
    return [
        name
        for node in model.graph.node
        if node.op_type != "Constant"
        for name in node.output
        if name in known and known[name].type.tensor_type.elem_type == TensorProto.FLOAT
    ]


def _extent(value: NDArray[np.float32]) -> tuple[float, float]:
    """The two percentiles, each a value that occurs; of a regular sample of large maps."""
    flat = value.ravel()
    # An odd step meets all columns of a map with an even width.
    flat = flat[:: (flat.size // SAMPLE) | 1]
    skip = int(flat.size * (100 - PERCENTILE) / 100)
    if skip == 0:
        return float(flat.min()), float(flat.max())
    if np.isnan(flat.min()):
        # NaN sorts last, on either side: too many of them are found above, as an end of the range.
        split = np.partition(flat, (skip, flat.size - 1 - skip))
        return float(split[skip]), float(split[flat.size - 1 - skip])
    return _from_below(flat, skip), -_from_below(-flat, skip)


def _from_below(flat: NDArray[np.float32], rank: int) -> float:
    """The value with ``rank`` others below it: what `np.partition` finds, 2 to 20 times as fast.

    So few lie below that the minima of slices bound it closely: as many slices as are asked for
    have a value up to the bound, so that only values up to it can be the one.
    """
    columns = SLICES * (rank + 1)
    rows = flat.size // columns
    if rows < 2:
        return float(np.partition(flat, rank)[rank])
    lowest = flat[: rows * columns].reshape(rows, columns).min(axis=0)
    bound = np.partition(lowest, rank)[rank]
    if bound == flat.min():  # as at the zeros of a ReLU
        return float(bound)
    return float(np.partition(flat[flat <= bound], rank)[rank])
