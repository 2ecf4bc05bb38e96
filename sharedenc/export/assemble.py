"""One dual network out of a frozen encoder and two heads that were trained in two trials."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sharedenc.errors import ExportError
from sharedenc.export.registered import DEPLOYMENT_TAG, PARTS_TAG, OpenRun
from sharedenc.models.network import Network
from sharedenc.spec import TASKS, Task

# What both trials must say alike: it describes the one input and the one list of classes.
ALIKE = (
    "backbone",
    "num_classes",
    "classes",
    "class_list",
    "image_px",
    "mean",
    "std",
    "data_digest",
)
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A dual network of two trials.

    Attributes:
        meta: A checkpoint's, with the deployment's name as ``cell`` and ``parts`` by task.
        recipe: Thresholds and sample path: those of the trial that the detections are of.
        identity: Digest of name and both checkpoints: other bytes are another network.
        tags: What its run and its versions say beside the usual.
    """

    name: str
    network: Network
    meta: Mapping[str, Any]
    recipe: Mapping[str, Any]
    identity: str
    tags: Mapping[str, str]


def encoder_digests(network: Network) -> dict[str, str]:
    """sha256 of each of the encoder's tensors, running statistics included, by name."""
    return {name: _digest(tensor) for name, tensor in network.encoder.state_dict().items()}


def assemble(name: str, parts: Mapping[Task, OpenRun]) -> Assembled:
    """Join the encoder of two trials, bit for bit the same in both, with the head of each.

    Args:
        name: the deployment's.
        parts: the runs of both tasks; their networks' modules are used and not copied.

    Raises:
        ExportError: the encoders differ, or what the trials were made for does.
    """
    det, seg = parts["det"], parts["seg"]
    _check_alike(name, det, seg)
    _check_encoders(name, det, seg)
    network = Network(
        det.network.encoder,
        det_head=det.network.det_head,
        seg_head=seg.network.seg_head,
        num_classes=det.network.num_classes,
        backbone=det.network.backbone,
    ).eval()
    keys = {task: str(parts[task].meta.get("key") or "") for task in TASKS}
    runs = {task: parts[task].run_id for task in TASKS}
    files = {task: parts[task].checkpoint_sha256 for task in TASKS}
    meta = {
        **{field: det.meta[field] for field in (*ALIKE, "data") if field in det.meta},
        "tasks": list(TASKS),
        "cell": name,
        "key": _of({"deployment": name, "parts": keys}),
        "parts": {
            task: {"cell": parts[task].meta.get("cell"), "key": keys[task], "run_id": runs[task]}
            for task in TASKS
        },
        "plugins": list(
            dict.fromkeys([*det.meta.get("plugins", ()), *seg.meta.get("plugins", ())])
        ),
    }
    return Assembled(
        name=name,
        network=network,
        meta=meta,
        recipe=dict(det.meta.get("recipe") or {}),
        identity=_of({"deployment": name, "runs": runs, "checkpoints": files}),
        tags={DEPLOYMENT_TAG: name, PARTS_TAG: json.dumps(runs)},
    )


def _check_alike(name: str, det: OpenRun, seg: OpenRun) -> None:
    for field in ALIKE:
        if det.meta.get(field) != seg.meta.get(field):
            raise ExportError(
                f"{name} cannot be assembled: {field} is {det.meta.get(field)!r} in run "
                f"{det.run_id} and {seg.meta.get(field)!r} in run {seg.run_id}. Train both cells "
                "on the same data at the same size."
            )


def _check_encoders(name: str, det: OpenRun, seg: OpenRun) -> None:
    ours, theirs = encoder_digests(det.network), encoder_digests(seg.network)
    if ours.keys() != theirs.keys():
        raise ExportError(
            f"{name} cannot be assembled: the encoders of runs {det.run_id} and {seg.run_id} do "
            "not have the same tensors: their backbone was changed in between. Train both again."
        )
    differing = [tensor for tensor in ours if ours[tensor] != theirs[tensor]]
    if not differing:
        return
    told = ", ".join(differing[:SHOWN]) + (", ..." if len(differing) > SHOWN else "")
    raise ExportError(
        f"{name} cannot be assembled: one graph has one encoder, and {len(differing)} of the "
        f"encoder's {len(ours)} tensors differ between run {det.run_id} ({_trial(det)}) and run "
        f"{seg.run_id} ({_trial(seg)}): {told}. {_why(det, seg, differing)}"
    )


def _why(det: OpenRun, seg: OpenRun, differing: list[str]) -> str:
    """How frozen encoders of two trials can differ, as far as the runs tell."""
    if all(_is_statistic(tensor) for tensor in differing) and "train" in _modes(det, seg):
        return (
            "Only running statistics differ: with bn_mode=train those of a frozen encoder move. "
            "Train with bn_mode=eval."
        )
    if any("/swap" in str(part.meta.get("cell")) for part in (det, seg)):
        return (
            "The swap did not start from this very network: its baseline was trained again "
            "since, or elsewhere. Train the swap again."
        )
    ours, theirs = det.start, seg.start
    if ours.get("weights") != theirs.get("weights"):
        return "They started from different weights. Train both with the same --weights."
    if ours.get("weights") == "none" and ours.get("seed") != theirs.get("seed"):
        return (
            "Each seed draws random weights of its own. Train both cells with one seed, or from "
            "pretrained weights."
        )
    if ours.get("weights") == "none":
        return (
            "Random weights get their batch-norm statistics from training photos, and another "
            "device, batch size or number of photos gives others. Train both on one kind of "
            "machine with one recipe."
        )
    return "One of them was changed after it was frozen. Train both cells again."


def _is_statistic(tensor: str) -> bool:
    return tensor.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def _modes(*parts: OpenRun) -> set[str]:
    return {str(part.start.get("bn_mode")) for part in parts}


def _trial(part: OpenRun) -> str:
    told = [f"{key} {part.start[key]}" for key in ("weights", "seed") if part.start.get(key)]
    return ", ".join([str(part.meta.get("cell")), *told])


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    content = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)} ".encode())
    content.update(plain.numpy().tobytes())
    return content.hexdigest()


def _of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
