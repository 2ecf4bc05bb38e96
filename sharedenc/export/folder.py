"""One folder per exported graph: the float file, the INT8 files, references and the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor

from jetson_agent.protocol import (
    ASKED_PRECISIONS,
    INT8_FILES,
    MANIFEST_FILE,
    MODEL_FILE,
    REFERENCE_FILE,
    ExportManifest,
)
from sharedenc.data.classes import VOC20
from sharedenc.data.progress import progress
from sharedenc.errors import ExportError
from sharedenc.export.calibrate import Ranges
from sharedenc.export.calibration import SPLIT, Calibration
from sharedenc.export.invariants import check_float, check_int8
from sharedenc.export.onnx import INPUT, ExportInfo, export_graph
from sharedenc.export.parity import TOLERANCE, natural_images
from sharedenc.export.quantize import quantise
from sharedenc.export.reference import REFERENCE_IMAGES, write_reference
from sharedenc.files import file_sha256, write_atomic
from sharedenc.models.network import Network
from sharedenc.spec import Graph

NOISE = "photo-like noise"


@dataclass(frozen=True)
class Exported:
    """One written folder.

    ``cosines`` compares each INT8 file's outputs with the float file's on the reference images;
    ``int8_reason`` says why there are no INT8 files although they were asked for.
    """

    folder: Path
    info: ExportInfo
    manifest: ExportManifest
    cosines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    int8_reason: str = ""

    @property
    def onnx_files(self) -> list[str]:
        """Names of the ONNX files, the float one first."""
        return [name for name in (MODEL_FILE, *INT8_FILES.values()) if name in self.manifest.files]


def default_graphs(tasks: Iterable[str]) -> tuple[Graph, ...]:
    """What is exported of a network unless told otherwise; a dual also gives its encoder."""
    match tuple(sorted(tasks)):
        case ("det",):
            return ("det",)
        case ("seg",):
            return ("seg",)
        case ("det", "seg"):
            return ("dual", "encoder")
        case other:
            raise ExportError(f"a network with the tasks {other} has no graph to export.")


def model_data(meta: Mapping[str, Any]) -> str:
    """The first part of a registered model's name: the built-in class list, or the data set."""
    if meta.get("class_list") == VOC20.name:
        return VOC20.name
    return str(meta.get("data") or meta.get("class_list") or "unnamed")


def export_folder(
    network: Network,
    graph: Graph,
    folder: Path,
    *,
    meta: Mapping[str, Any],
    images: Tensor | None = None,
    int8: Calibration | None = None,
    tolerance: float = TOLERANCE,
    untrained: bool = False,
) -> Exported:
    """Write ``folder/model.onnx``, proved against ``network``, and all that goes with it.

    With ``int8`` also both INT8 files, from one calibration. ``reference.npz`` has photos of the
    training split, or noise where there is no data. ``manifest.json`` is written last; an INT8 file
    that cannot be made costs both of them, with the reason, and nothing else.

    Args:
        images, tolerance: see `export_graph`.
        untrained: the graph is exported for its speed alone.

    Raises:
        ExportError: see `export_graph`; or ``int8`` is of other classes than the network.
    """
    image_px = int(meta["image_px"])
    for name in (MANIFEST_FILE, REFERENCE_FILE, *INT8_FILES.values()):
        (folder / name).unlink(missing_ok=True)
    if int8 is not None:
        int8.check(meta)
    info = export_graph(
        network,
        graph,
        folder / MODEL_FILE,
        meta=meta,
        image_px=image_px,
        images=images,
        tolerance=tolerance,
    )
    check_float(onnx.load(str(info.path)))
    architectures, reason = {MODEL_FILE: info.architecture}, ""
    if int8 is not None:
        try:
            architectures |= _quantised(info, folder, int8, image_px, network.backbone)
        except Exception as error:  # whatever a quantiser says to a graph that it does not know
            reason = str(error) or type(error).__name__
            for name in INT8_FILES.values():
                (folder / name).unlink(missing_ok=True)
    references, source = _references(int8, image_px)
    threads = 0 if int8 is None else int8.threads
    cosines = write_reference(folder, references, [*architectures], source=source, threads=threads)
    manifest = ExportManifest(
        data=model_data(meta),
        backbone=network.backbone,
        graph=graph,
        architecture=info.architecture,
        files={name: file_sha256(folder / name) for name in (*architectures, REFERENCE_FILE)},
        architectures=architectures,
        precisions=list(ASKED_PRECISIONS) if len(architectures) > 1 else ["fp32"],
        untrained=untrained,
        input_name=INPUT,
        input_shape=[1, 3, image_px, image_px],
        outputs=list(info.outputs),
        study=str(meta.get("study") or "none"),
        cell=str(meta.get("cell") or "none"),
        key=str(meta.get("key") or "none"),
        run_id=str(meta.get("run_id") or ""),
        classes=list(meta["classes"]),
    )
    write_atomic(folder / MANIFEST_FILE, manifest.to_json().encode())
    return Exported(folder, info, manifest, cosines, reason)


def _quantised(
    info: ExportInfo, folder: Path, int8: Calibration, image_px: int, backbone: str
) -> dict[str, str]:
    """Write both INT8 files beside the float one; their architectures by name."""
    found: dict[str, str] = {}
    ranges: Ranges | None = None
    count = min(int8.images, len(int8.pack.split(SPLIT)))
    title = f"calibration of {backbone} {info.graph}"
    with progress(title, count, unit="photos", shown=int8.shown) as advance:
        for recipe, name in INT8_FILES.items():
            made = quantise(
                info.path,
                folder / name,
                recipe,
                int8.photos(image_px),
                backbone=backbone,
                graph=info.graph,
                ranges=ranges,
                split=SPLIT,
                progress=lambda done: advance(1),
            )
            check_int8(onnx.load(str(folder / name)), recipe)
            found[name], ranges = made.architecture, made.ranges
    return found


def _references(int8: Calibration | None, image_px: int) -> tuple[NDArray[np.float32], str]:
    if int8 is None:
        noise: NDArray[np.float32] = natural_images(REFERENCE_IMAGES, image_px).numpy()
        return noise, NOISE
    photos = np.stack([*int8.photos(image_px, REFERENCE_IMAGES)])
    return photos, f"{SPLIT} split of {int8.pack.name} ({int8.pack.digest[:16]})"
