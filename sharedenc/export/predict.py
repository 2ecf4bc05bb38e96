"""Boxes and masks of single images, from a network in torch or from an ONNX file, alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharedenc.data.classes import ClassList
from sharedenc.data.draw import draw_sample
from sharedenc.data.packed import RawSample
from sharedenc.data.transforms import eval_transform
from sharedenc.errors import DataError, ExportError
from sharedenc.export.load import Loaded
from sharedenc.export.metadata import Postprocess, read_metadata
from sharedenc.export.parity import open_session
from sharedenc.models.boxes import postprocess
from sharedenc.spec import Recipe

Pixels = NDArray[np.uint8]
Forward = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Prediction:
    """What a network finds in one image of H x W pixels.

    ``boxes`` is ``[N, 4]`` xyxy in pixels of that image, ``scores`` and ``labels`` ``[N]`` (empty
    without a detection head); ``mask`` is uint8 ``[H, W]`` of labels, ``None`` without a
    segmentation head.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    mask: Pixels | None

    def to_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Plain values; ``names`` is by label, background first; shares are of the image's area."""
        found: dict[str, Any] = {
            "detections": [
                {"class": names[label], "score": float(score), "box": [float(v) for v in box]}
                for box, score, label in zip(self.boxes, self.scores, self.labels, strict=True)
            ]
        }
        if self.mask is not None:
            labels, counts = np.unique(self.mask, return_counts=True)
            found["mask_shares"] = {
                names[label]: float(count / self.mask.size)
                for label, count in zip(labels, counts, strict=True)
            }
        return found


@dataclass(frozen=True)
class Predictor:
    """A forward pass (normalised ``[1, 3, S, S]`` to raw outputs) and all that goes around it."""

    forward: Forward
    labels: tuple[str, ...]
    image_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    anchors: Tensor | None
    postprocess: Postprocess | None

    def __call__(self, image: Pixels, min_score: float = 0.0) -> Prediction:
        """Predict one image, uint8 RGB ``[H, W, 3]``; boxes below ``min_score`` are left out."""
        height, width = image.shape[:2]
        outputs = self.forward(self._input(image))
        boxes, scores, labels = np.zeros((0, 4)), np.zeros(0), np.zeros(0)
        if self.anchors is not None and self.postprocess is not None:
            (found,) = postprocess(
                outputs["cls_logits"],
                outputs["bbox_regression"],
                self.anchors,
                self.image_px,
                self.postprocess,
            )
            keep = found.scores >= min_score
            scale = np.array([width, height, width, height], np.float32) / self.image_px
            boxes = found.boxes[keep].numpy() * scale
            scores, labels = found.scores[keep].numpy(), found.labels[keep].numpy()
        mask = None
        if "seg_logits" in outputs:
            small = outputs["seg_logits"][0].argmax(0).to(torch.uint8).numpy()
            mask = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
        return Prediction(
            boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int64), mask
        )

    def draw(self, image: Pixels, prediction: Prediction) -> Pixels:
        """The image at its own size with boxes, names, scores and the mask on it."""
        drawn: Pixels = draw_sample(
            image,
            prediction.boxes,
            prediction.labels,
            prediction.scores,
            prediction.mask,
            ClassList("predicted", self.labels[1:]),
        )
        return drawn

    def _input(self, image: Pixels) -> Tensor:
        sample = RawSample(
            image=image,
            label_map=None,
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            crowd=np.zeros(0, np.bool_),
            areas=np.zeros(0, np.float32),
            image_id=0,
        )
        pixels = eval_transform(Recipe(image_px=self.image_px))(sample).image
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pixels[None].float() / 255 - mean) / std


def torch_predictor(loaded: Loaded) -> Predictor:
    """A predictor around a loaded network."""
    network, meta = loaded.network, loaded.meta
    image_px = int(meta["image_px"])
    head = network.det_head

    @torch.no_grad()
    def forward(images: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = network(images)
        return outputs

    return Predictor(
        forward=forward,
        labels=("background", *meta["classes"]),
        image_px=image_px,
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        anchors=None if head is None else head.anchors(image_px),
        postprocess=Postprocess.of(Recipe.from_dict(meta.get("recipe") or {})),
    )


def onnx_predictor(path: Path) -> Predictor:
    """A predictor around an exported file, with everything else read from its metadata.

    Raises:
        ExportError: no ONNX file, no export of sharedenc, or an encoder without heads.
    """
    session = open_session(path)
    given = read_metadata(session.get_modelmeta().custom_metadata_map, str(path))
    if given.graph == "encoder":
        raise ExportError(f"{path} is an encoder without heads; it predicts nothing.")
    names = [output.name for output in session.get_outputs()]

    def forward(images: Tensor) -> dict[str, Tensor]:
        values = session.run(names, {"images": images.numpy()})
        return {name: torch.from_numpy(v) for name, v in zip(names, values, strict=True)}

    return Predictor(
        forward=forward,
        labels=given.labels,
        image_px=given.image_px,
        mean=given.mean,
        std=given.std,
        anchors=None if given.anchors is None else torch.from_numpy(given.anchors.copy()),
        postprocess=given.postprocess,
    )


def read_image(path: Path) -> Pixels:
    """Decode a picture file to RGB uint8 ``[H, W, 3]``; grey ones become three equal channels.

    Raises:
        DataError: the file is missing or no whole picture.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    # OpenCV fills the missing part of a cut JPEG with grey and says nothing.
    cut = data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[data.rfind(b"\xff\xda") :]
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if decoded is None or cut:
        raise DataError(f"{path} is not a picture that can be decoded; it may be cut or damaged")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def write_image(path: Path, image: Pixels) -> None:
    """Write RGB uint8 ``[H, W, 3]`` as PNG.

    Raises:
        DataError: the file cannot be written.
    """
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    try:
        if not done:
            raise OSError("it cannot be encoded")
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error
