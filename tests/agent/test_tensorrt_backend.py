"""The backend `tensorrt` with a trtexec that needs no GPU, and outputs by ONNX Runtime."""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetson_agent.backends import default_backend, load_backend, tensorrt, trt_runner
from jetson_agent.backends.base import Backend, BuildRequest, Built, MeasureRequest
from jetson_agent.backends.tensorrt import TensorRTBackend
from jetson_agent.backends.trtexec import build_flags, dialect, find_trtexec, measure_flags
from jetson_agent.errors import BackendError
from jetson_agent.protocol import Load
from tests.agent import models
from tests.agent.fake_runners import MODELS, right
from tests.agent.fake_trtexec import invocations, make_fake_trtexec, set_scenario
from tests.contracts.backend import BackendContract

VERSIONS = {
    "v8201": "8.2.1",
    "v8401": "8.4.1",
    "v8501": "8.5.1",
    "v8601": "8.6.1",
    "v100300": "10.3.0",
    "v101303": "10.13.3",
    "v110100": "11.1.0",
}


class TestTensorRTBackend(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
        monkeypatch.setenv(MODELS, str(tmp_path))
        return TensorRTBackend(runner=right, trtexec=make_fake_trtexec(tmp_path / "bin"))


@dataclass
class Bench:
    """A backend, its trtexec and a model."""

    folder: Path
    backend: TensorRTBackend
    model: Path

    def happen(self, **scenario: Any) -> None:
        set_scenario(self.folder / "bin", scenario)

    def build(self, precision: str = "fp32", **options: Any) -> Built:
        engines = self.folder / "engine"
        engines.mkdir(exist_ok=True)
        request: dict[str, Any] = {
            "model": self.model,
            "precision": precision,
            "folder": engines,
            "threads": 1,
            "deadline_s": 120,
            **options,
        }
        return self.backend.build(BuildRequest(**request))

    def calls(self) -> list[list[str]]:
        return [call for call in invocations(self.folder / "bin") if call != ["--help"]]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(
        folder=tmp_path,
        backend=TensorRTBackend(trtexec=make_fake_trtexec(tmp_path / "bin")),
        model=models.convolution(tmp_path / "m.onnx"),
    )


def request(load: Load = "single", **options: Any) -> MeasureRequest:
    values = {"warmup_s": 0.1, "duration_s": 0.2, "deadline_s": 120.0, **options}
    return MeasureRequest(load=load, **values)


@pytest.mark.parametrize(
    ("precision", "flags"),
    [
        ("fp32", {"--noTF32"}),
        ("tf32", set()),
        ("fp16", {"--fp16", "--noTF32"}),
        ("int8-unscaled", {"--int8"}),
    ],
)
def test_a_build_says_every_flag_that_decides_the_engine(
    bench: Bench, precision: str, flags: set[str]
) -> None:
    cache = bench.folder / "timing.cache"
    built = bench.build(precision, workspace_mib=2048, timing_cache=cache)
    [call] = bench.calls()
    assert set(call) == flags | {
        f"--onnx={bench.model}",
        f"--saveEngine={bench.folder / 'engine' / 'engine.part'}",
        "--skipInference",
        "--memPoolSize=workspace:2048",
        "--builderOptimizationLevel=3",
        "--avgTiming=8",
        "--profilingVerbosity=detailed",
        f"--timingCacheFile={cache}",
    }
    assert built.options["flags"] == call
    assert all(flag in built.options["command"] for flag in call)
    assert built.options["version"] == "10.3.0"
    assert built.options["trtexec"] == str(bench.folder / "bin" / "trtexec")
    assert built.build_s == 10.7204  # what the fake says, not how long it took
    assert "&&&& PASSED" in built.options["log_tail"]
    assert built.engine.name == "engine.plan"
    assert not (bench.folder / "engine" / "engine.part").exists()


@pytest.mark.parametrize(
    ("precision", "flags"),
    [("int8", ["--int8", "--noTF32"]), ("int8_fp16", ["--int8", "--fp16", "--noTF32"])],
)
def test_quantised_files_are_built_with_int8_and_without_ranges_of_their_own(
    precision: str, flags: list[str]
) -> None:
    made = build_flags(
        "10.3.0",
        BuildRequest(model=Path("m.onnx"), precision=precision, folder=Path(), threads=1),
    )
    assert [flag for flag in made if flag in ("--int8", "--fp16", "--noTF32", "--best")] == flags
    assert not any(flag.startswith("--calib") for flag in made)


def test_one_query_at_a_time_is_a_flag_and_two_in_flight_are_the_default(bench: Bench) -> None:
    built = bench.build()
    single = bench.backend.measure(built, request("single"))
    stream = bench.backend.measure(built, request("stream"))
    _, one, two = bench.calls()
    assert "--exposeDMA" in one
    assert "--exposeDMA" not in two
    assert {"--infStreams=1", "--useSpinWait", "--warmUp=100", "--duration=0.2"} <= set(one)
    # With copies hidden behind the next query, throughput is higher than one over latency.
    assert single.throughput_qps * np.mean(single.latencies_ms) / 1e3 < 1
    assert stream.throughput_qps * np.mean(stream.latencies_ms) / 1e3 > 1


def test_figures_are_those_of_the_file_of_times_and_the_text(bench: Bench) -> None:
    bench.happen(median_ms=4.0, jitter=0.0, between=0.0)
    samples = bench.backend.measure(bench.build(), request())
    assert len(samples.latencies_ms) == 200
    np.testing.assert_allclose(samples.latencies_ms, 4.0399, rtol=1e-4)
    np.testing.assert_allclose(samples.parts["gpu_compute_ms"], 4.0, rtol=1e-4)
    assert set(samples.parts) == {"gpu_compute_ms", "h2d_ms", "d2h_ms"}
    # Only the text has it with enough digits.
    assert samples.summaries["enqueue_ms"]["median"] == pytest.approx(0.8, rel=1e-3)
    assert samples.throughput_qps == pytest.approx(1000 / (4.0399 + 0.01), rel=1e-3)
    assert "--exportTimes=" in samples.options["command"]


@pytest.mark.parametrize("number", VERSIONS)
def test_each_version_is_spoken_to_in_its_own_flags(bench: Bench, number: str) -> None:
    bench.happen(version=number)
    assert bench.backend.probe().runtime == VERSIONS[number]
    # The fake refuses options that its version lacks, as trtexec does.
    built = bench.build()
    samples = bench.backend.measure(built, request("stream"))
    # Copies are part of a latency whatever the version's default is.
    assert min(samples.parts["h2d_ms"]) > 0
    assert built.options["version"] == VERSIONS[number]
    assert len(samples.latencies_ms) == 200


def test_flags_that_changed_their_names_or_their_meaning(bench: Bench) -> None:
    def flags(version: str, graph: bool = False) -> set[str]:
        asked = BuildRequest(model=bench.model, precision="fp32", folder=bench.folder, threads=1)
        run = measure_flags(version, request(cuda_graph=graph))
        return {*build_flags(version, asked), *run}

    assert {"--workspace=4096", "--buildOnly", "--percentile=99", "--streams=1"} <= flags("8.2.1")
    assert {"--memPoolSize=workspace:4096", "--percentile=99"} <= flags("8.4.1")
    assert {"--buildOnly", "--percentile=90,95,99"} <= flags("8.5.1")
    assert {"--skipInference", "--infStreams=1"} <= flags("8.6.1")
    assert "--noCudaGraph" not in flags("10.3.0")
    assert "--useCudaGraph" in flags("10.3.0", graph=True)
    assert {"--includeDataTransfers", "--noCudaGraph"} <= flags("11.1.0")
    assert not {"--noCudaGraph", "--useCudaGraph", "--useSpinWait"} & flags("11.1.0", graph=True)
    assert dialect("10.3.0") is dialect("9.3.0") is dialect("8.6.1")


def test_tensorrt_11_has_no_flag_for_fp16_and_says_so(bench: Bench) -> None:
    bench.happen(version="v110100")
    with pytest.raises(BackendError, match=r"trtexec 11\.1\.0 has no precision fp16") as caught:
        bench.build("fp16")
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize(
    ("scenario", "kind", "said"),
    [
        ({"scenario": "parse_error"}, "unsupported", "trtexec ended with exit code 1: "),
        ({"scenario": "int8_kernel"}, "int8-kernel", "Could not find any implementation"),
        ({"scenario": "memory_once"}, "memory", "OutOfMemory"),
        ({"scenario": "disk_full"}, "disk", "Saving engine to file failed"),
        ({"scenario": "crash"}, "crash", "was ended by SIGSEGV"),
        ({"scenario": "lies", "lie": "exit_0_without_passed"}, "internal", "without PASSED"),
        ({"scenario": "lies", "lie": "exit_1_with_passed"}, "internal", "exit code 1"),
        ({"scenario": "lies", "lie": "passed_without_engine"}, "internal", "no engine file"),
    ],
)
def test_a_build_that_failed_says_of_what_and_leaves_no_engine(
    bench: Bench, scenario: dict[str, Any], kind: str, said: str
) -> None:
    bench.happen(**scenario)
    with pytest.raises(BackendError) as caught:
        bench.build()
    assert caught.value.kind == kind
    assert said in str(caught.value)
    assert not (bench.folder / "engine" / "engine.plan").exists()
    if kind == "int8-kernel":
        assert caught.value.node.startswith("/features.7/Conv + PWN(PWN(")


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ({"scenario": "text_disagrees_with_times"}, "disagree: The text"),
        ({"scenario": "lies", "at": "run", "lie": "exit_0_without_passed"}, "without PASSED"),
        ({"scenario": "lies", "at": "run", "lie": "exit_1_with_passed"}, "exit code 1"),
        ({"scenario": "lies", "at": "run", "lie": "passed_without_figures"}, "no throughput"),
    ],
)
def test_figures_that_contradict_themselves_are_none(
    bench: Bench, scenario: dict[str, Any], said: str
) -> None:
    built = bench.build()
    bench.happen(**scenario)
    with pytest.raises(BackendError, match=said):
        bench.backend.measure(built, request())


def test_an_engine_of_another_version_is_known_by_its_error(bench: Bench) -> None:
    built = bench.build()
    bench.happen(version="v101303")
    with pytest.raises(BackendError) as caught:
        bench.backend.measure(built, request())
    assert caught.value.kind == "engine-mismatch"


@pytest.mark.parametrize("scenario", ["hang", "ignore_sigterm"])
def test_a_trtexec_that_hangs_is_ended_after_its_deadline(bench: Bench, scenario: str) -> None:
    bench.happen(scenario=scenario)
    with pytest.raises(BackendError, match="did not end within 1 s") as caught:
        bench.build(deadline_s=1)
    assert caught.value.kind == "timeout"
    own, child = json.loads((bench.folder / "bin" / "pids.json").read_text())
    assert not Path(f"/proc/{own}").exists()
    # What it started is in the group of the agent's child and ends with that; here we are it.
    os.kill(child, signal.SIGKILL)


def test_a_layer_profile_is_taken_apart_from_the_timing(bench: Bench) -> None:
    built = bench.build()
    bench.backend.measure(built, request(profile=bench.folder / "profile"))
    _, timing, profile = bench.calls()
    assert not any(flag.startswith(("--exportProfile", "--dumpProfile")) for flag in timing)
    assert any(flag.startswith("--exportProfile=") for flag in profile)
    layers = json.loads((bench.folder / "profile" / "layers.json").read_text())["Layers"]
    times = json.loads((bench.folder / "profile" / "profile.json").read_text())
    assert len(layers) == len(times) - 1 == 2


def test_a_cuda_graph_that_was_given_up_is_no_result(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = bench.build()
    bench.backend.measure(built, request(cuda_graph=True))
    assert "--useCudaGraph" in bench.calls()[-1]
    warning = "The specified --useCudaGraph flag has been ignored. The inference will be launched"
    real = tensorrt.call

    def with_warning(*arguments: Any, **keywords: Any) -> Any:
        done = real(*arguments, **keywords)
        return type(done)(
            command=done.command,
            text=f"[W] {warning}\n{done.text}",
            report=done.report,
            wall_s=done.wall_s,
        )

    monkeypatch.setattr(tensorrt, "call", with_warning)
    with pytest.raises(BackendError, match="cannot be captured") as caught:
        bench.backend.measure(built, request(cuda_graph=True))
    assert caught.value.kind == "unsupported"
    assert bench.backend.measure(built, request()).latencies_ms


def test_trtexec_is_looked_for_in_the_variable_then_the_path_then_where_jetpack_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, on_path, jetpack = (
        make_fake_trtexec(tmp_path / name) for name in ("named", "path", "jetpack")
    )
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(named))
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_trtexec(jetpack) == named
    assert default_backend() == "tensorrt"
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(tmp_path / "nothing"))
    assert find_trtexec(jetpack) is None
    monkeypatch.delenv("JETSON_AGENT_TRTEXEC")
    assert find_trtexec(jetpack) == on_path
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_trtexec(jetpack) == jetpack
    assert find_trtexec(tmp_path / "nothing") is None


def test_without_trtexec_the_probe_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(tmp_path / "nothing"))
    probe = load_backend("tensorrt").probe()
    assert not probe.available
    assert "libnvinfer-bin" in probe.reason
    broken = tmp_path / "trtexec"
    broken.write_text("#!/bin/sh\necho libnvinfer.so.10: cannot open >&2; exit 127\n")
    broken.chmod(0o755)
    monkeypatch.setenv("JETSON_AGENT_TRTEXEC", str(broken))
    probe = load_backend("tensorrt").probe()
    assert not probe.available
    assert "libnvinfer.so.10: cannot open" in probe.reason


def test_without_tensorrt_for_python_outputs_are_unchecked_and_the_probe_says_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_runner, "NEEDED", {"no_such_tensorrt": "from JetPack"})
    probe = bench.backend.probe()
    assert probe.available
    assert not probe.runs
    assert "no_such_tensorrt is not installed (from JetPack)" in probe.why_unchecked
    built = bench.build()
    with pytest.raises(BackendError, match="no_such_tensorrt") as caught:
        bench.backend.run(built, {})
    assert caught.value.kind == "unchecked"


def test_a_folder_of_that_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hollow_tensorrt").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(trt_runner, "NEEDED", {"hollow_tensorrt": "from JetPack"})
    assert "hollow_tensorrt is not installed" in trt_runner.what_is_missing()
    monkeypatch.setattr(trt_runner, "NEEDED", {"json": "nowhere"})
    assert trt_runner.what_is_missing() == ""


class FakeEngine:
    """An engine with one input and one output, as TensorRT's Python API shows it."""

    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return ("images", "twice")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "images" else "out"


class FakeRunner:
    """A runner whose buffers belong to it: after it has left, they hold something else."""

    def __init__(self, engine: FakeEngine) -> None:
        self.buffer = np.zeros(3, np.float32)

    def __enter__(self) -> FakeRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.buffer[:] = -1

    def infer(self, feed: dict[str, Any]) -> dict[str, Any]:
        self.buffer[:] = 2 * feed["images"]
        return {"twice": self.buffer}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules `tensorrt` and `polygraphy` with what is used of them; `load` may be replaced."""
    hooks: dict[str, Any] = {"load": FakeEngine}

    def module(name: str, **attributes: Any) -> None:
        made = types.ModuleType(name)
        vars(made).update(attributes)
        monkeypatch.setitem(sys.modules, name, made)

    module("tensorrt", TensorIOMode=types.SimpleNamespace(INPUT="in"), __version__="10.3.0")
    module("polygraphy")
    module("polygraphy.backend")
    module("polygraphy.backend.common", BytesFromPath=lambda path: path)
    module(
        "polygraphy.backend.trt",
        EngineFromBytes=lambda _bytes: lambda: hooks["load"](),
        TrtRunner=FakeRunner,
    )
    return hooks


@pytest.mark.usefixtures("api")
def test_the_runner_gives_copies_of_the_outputs(tmp_path: Path) -> None:
    inputs = {"images": np.array([1, 2, 3], np.float32)}
    outputs = trt_runner.run_engine(tmp_path / "e", inputs)
    np.testing.assert_array_equal(outputs["twice"], [2, 4, 6])


@pytest.mark.usefixtures("api")
def test_an_engine_with_other_inputs_is_unchecked(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="inputs images instead of pixels") as caught:
        trt_runner.run_engine(tmp_path / "e", {"pixels": np.zeros(3)})
    assert caught.value.kind == "unchecked"


def test_an_engine_that_python_cannot_load_is_unchecked(
    tmp_path: Path, api: dict[str, Any]
) -> None:
    def refuse() -> None:
        raise RuntimeError("Failed to deserialize the engine")

    api["load"] = refuse
    with pytest.raises(BackendError, match=r"TensorRT 10\.3\.0 .*deserialize") as caught:
        trt_runner.run_engine(tmp_path / "e", {"images": np.zeros(3)})
    assert caught.value.kind == "unchecked"


def test_a_library_that_is_not_there_is_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="Python API cannot be loaded") as caught:
        trt_runner.run_engine(tmp_path / "e", {})
    assert caught.value.kind == "unchecked"
