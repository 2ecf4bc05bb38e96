"""Reference inputs and ONNX Runtime's outputs of each file, by which a device checks its engine.

``reference.npz`` has ``images`` (float32 ``[N, 3, S, S]``, normalised) and, for output ``O`` of
file ``F``, ``F:O`` (float32 ``[N, ...]``). Of a large output only every ``F:O:stride``-th value
along its last two axes is kept. ``source`` says in words what the images are.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetson_agent.protocol import INT8_FILES, MODEL_FILE, REFERENCE_FILE
from sharedenc.export.parity import open_session
from sharedenc.files import write_atomic

REFERENCE_IMAGES = 2
# Values per image: more than the first are thinned to at most the second. A mask at input size is
# a small map drawn large, so that little is lost.
WHOLE, THINNED = 2**20, 2**18

Floats = NDArray[np.float32]
Outputs = dict[str, Floats]


def write_reference(
    folder: Path, images: Floats, files: Sequence[str], *, source: str, threads: int = 0
) -> dict[str, dict[str, float]]:
    """Run ``files`` of ``folder`` on ``images`` and write ``folder/reference.npz``.

    Args:
        images: ``[N, 3, S, S]`` float32, normalised; each is run on its own.
        source: where the images come from, in words.
        threads: see `open_session`.

    Returns:
        For each quantised file, by output, the cosine with the float file's output.

    Raises:
        ExportError: a file cannot be opened by ONNX Runtime.
    """
    content: dict[str, Any] = {"images": images, "source": np.array(source)}
    exact: Outputs = {}
    cosines: dict[str, dict[str, float]] = {}
    for name in files:
        outputs = run_file(folder / name, images, threads=threads)
        for output, values in outputs.items():
            stride = _stride(values.shape[1:])
            content[f"{name}:{output}"] = values[..., ::stride, ::stride] if stride > 1 else values
            if stride > 1:
                content[f"{name}:{output}:stride"] = np.int64(stride)
        if name == MODEL_FILE:
            exact = outputs
        else:
            cosines[name] = {output: cosine(outputs[output], exact[output]) for output in exact}
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    write_atomic(folder / REFERENCE_FILE, buffer.getvalue())
    return cosines


def run_file(path: Path, images: Floats, *, threads: int = 0) -> Outputs:
    """Outputs ``[N, ...]`` of an exported file, each image run on its own.

    The file for TensorRT is computed as it is written: integer kernels of a CPU would round, and
    some saturate, where the device does not.
    """
    session = open_session(path, threads=threads, as_written=path.name == INT8_FILES["trt"])
    names = [output.name for output in session.get_outputs()]
    feed = session.get_inputs()[0].name
    rows = [session.run(names, {feed: images[at : at + 1]}) for at in range(len(images))]
    return {name: np.concatenate([row[at] for row in rows]) for at, name in enumerate(names)}


def cosine(ones: Floats, others: Floats) -> float:
    """Cosine of two arrays seen as vectors; 0 if one of them is all zeros."""
    a, b = ones.ravel().astype(np.float64), others.ravel().astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0


def _stride(shape: Sequence[int]) -> int:
    """The least step along the last two axes that leaves few enough values."""
    size = int(np.prod(shape))
    if size <= WHOLE or len(shape) < 2:
        return 1
    rest, height, width = int(np.prod(shape[:-2])), shape[-2], shape[-1]
    stride = 2
    while rest * -(-height // stride) * -(-width // stride) > THINNED:
        stride += 1
    return stride
