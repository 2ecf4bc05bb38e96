"""Scores of networks whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sharedenc.data.batch import Batch, eval_batches
from sharedenc.evaluation.evaluate import detection_rows, evaluate_network
from sharedenc.models.boxes import Detections, encode
from sharedenc.models.detection_head import DetectionHead
from sharedenc.spec import Recipe
from tests.training.test_loop import CPU

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

RECIPE = Recipe(image_px=320, batch_size=4)


class Oracle(nn.Module):
    """Answers each batch of a split with its truth (`right`), or with background everywhere."""

    tasks = ("det", "seg")

    def __init__(
        self, pack: PackedDataset, split: str, right: bool, limit: int | None = None
    ) -> None:
        super().__init__()
        self.num_classes = pack.classes.num_classes
        self.det_head = DetectionHead(8, 8, self.num_classes)
        self.right = right
        self.batches: Iterator[Batch] = eval_batches(pack.split(split), RECIPE, limit=limit)

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        return {"low": x}

    def decode(self, maps: dict[str, Tensor], size: tuple[int, int] | None) -> dict[str, Tensor]:
        batch = next(self.batches)
        assert batch.masks is not None
        anchors = self.det_head.anchors(RECIPE.image_px)
        logits = torch.zeros(len(batch), len(anchors), self.num_classes)
        logits[..., 0] = 20.0
        offsets = torch.zeros(len(batch), len(anchors), 4)
        if self.right:
            for row, (boxes, labels) in enumerate(zip(batch.boxes, batch.labels, strict=True)):
                places = torch.arange(len(boxes))
                offsets[row, places] = encode(boxes, anchors[places])
                logits[row, places] = 0.0
                logits[row, places, labels] = 30.0
            masks = torch.where(batch.masks == 255, 0, batch.masks).long()
        else:
            masks = torch.zeros_like(batch.masks).long()
        pixels = nn.functional.one_hot(masks, self.num_classes).permute(0, 3, 1, 2).float()
        return {"cls_logits": logits, "bbox_regression": offsets, "seg_logits": 50 * pixels}


def evaluate(pack: PackedDataset, network: Any, split: str = "test", **more: Any) -> Any:
    return evaluate_network(network, pack.split(split), RECIPE, pack.classes, CPU, "cpu", **more)


def test_the_truth_scores_one_and_background_scores_its_share(tiny_pack: PackedDataset) -> None:
    perfect = evaluate(tiny_pack, Oracle(tiny_pack, "test", right=True))
    assert perfect["mIoU"] == 1.0
    assert perfect["pixel_acc"] == 1.0
    assert perfect["mAP"] > 0.95
    per_iou = [perfect[f"AP_{0.5 + 0.05 * place:.2f}"] for place in range(10)]
    assert np.mean(per_iou) == pytest.approx(perfect["mAP"])
    assert perfect["loss_seg"] == pytest.approx(0.0, abs=1e-6)
    with_truth = {name for name in perfect if name.startswith("AP_class/")}
    assert np.mean([perfect[name] for name in with_truth]) == pytest.approx(perfect["mAP"])

    empty = evaluate(tiny_pack, Oracle(tiny_pack, "test", right=False))
    masks = np.stack(
        [
            b
            for batch in eval_batches(tiny_pack.split("test"), RECIPE)
            for b in np.asarray(batch.masks)
        ]
    )
    labelled = masks[masks != 255]
    share = float((labelled == 0).mean())
    classes = len(np.unique(labelled))
    assert empty["mAP"] == 0.0
    assert empty["pixel_acc"] == pytest.approx(share)
    assert empty["mIoU"] == pytest.approx(share / classes)
    assert empty["loss"] == pytest.approx(empty["loss_det"] + 6 * empty["loss_seg"])


def test_classes_without_truth_are_left_out(tiny_pack: PackedDataset) -> None:
    oracle = Oracle(tiny_pack, "val", right=True, limit=1)
    metrics = evaluate(tiny_pack, oracle, "val", limit=1)
    truth = tiny_pack.split("val").ground_truth(1)["annotations"]
    present = {row["category_id"] for row in truth if not row["iscrowd"]}
    names = {tiny_pack.classes.names[label - 1].replace("/", "_") for label in present}
    assert {name.removeprefix("AP_class/") for name in metrics if "AP_class" in name} == names
    assert all(np.isfinite(value) and value >= 0 for value in metrics.values())


def test_boxes_go_back_to_source_pixels() -> None:
    none = torch.zeros(0)
    batch = Batch(torch.zeros(1, 3, 320, 320), [none], [none], None, [7], [(480, 640)])
    found = Detections(torch.tensor([[32.0, 16, 160, 320]]), torch.tensor([0.5]), torch.tensor([3]))
    (row,) = detection_rows(batch, [found], 320)
    assert row.tolist() == [[7, 64, 24, 256, 456, 0.5, 3]]
