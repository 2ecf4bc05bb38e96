"""Is the exported file the same function as the network, and is that function alive?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharedenc.data.batch import IMAGENET_MEAN, IMAGENET_STD, eval_batches, normalise
from sharedenc.data.packed import PackedDataset
from sharedenc.errors import ExportError
from sharedenc.spec import Recipe

TOLERANCE = 1e-4
ROUNDING_FACTOR = 4.0
ALIVE_STD = 0.01


def natural_images(count: int, image_px: int, *, seed: int = 0) -> Tensor:
    """Normalised stand-ins for photos, ``[count, 3, image_px, image_px]`` float32.

    Sums of smooth colour fields from coarse to fine, as the 1/f spectrum of photos has it, plus a
    little noise: deep features of white noise hardly vary, those of these do.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, image_px, image_px)
    for cells, weight in ((3, 1.0), (9, 0.6), (27, 0.35), (81, 0.2)):
        field = torch.randn(count, 3, cells, cells, generator=generator)
        images += weight * F.interpolate(field, image_px, mode="bicubic")
    images += 0.05 * torch.randn(images.shape, generator=generator)
    pixels = (0.5 + 0.22 * images).clamp(0, 1)
    mean = torch.as_tensor(IMAGENET_MEAN, dtype=torch.float32).view(1, 3, 1, 1)
    std = torch.as_tensor(IMAGENET_STD, dtype=torch.float32).view(1, 3, 1, 1)
    return (pixels - mean) / std


def photos(pack: Path, count: int, image_px: int) -> Tensor:
    """The first ``count`` test photos of a packed data set (validation photos without a test
    split), as a network sees them: normalised ``[count, 3, image_px, image_px]`` float32.
    """
    dataset = PackedDataset.open(pack)
    split = dataset.split("test")
    if len(split) == 0:
        split = dataset.split("val")
    recipe = Recipe(image_px=image_px, batch_size=count)
    batch = next(iter(eval_batches(split, recipe, limit=count)))
    return normalise(batch.images)


def open_session(path: Path | str, *, threads: int = 0, as_written: bool = False) -> Any:
    """An ONNX Runtime CPU session on ``path``, its own log quiet.

    Args:
        threads: how many to compute with; 0: as many as torch does.
        as_written: compute Q/DQ pairs in float as they stand, instead of fusing them into integer
            kernels of this CPU, some of which saturate where a GPU's do not.

    Raises:
        ExportError: the file is missing, cut or no ONNX model that ONNX Runtime can run.
    """
    if not Path(path).is_file():
        raise ExportError(f"there is no ONNX file {path}. Check the path, or export the run again.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", str(int(as_written)))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's classes share no base of their own
        raise ExportError(
            f"{path} is not an ONNX file that ONNX Runtime can open: {_first_line(error)}. "
            "It may be cut or damaged: copy it again or export the run again."
        ) from error


def check_parity(
    module: nn.Module,
    path: Path,
    images: Tensor,
    outputs: Sequence[str],
    tolerance: float = TOLERANCE,
) -> dict[str, dict[str, float]]:
    """Compare ONNX Runtime on ``path`` with ``module`` (float32, CPU, eval) on ``images``.

    Args:
        module: takes ``[1, 3, H, W]`` and returns one tensor per name of ``outputs``.
        images: ``[N, 3, H, W]`` float32, normalised; each is run on its own.
        tolerance: the least limit, as a share of an output's standard deviation.

    Returns:
        Per output ``std`` (of torch's output) and ``error`` (largest difference), and, as shares
        of ``std``: ``relative``, ``torch_rounding`` (torch's own float32 against float64) and
        ``limit`` = max(tolerance, 4 x torch_rounding), within which ``relative`` lies.

    Raises:
        ExportError: an output differs by more, is not finite, or is dead (std at most 0.01).
    """
    session = open_session(path)
    singles = [images[at : at + 1] for at in range(len(images))]
    ours = [_forward(module, image) for image in singles]
    theirs = [session.run(list(outputs), {"images": image.numpy()}) for image in singles]
    double = copy.deepcopy(module).double()
    exact = [_forward(double, image.double()) for image in singles]
    result: dict[str, dict[str, float]] = {}
    for position, name in enumerate(outputs):
        expected = np.concatenate([rows[position] for rows in ours])
        got = np.concatenate([rows[position] for rows in theirs])
        if not np.isfinite(expected).all():
            raise ExportError(
                f"output {name!r} has values that are not finite: the weights are broken. "
                "Export another checkpoint."
            )
        std = float(expected.std(dtype=np.float64))
        if std <= ALIVE_STD:
            raise ExportError(
                f"output {name!r} is dead: its standard deviation is {std:.2g}, it must be above "
                f"{ALIVE_STD}. Train the network longer, or calibrate its batch norms."
            )
        error = float(np.abs(got.astype(np.float64) - expected).max())
        rounding = float(
            np.abs(expected - np.concatenate([rows[position] for rows in exact])).max() / std
        )
        limit = max(tolerance, ROUNDING_FACTOR * rounding)
        if not error / std <= limit:
            raise ExportError(
                f"output {name!r} of {path.name} differs from torch by {error / std:.2g} of its "
                f"standard deviation; at most {limit:.2g} is allowed. The export is wrong."
            )
        result[name] = {
            "std": std,
            "error": error,
            "relative": error / std,
            "torch_rounding": rounding,
            "limit": limit,
        }
    return result


@torch.no_grad()
def _forward(module: nn.Module, image: Tensor) -> list[Any]:
    return [output.numpy() for output in module(image)]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
