"""infra/jetson/acceptance.py on a board that is not there: a fake trtexec and a tree of files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from jetson_agent.protocol import ExportManifest
from tests.agent import exported, fake_board, models
from tests.agent.fake_trtexec import invocations, make_fake_trtexec, set_scenario
from tests.agent.publishing import publish_folder
from tests.infra.cluster import await_true, end
from tests.infra.files import INFRA

SCRIPT = INFRA / "jetson" / "acceptance.py"
QUICK = "--warmup-s 0.1 --duration-s 0.2 --runs 1 --builds 1 --repeats 0 --preflight-s 1"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("acceptance", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


acceptance = load_script()


@dataclass
class Bench:
    """A board with its trtexec, and a folder for the script."""

    folder: Path
    files: fake_board.FakeBoard

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def happen(self, **scenario: Any) -> None:
        set_scenario(self.folder / "bin", scenario)

    def run(self, *words: str | Path) -> tuple[int, dict[str, Any]]:
        """Exit code, and what summary.json says of the steps."""
        timing = ["--timing", QUICK]
        code = acceptance.main([*map(str, words), "--out", str(self.out), *timing])
        return code, json.loads((self.out / "summary.json").read_text())["steps"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    program = make_fake_trtexec(tmp_path / "bin", {"median_ms": 1.9})
    files = fake_board.build(tmp_path / "root")
    files.write("dev/nvmap", b"")
    for name, value in {**files.environment, "JETSON_AGENT_TRTEXEC": str(program)}.items():
        monkeypatch.setenv(name, value)
    return Bench(tmp_path, files)


def encoder(folder: Path) -> Path:
    """An exported encoder whose INT8 file ends on an Identity, as those of the sweep side do."""
    exported.export(folder, graph="encoder")
    path = folder / "model.int8-trt.onnx"
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(helper.make_node("Identity", ["inner"], ["y"]))
    helper.set_model_props(model, {"sharedenc.architecture": "ab" * 32, "sharedenc.graph": "x"})
    onnx.save(model, path)
    told = json.loads((folder / "manifest.json").read_text())
    told["backbone"] = "efficientnet_v2_s"
    told["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(told))
    return path


def test_doctor_and_trtexec_s_own_output_are_kept(bench: Bench, tmp_path: Path) -> None:
    model = models.convolution(tmp_path / "resnet.onnx")
    code, steps = bench.run("--steps", "doctor,samples", "--resnet50", model)
    assert code == 0, steps
    assert (steps["doctor"]["verdict"], steps["samples"]["verdict"]) == ("pass", "pass")
    assert "checking outputs" in steps["doctor"]["figures"], "there is no tensorrt for Python here"
    assert steps["resnet50"] == {"verdict": "skipped", "reason": "left out", "figures": {}}
    kept = bench.out / "samples"
    for precision in ("fp32", "tf32", "fp16", "int8-unscaled"):
        text = (kept / f"{precision}.run.txt").read_text()
        assert "&&&& PASSED TensorRT.trtexec [TensorRT v100300]" in text
        assert "--exportTimes=" in text
        assert len(json.loads((kept / f"{precision}.times.json").read_text())) >= 200
        assert json.loads((kept / f"{precision}.layers.json").read_text())["Layers"]
    assert "R36 (release)" in (kept / "nv_tegra_release").read_text()
    assert not list(kept.glob("*.plan")), "engines are large, and of no use elsewhere"
    summary = (bench.out / "summary.md").read_text()
    assert "| samples | pass |" in summary
    assert "- l4t: 36.4.4" in summary


def test_text_that_does_not_fit_the_times_fails_the_samples(bench: Bench, tmp_path: Path) -> None:
    bench.happen(scenario="text_disagrees_with_times")
    model = models.convolution(tmp_path / "resnet.onnx")
    code, steps = bench.run("--steps", "samples", "--resnet50", model)
    assert code == 1
    assert "fp32.run.txt: " in steps["samples"]["reason"]


@pytest.mark.slow
@pytest.mark.long
def test_five_repeats_that_agree_and_are_near_what_is_known_pass(
    bench: Bench, tmp_path: Path
) -> None:
    model = models.convolution(tmp_path / "resnet.onnx")
    words = ("--steps", "resnet50", "--resnet50", model)
    code, steps = bench.run(*words)
    found = steps["resnet50"]
    # 1.9 ms is near the 1.94 ms of FP32 and far from the 1.03 ms of FP16.
    assert code == 1
    assert found["reason"].startswith("fp16 is ")
    assert found["reason"].endswith("from the known 1.03 ms of this board")
    figures = found["figures"]
    assert figures["mode"] == "MAXN-pinned"
    for precision in ("fp32", "tf32", "fp16"):
        assert len(figures[precision]["gpu_ms"]) == 5
        assert figures[precision]["median_ms"] == pytest.approx(1.9, rel=0.02)
        assert figures[precision]["spread"] < 0.02
    calls = len(invocations(bench.folder / "bin"))
    assert bench.run(*words)[0] == 1
    assert len(invocations(bench.folder / "bin")) == calls, "a step with an answer is not repeated"
    # Another mode has no known figures, and so nothing to be far from.
    bench.files.select("MODE_30W")
    code, steps = bench.run(*words, "--again", "resnet50", "--repeats", "2")
    assert (code, steps["resnet50"]["verdict"]) == (0, "pass")
    assert "only compared on p3701-0005" in steps["resnet50"]["figures"]["known_ms"]


@pytest.mark.slow
@pytest.mark.long
def test_repeats_that_spread_by_more_than_two_percent_fail(bench: Bench, tmp_path: Path) -> None:
    bench.happen(between=0.2)
    bench.files.select("MODE_30W")
    model = models.convolution(tmp_path / "resnet.onnx")
    words = ("--steps", "resnet50", "--resnet50", model, "--repeats", "2")
    code, steps = bench.run(*words)
    assert code == 1
    values = steps["resnet50"]["figures"]["fp32"]["gpu_ms"]
    spread = (max(values) - min(values)) / max(values)
    assert spread > 0.02
    assert "fp32: 2 repeats spread by" in steps["resnet50"]["reason"]


@pytest.mark.slow
@pytest.mark.long
def test_every_graph_at_every_precision_has_an_answer(bench: Bench) -> None:
    (bench.folder / "exports").mkdir()
    exported.export(bench.folder / "exports" / "a", graph="dual")
    code, steps = bench.run("--steps", "exports", "--exports", bench.folder / "exports")
    figures = steps["exports"]["figures"]
    assert code == 0, steps
    name = "resnet18-dual-dual-flo"
    wanted = {
        f"{name} {precision} {load}"
        for precision in ("fp32", "tf32", "fp16", "int8", "int8_fp16", "int8-unscaled")
        for load in ("stream", "single")
    }
    assert set(figures) == wanted
    assert all(text.startswith("valid, unchecked, p50 1.9") for text in figures.values()), figures
    [result] = json.loads((bench.out / "exports" / name / "int8.json").read_text())[:1]
    assert "--int8" in result["certificate"]["builds"][0]["options"]["command"]
    bench.happen(scenario="crash")
    code, steps = bench.run(
        *("--steps", "exports", "--again", "exports", "--exports", bench.folder / "exports")
    )
    assert code == 1
    assert f"{name} fp32 stream: failed" in steps["exports"]["reason"]


@pytest.mark.slow
@pytest.mark.long
def test_the_encoder_is_timed_with_and_without_its_last_identity(bench: Bench) -> None:
    (bench.folder / "exports").mkdir()
    path = encoder(bench.folder / "exports" / "encoder")
    code, steps = bench.run("--steps", "identity", "--exports", bench.folder / "exports")
    figures = steps["identity"]["figures"]
    assert code == 0, steps
    assert figures["identities"] == 1
    assert figures["with"].startswith("p50 1.9")
    assert figures["without"].startswith("p50 1.9")
    bare = onnx.load(bench.out / "identity" / "without-identity.onnx")
    onnx.checker.check_model(bare)
    assert "Identity" not in [node.op_type for node in bare.graph.node]
    assert [value.name for value in bare.graph.output] == ["y"]
    # Its figure must not be taken for one of the export.
    assert [entry.key for entry in bare.metadata_props] == ["sharedenc.graph"]
    images = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    outputs = [
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(
            None, {"images": images}
        )[0]
        for file in (str(path), bare.SerializeToString())
    ]
    np.testing.assert_array_equal(*outputs)


def test_a_board_that_cannot_build_the_encoder_fails_with_the_layer(bench: Bench) -> None:
    (bench.folder / "exports").mkdir()
    encoder(bench.folder / "exports" / "encoder")
    bench.happen(scenario="int8_kernel")
    code, steps = bench.run("--steps", "identity", "--exports", bench.folder / "exports")
    assert (code, steps["identity"]["verdict"]) == (1, "fail")
    assert "/features.7/" in steps["identity"]["figures"]["with"]


def test_resnet50_of_an_old_opset_is_made_loadable(tmp_path: Path) -> None:
    """JetPack's own file lists its weights among its inputs."""
    weights = np.ones((4, 3, 3, 3), np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["images", "w"], ["y"], pads=[1, 1, 1, 1])],
        "old",
        [
            value("images", TensorProto.FLOAT, [1, 3, 8, 8]),
            value("w", TensorProto.FLOAT, list(weights.shape)),
        ],
        [value("y", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )
    old = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=3)
    onnx.save(old, tmp_path / "old.onnx")
    words = ["--out", str(tmp_path), "--resnet50", str(tmp_path / "old.onnx")]
    choices, _, _ = acceptance.parse_arguments(words)
    made = acceptance.find_resnet50(choices, tmp_path)
    assert made == tmp_path / "resnet50.onnx"
    model = onnx.load(made)
    onnx.checker.check_model(model)
    assert [(e.domain, e.version) for e in model.opset_import] == [("", 13)]
    assert [v.name for v in model.graph.input] == ["images"]
    new = models.convolution(tmp_path / "new.onnx")
    words[-1] = str(new)
    assert acceptance.find_resnet50(acceptance.parse_arguments(words)[0], tmp_path) == new


def test_what_is_not_there_is_skipped_with_its_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "RESNET50", bench.folder / "gone.onnx")
    code, steps = bench.run("--skip", "doctor")
    assert code == 0
    assert {name: step["verdict"] for name, step in steps.items()} == dict.fromkeys(
        acceptance.STEPS, "skipped"
    )
    assert "--exports" in steps["exports"]["reason"]
    assert "--tracking-uri" in steps["soak"]["reason"]


def test_a_step_that_does_not_exist_and_a_password_in_an_address_are_refused(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--steps", "dcotor"], ["--tracking-uri", "http://me:planted-4711@server"]):
        with pytest.raises(SystemExit):
            bench.run(*words)
    said = capsys.readouterr().err
    assert "'dcotor' is not one of doctor,samples" in said
    assert "planted" not in said


class Cable:
    """A way to a port of 127.0.0.1 that can be pulled."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._open: list[socket.socket] = []
        self._listen = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listen.getsockname()[1]
        self._start()

    def _start(self) -> None:
        threading.Thread(target=self._accept, args=(self._listen,), daemon=True).start()

    def _accept(self, listen: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listen.accept()
                far = socket.create_connection(("127.0.0.1", self._behind))
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def pull(self) -> None:
        with suppress(OSError):
            self._listen.shutdown(socket.SHUT_RDWR)
        self._listen.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def plug(self) -> None:
        self._listen = socket.create_server(("127.0.0.1", self.port))
        self._start()


@contextmanager
def cable(port: int) -> Iterator[Cable]:
    made = Cable(port)
    try:
        yield made
    finally:
        made.pull()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_soak_with_the_network_pulled_loses_nothing(
    bench: Bench, own_mlflow_uri: str, tmp_path: Path
) -> None:
    bench.happen(run_s=1.0)
    folder = exported.export(tmp_path / "up", graph="seg")
    manifest = ExportManifest.from_json((folder / "manifest.json").read_text())
    # All of one file, so that there is work to do while the network is away.
    precisions = ["fp32", "tf32", "fp16", "int8-unscaled"]
    publish_folder(own_mlflow_uri, folder, replace(manifest, precisions=precisions))
    lines: queue.Queue[str] = queue.Queue()
    said: list[str] = []
    with ExitStack() as stack:
        way = stack.enter_context(cable(int(own_mlflow_uri.rpartition(":")[2])))
        command = [sys.executable, "-u", str(SCRIPT), "--out", str(bench.out), "--steps", "soak"]
        command += ["--tracking-uri", f"http://127.0.0.1:{way.port}", "--poll-s", "1"]
        command += ["--timing", QUICK]
        # What is started in the background ignores Ctrl-C, and its children with it.
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        stack.callback(end, process)
        output = process.stdout
        assert output is not None

        def read() -> None:
            for line in output:
                lines.put(line)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()

        def wait_for(phrase: str) -> None:
            while not said or phrase not in said[-1]:
                said.append(lines.get(timeout=400))

        wait_for("pull the network cable now")
        way.pull()
        wait_for("plug the cable in again")
        way.plug()
        status = bench.out / "soak" / "status.jsonl"

        def all_sent() -> bool:
            last = json.loads(status.read_text().splitlines()[-1])
            return bool(last["link"] == "ok" and not last["waiting"] and not last["to do"])

        await_true("everything is timed and sent", all_sent, 600)
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0, (bench.out / "summary.md").read_text()
        reader.join(60)
        output.close()
    answer = json.loads((bench.out / "soak" / "answer.json").read_text())
    assert answer["verdict"] == "pass", answer
    figures = answer["figures"]
    # Four precisions, each at two loads.
    assert figures["results"] == figures["on the server"] == 8
    assert figures["times away"] == 1
    assert figures["most that waited"] >= 1
