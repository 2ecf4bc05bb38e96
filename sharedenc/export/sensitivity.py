"""Which layers lose most when they are quantised: the measurement behind `float_layers`.

    python -m sharedenc.export.sensitivity model.onnx --pack PACK [--depth 3]

Layers are taken in groups by their place in the network (``/encoder/features.7/...`` at depth 2 is
one block). For each group and each output: the signal-to-noise ratio in dB when only the group is
quantised, and the gain in dB when all but the group are (recipe `trt`, whose Q/DQ nodes belong to
one layer each). Figures of untrained heads say little: theirs are sums of noise.

Outputs are compared on validation photos: the test split, on which INT8 files are scored, chooses
no layer.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from sharedenc.export.calibrate import calibrate
from sharedenc.export.graph_parts import gate_convolutions, producers
from sharedenc.export.onnx import INPUT, read_model
from sharedenc.export.quantize import PRODUCTS, quantised_model

Photos = NDArray[np.float32]
DEQUANTIZE = "DequantizeLinear"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One group of layers: dB per output, by the output's name."""

    group: str
    layers: tuple[str, ...]
    alone_db: dict[str, float]
    gain_db: dict[str, float]


def sensitivities(
    path: Path,
    calibration: Iterable[Photos],
    photos: Sequence[Photos],
    *,
    depth: int = 3,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, float], list[Loss]]:
    """Measure every group of layers of a float file.

    Args:
        calibration: photos ``[3, S, S]`` of the training split.
        photos: other photos ``[3, S, S]``, on which the outputs are compared.
        depth: how many parts of a layer's name make its group; a large number takes every layer.

    Returns:
        Signal to noise per output with everything quantised, in dB, and one row per group, the one
        whose layers lose most in float first (sum of gains over outputs).

    Raises:
        ExportError: see `calibrate`.
    """
    source = read_model(path)
    ranges = calibrate(path, calibration)
    full = quantised_model(source, "trt", ranges, gate_convolutions(source.graph))
    groups: dict[str, list[str]] = {}
    for name in quantised_layers(full):
        groups.setdefault("/".join(name.split("/")[: depth + 1]), []).append(name)
    everything = [name for names in groups.values() for name in names]
    expected = _run(source, photos)
    whole = snr_db(expected, _run(full, photos))
    rows = []
    for group, names in groups.items():
        others = [name for name in everything if name not in set(names)]
        without = snr_db(expected, _run(in_float(full, names), photos))
        rows.append(
            Loss(
                group=group,
                layers=tuple(names),
                alone_db=snr_db(expected, _run(in_float(full, others), photos)),
                gain_db={output: without[output] - whole[output] for output in whole},
            )
        )
        if progress is not None:
            progress(group)
    return whole, sorted(rows, key=lambda row: -sum(row.gain_db.values()))


def quantised_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions, products and residual additions that read quantised values."""
    makers = producers(model.graph)
    return [
        node.name
        for node in model.graph.node
        if node.op_type in (*PRODUCTS, "Add")
        and any(makers[name].op_type == DEQUANTIZE for name in node.input if name in makers)
    ]


def in_float(model: onnx.ModelProto, layers: Iterable[str]) -> onnx.ModelProto:
    """A copy of a `trt` model whose ``layers`` read what lies before their Q/DQ nodes."""
    result = copy.deepcopy(model)
    makers = producers(result.graph)
    chosen = set(layers)
    for node in result.graph.node:
        if node.name in chosen:
            for at, name in enumerate(node.input):
                if name in makers and makers[name].op_type == DEQUANTIZE:
                    node.input[at] = makers[makers[name].input[0]].input[0]
    return result


def snr_db(expected: dict[str, Photos], got: dict[str, Photos]) -> dict[str, float]:
    """Power of the signal over power of the error, in dB, per output; at most 200."""
    found = {}
    for name, value in expected.items():
        signal = float(np.square(value, dtype=np.float64).sum())
        noise = float(np.square(value - got[name], dtype=np.float64).sum())
        found[name] = 10 * float(np.log10(max(signal, 1e-30) / max(noise, signal * 1e-20, 1e-30)))
    return found


def _run(model: onnx.ModelProto, photos: Sequence[Photos]) -> dict[str, Photos]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, {INPUT: photo[None]}) for photo in photos]
    return {name: np.stack([row[at] for row in rows]) for at, name in enumerate(names)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table for one float file, with photos of a packed data set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="a float file that `sharedenc export` wrote")
    parser.add_argument("--pack", type=Path, required=True, help="a packed data set")
    parser.add_argument("--depth", type=int, default=3, help="parts of a name that make a group")
    parser.add_argument("--calibration", type=int, default=16, help="photos of the training split")
    parser.add_argument("--photos", type=int, default=8, help="other photos, to compare outputs on")
    parser.add_argument(
        "--split", choices=("val", "train"), default="val", help="of which split those are [val]"
    )
    parser.add_argument("--rows", type=int, default=24, help="groups to print")
    asked = parser.parse_args(arguments)
    size = read_model(asked.model).graph.input[0].type.tensor_type.shape.dim[-1].dim_value

    # Of the training split those that follow the ones that calibrate.
    start = asked.calibration if asked.split == "train" else 0
    compared = _photos(asked.pack, asked.split, size, start=start, stop=start + asked.photos)
    if not compared:
        parser.error(f"the {asked.split} split has no photo left to compare outputs on")

    def done(group: str) -> None:
        print(group, file=sys.stderr)

    whole, rows = sensitivities(
        asked.model,
        _photos(asked.pack, "train", size, stop=asked.calibration),
        compared,
        depth=asked.depth,
        progress=done,
    )
    print(f"on {len(compared)} photos of the {asked.split} split; all quantised:", _figures(whole))
    for row in rows[: asked.rows]:
        print(f"{row.group} ({len(row.layers)}): alone", _figures(row.alone_db), end="; ")
        print("gain in float", _figures(row.gain_db))


def _photos(pack: Path, split: str, image_px: int, *, stop: int, start: int = 0) -> list[Photos]:
    from sharedenc.data.batch import eval_batches, normalise
    from sharedenc.data.packed import PackedDataset
    from sharedenc.spec import Recipe

    recipe = Recipe(image_px=image_px, batch_size=1)
    dataset = PackedDataset.open(pack).split(split)
    batches = eval_batches(dataset, recipe, limit=stop)
    return [normalise(batch.images)[0].numpy() for batch in batches][start:]


def _figures(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f} dB" for name, value in values.items())


if __name__ == "__main__":
    main()
