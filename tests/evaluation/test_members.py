"""Several heads over one encoder pass: as alone to the same bits, and on their own in failure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sharedenc.data.batch import eval_batches
from sharedenc.errors import DataError
from sharedenc.evaluation.evaluate import detection_rows, evaluate_members, evaluate_network
from sharedenc.models.boxes import postprocess
from sharedenc.models.build import build_network
from sharedenc.models.network import Network
from sharedenc.spec import Recipe, Task
from sharedenc.training.losses import detection_loss, segmentation_loss
from sharedenc.training.numerics import forward
from tests.evaluation.one_thread import CPU

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset

# A threshold that heads of random weights pass, so that there are boxes to score.
RECIPE = Recipe(image_px=96, batch_size=4, score_threshold=0.001)


def network(tasks: tuple[Task, ...], pack: PackedDataset, seed: int) -> Network:
    """A network whose heads are those of ``seed`` and whose encoder is that of seed 0."""
    made = build_network("resnet18", tasks, pack.classes.num_classes, seed=seed)
    encoder = build_network("resnet18", tasks, pack.classes.num_classes, seed=0).encoder
    made.encoder.load_state_dict(encoder.state_dict())
    return made


def score(networks: list[Any], pack: PackedDataset, recipes: list[Recipe], **more: Any) -> Any:
    return evaluate_members(networks, pack.split("val"), recipes, pack.classes, CPU, "cpu", **more)


def test_members_score_as_each_alone(tiny_pack: PackedDataset) -> None:
    networks = [
        network(("det",), tiny_pack, 1),
        network(("seg",), tiny_pack, 2),
        network(("det", "seg"), tiny_pack, 3),
    ]
    recipes = [RECIPE, replace(RECIPE, alpha=2.0), replace(RECIPE, detections_per_image=7)]
    together = score(networks, tiny_pack, recipes)
    for made, recipe, found in zip(networks, recipes, together, strict=True):
        alone = evaluate_network(
            made, tiny_pack.split("val"), recipe, tiny_pack.classes, CPU, "cpu"
        )
        assert found == alone
    assert together[0]["loss_det"] != together[2]["loss_det"]
    assert "mIoU" not in together[0]
    assert "mAP" not in together[1]


def test_one_pass_gives_what_whole_networks_give(tiny_pack: PackedDataset) -> None:
    made = network(("det", "seg"), tiny_pack, 4).eval()
    assert made.det_head is not None
    anchors = made.det_head.anchors(RECIPE.image_px)
    losses: dict[str, float] = {"loss_det": 0.0, "loss_seg": 0.0}
    right = labelled = count = 0
    with torch.inference_mode():
        for batch in eval_batches(tiny_pack.split("val"), RECIPE):
            assert batch.masks is not None
            outputs = forward(made, batch.images, CPU)
            logits, offsets = outputs["cls_logits"], outputs["bbox_regression"]
            det = detection_loss(logits, offsets, anchors, batch.boxes, batch.labels)
            seg = segmentation_loss(outputs["seg_logits"], batch.masks)
            losses["loss_det"] += float(det) * len(batch)
            losses["loss_seg"] += float(seg) * len(batch)
            count += len(batch)
            known = batch.masks != 255
            right += int((outputs["seg_logits"].argmax(1) == batch.masks)[known].sum())
            labelled += int(known.sum())
    found = score([made], tiny_pack, [RECIPE])[0]
    assert found["loss_det"] == losses["loss_det"] / count
    # The grid's upsampling is rounded in another order than torch's.
    assert found["loss_seg"] == pytest.approx(losses["loss_seg"] / count, rel=1e-6)
    assert found["pixel_acc"] == pytest.approx(right / labelled, abs=1e-4)
    assert found["loss"] == found["loss_det"] + RECIPE.alpha * found["loss_seg"]


class Broken(nn.Module):
    """A head that fails from its second batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, maps: dict[str, Tensor], size: Any) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("this head is broken")
        return torch.zeros(len(maps["low"]), 21, 12, 12)


def test_a_members_failure_is_its_own(tiny_pack: PackedDataset) -> None:
    whole, broken = network(("det",), tiny_pack, 1), network(("seg",), tiny_pack, 2)
    broken.seg_head = Broken()  # type: ignore[assignment]
    for made in (whole, broken):
        made.train()
    alone = score([whole], tiny_pack, [RECIPE])[0]
    first, second = score([broken, whole], tiny_pack, [RECIPE, RECIPE])
    assert isinstance(first, RuntimeError)
    assert second == alone
    assert broken.seg_head.calls == 2  # type: ignore[union-attr]
    assert whole.training
    assert broken.training
    with pytest.raises(RuntimeError, match="this head is broken"):
        evaluate_network(broken, tiny_pack.split("val"), RECIPE, tiny_pack.classes, CPU, "cpu")


def test_what_all_share_ends_all(tiny_pack: PackedDataset) -> None:
    made = network(("det",), tiny_pack, 1).train()

    def stop() -> None:
        raise DataError("enough")

    with pytest.raises(DataError, match="enough"):
        score([made], tiny_pack, [RECIPE], before_batch=stop)
    assert made.training
    with pytest.raises(ValueError, match="for the same images"):
        score([made, made], tiny_pack, [RECIPE, replace(RECIPE, image_px=128)])
    with pytest.raises(ValueError, match="1 networks with 2 recipes"):
        score([made], tiny_pack, [RECIPE, RECIPE])


def test_rows_of_a_batch_are_those_of_its_images(tiny_pack: PackedDataset) -> None:
    made = network(("det",), tiny_pack, 1).eval()
    assert made.det_head is not None
    anchors = made.det_head.anchors(RECIPE.image_px)
    (batch, *_) = eval_batches(tiny_pack.split("val"), RECIPE)
    with torch.inference_mode():
        outputs = forward(made, batch.images, CPU)
        found = postprocess(
            outputs["cls_logits"], outputs["bbox_regression"], anchors, RECIPE.image_px, RECIPE
        )
    assert any(len(image.scores) for image in found)
    rows = detection_rows(batch, found, RECIPE.image_px)
    for image_id, (height, width), image, part in zip(
        batch.image_ids, batch.sizes, found, rows, strict=True
    ):
        boxes = image.boxes.double().numpy() * np.array([width, height] * 2) / RECIPE.image_px
        np.testing.assert_allclose(part[:, 1:3], boxes[:, :2], rtol=1e-15)
        np.testing.assert_allclose(part[:, 3:5], boxes[:, 2:] - boxes[:, :2], rtol=1e-12)
        assert (part[:, 0] == image_id).all()
        assert part[:, 5].tolist() == image.scores.tolist()
        assert part[:, 6].tolist() == image.labels.tolist()
