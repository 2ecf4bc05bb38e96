"""A `trtexec` without a GPU: the same options, the same files, the same text.

`make_fake_trtexec` puts an executable into a folder. What it does is decided by ``scenario.json``
there; what it was called with is kept in ``invocations.jsonl``, and one that hangs leaves its own
process id and its child's in ``pids.json``. Latencies are made up, nothing is
waited for. Layout and flow follow NVIDIA/TensorRT at v10.3.0, samples/trtexec and samples/common.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import resource
import shlex
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "trtexec_samples"
MAGIC = "FAKE TENSORRT ENGINE"
WARM_UP_QUERIES = 5

DEFAULTS: dict[str, Any] = {
    # ok, parse_error, int8_kernel, memory_once, hang, ignore_sigterm, crash, disk_full, lies,
    # engine_mismatch_once, unstable, text_disagrees_with_times, slow_build
    "scenario": "ok",
    "version": "v100300",
    "build_tag": "",  # such as " [b34]", which 10.5 and later print
    "device": "Orin",
    "median_ms": 2.0,
    "jitter": 0.002,  # relative deviation of one query
    "between": 0.002,  # relative deviation of one invocation
    "seed": 0,
    "max_queries": 2000,
    "build_s": 0.0,  # seconds really slept; slow_build: 3
    "run_s": 0.0,
    # Where hang, ignore_sigterm, crash and lies happen: "build" or "run".
    "at": "build",
    "signal": int(signal.SIGSEGV),
    # How many calls of that kind fail before one succeeds; None: all. The *_once ones: 1.
    "times": None,
    # exit_0_without_passed, exit_1_with_passed, passed_without_figures, passed_without_engine
    "lie": "exit_0_without_passed",
    "samples": "",
}

# Options by what they take, as 10.3 has them (samples/common/sampleOptions.cpp).
WITH_VALUE = set(
    "onnx saveEngine loadEngine memPoolSize timingCacheFile profilingVerbosity exportLayerInfo"
    " exportTimes exportProfile exportOutput warmUp duration iterations avgRuns percentile"
    " avgTiming sleepTime idleTime infStreams streams builderOptimizationLevel device loadInputs"
    " calib shapes minShapes optShapes maxShapes tacticSources inputIOFormats outputIOFormats"
    " useDLACore maxAuxStreams sparsity persistentCacheRatio layerPrecisions"
    " precisionConstraints".split()
)
FLAGS = set(
    "noTF32 fp16 int8 bf16 fp8 best skipInference useSpinWait useCudaGraph noDataTransfers"
    " exposeDMA separateProfileRun dumpProfile dumpLayerInfo dumpOutput verbose threads safe"
    " stronglyTyped noBuilderCache noCompilationCache useManagedMemory errorOnTimingCacheMiss"
    " help".split()
)
# What other versions have besides, or lack: tags 8.2.1, 8.4.1, 8.5.1, v8.6.1, v10.0.0 and v11.1.
OLD_NAMES = {"workspace": True, "buildOnly": False, "explicitBatch": False, "batch": True}
LACKED_BEFORE = {"memPoolSize": (8, 4), "skipInference": (8, 6), "infStreams": (8, 6)}
LACKED_BEFORE |= {"builderOptimizationLevel": (8, 6), "bf16": (9, 0), "stronglyTyped": (9, 0)}
NEW_IN_11 = ("includeDataTransfers", "noCudaGraph", "noSpinWait")
LACKED_BY_11 = ("fp16", "int8", "bf16", "fp8", "best", "calib", "layerPrecisions")


def make_fake_trtexec(folder: Path, scenario: dict[str, Any] | None = None) -> Path:
    """An executable file `trtexec` in `folder`, which is made.

    Args:
        scenario: What differs from `DEFAULTS`. May be changed later by `set_scenario`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    set_scenario(folder, scenario or {})
    program = folder / "trtexec"
    script = shlex.join([sys.executable, "-S", "-E", str(Path(__file__).resolve()), str(folder)])
    program.write_text(f'#!/bin/sh\nexec {script} "$@"\n')
    program.chmod(0o755)
    return program


def set_scenario(folder: Path, scenario: dict[str, Any]) -> None:
    """What the next calls do. Raises `ValueError` for a key that `DEFAULTS` lacks."""
    if unknown := set(scenario) - set(DEFAULTS):
        raise ValueError(f"{sorted(unknown)} is none of {', '.join(sorted(DEFAULTS))}")
    values = {**DEFAULTS, "samples": str(SAMPLES) if SAMPLES.is_dir() else "", **scenario}
    part = folder / "scenario.part"
    part.write_text(json.dumps(values))
    part.replace(folder / "scenario.json")


def invocations(folder: Path) -> list[list[str]]:
    """The arguments of every call so far, oldest first."""
    log = folder / "invocations.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


class Fake:
    """One call."""

    def __init__(self, folder: Path, argv: list[str]) -> None:
        self.folder = folder
        self.scenario: dict[str, Any] = json.loads((folder / "scenario.json").read_text())
        self.argv = argv
        with (folder / "invocations.jsonl").open("a") as log:
            log.write(json.dumps(argv) + "\n")
        calls = invocations(folder)
        self.number = len(calls)
        self.builds = sum(any(a.startswith("--onnx=") for a in call) for call in calls)
        self.loads = sum(any(a.startswith("--loadEngine=") for a in call) for call in calls)
        program = str(folder / "trtexec")
        self.banner = (
            f"TensorRT.trtexec [TensorRT {self.scenario['version']}]{self.scenario['build_tag']}"
            f" # {' '.join([program, *argv])}"
        )
        self.options: dict[str, str] = {}
        number = int(self.scenario["version"].removeprefix("v"))
        major, rest = divmod(number, 10000 if number >= 100000 else 1000)
        self.numbers = (major, rest // 100, rest % 100)

    # What it prints: information on stdout, warnings and errors on stderr, each line at once.
    def say(self, text: str = "", level: str = "I") -> None:
        stream = sys.stdout if level == "I" else sys.stderr
        stamp = time.strftime("%m/%d/%Y-%H:%M:%S")
        print(f"[{stamp}] [{level}] {text}", file=stream, flush=True)

    def raw(self, text: str) -> None:
        print(text, flush=True)

    @property
    def lie(self) -> str:
        at = "run" if "loadEngine" in self.options else "build"
        lying = self.scenario["scenario"] == "lies" and self.scenario["at"] == at
        return str(self.scenario["lie"]) if lying and self.happens("lies", at) else ""

    def end(self, verdict: str) -> NoReturn:
        lie = self.lie
        code = {"PASSED": 0, "FAILED": 1}[verdict]
        if lie == "exit_0_without_passed":
            raise SystemExit(0)
        if lie == "exit_1_with_passed":
            verdict, code = "PASSED", 1
        self.raw(f"&&&& {verdict} {self.banner}")
        raise SystemExit(code)

    def fail(self, *lines: str) -> NoReturn:
        for line in lines:
            self.say(line, "E")
        self.end("FAILED")

    def replay(self, name: str, otherwise: list[str]) -> None:
        """Lines of a real log if it is there, else lines of the same shape."""
        path = Path(self.scenario["samples"] or "/nonexistent", name)
        lines = path.read_text().splitlines() if path.is_file() else otherwise
        for line in lines:
            if not line.startswith(("# ", "&&&&")):
                print(line, file=sys.stderr if "[I]" not in line else sys.stdout, flush=True)

    def happens(self, name: str, at: str) -> bool:
        """Whether this call has that mishap."""
        count = self.builds if at == "build" else self.loads
        times = 1 if name.endswith("_once") else self.scenario["times"]
        return self.scenario["scenario"] == name and (times is None or count <= times)

    def run(self) -> NoReturn:
        self.raw(f"&&&& RUNNING {self.banner}")
        self.parse_options()
        self.print_header()
        if "loadEngine" in self.options:
            engine = self.load()
        else:
            engine = self.build()
        if "skipInference" in self.options:
            self.export_layers()
            self.say("Skipped inference phase since --skipInference is added.")
            self.end("PASSED")
        self.infer(engine)
        self.end("PASSED")

    def parse_options(self) -> None:
        unknown = []
        known = self.known_options()
        for argument in self.argv:
            name, equals, value = argument.removeprefix("--").partition("=")
            if argument.startswith("--") and known.get(name) == bool(equals):
                self.options[name] = value
            else:
                unknown.append(f"Unknown option: --{name} {value}")
        if unknown or not self.argv or "help" in self.options:
            self.raw("=== Model Options ===\n  --onnx=<file>               ONNX model")
        if "help" in self.options:
            raise SystemExit(0)
        if unknown:
            self.fail(*unknown)
        if not self.argv:
            self.end("PASSED")
        if "onnx" not in self.options and "loadEngine" not in self.options:
            self.fail("Model missing or format not recognized")

    def known_options(self) -> dict[str, bool]:
        """Name -> whether it takes a value, for this version."""
        known = {**dict.fromkeys(WITH_VALUE, True), **dict.fromkeys(FLAGS, False)}
        if self.numbers < (10, 0):
            known |= OLD_NAMES
        if self.numbers >= (11, 0):
            known |= dict.fromkeys(NEW_IN_11, False)
        lacked = {name for name, since in LACKED_BEFORE.items() if self.numbers < since}
        lacked |= set(LACKED_BY_11) if self.numbers >= (11, 0) else set()
        return {name: takes for name, takes in known.items() if name not in lacked}

    def print_header(self) -> None:
        options = self.options
        self.say("=== Model Options ===")
        self.say(f"Format: {'ONNX' if 'onnx' in options else '*'}")
        self.say(f"Model: {options.get('onnx', '')}")
        self.say("Output:")
        if "onnx" in options:
            self.say("=== Build Options ===")
            self.say(f"Precision: {self.precision()}")
        self.say("=== Device Information ===")
        self.say("Available Devices: ")
        self.say(f'  Device 0: "{self.scenario["device"]}" UUID: GPU-0')
        self.say(f"Selected Device: {self.scenario['device']}")
        self.say("Selected Device ID: 0")
        self.say("Compute Capability: 8.7")
        self.say()
        self.say(f"TensorRT version: {'.'.join(map(str, self.numbers))}")
        self.say("Loading standard plugins")

    def precision(self) -> str:
        parts = [name for name in ("fp16", "bf16", "int8", "fp8") if name in self.options]
        return "+".join(["FP32", *(part.upper() for part in parts)])

    def stumble(self, at: str) -> None:
        """Hang or crash, if that is the scenario."""
        if self.scenario["at"] != at:
            return
        if self.happens("hang", at) or self.happens("ignore_sigterm", at):
            stubborn = self.scenario["scenario"] == "ignore_sigterm"
            if stubborn:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            # An ignored signal stays ignored in what is started from here.
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
            part = self.folder / "pids.part"
            part.write_text(json.dumps([os.getpid(), child.pid]))
            part.replace(self.folder / "pids.json")
            time.sleep(3600)
        if self.happens("crash", at):
            self.replay("FAIL_trt10_calib_without_valid_cache.txt", CRASH)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), self.scenario["signal"])
            time.sleep(60)

    def build(self) -> str:
        model = Path(self.options["onnx"])
        self.say("Start parsing network model.")
        if not model.is_file():
            self.fail(f"Could not open file {model}", "Failed to parse onnx file", *NO_ENGINE)
        if self.happens("parse_error", "build"):
            self.replay("FAIL_trt10.3.0_parse_error.txt", PARSE_ERROR)
            self.end("FAILED")
        self.say("Finished parsing network model. Parse time: 0.0483808")
        self.stumble("build")
        if self.happens("int8_kernel", "build"):
            self.say(NO_KERNEL, "E")
            self.fail(
                "Engine could not be created from network", "Building engine failed", *NO_ENGINE
            )
        if self.happens("memory_once", "build"):
            for line in SKIPPED_TACTIC:
                self.say(line, "W")
            self.fail(OUT_OF_MEMORY, "Engine could not be created from network", *NO_ENGINE)
        slow = 3.0 if self.scenario["scenario"] == "slow_build" else 0.0
        time.sleep(self.scenario["build_s"] or slow)
        engine = "\n".join(
            [
                MAGIC,
                self.scenario["version"],
                hashlib.sha256(model.read_bytes()).hexdigest(),
                self.precision() + (" noTF32" if "noTF32" in self.options else ""),
                "",
            ]
        )
        self.say("Engine built in 10.7204 sec.")
        self.say(f"Created engine with size: {len(engine) / 2**20:.6g} MiB")
        if "timingCacheFile" in self.options:
            Path(self.options["timingCacheFile"]).write_bytes(b"fake timing cache")
        if "saveEngine" in self.options:
            self.save(engine)
        return engine

    def save(self, engine: str) -> None:
        """As trtexec does it: opened and written in place, so a full disk leaves a part there."""
        if self.lie == "passed_without_engine":
            return
        full = self.happens("disk_full", "build")
        try:
            with Path(self.options["saveEngine"]).open("w") as stream:
                stream.write(engine[: len(engine) // 2] if full else engine)
        except OSError:
            full = True
        if full:
            self.fail("Saving engine to file failed.", "Engine set up failed")

    def load(self) -> str:
        path = Path(self.options["loadEngine"])
        engine = path.read_text(errors="replace") if path.is_file() else ""
        lines = engine.split("\n")
        fits = lines[:2] == [MAGIC, self.scenario["version"]] and len(lines) == 5
        if not path.is_file():
            self.fail(f"Error opening engine file: {path}", *NO_ENGINE)
        if not fits or self.happens("engine_mismatch_once", "run"):
            self.replay("FAIL_trt10.0_engine_version_mismatch.txt", MISMATCH)
            self.end("FAILED")
        self.say("Engine loaded in 0.0103 sec.")
        self.say("Engine deserialized in 0.00331 sec.")
        return engine

    def export_layers(self) -> None:
        if path := self.options.get("exportLayerInfo"):
            names = ["conv1 + relu1", "fc"]
            detailed = self.options.get("profilingVerbosity") == "detailed"
            layers: list[Any] = [
                {"Name": name, "LayerType": "CaskConvolution", "Inputs": [], "Outputs": []}
                for name in names
            ]
            Path(path).write_text(json.dumps({"Layers": layers if detailed else names}))

    def infer(self, engine: str) -> None:
        self.say("Created execution context with device memory size: 7.84766 MiB")
        self.say("Starting inference")
        self.stumble("run")
        time.sleep(self.scenario["run_s"])
        self.export_layers()
        profiled = "exportProfile" in self.options or "dumpProfile" in self.options
        if profiled and "separateProfileRun" not in self.options:
            self.say(NOT_REPORTED)
        elif self.lie != "passed_without_figures":
            rows = self.trace(engine)
            self.report(rows)
            if path := self.options.get("exportTimes"):
                Path(path).write_text(times_json(self.warm_up(rows) + rows))
        if path := self.options.get("exportProfile"):
            Path(path).write_text(PROFILE)

    def trace(self, engine: str) -> list[dict[str, float]]:
        """Start and end of every step of every query, ms since the start, as 32-bit floats."""
        scenario = self.scenario
        chance = random.Random(f"{scenario['seed']} {self.number} {engine}")
        unstable = scenario["scenario"] == "unstable"
        jitter = 0.2 if unstable else scenario["jitter"]
        between = 0.1 if unstable else scenario["between"]
        median = scenario["median_ms"] * max(0.1, 1 + chance.gauss(0, between))
        duration_ms = float(self.options.get("duration", "3")) * 1000
        least = int(self.options.get("iterations", "10"))
        count = min(max(least, math.ceil(duration_ms / median), 1), scenario["max_queries"])
        copies = "noDataTransfers" not in self.options
        overlap = "exposeDMA" not in self.options
        clock = float(self.options.get("warmUp", "200")) + chance.random()
        rows = []
        for _ in range(count):
            h2d, d2h = (0.036, 0.0039) if copies else (0.0, 0.0)
            compute = median * max(0.5, 1 + chance.gauss(0, jitter))
            start = clock - h2d if overlap else clock
            enqueue_end = start + 0.2 * compute
            steps = [start, enqueue_end, start, start + h2d, start + h2d]
            steps += [start + h2d + compute, start + h2d + compute, start + h2d + compute + d2h]
            clock = steps[5] if overlap else steps[7] + 0.01
            rows.append(dict(zip(STEPS, map(single, steps), strict=True)))
        return rows

    def warm_up(self, rows: list[dict[str, float]]) -> list[dict[str, float]]:
        """The queries before: 8.4 and older export them too. The first ones are slow."""
        if self.numbers >= (8, 5):
            return []
        slow = [{k: v * (3 if k.startswith("end") else 1) for k, v in row.items()} for row in rows]
        return slow[:WARM_UP_QUERIES]

    def report(self, rows: list[dict[str, float]]) -> None:
        factor = 1.2 if self.scenario["scenario"] == "text_disagrees_with_times" else 1.0
        wall_ms = rows[-1]["endD2hMs"] - rows[0]["startH2dMs"]
        several = self.numbers >= (8, 5)
        percents = self.options.get("percentile", "90,95,99" if several else "99").split(",")
        warm_up_ms = self.options.get("warmUp", "200")
        self.say(f"Warmup completed {WARM_UP_QUERIES} queries over {warm_up_ms} ms")
        self.say(f"Timing trace has {len(rows)} queries over {wall_ms / 1000:.6g} s")
        self.say()
        self.say("=== Trace details ===")
        self.say("Trace averages of 10 runs:")
        self.say(AVERAGE)
        self.say()
        self.say("=== Performance summary ===")
        self.say(f"Throughput: {len(rows) / wall_ms * 1000 / factor:.6g} qps")
        for title, steps in PARTS.items():
            if title == "End-to-End Host Latency" and self.numbers >= (8, 4):
                continue
            values = sorted(factor * sum(took(row, s) for s in steps) for row in rows)
            self.say(f"{title}: {statistics_text(values, percents)}")
        self.say(f"Total Host Walltime: {wall_ms / 1000:.6g} s")
        compute = [took(row, "Compute") for row in rows]
        self.say(f"Total GPU Compute Time: {sum(compute) / 1000:.6g} s")
        mean = sum(compute) / len(compute)
        spread = math.sqrt(sum((v - mean) ** 2 for v in compute) / len(compute)) / mean * 100
        limit = 1.0 if self.numbers < (10, 13) else 2.5
        if spread > limit and self.numbers >= (8, 4):
            self.say(UNSTABLE.format(spread), "W")
            self.say(UNSTABLE_ADVICE, "W")
        self.say("Explanations of the performance metrics are printed in the verbose logs.")
        self.say()


STEPS = [
    *("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs"),
    *("startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs"),
]
PARTS = {
    "Latency": ("H2d", "Compute", "D2h"),
    "End-to-End Host Latency": ("H2d", "Compute", "D2h"),
    "Enqueue Time": ("Enq",),
    "H2D Latency": ("H2d",),
    "GPU Compute Time": ("Compute",),
    "D2H Latency": ("D2h",),
}


def single(value: float) -> float:
    """`value` as a 32-bit float."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def took(row: dict[str, float], step: str) -> float:
    return single(row[f"end{step}Ms"] - row[f"start{step}Ms"])


def statistics_text(values: list[float], percents: list[str]) -> str:
    count = len(values)
    middle = values[(count - 1) // 2 : count // 2 + 1]
    text = (
        f"min = {values[0]:.6g} ms, max = {values[-1]:.6g} ms, mean = {sum(values) / count:.6g} ms,"
        f" median = {sum(middle) / len(middle):.6g} ms"
    )
    for percent in percents:
        left_out = single(single(1 - single(float(percent) / 100)) * count)
        value = values[max(count - 1 - int(left_out), 0)]
        text += f", percentile({float(percent):.6g}%) = {value:.6g} ms"
    return text


def times_json(rows: list[dict[str, float]]) -> str:
    """The file of --exportTimes: six digits, so late times are coarse, durations are not."""
    lines = []
    for row in rows:
        h2d, compute, d2h = (took(row, step) for step in ("H2d", "Compute", "D2h"))
        values = {**row, "h2dMs": h2d, "computeMs": compute, "d2hMs": d2h}
        values["latencyMs"] = single(single(h2d + compute) + d2h)
        lines.append("{ " + ", ".join(f'"{k}" : {v:.6g}' for k, v in values.items()) + " }")
    return "[\n  " + "\n, ".join(lines) + "\n]\n"


NOT_REPORTED = (
    "The e2e network timing is not reported since it is inaccurate due to the extra"
    " synchronizations when the profiler is enabled."
)
AVERAGE = (
    "Average on 10 runs - GPU latency: 1.4891 ms - Host latency: 1.52709 ms (enqueue 0.251123 ms)"
)
UNSTABLE = "* GPU compute time is unstable, with coefficient of variance = {:.6g}%."
UNSTABLE_ADVICE = (
    "  If not already in use, locking GPU clock frequency or adding --useSpinWait may improve the"
    " stability."
)
NO_ENGINE = ["Failed to create engine from model or file.", "Engine set up failed"]
NO_KERNEL = (
    "Error[10]: IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any"
    " implementation for node /features.7/Conv + PWN(PWN(/features.7/Sigmoid), /features.7/Mul).)"
)
SKIPPED_TACTIC = [
    "[TRT] Tactic Device request: 4229MB Available: 2658MB. Device memory is insufficient to use"
    " tactic.",
    "[TRT] Skipping tactic 13 due to insufficient memory on requested size of 4229 detected for"
    " tactic 0x0000000000000074.",
]
OUT_OF_MEMORY = (
    "Error[2]: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory (Requested"
    " size was 4434426880 bytes.)"
)
PARSE_ERROR = [
    "[09/02/2024-17:35:22] [E] [TRT] ModelImporter.cpp:949: While parsing node number 3 [Tile]:",
    "[09/02/2024-17:35:22] [E] [TRT] ModelImporter.cpp:950: --- Begin node ---",
    'op_type: "Tile"',
    "",
    "[09/02/2024-17:35:22] [E] [TRT] ModelImporter.cpp:954: ERROR: ModelImporter.cpp:195 In"
    " function parseNode:",
    "[6] Invalid Node - /Tile",
    "[09/02/2024-17:35:22] [E] Failed to parse onnx file",
    "[09/02/2024-17:35:22] [E] Parsing model failed",
    "[09/02/2024-17:35:22] [E] Failed to create engine from model or file.",
    "[09/02/2024-17:35:22] [E] Engine set up failed",
]
MISMATCH = [
    "[01/15/2026-07:20:09] [E] Error[1]: [runtime.cpp::parsePlan::455] Error Code 1: Serialization"
    " (Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed.)",
    "[01/15/2026-07:20:09] [E] Engine deserialization failed",
    "[01/15/2026-07:20:09] [E] Got invalid engine!",
    "[01/15/2026-07:20:09] [E] Inference set up failed",
]
CRASH = [
    "[08/20/2024-16:16:08] [E] Error[1]: [executionContext.cpp::executeInternal::966] Error Code 1:"
    " Cuda Runtime (an illegal memory access was encountered)",
]
PROFILE = """[
  { "count" : 100 }
, { "name" : "conv1 + relu1", "timeMs" : 120.5, "averageMs" : 1.205, "medianMs" : 1.2, "percentage" : 80.3333 }
, { "name" : "fc", "timeMs" : 29.5, "averageMs" : 0.295, "medianMs" : 0.29, "percentage" : 19.6667 }
]
"""  # noqa: E501


if __name__ == "__main__":
    Fake(Path(sys.argv[1]), sys.argv[2:]).run()
