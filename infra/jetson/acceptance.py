#!/usr/bin/env python3
"""Prove on a board that figures can be believed, and bring back what only a board can show.

Run it with the agent's own Python; it needs nothing else:

    /opt/jetson-agent/bin/python acceptance.py --out acceptance --exports exports

Steps, in this order; each can be chosen or left out, and one that has its answer in the folder is
not repeated, so that the same command resumes:

doctor    what `jetson-agent doctor` says
samples   trtexec itself on ResNet-50: its text, its times, its layers, and whether we read it right
resnet50  ResNet-50 near the figures that are known of an AGX Orin, five repeats within 2 %
exports   every graph of a folder of exports (`sharedenc export --out`) at every precision
identity  the INT8 encoder of EfficientNetV2-S with its final Identity, and without it
soak      the daemon for a day, with the network pulled in between: nothing is lost

The folder is meant to be sent back as it is. It holds no credentials; where a server was named, its
address is in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jetson_agent.backends.base import BuildRequest, MeasureRequest
from jetson_agent.backends.trtexec import build_flags, find_trtexec, measure_flags, read_version
from jetson_agent.errors import AgentError, BackendError
from jetson_agent.explain import known_results
from jetson_agent.identity import identify, sysroot
from jetson_agent.protocol import MANIFEST_FILE, PRECISIONS, ExportManifest
from jetson_agent.trtexec_log import parse
from jetson_agent.trtexec_times import agree, read_times

RESNET50 = Path("/usr/src/tensorrt/data/resnet50/ResNet50.onnx")
REPEATS = 5
MAX_SPREAD = 0.02
# GPU medians in ms at batch 1 of the AGX Orin 64GB with JetPack 6.2.1 (TensorRT 10.3.0.30) in MAXN.
# Whether that FP32 had TF32 on was not told, so either of ours may be the near one.
KNOWN_SKU, KNOWN_MODE = "p3701-0005", "MAXN-pinned"
KNOWN_MS = {("fp32", "tf32"): 1.94, ("fp16",): 1.03}
NEAR = 0.10
TIMED = tuple(dict.fromkeys(p for names in KNOWN_MS for p in names))
POLL_S = 5.0
SEND_S = 600.0

Verdict = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a step; `figures` are for people and for later comparison."""

    verdict: Verdict
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The command line."""

    out: Path
    resnet50: Path | None
    exports: Path | None
    repeats: int
    timing: list[str]
    server: list[str]
    soak_hours: float
    poll_s: float


def agent(*words: str, log: Path) -> tuple[int, Any]:
    """Run a command of the agent; its exit code and the JSON that it printed, None without."""
    command = [sys.executable, "-m", "jetson_agent", *words]
    with log.open("ab") as stream:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stream, check=False)
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        return done.returncode, None


def measure(model: Path, kept: Path, *words: str, choices: Choices) -> list[dict[str, Any]]:
    """Results of `jetson-agent measure`, kept in a file so that they are had once; or none."""
    if kept.exists():
        found: list[dict[str, Any]] = json.loads(kept.read_text())
        return found
    kept.parent.mkdir(parents=True, exist_ok=True)
    log = kept.with_suffix(".log")
    code, told = agent("measure", str(model), "--json", *words, *choices.timing, log=log)
    found = told["results"] if told else []
    # One that was interrupted is not an answer.
    if found and code in (0, 1):
        write_json(kept, found)
    return found


def doctor(choices: Choices, folder: Path) -> Answer:
    words = [*choices.server] if choices.server else ["--offline"]
    code, told = agent("doctor", "--json", *words, log=folder / "doctor.log")
    if told is None:
        return Answer(verdict="fail", reason=f"doctor ended with {code}, see doctor.log")
    write_json(folder / "doctor.json", told)
    missing = [row["check"] for row in told["rows"] if row["state"] == "missing"]
    doubted = {row["check"]: row["detail"] for row in told["rows"] if row["state"] == "warn"}
    if missing:
        return Answer(verdict="fail", reason=f"missing: {', '.join(missing)}", figures=doubted)
    return Answer(verdict="pass", figures=doubted)


def samples(choices: Choices, folder: Path) -> Answer:
    """trtexec's own output, as it is, and read by the agent's own readers."""
    program, model = find_trtexec(), find_resnet50(choices, folder)
    if program is None or model is None:
        return Answer(verdict="skipped", reason="there is no trtexec, or no ResNet-50")
    for name in ("etc/nv_tegra_release", "etc/nvpmodel.conf"):
        if (source := sysroot() / name).is_file():
            (folder / source.name).write_bytes(source.read_bytes())
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    version = read_version(program)
    for precision in (*TIMED, "int8-unscaled"):
        engine = folder / "engine.plan"
        build = BuildRequest(model=model, precision=precision, folder=folder, threads=1)
        run = MeasureRequest(load="stream", warmup_s=2.0, duration_s=10.0)
        steps = {
            "build": [
                f"--onnx={model}",
                f"--saveEngine={engine}",
                f"--exportLayerInfo={folder / precision}.layers.json",
                *build_flags(version, build),
            ],
            "run": [
                f"--loadEngine={engine}",
                f"--exportTimes={folder / precision}.times.json",
                *measure_flags(version, run),
            ],
        }
        for name, flags in steps.items():
            log = folder / f"{precision}.{name}.txt"
            with log.open("wb") as stream:
                subprocess.run([program, *flags], stdout=stream, stderr=subprocess.STDOUT)
            report = parse(log.read_text(errors="replace"))
            if report.passed is not True:
                wrong.append(f"{log.name} was not read as passed")
            elif name == "run":
                figures[precision] = report.to_dict()["latency_ms"]
                try:
                    times = read_times(folder / f"{precision}.times.json", report.queries)
                    wrong += [f"{log.name}: {text}" for text in agree(report, times)]
                except BackendError as error:
                    wrong.append(f"{log.name}: {error}")
        engine.unlink(missing_ok=True)
    return judged(wrong, figures)


def resnet50(choices: Choices, folder: Path) -> Answer:
    model = find_resnet50(choices, folder)
    if model is None or find_trtexec() is None:
        return Answer(verdict="skipped", reason="there is no trtexec, or no ResNet-50")
    medians: dict[str, list[float]] = {}
    wrong: list[str] = []
    mode = ""
    for precision in TIMED:
        for number in range(1, choices.repeats + 1):
            kept = folder / f"{precision}-{number}.json"
            words = ("--precision", precision, "--load", "stream", "--builds", "1")
            row = next(iter(measure(model, kept, *words, choices=choices)), {})
            if "gpu_compute_ms/p50" not in row.get("metrics", {}):
                wrong.append(f"{precision}, repeat {number} gave no figure: {why(row)}")
                break
            medians.setdefault(precision, []).append(row["metrics"]["gpu_compute_ms/p50"])
            mode = row["mode"]
    figures: dict[str, Any] = {"mode": mode}
    for precision, values in medians.items():
        middle = sorted(values)[len(values) // 2]
        spread = (max(values) - min(values)) / middle
        figures[precision] = {"gpu_ms": values, "median_ms": middle, "spread": round(spread, 5)}
        if spread > MAX_SPREAD:
            wrong.append(f"{precision}: {len(values)} repeats spread by {spread:.1%}, not 2 %")
    if identify().sku == KNOWN_SKU and mode == KNOWN_MODE:
        figures["known_ms"] = {"/".join(names): ms for names, ms in KNOWN_MS.items()}
        for names, ms in KNOWN_MS.items():
            off = [abs(figures[p]["median_ms"] / ms - 1) for p in names if p in medians]
            if off and min(off) > NEAR:
                what = " or ".join(names)
                wrong.append(f"{what} is {min(off):.0%} from the known {ms} ms of this board")
    else:
        figures["known_ms"] = f"only compared on {KNOWN_SKU} in {KNOWN_MODE}"
    return judged(wrong, figures)


def exports(choices: Choices, folder: Path) -> Answer:
    if choices.exports is None:
        return Answer(verdict="skipped", reason="no folder of exports was named (--exports)")
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    for place, manifest in manifests(choices.exports):
        name = f"{manifest.backbone}-{manifest.graph}-{manifest.architecture[:8]}"
        for precision in PRECISIONS:
            kept = folder / name / f"{precision}.json"
            words = ("--precision", precision, "--load", "stream,single")
            rows = measure(place, kept, *words, choices=choices)
            if not rows:
                log = kept.with_suffix(".log").read_text(errors="replace").strip().splitlines()
                figures[f"{name} {precision}"] = f"not timed: {(log or ['nothing was said'])[-1]}"
                continue
            for row in rows:
                p50 = row["metrics"].get("latency_ms/p50")
                what = f"{name} {precision} {row['load']}"
                figures[what] = f"{row['verdict']}, {row['checked']}" + (
                    f", p50 {p50:.4g} ms" if p50 else f": {why(row)}"
                )
                if row["verdict"] in ("wrong", "failed"):
                    wrong.append(f"{what}: {row['verdict']}")
    if not figures:
        return Answer(verdict="skipped", reason=f"{choices.exports} holds no {MANIFEST_FILE}")
    return judged(wrong, figures)


def identity(choices: Choices, folder: Path) -> Answer:
    """Whether this TensorRT needs the Identity that our INT8 files end on."""
    found = [
        place / "model.int8-trt.onnx"
        for place, manifest in manifests(choices.exports)
        if (manifest.backbone, manifest.graph) == ("efficientnet_v2_s", "encoder")
        and "model.int8-trt.onnx" in manifest.files
    ]
    if not found:
        return Answer(
            verdict="skipped",
            reason="no INT8 encoder of efficientnet_v2_s is among the exports (--exports)",
        )
    bare = folder / "without-identity.onnx"
    removed = without_identity(found[0], bare)
    if not removed:
        return Answer(verdict="fail", reason=f"{found[0].name} does not end on an Identity")
    figures: dict[str, Any] = {"identities": removed}
    for name, model in (("with", found[0]), ("without", bare)):
        words = ("--precision", "int8", "--load", "stream")
        row = next(iter(measure(model, folder / f"{name}.json", *words, choices=choices)), {})
        p50 = row.get("metrics", {}).get("latency_ms/p50")
        figures[name] = f"p50 {p50:.4g} ms, {row['verdict']}" if p50 else f"no figure: {why(row)}"
    wrong = [] if figures["with"].startswith("p50") else ["our own file cannot be timed"]
    return judged(wrong, figures)


def soak(choices: Choices, folder: Path) -> Answer:
    """The daemon with a server that goes away: nothing lost, nothing doubled.

    Ctrl-C ends it before its time, and what was seen until then is judged.
    """
    if not choices.server:
        return Answer(verdict="skipped", reason="no server was named (--tracking-uri)")
    state, seen = folder / "state", folder / "status.jsonl"
    # A device of its own, so that there is something to time whatever was timed before.
    device = f"{identify().name}-acceptance"
    command = [sys.executable, "-m", "jetson_agent", "run", "--device", device]
    command += ["--state-dir", str(state), "--poll-s", str(choices.poll_s)]
    command += [*choices.server, *choices.timing]
    end = time.monotonic() + choices.soak_hours * 3600
    history: list[dict[str, Any]] = []
    asked = ""
    with (folder / "daemon.log").open("ab") as log, seen.open("a") as notes:
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            while time.monotonic() < end and daemon.poll() is None:
                try:
                    time.sleep(min(POLL_S, choices.poll_s))
                except KeyboardInterrupt:
                    print("  ended early, by Ctrl-C", flush=True)
                    end = time.monotonic()
                if (now := read_status(state)) is None:
                    continue
                if not history or now != history[-1]:
                    notes.write(json.dumps(now) + "\n")
                    notes.flush()
                    history.append(now)
                if (wish := wanted(history)) and wish != asked:
                    asked = wish
                    print(f"  >>> {wish}", flush=True)
            # What still waits gets a last chance.
            last = time.monotonic() + SEND_S
            while daemon.poll() is None and time.monotonic() < last:
                if not (read_status(state) or {}).get("waiting"):
                    break
                time.sleep(min(POLL_S, choices.poll_s))
            died = daemon.poll()
        finally:
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGTERM)
            code = daemon.wait(600)
    if died is not None:
        return Answer(verdict="fail", reason=f"the daemon ended by itself with {died}")
    kept = {result.key for result in known_results(state)}
    stored, doubled = on_server(choices, device)
    figures = {
        "hours": choices.soak_hours,
        "results": len(kept),
        "on the server": len(stored & kept),
        "most that waited": max((s["waiting"] for s in history), default=0),
        "times away": sum(
            a["link"] == "ok" and b["link"] == "away" for a, b in itertools.pairwise(history)
        ),
        "exit code": code,
    }
    wrong = [f"{len(kept - stored)} results never came to the server"] if kept - stored else []
    wrong += [f"{doubled} results are there twice"] if doubled else []
    wrong += [f"the daemon ended with {code}"] if code else []
    if not wrong and not figures["times away"]:
        return Answer(verdict="skipped", reason="the network was never pulled", figures=figures)
    if not wrong and not figures["most that waited"]:
        reason = "nothing was timed while the network was away: name a server with more models"
        return Answer(verdict="skipped", reason=reason, figures=figures)
    return judged(wrong, figures)


def wanted(history: list[dict[str, Any]]) -> str:
    """What the owner should do now, or nothing."""
    away = any(s["link"] == "away" for s in history)
    if not away and history[-1]["sent"]:
        return "pull the network cable now (the daemon goes on without it)"
    if history[-1]["link"] == "away" and history[-1]["waiting"]:
        return "results wait on the disk: plug the cable in again, now or in an hour"
    return ""


def read_status(state: Path) -> dict[str, Any] | None:
    """What the daemon says, without what changes all the time."""
    try:
        told = json.loads((state / "status.json").read_text())
    except (OSError, ValueError):
        return None
    return {
        "doing": told["doing"],
        "link": told["server"]["state"],
        "waiting": told["waiting_to_be_sent"],
        "sent": told["counts"].get("sent", 0),
        "to do": told["counts"].get("to do", 0),
    }


def on_server(choices: Choices, device: str) -> tuple[set[str], int]:
    """Keys that the server has, and how many runs there are beyond one each."""
    from jetson_agent.credentials import find_server
    from jetson_agent.registry_mlflow import MlflowRegistry

    named = dict(zip(choices.server[::2], choices.server[1::2], strict=True))
    files = {name: Path(named[f"--{name}"]) if f"--{name}" in named else None for name in FILES}
    server = find_server(
        named["--tracking-uri"], credentials_file=files["credentials"], ca_file=files["ca-file"]
    )
    registry = MlflowRegistry(server)
    keys = [key for key, _, _ in registry.bench_rows(device)]
    return set(keys), len(keys) - len(set(keys))


FILES = ("credentials", "ca-file")


def manifests(folder: Path | None) -> Iterator[tuple[Path, ExportManifest]]:
    """The exported folders below `folder`."""
    for path in sorted(folder.rglob(MANIFEST_FILE)) if folder else []:
        yield path.parent, ExportManifest.from_json(path.read_text())


def find_resnet50(choices: Choices, folder: Path) -> Path | None:
    """ResNet-50 as a file that the agent loads: JetPack's own is of an old opset."""
    source = choices.resnet50 or RESNET50
    if not source.is_file():
        return None
    import onnx
    from onnx import version_converter

    model = onnx.load(source)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    old = max((entry.version for entry in model.opset_import if not entry.domain), default=0) < 12
    if not old and len(inputs) == len(model.graph.input):
        return source
    if old:
        model = version_converter.convert_version(model, 13)
    # Before IR 4, weights had to be among the inputs.
    model.ir_version = max(model.ir_version, 8)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    path = folder / "resnet50.onnx"
    onnx.save(model, path)
    return path


def without_identity(source: Path, target: Path) -> int:
    """Write `source` without the Identity nodes that make its outputs; how many there were."""
    import onnx

    model = onnx.load(source)
    outputs = {value.name for value in model.graph.output}
    ends = [n for n in model.graph.node if n.op_type == "Identity" and n.output[0] in outputs]
    for node in ends:
        inner, outer = node.input[0], node.output[0]
        model.graph.node.remove(node)
        for other in model.graph.node:
            for names in (other.input, other.output):
                for at, name in enumerate(names):
                    if name == inner:
                        names[at] = outer
    # It is another architecture now, and its figure must not be joined with the export's.
    for entry in [e for e in model.metadata_props if e.key == "sharedenc.architecture"]:
        model.metadata_props.remove(entry)
    onnx.save(model, target)
    return len(ends)


def why(row: dict[str, Any]) -> str:
    return " ".join(row.get("reasons") or []) or "see the log"


def judged(wrong: list[str], figures: dict[str, Any]) -> Answer:
    return Answer(verdict="fail" if wrong else "pass", reason="; ".join(wrong), figures=figures)


def write_json(path: Path, value: Any) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


STEPS: dict[str, Callable[[Choices, Path], Answer]] = {
    "doctor": doctor,
    "samples": samples,
    "resnet50": resnet50,
    "exports": exports,
    "identity": identity,
    "soak": soak,
}


def summarise(out: Path, answers: dict[str, Answer]) -> None:
    """Write ``summary.json`` and ``summary.md``."""
    device = asdict(identify())
    write_json(
        out / "summary.json",
        {"device": device, "steps": {name: asdict(a) for name, a in answers.items()}},
    )
    lines = ["# Acceptance", ""]
    facts = ("name", "module", "l4t", "jetpack", "tensorrt", "cuda", "power_mode", "clock_policy")
    lines += [f"- {fact}: {device[fact] or 'unknown'}" for fact in facts]
    lines += ["", "| step | verdict | reason |", "|---|---|---|"]
    lines += [f"| {name} | {a.verdict} | {a.reason} |" for name, a in answers.items()]
    for name, answer in answers.items():
        if answer.figures:
            lines += ["", f"## {name}", ""]
            lines += [f"- {what}: {value}" for what, value in answer.figures.items()]
    (out / "summary.md").write_text("\n".join(lines) + "\n")


def parse_arguments(words: list[str] | None) -> tuple[Choices, list[str], list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = ",".join(STEPS)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--steps", default=steps, help=f"of {steps}; by comma [all]")
    parser.add_argument("--skip", default="", help="steps to leave out; by comma")
    parser.add_argument("--again", default="", help="steps to repeat; by comma")
    parser.add_argument("--resnet50", type=Path, help=f"ONNX file [{RESNET50}]")
    parser.add_argument("--exports", type=Path, help="folder that `sharedenc export --out` wrote")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"of ResNet-50 [{REPEATS}]")
    parser.add_argument("--tracking-uri", help="server for the soak, with models in its registry")
    parser.add_argument("--credentials", help="file of mode 600 for it")
    parser.add_argument("--ca-file", help="certificate of its CA")
    parser.add_argument("--soak-hours", type=float, default=24.0, help="[24]")
    parser.add_argument("--poll-s", type=float, default=30.0, help="of the daemon [30]")
    parser.add_argument("--timing", default="", help='more options of measure: "--duration-s 5"')
    given = parser.parse_args(words)
    chosen = {}
    for name in ("steps", "skip", "again"):
        chosen[name] = [word for word in getattr(given, name).split(",") if word]
        if unknown := [word for word in chosen[name] if word not in STEPS]:
            parser.error(f"--{name}: {unknown[0]!r} is not one of {steps}")
    if given.tracking_uri and "@" in given.tracking_uri:
        parser.error("leave user and password out of the address: --credentials FILE")
    server: list[str] = []
    for option in ("tracking-uri", *FILES):
        if value := getattr(given, option.replace("-", "_")):
            server += [f"--{option}", value]
    choices = Choices(
        out=given.out,
        resnet50=given.resnet50,
        exports=given.exports,
        repeats=given.repeats,
        timing=shlex.split(given.timing),
        server=server if given.tracking_uri else [],
        soak_hours=given.soak_hours,
        poll_s=given.poll_s,
    )
    return choices, [s for s in chosen["steps"] if s not in chosen["skip"]], chosen["again"]


def main(words: list[str] | None = None) -> int:
    choices, steps, again = parse_arguments(words)
    answers: dict[str, Answer] = {}
    for name, step in STEPS.items():
        folder = choices.out / name
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "answer.json"
        if name in again:
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        if kept.exists():
            answers[name] = Answer(**json.loads(kept.read_text()))
        elif name not in steps:
            answers[name] = Answer(verdict="skipped", reason="left out")
        else:
            print(f"{name} ...", flush=True)
            try:
                answers[name] = step(choices, folder)
            except (AgentError, BackendError, OSError) as error:
                answers[name] = Answer(verdict="fail", reason=str(error))
            if answers[name].verdict != "skipped":
                write_json(kept, asdict(answers[name]))
        reason = f": {answers[name].reason}" if answers[name].reason else ""
        print(f"{name}: {answers[name].verdict}{reason}", flush=True)
        summarise(choices.out, answers)
    print(f"please send {choices.out} (summary.md is its first page)")
    return 1 if any(a.verdict == "fail" for a in answers.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
