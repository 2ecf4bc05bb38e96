"""A whole self-test on a processor, and how it ends when something goes wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sharedenc.cli import main
from sharedenc.errors import SpecError
from sharedenc.selftest.checks import Bench, CheckFailedError, Item
from sharedenc.selftest.child import Child
from sharedenc.selftest.run import Report, Row, _run_all, _verdict, run_selftest
from sharedenc.selftest.settings import SelftestSettings

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset


def settings_of(pack: PackedDataset, out: Path, **more: Any) -> SelftestSettings:
    values: dict[str, Any] = {
        "device": "cpu",
        "steps": 6,
        "quick": True,
        "backbones": ("mobilenet_v3_large",),
        "precisions": ("float32",),
        "image_px": 64,
        "batch_size": 4,
        "val_images": 4,
    }
    return SelftestSettings(data=pack.root, out=out, **values | more)


def statuses(report: Report) -> dict[str, str]:
    return {row.name: row.status for row in report.rows}


@pytest.mark.slow
def test_a_small_self_test_passes_and_its_report_can_be_sent(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = run_selftest(settings_of(tiny_pack, out))
    troubles = [(row.name, row.reason, row.traceback) for row in report.rows]
    assert statuses(report) == {
        "counts": "not compared",
        "kill and resume": "passed",
        "two trials at once": "passed",
        "mobilenet_v3_large/baseline/det float32": "passed",
        "mobilenet_v3_large/baseline/det": "passed",
        "mobilenet_v3_large/baseline/seg float32": "passed",
        "mobilenet_v3_large/baseline/seg": "passed",
        "mobilenet_v3_large/dual float32": "passed",
        "mobilenet_v3_large/dual": "passed",
    }, troubles
    assert (report.verdict, report.exit_code) == ("passed", 0)
    figures = {row.name: row.figures for row in report.rows}
    assert figures["kill and resume"]["same_bits"] is True
    assert figures["kill and resume"]["went_on_with_epoch"] > 1
    assert figures["two trials at once"]["same_bits"] is True
    dual = figures["mobilenet_v3_large/dual float32"]
    assert dual["trainable"] == 4_276_326
    assert dual["loss_last"] < dual["loss_first"]

    assert sorted(path.name for path in out.iterdir()) == ["report.json", "report.md"]
    written = json.loads((out / "report.json").read_text())
    assert written["verdict"] == "passed"
    assert len(written["checks"]) == 9
    assert written["environment"]["versions"]["torch"].startswith("2.")
    page = (out / "report.md").read_text()
    assert "| mobilenet_v3_large/dual | float32 | passed |" in page
    for text in (page, json.dumps(written)):
        assert str(tmp_path) not in text
        assert str(Path.home()) + "/" not in text


@pytest.fixture
def small_report(tiny_pack: PackedDataset, tmp_path: Path) -> Report:
    about = {
        "torch": "2",
        "cuda_of_torch": None,
        "processor": "p",
        "cores": 2,
        "memory_bytes": 2**30,
        "system": "s",
        "versions": {"python": "3"},
        "sharedenc": "0",
        "code": "c",
    }
    data = {"name": "d", "digest": "e" * 64, "class_list": "voc20"}
    settings = settings_of(tiny_pack, tmp_path, budget_minutes=1)
    return Report(settings, about, data)


def ends(result: dict[str, Any] | BaseException) -> Callable[[], dict[str, Any]]:
    def do() -> dict[str, Any]:
        if isinstance(result, BaseException):
            raise result
        return result

    return do


def test_a_failed_check_does_not_stop_the_rest(small_report: Report, tmp_path: Path) -> None:
    items = [
        Item("export", "a", ends({"relative": 1e-6})),
        Item("export", "b", ends(CheckFailedError("too large", {"relative": 0.5}, kind="oom"))),
        Item("export", "c", ends(ValueError("a bug in /secret/place/file.py"))),
        Item("export", "d", ends({})),
    ]
    _run_all(small_report, items, time.monotonic(), None)
    assert statuses(small_report) == {"a": "passed", "b": "failed", "c": "failed", "d": "passed"}
    assert small_report.rows[1].figures == {"relative": 0.5}
    assert (small_report.rows[1].kind, small_report.rows[2].error) == ("oom", "ValueError")
    small_report.verdict = _verdict(small_report.rows)
    assert (small_report.verdict, small_report.exit_code) == ("failed", 1)
    # Written after each check, so that even a killed self-test leaves what it found.
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["verdict"], len(written["checks"])) == ("running", 4)
    assert "place" not in (tmp_path / "report.md").read_text()


def test_a_spent_budget_starts_nothing_more_and_says_what_was_left_out(
    small_report: Report,
) -> None:
    items = [Item("export", "a", ends({})), Item("export", "b", ends(ValueError("never run")))]
    _run_all(small_report, items, time.monotonic() - 61, None)
    assert statuses(small_report) == {"a": "left out", "b": "left out"}
    assert small_report.rows[0].reason == "no time left of 1 minutes"
    assert _verdict(small_report.rows) == "incomplete"


def test_loss_that_does_not_fall_is_a_finding_with_its_figures(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    answer = {
        "ok": True,
        "checkpoint": str(tmp_path / "best"),
        "history": [{"train/loss": 2.0, "images_per_s": 5}, {"train/loss": 2.5, "images_per_s": 7}],
        "val": {"loss": 3.0},
        "parameters": {"trainable": 1},
        "peak_memory_bytes": 1,
    }

    class Answers(Child):
        def call(self, *_: Any, **__: Any) -> dict[str, Any]:
            (tmp_path / "best").write_bytes(b"")
            return answer

    bench = Bench(settings_of(tiny_pack, tmp_path), tiny_pack, tiny_pack, tmp_path, Answers())
    with pytest.raises(CheckFailedError, match=r"did not fall: 2 in the first .* 2\.5 in the last"):
        bench.train(bench.cells()[0], "float32")


def test_the_whole_grid_of_a_backbone_is_eleven_cells(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    settings = settings_of(tiny_pack, tmp_path, quick=False)
    names = [c.name for c in Bench(settings, tiny_pack, tiny_pack, tmp_path, Child()).cells()]
    assert len(names) == len(set(names)) == 11
    assert names.index("mobilenet_v3_large/baseline/det") < names.index(
        "mobilenet_v3_large/swap-frozen/seg"
    )


def test_a_device_that_is_not_there_is_refused_with_what_to_do(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    arguments = ["selftest", "--device", "cuda", "--data", str(tiny_pack.root)]
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "sees no CUDA device" in result.output
    assert "--device cpu" in result.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"steps": 1}, "steps=1 must be at least 2"),
        ({"batch_size": 1}, "batch_size=1 must be at least 2"),
        ({"device": "tpu"}, "device='tpu' is not one of cpu, cuda"),
        ({"backbones": ("resnet19",)}, "Did you mean 'resnet18'"),
        ({"budget_minutes": 0}, "budget_minutes=0 must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tiny_pack: PackedDataset, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        settings_of(tiny_pack, tmp_path, **more)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_partial_report_that_says_so(
    tiny_pack: PackedDataset, tmp_path: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "out"
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from sharedenc.cli import run; run()"
    )
    command = [sys.executable, "-c", code, "selftest", "--device", "cpu", "--quick"]
    command += ["--data", str(tiny_pack.root), "--out", str(out), "--steps", "20"]
    command += ["--image-px", "64", "--batch-size", "4", "--backbones", "mobilenet_v3_large"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "counts: not compared" in first
        process.send_signal(sent)
        process.stderr.read()
    assert process.returncode == 130
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"] == "interrupted"
    assert [row["status"] for row in report["checks"][:2]] == ["not compared", "left out"]
    assert report["checks"][1]["reason"] == "interrupted"
    assert "Interrupted: this report is partial." in (out / "report.md").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "report.md"]


@pytest.mark.slow
def test_every_strategy_and_freeze_mode_of_a_backbone_in_both_precisions(
    tiny_pack: PackedDataset, tmp_path: Path
) -> None:
    settings = settings_of(
        tiny_pack, tmp_path / "out", quick=False, precisions=("float32", "bfloat16"), steps=8
    )
    rows: list[Row] = []
    report = run_selftest(settings, lambda number, total, row: rows.append(row))
    failed = [(row.name, row.reason, row.traceback) for row in rows if row.status == "failed"]
    assert not failed
    assert sum(row.group == "training" for row in rows) == 22
    assert report.exit_code == 0
    by_name = {row.name: row.figures for row in rows}
    # Table of methods 1.6: only the head trains under a frozen encoder.
    for strategy in ("share", "swap"):
        figures = by_name[f"mobilenet_v3_large/{strategy}-frozen/seg float32"]
        assert figures["trainable"] == 249_586
