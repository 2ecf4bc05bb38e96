"""The proposals from made-up figures, and the whole command on a CPU at a tiny size."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_choice import (
    MARGIN,
    Measured,
    Variant,
    basic_variants,
    fastest,
    propose,
    right,
    switched,
)
from sharedenc.spec import AUTO_COMPILE_LOSS, AUTO_NUMERICS, DeviceKind
from sharedenc.training import learner, losses
from sharedenc.training.learner import make_optimizer

NUMERICS: dict[tuple[str, DeviceKind], tuple[str, str]] = {
    ("*", "cuda"): ("bfloat16", "channels_last"),
    ("odd", "cuda"): ("float32", "contiguous"),
}
COMPILE: dict[tuple[str, DeviceKind], bool] = {("*", "cuda"): False}
GIVEN: tuple[DeviceKind, Any, Any] = ("cuda", NUMERICS, COMPILE)


def row(
    precision: str, layout: str, ms: float, backbone: str = "one", loss: float = 10.0, **more: Any
) -> Measured:
    variant = Variant(precision=precision, memory_format=layout, **more)
    return Measured(backbone=backbone, variant=variant, ms=ms, loss=loss)


def rows(backbone: str = "one", **ms: float) -> list[Measured]:
    """Plain float32 at 100 ms, and what is named."""
    names = {
        "tf32": ("tf32", "channels_last"),
        "bf_last": ("bfloat16", "channels_last"),
        "bf_plain": ("bfloat16", "contiguous"),
        "f_last": ("float32", "channels_last"),
    }
    found = [row("float32", "contiguous", 100.0, backbone)]
    return found + [row(*names[name], value, backbone) for name, value in ms.items()]


def test_what_is_fastest_and_differs_is_proposed_with_both_times() -> None:
    (one,) = propose(rows(bf_last=50, bf_plain=40), "cuda", NUMERICS, COMPILE)
    assert (one.backbone, one.now, one.then) == (
        "one",
        ("bfloat16", "channels_last"),
        ("bfloat16", "contiguous"),
    )
    assert one.lines() == [
        "- AUTO_NUMERICS['one', 'cuda'] = ('bfloat16', 'channels_last')  # 50.0 ms",
        "+ AUTO_NUMERICS['one', 'cuda'] = ('bfloat16', 'contiguous')  # 40.0 ms, 1.25x",
    ]


def test_noise_changes_nothing() -> None:
    within = 50 / (1 + 0.9 * MARGIN)
    assert propose(rows(bf_last=50, bf_plain=within), "cuda", NUMERICS, COMPILE) == []


def test_tf32_is_measured_and_never_proposed() -> None:
    assert propose(rows(bf_last=50, tf32=20), "cuda", NUMERICS, COMPILE) == []


def test_a_wrong_loss_is_never_proposed_however_fast() -> None:
    wrong = row("bfloat16", "contiguous", 1.0, loss=10.5)
    broken = replace(row("bfloat16", "contiguous", 1.0), error="RuntimeError: no kernel")
    measured = rows(bf_last=50)
    assert propose([*measured, wrong, broken], "cuda", NUMERICS, COMPILE) == []
    assert right([*measured, wrong, broken]) == measured
    with pytest.raises(ValueError, match=r"one: no variant gave a right loss.*no kernel"):
        fastest([broken], "one")


def test_what_is_chosen_today_but_fails_is_replaced() -> None:
    broken = replace(row("bfloat16", "channels_last", 1.0), error="RuntimeError: no kernel")
    (one,) = propose([*rows(f_last=90), broken], "cuda", NUMERICS, COMPILE)
    assert one.then == ("float32", "channels_last")
    assert one.now_ms is None
    assert json.loads(json.dumps(asdict(one), allow_nan=False))["now_ms"] is None
    assert one.lines() == [
        "- AUTO_NUMERICS['one', 'cuda'] = ('bfloat16', 'channels_last')  # failed",
        "+ AUTO_NUMERICS['one', 'cuda'] = ('float32', 'channels_last')  # 90.0 ms",
    ]
    # For all backbones there is no sum either, if it failed on one of them.
    (both,) = propose([*rows(f_last=90), *rows("two", f_last=90, bf_last=200)], *GIVEN)
    assert (both.backbone, both.now_ms, both.then_ms) == ("*", None, 180.0)


@pytest.mark.parametrize("changed", [dict(compile_loss=True), dict(fused=False), dict(late=False)])
def test_the_measure_is_the_plain_float32_step_and_not_a_variant_of_it(changed: Any) -> None:
    plain = rows(f_last=90, bf_last=50)
    wrong = row("float32", "contiguous", 1.0, loss=20.0, **changed)
    assert right([*plain, wrong]) == plain
    assert right([wrong, *plain]) == plain
    # Without the contiguous one the other memory format's is the measure.
    broken = replace(plain[0], error="RuntimeError: no kernel")
    assert right([broken, *plain[1:], wrong]) == plain[1:]
    last_is_off = replace(plain[1], loss=10.1)
    assert right([last_is_off, plain[0]]) == [last_is_off, plain[0]]
    assert right([replace(plain[1], loss=20.0), plain[0]]) == [plain[0]]
    assert right([wrong]) == []


def test_what_pays_for_every_backbone_is_one_entry_for_all() -> None:
    measured = rows("one", bf_last=50, bf_plain=40) + rows("two", bf_last=30, bf_plain=20)
    (both,) = propose(measured, "cuda", NUMERICS, COMPILE)
    assert (both.backbone, both.now_ms, both.then_ms) == ("*", 80.0, 60.0)
    measured = rows("one", bf_last=50, bf_plain=40) + rows("two", bf_last=30, bf_plain=50)
    assert [p.backbone for p in propose(measured, "cuda", NUMERICS, COMPILE)] == ["one"]


def test_an_entry_of_a_backbone_is_compared_with_its_own() -> None:
    (one,) = propose(rows("odd", bf_last=50), "cuda", NUMERICS, COMPILE)
    assert (one.now, one.now_ms) == (("float32", "contiguous"), 100.0)


def test_compiling_the_loss_is_proposed_where_it_pays_and_withdrawn_where_not() -> None:
    base = rows(bf_last=50)
    compiled = row("bfloat16", "channels_last", 45.0, compile_loss=True)
    (one,) = propose([*base, compiled], "cuda", NUMERICS, COMPILE)
    assert (one.table, one.now, one.then) == ("AUTO_COMPILE_LOSS", False, True)
    on: dict[tuple[str, DeviceKind], bool] = {("*", "cuda"): True}
    assert propose([*base, compiled], "cuda", NUMERICS, on) == []
    (back,) = propose([*base, replace(compiled, ms=60.0)], "cuda", NUMERICS, on)
    assert (back.now, back.then, back.now_ms, back.then_ms) == (True, False, 60.0, 50.0)


def test_variants_cover_precisions_and_formats_and_change_one_thing_each() -> None:
    assert len(basic_variants("cuda")) == 6
    assert {v.precision for v in basic_variants("cpu-bf16")} == {"float32", "bfloat16"}
    base = basic_variants("cuda")[0]
    assert [one.name for one in switched(base)] == [
        "float32, contiguous, compiled loss",
        "float32, contiguous, by image",
        "float32, contiguous, plain AdamW",
        "float32, contiguous, no prefetch",
        "float32, contiguous, losses read at once",
    ]


def test_a_variant_decides_what_trainings_use_while_it_is_measured() -> None:
    plain = Variant(precision="float32", memory_format="contiguous", boxes="by_image", fused=False)
    with gpu.chosen(plain):
        assert losses.detection_loss is losses.detection_loss_by_image
        numerics: Any = None
        assert learner.fused_optimizer(numerics) is False
    assert losses.detection_loss is not losses.detection_loss_by_image
    assert make_optimizer.__module__ == learner.__name__


def test_without_a_gpu_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == gpu.NO_GPU
    said = capsys.readouterr()
    assert "no CUDA GPU" in said.err
    assert said.out == ""
    with pytest.raises(SystemExit):
        gpu.main(["--backbones", "resnet81"])


# torch.compile looks at the gradient of what it is given; torch silences that where warnings are.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
def test_the_whole_command_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    tiny = ["--device", "cpu", "--image-px", "64", "--batch", "2", "--budget-s", "1"]
    assert gpu.main([*tiny, "--backbones", "mobilenet_v3_large", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert len(report["rows"]) == 4 + 5
    assert all(one["right"] and one["ms"] > 0 for one in report["rows"])
    assert report["kind"] == gpu.cpu_kind()
    printed = capsys.readouterr().out.splitlines()
    assert printed == (report["diff"] or printed)
    for proposal in report["proposals"]:
        table = {"AUTO_NUMERICS": AUTO_NUMERICS, "AUTO_COMPILE_LOSS": AUTO_COMPILE_LOSS}
        assert ("*", report["kind"]) in table[proposal["table"]]
