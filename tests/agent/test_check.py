"""Right and wrong engines, by runners that return what a test gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetson_agent.agreement import _matched
from jetson_agent.check import TOLERANCES, Check, Run, check_outputs
from jetson_agent.decode import Detections
from jetson_agent.protocol import PRECISIONS
from sharedenc.export.metadata import describe, describe_boxes
from sharedenc.export.parity import natural_images, open_session
from sharedenc.export.reference import write_reference
from sharedenc.models.boxes import MAX_LOG_SCALE, WEIGHTS
from tests.agent import colours

IMAGE_PX = 64
CLASSES = ["cat", "dog", "rubber duck"]
LABELS = len(CLASSES) + 1
FILE = "model.onnx"
Outputs = dict[str, Any]
Change = Callable[[Outputs], Outputs]


def grid_anchors() -> Any:
    """64 anchors of 20 px on a grid of 8 px: neighbours overlap by a third."""
    centres = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 8 + 4.0
    return np.concatenate([centres - 10, centres + 10], axis=1).clip(0, 64).astype(np.float32)


@pytest.fixture(scope="module")
def metadata() -> dict[str, str]:
    anchors = grid_anchors()
    return describe(
        graph="dual",
        meta={"classes": CLASSES, "mean": [0.5] * 3, "std": [0.25] * 3, "recipe": {}},
        image_px=IMAGE_PX,
        outputs={"cls_logits": [1, 64, 4], "bbox_regression": [1, 64, 4], "seg_logits": [1, 4]},
        boxes=describe_boxes(anchors, coder_weights=WEIGHTS, clip=MAX_LOG_SCALE, generator={}),
        architecture="0" * 64,
    )


def outputs_of(seed: int) -> Outputs:
    """What a trained network would give for one photo: clear objects, masks in large regions."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 0.3, (64, LABELS))
    logits[:, 0] += 4
    for at in rng.choice(64, 9, replace=False):
        logits[at, 1 + rng.integers(3)] += 6
    regions = rng.normal(0, 0.2, (LABELS, IMAGE_PX, IMAGE_PX))
    regions[0] += 1
    for label in (1, 2, 3):
        regions[label, 16 * label : 16 * label + 12, 8:40] += 3
    return {
        "cls_logits": logits.astype(np.float32)[None],
        "bbox_regression": rng.normal(0, 0.5, (1, 64, 4)).astype(np.float32),
        "seg_logits": regions.astype(np.float32)[None],
    }


PHOTOS = np.random.default_rng(9).standard_normal((2, 3, IMAGE_PX, IMAGE_PX)).astype(np.float32)
TRUE = [outputs_of(seed) for seed in (1, 2)]


def runner(change: Change = lambda outputs: outputs) -> Run:
    """An engine that knows the answer for each photo, and changes it."""

    def run(inputs: dict[str, Any]) -> Outputs:
        assert inputs["images"].shape == (1, 3, IMAGE_PX, IMAGE_PX)
        assert inputs["images"].dtype == np.float32
        nearest = np.abs(PHOTOS - inputs["images"]).mean(axis=(1, 2, 3)).argmin()
        return change({name: value.copy() for name, value in TRUE[nearest].items()})

    return run


def write(path: Path, outputs: list[Outputs], stride: dict[str, int] | None = None) -> Path:
    content: dict[str, Any] = {"images": PHOTOS}
    for name in outputs[0]:
        joined = np.concatenate([one[name] for one in outputs])
        if step := (stride or {}).get(name):
            joined = joined[..., ::step, ::step]
            content[f"{FILE}:{name}:stride"] = np.int64(step)
        content[f"{FILE}:{name}"] = joined
    np.savez(path, **content)
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("reference") / "reference.npz", TRUE)


def check(
    reference: Path, metadata: dict[str, str], change: Change, precision: str = "fp32"
) -> Check:
    return check_outputs(reference, FILE, runner(change), precision, metadata)


def noise(share: float, seed: int = 5) -> Change:
    """The same noise each time, `share` of each output's standard deviation at most."""

    def add(outputs: Outputs) -> Outputs:
        rng = np.random.default_rng(seed)
        return {
            name: (v + rng.uniform(-1, 1, v.shape) * share * v.std()).astype(np.float32)
            for name, v in outputs.items()
        }

    return add


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_right_outputs_are_right_and_say_by_how_much(
    reference: Path, metadata: dict[str, str], precision: str
) -> None:
    found = check(reference, metadata, noise(5e-4), precision)
    assert (found.checked, found.reasons) == ("right", [])
    outputs = found.details["outputs"]
    assert set(outputs) == {"cls_logits", "bbox_regression", "seg_logits"}
    for name, figures in outputs.items():
        joined = np.concatenate([one[name] for one in TRUE])
        assert figures["std"] == pytest.approx(joined.std(), rel=1e-4)
        assert 0.999999 < figures["cosine"] <= 1
        assert figures["relative"] == pytest.approx(5e-4, rel=0.2)
        assert figures["largest_error"] == pytest.approx(5e-4 * joined.std(), rel=0.2)
    boxes = found.details["boxes"]
    assert boxes["reference_shown"] == boxes["reference_matched"] >= 10
    assert found.details["masks"]["pixels"] > 0.999
    assert Check.from_json(json.loads(json.dumps(found.to_json()))) == found


def permuted_classes(outputs: Outputs) -> Outputs:
    outputs["cls_logits"] = outputs["cls_logits"][..., [0, 2, 1, 3]]
    return outputs


def shifted_boxes(outputs: Outputs) -> Outputs:
    outputs["bbox_regression"][..., 0] += 2.5  # a quarter of an anchor's width
    return outputs


def shifted_mask(outputs: Outputs) -> Outputs:
    outputs["seg_logits"] = np.roll(outputs["seg_logits"], 4, axis=-1)
    return outputs


def swapped_mask_classes(outputs: Outputs) -> Outputs:
    outputs["seg_logits"] = outputs["seg_logits"][:, [0, 1, 3, 2]]
    return outputs


def one_object_lost(outputs: Outputs) -> Outputs:
    best = outputs["cls_logits"][0, :, 1:].max(axis=1).argsort()[-3:]
    outputs["cls_logits"][0, best, 1:] = -2
    return outputs


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8_fp16"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (permuted_classes, ["output cls_logits", "boxes of the engine have no match"]),
        (shifted_boxes, ["output bbox_regression", "boxes of the reference have no match"]),
        (shifted_mask, ["output seg_logits", "share of equal pixels"]),
        (swapped_mask_classes, ["output seg_logits", "mIoU between the masks"]),
        (one_object_lost, ["output cls_logits", "boxes of the reference have no match"]),
        (noise(3.0), ["cls_logits", "bbox_regression", "seg_logits"]),
    ],
)
def test_wrong_outputs_are_wrong_at_every_precision(
    reference: Path,
    metadata: dict[str, str],
    change: Change,
    words: list[str],
    precision: str,
) -> None:
    found = check(reference, metadata, change, precision)
    assert found.checked == "wrong"
    for word in words:
        assert any(word in reason for reason in found.reasons), found.reasons


def test_a_reason_names_output_value_and_limit(reference: Path, metadata: dict[str, str]) -> None:
    found = check(reference, metadata, noise(0.05))
    assert found.checked == "wrong"
    (reason,) = (r for r in found.reasons if "seg_logits is off" in r)
    assert "0.05" in reason
    assert "at most 0.002 is allowed" in reason
    # The same error is within what half precision may do.
    assert check(reference, metadata, noise(0.05), "fp16").checked == "right"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_wrong(
    reference: Path, metadata: dict[str, str], value: float
) -> None:
    def change(outputs: Outputs) -> Outputs:
        outputs["seg_logits"][0, 0, 0, :3] = value
        return outputs

    found = check(reference, metadata, change)
    assert found.checked == "wrong"
    values = 2 * LABELS * IMAGE_PX * IMAGE_PX
    assert found.reasons == [f"output seg_logits: 6 of {values} values are not finite"]


def test_missing_outputs_and_other_shapes_are_wrong(
    reference: Path, metadata: dict[str, str]
) -> None:
    def change(outputs: Outputs) -> Outputs:
        return {"cls_logits": outputs["cls_logits"][:, :60], "seg_logits": outputs["seg_logits"]}

    found = check(reference, metadata, change)
    assert found.checked == "wrong"
    assert found.reasons == [
        "output cls_logits has shape (1, 60, 4) instead of (1, 64, 4)",
        "output bbox_regression is missing; the engine has cls_logits, seg_logits",
    ]


def test_an_engine_that_answers_differently_each_time_is_wrong(
    reference: Path, metadata: dict[str, str]
) -> None:
    seeds = iter(range(100))
    found = check(reference, metadata, lambda outputs: noise(0.3, next(seeds))(outputs), "fp16")
    assert found.checked == "wrong"
    assert any("the engine is not deterministic" in reason for reason in found.reasons)


def test_what_the_network_makes_of_noise_widens_the_tolerance_within_a_stated_end(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    """A network that magnifies: half precision alone moves its outputs by a standard deviation."""
    weights = np.random.default_rng(0).standard_normal((PHOTOS[0].size, 50)).astype(np.float32)

    def network(gain: float, image: Any) -> Outputs:
        return {"y": np.sin(image.reshape(1, -1) @ weights * np.float32(gain))}

    def verdict(gain: float, rounding: float) -> str:
        outputs = [network(gain, PHOTOS[at : at + 1]) for at in range(2)]
        path = write(tmp_path / "reference.npz", outputs)

        def run(inputs: dict[str, Any]) -> Outputs:
            steps = np.sign(np.sin(np.arange(inputs["images"].size) * 7.0)) * rounding
            return network(gain, inputs["images"] * (1 + steps.reshape(inputs["images"].shape)))

        return check_outputs(path, FILE, run, "fp16", {}).checked

    assert verdict(1e-3, 2**-11) == "right"
    # An error of half a standard deviation: a tame network has no excuse for it, a wild one has.
    assert verdict(1e-3, 2**-3) == "wrong"
    assert verdict(3, 2**-11) == "right"
    # Chaos is no excuse without end: nothing of the answer is left.
    assert verdict(1e2, 2**-11) == "wrong"


def test_thinned_outputs_are_compared_where_they_were_kept(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / "reference.npz", TRUE, {"seg_logits": 4})
    found = check(path, metadata, noise(1e-5))
    assert found.checked == "right", found.reasons
    joined = np.concatenate([one["seg_logits"] for one in TRUE])[..., ::4, ::4]
    assert found.details["outputs"]["seg_logits"]["std"] == pytest.approx(joined.std(), rel=1e-4)
    assert found.details["masks"]["pixels"] == 1
    assert check(path, metadata, shifted_mask).checked == "wrong"
    thin = write(tmp_path / "thin.npz", TRUE, {"cls_logits": 2})
    found = check(thin, metadata, noise(1e-5))
    assert found.checked == "right", found.reasons
    assert "thinned" in found.details["not_compared"]["boxes"]


def test_a_reference_cannot_be_had_or_used_then_nothing_is_claimed(
    reference: Path, metadata: dict[str, str], tmp_path: Path
) -> None:
    def never(_inputs: dict[str, Any]) -> Outputs:
        raise AssertionError("nothing to compare with, so nothing to run")

    def unchecked(path: Path | None, file: str = FILE, precision: str = "fp32") -> str:
        found = check_outputs(path, file, never, precision, metadata)
        assert found.checked == "unchecked"
        (reason,) = found.reasons
        return reason

    assert unchecked(None) == "the export carries no reference outputs"
    assert "no reference" in unchecked(tmp_path / "absent.npz")
    assert "no outputs of other.onnx" in unchecked(reference, "other.onnx")
    assert "made up" in unchecked(reference, precision="int8-unscaled")
    for content in (b"", b"no archive", reference.read_bytes()[:-100]):
        (tmp_path / "damaged.npz").write_bytes(content)
        assert "damaged.npz cannot be read" in unchecked(tmp_path / "damaged.npz")
    np.savez(tmp_path / "pickle.npz", images=np.array([{}], dtype=object))
    assert "cannot be read" in unchecked(tmp_path / "pickle.npz")
    np.savez(tmp_path / "short.npz", images=PHOTOS, **{f"{FILE}:y": np.zeros((1, 3))})
    assert "1 images instead of 2" in unchecked(tmp_path / "short.npz")


def test_an_export_s_own_reference_is_right_on_its_file_and_wrong_on_another(
    tmp_path: Path,
) -> None:
    image_px = colours.IMAGE_PX
    path = colours.write_colour_network(tmp_path / FILE)
    photos = natural_images(2, image_px, seed=3).numpy()
    write_reference(tmp_path, photos, [FILE], source="drawn", threads=1)
    session = open_session(path, threads=1)
    names = [output.name for output in session.get_outputs()]
    metadata = session.get_modelmeta().custom_metadata_map

    def run(inputs: dict[str, Any]) -> Outputs:
        return dict(zip(names, session.run(names, inputs), strict=True))

    def mirrored(inputs: dict[str, Any]) -> Outputs:
        return run({"images": np.ascontiguousarray(inputs["images"][..., ::-1])})

    found = check_outputs(tmp_path / "reference.npz", FILE, run, "fp32", metadata)
    assert found.checked == "right", found.reasons
    assert found.details["images"] == 2
    assert found.details["masks"]["pixels"] == 1
    assert check_outputs(tmp_path / "reference.npz", FILE, mirrored, "int8", metadata).checked == (
        "wrong"
    )


def test_a_box_without_area_matches_itself() -> None:
    flat = Detections(
        np.array([[64, 3, 64, 9], [10, 10, 12, 12], [0, 0, 30, 30]], np.float32),
        np.array([0.9, 0.8, 0.7], np.float32),
        np.array([1, 2, 3]),
    )
    assert _matched(flat, flat) == (3, 3)
    moved = replace(flat, boxes=flat.boxes + np.float32(0.6))
    assert _matched(flat, moved) == (3, 1)  # the large one, by its overlap
    assert _matched(flat, replace(flat, labels=np.array([2, 1, 3]))) == (3, 1)
    none = Detections(flat.boxes[:0], flat.scores[:0], flat.labels[:0])
    assert (_matched(flat, none), _matched(none, flat)) == ((3, 0), (0, 0))


def test_a_file_without_metadata_is_compared_as_numbers_only(reference: Path) -> None:
    found = check(reference, {}, noise(1e-5))
    assert found.checked == "right"
    assert "lacks the metadata" in found.details["not_decoded"]
    assert "boxes" not in found.details
    assert check(reference, {}, permuted_classes).checked == "wrong"


def test_every_precision_has_a_tolerance_or_a_reason() -> None:
    assert set(TOLERANCES) | {"int8-unscaled"} == set(PRECISIONS)
    for tolerance in TOLERANCES.values():
        assert tolerance.least_cosine < tolerance.cosine < 1
        assert tolerance.relative < tolerance.most_relative
