"""The fake behaves as trtexec does where the agent depends on it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jetson_agent.failures import classify
from jetson_agent.trtexec_log import Report, parse
from jetson_agent.trtexec_times import agree, read_times
from tests.agent.fake_trtexec import DEFAULTS, invocations, make_fake_trtexec, set_scenario

Finished = subprocess.CompletedProcess[str]


class Bench:
    """A folder with a fake, a model and what comes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "fake"
        self.program = make_fake_trtexec(self.folder)
        self.model = folder / "model.onnx"
        self.model.write_bytes(b"a model")
        self.engine = folder / "engine.tmp"
        self.times = folder / "times.json"

    def scene(self, name: str, **more: Any) -> None:
        set_scenario(self.folder, {"scenario": name, **more})

    def call(self, *arguments: str) -> Finished:
        """Both streams in one text, as the agent keeps them."""
        return subprocess.run(
            [str(self.program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )

    def build(self, *more: str) -> Finished:
        return self.call(
            f"--onnx={self.model}", f"--saveEngine={self.engine}", "--skipInference", *more
        )

    def run(self, *more: str) -> Finished:
        return self.call(f"--loadEngine={self.engine}", f"--exportTimes={self.times}", *more)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_it_builds_an_engine_and_times_it(bench: Bench) -> None:
    built = parse(bench.build("--noTF32", "--int8").stdout)
    assert (built.passed, built.throughput_qps, built.tensorrt_version) == (True, None, "10.3.0")
    assert built.build.precision == "FP32+INT8"
    timed = bench.run("--warmUp=2000", "--duration=1", "--iterations=200")
    report = parse(timed.stdout)
    assert (timed.returncode, report.passed) == (0, True)
    assert report.latency_ms is not None
    # 2 ms of computing, and copies of 0.036 and 0.0039 ms.
    assert report.latency_ms["median"] == pytest.approx(2.04, rel=0.03)
    # Two in flight: the copies hide behind the computing of the query before.
    assert report.throughput_qps == pytest.approx(1000 / 2.0, rel=0.03)
    assert report.queries == pytest.approx(500, rel=0.03)
    assert [call[0].partition("=")[0] for call in invocations(bench.folder)] == [
        *("--onnx", "--loadEngine"),
    ]


def test_one_query_at_a_time_is_slower_by_its_copies(bench: Bench) -> None:
    bench.build()
    report = parse(bench.run("--exposeDMA").stdout)
    assert report.latency_ms is not None
    assert report.latency_ms["mean"] is not None
    assert report.throughput_qps == pytest.approx(1000 / (report.latency_ms["mean"] + 0.01), 0.01)
    report = parse(bench.run("--noDataTransfers").stdout)
    assert report.h2d_ms is not None
    assert (report.h2d_ms["max"], report.passed) == (0, True)


@pytest.mark.parametrize("version", ["v8201", "v8401", "v8503", "v8602", "v100300", "v110100"])
def test_text_and_times_agree_in_every_version(bench: Bench, version: str) -> None:
    bench.scene("ok", version=version)
    skip = "--skipInference" if version >= "v86" or version[1] == "1" else "--buildOnly"
    bench.call(f"--onnx={bench.model}", f"--saveEngine={bench.engine}", skip)
    report = parse(bench.run("--warmUp=2000", "--duration=2").stdout)
    assert report.passed is True
    assert agree(report, read_times(bench.times, report.queries)) == []
    # The warm-up stands in the file too, until 8.4.
    with_warm_up = agree(report, read_times(bench.times))
    assert bool(with_warm_up) == (version in ("v8201", "v8401"))


@pytest.mark.parametrize("count", [1, 2, 9, 99, 100, 101])
def test_text_and_times_agree_for_any_number_of_queries(bench: Bench, count: int) -> None:
    bench.scene("ok", max_queries=count, jitter=0.3)
    bench.build()
    report = parse(bench.run("--percentile=50,90,95,99,99.9").stdout)
    assert report.queries == count
    assert agree(report, read_times(bench.times)) == []


def test_figures_differ_from_call_to_call_and_repeat_with_the_seed(bench: Bench) -> None:
    bench.build()
    figures = [parse(bench.run().stdout).throughput_qps for _ in range(3)]
    assert len(set(figures)) == 3
    (bench.folder / "invocations.jsonl").unlink()
    bench.build()
    assert parse(bench.run().stdout).throughput_qps == figures[0]


def test_a_text_that_does_not_match_its_times_is_found_out(bench: Bench) -> None:
    bench.scene("text_disagrees_with_times")
    bench.build()
    report = parse(bench.run().stdout)
    found = agree(report, read_times(bench.times))
    assert any("queries per second" in line for line in found)
    assert any("median of latency_ms" in line for line in found)
    assert any("p99 of gpu_compute_ms" in line for line in found)


@pytest.mark.parametrize(
    ("scenario", "kind", "node"),
    [
        ("parse_error", "unsupported", ""),
        (
            "int8_kernel",
            "int8-kernel",
            "/features.7/Conv + PWN(PWN(/features.7/Sigmoid), /features.7/Mul)",
        ),
        ("memory_once", "memory", ""),
        ("disk_full", "disk", ""),
        ("crash", "crash", ""),
    ],
)
@pytest.mark.parametrize("replayed", [True, False], ids=["real lines", "own lines"])
def test_a_build_that_fails_says_why(
    bench: Bench,
    scenario: str,
    kind: str,
    node: str,
    replayed: bool,
    request: pytest.FixtureRequest,
) -> None:
    samples = request.getfixturevalue("shared_data") / "trtexec_samples" if replayed else ""
    bench.scene(scenario, samples=str(samples))
    done = bench.build()
    failure = classify(done.stdout, done.returncode, False)
    assert done.returncode == (-signal.SIGSEGV if scenario == "crash" else 1)
    assert (failure.kind, failure.node) == (kind, node)
    assert parse(done.stdout).passed is (None if scenario == "crash" else False)
    # A full disk leaves a part of the engine where the whole one should be.
    assert bench.engine.exists() is (scenario == "disk_full")
    if scenario == "memory_once":
        assert bench.build().returncode == 0


def test_an_engine_of_another_version_is_refused_once_it_is_rebuilt_it_is_not(
    bench: Bench,
) -> None:
    bench.build()
    bench.scene("ok", version="v100400")
    done = bench.run()
    assert classify(done.stdout, done.returncode, False).kind == "engine-mismatch"
    bench.build()
    assert bench.run().returncode == 0
    bench.scene("engine_mismatch_once", times=None)
    (bench.folder / "invocations.jsonl").unlink()
    bench.build()
    assert [bench.run().returncode for _ in range(3)] == [1, 0, 0]


def test_half_an_engine_cannot_be_loaded(bench: Bench) -> None:
    bench.scene("disk_full")
    bench.build()
    bench.scene("ok")
    assert bench.run().returncode == 1


@pytest.mark.parametrize(
    ("lie", "at", "returncode", "passed"),
    [
        ("exit_0_without_passed", "build", 0, None),
        ("exit_0_without_passed", "run", 0, None),
        ("exit_1_with_passed", "run", 1, True),
        ("passed_without_figures", "run", 0, True),
        ("passed_without_engine", "build", 0, True),
    ],
)
def test_it_lies(bench: Bench, lie: str, at: str, returncode: int, passed: bool | None) -> None:
    if at == "run":
        bench.build()
    bench.scene("lies", lie=lie, at=at)
    done = bench.build() if at == "build" else bench.run()
    report: Report = parse(done.stdout)
    assert (done.returncode, report.passed) == (returncode, passed)
    if lie == "passed_without_figures":
        assert report.throughput_qps is None
        assert not bench.times.exists()
    if lie == "passed_without_engine":
        assert not bench.engine.exists()


def test_an_unstable_board_is_warned_of(bench: Bench) -> None:
    bench.scene("unstable")
    bench.build()
    medians = []
    for _ in range(3):
        report = parse(bench.run().stdout)
        assert any("GPU compute time is unstable" in warning for warning in report.warnings)
        assert report.latency_ms is not None
        medians.append(report.latency_ms["median"] or 0)
    assert max(medians) / min(medians) > 1.02


def test_options_that_a_version_lacks_are_unknown(bench: Bench) -> None:
    done = bench.build("--workspace=2048", "--explicitBatch", "--int8=1")
    assert classify(done.stdout, done.returncode, False).lines == [
        *("Unknown option: --workspace 2048", "Unknown option: --explicitBatch"),
        "Unknown option: --int8 1",
    ]
    bench.scene("ok", version="v8201")
    old = [f"--onnx={bench.model}", f"--saveEngine={bench.engine}", "--workspace=2048"]
    assert bench.call(*old, "--buildOnly").returncode == 0
    assert bench.build().returncode == 1
    bench.scene("ok", version="v110100")
    assert bench.build("--int8").returncode == 1
    assert bench.run("--noCudaGraph").returncode == 1  # the engine is of another version


def test_help_prints_the_version_first(bench: Bench) -> None:
    done = bench.call("--help")
    report = parse(done.stdout)
    assert (done.returncode, report.tensorrt_version, report.passed) == (0, "10.3.0", None)


def test_a_layer_profile_hides_the_figures_unless_it_is_a_run_of_its_own(
    bench: Bench, tmp_path: Path
) -> None:
    bench.build(f"--exportLayerInfo={tmp_path / 'layers.json'}", "--profilingVerbosity=detailed")
    layers = json.loads((tmp_path / "layers.json").read_text())["Layers"]
    assert [layer["Name"] for layer in layers] == ["conv1 + relu1", "fc"]
    profile = tmp_path / "profile.json"
    assert parse(bench.run(f"--exportProfile={profile}").stdout).throughput_qps is None
    assert json.loads(profile.read_text())[0] == {"count": 100}
    both = parse(bench.run(f"--exportProfile={profile}", "--separateProfileRun").stdout)
    assert both.throughput_qps is not None


@pytest.fixture
def stubborn(bench: Bench) -> Iterator[subprocess.Popen[bytes]]:
    """A call that hangs and ignores SIGTERM, in a session of its own."""
    bench.scene("ignore_sigterm", at="build")
    child = subprocess.Popen(
        [str(bench.program), f"--onnx={bench.model}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield child
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def test_a_stubborn_one_and_its_child_outlive_sigterm(
    bench: Bench, stubborn: subprocess.Popen[bytes]
) -> None:
    file = bench.folder / "pids.json"
    end = time.monotonic() + 60
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)
    own, grandchild = json.loads(file.read_text())
    assert own == stubborn.pid
    os.killpg(stubborn.pid, signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        stubborn.wait(0.5)
    os.kill(grandchild, 0)


def test_a_scenario_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['latency'\] is none of .*median_ms"):
        make_fake_trtexec(tmp_path, {"latency": 1})
    assert "scenario" in DEFAULTS
