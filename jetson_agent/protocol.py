"""What the sweep side and the agent say to each other; standard library only, Python 3.10.

The sweep side writes an `ExportManifest` beside the ONNX files of each graph and, in short, as tags
of the registered model version. The agent reads the tags, and answers with one `BenchResult` per
architecture, precision and load. This is the only module of the agent that `sharedenc` and
`sweeps` import.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, get_args

PROTOCOL_VERSION = 2

Verdict = Literal["valid", "suspect", "wrong", "unsupported", "failed"]
Load = Literal["stream", "single"]
Int8Recipe = Literal["trt", "cpu"]
# Whether the timed engine was run on the reference inputs, and what came of it.
Checked = Literal["right", "wrong", "unchecked"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
LOADS: tuple[Load, ...] = get_args(Load)
INT8_RECIPES: tuple[Int8Recipe, ...] = get_args(Int8Recipe)
CHECKED: tuple[Checked, ...] = get_args(Checked)
PRECISIONS = ("fp32", "tf32", "fp16", "int8", "int8_fp16", "int8-unscaled")
# Precisions that read a file with explicit Q/DQ; all others read the float file.
QUANTIZED = ("int8", "int8_fp16")
# What a sweep asks of a board; a backend takes those that it has.
ASKED_PRECISIONS = ("fp32", "int8", "int8-unscaled")

MODEL_FILE = "model.onnx"
INT8_FILES: dict[Int8Recipe, str] = {"trt": "model.int8-trt.onnx", "cpu": "model.int8-cpu.onnx"}
# Reference inputs and ONNX Runtime's outputs of each ONNX file of the folder (`numpy.savez`).
REFERENCE_FILE = "reference.npz"
MANIFEST_FILE = "manifest.json"
CERTIFICATE_FILE = "certificate.json"
# First line of a file of results, for a board without a network.
TIMINGS_HEADER = {"sharedenc_timings": 1}

STATE_TAG = "export.state"
READY = "ready"
KIND_TAG = "sharedenc.kind"
BENCH_KIND = "bench"
BENCH_KEY_TAG = "sharedenc.bench_key"
# A run whose place another one with the same key has taken; it counts no more.
REPLACED_KIND = "bench-replaced"
# Of a bench run whose board has other software by now; the value is the newer `runtime`.
STALE_TAG = "sharedenc.stale"
# Of the experiment bench/<device>, one tag per agent: ``sharedenc.seen.<agent>``, see `Seen`.
SEEN_TAG = "sharedenc.seen."

# MLflow refuses longer tag values (5000 characters for model versions, 8000 for runs).
TAG_LIMIT = 4000


class ProtocolError(Exception):
    """A manifest, a set of tags or a result that does not follow this protocol."""


def slug(text: str) -> str:
    """Lower-case `text` to letters, digits, ``_`` and ``.``, every other run becoming ``-``."""
    return re.sub(r"[^a-z0-9_.]+", "-", text.lower()).strip("-") or "unnamed"


def model_name(data: str, backbone: str, graph: str) -> str:
    """Name of the registered model, such as ``voc20-resnet18-dual``.

    Args:
        data: Name of the built-in class list, or of the data set if its classes are its own.
    """
    return f"{slug(data)}-{slug(backbone)}-{slug(graph)}"


def bench_experiment(device: str) -> str:
    """Name of the MLflow experiment that holds a device's timings."""
    return f"bench/{device}"


@dataclass(frozen=True, kw_only=True)
class ExportManifest:
    """What one exported folder holds; `files` maps each file name to its sha256 (64 hex).

    `architecture` is that of ``model.onnx``; `architectures` has it for every ONNX file, by name.
    `untrained` marks a graph that was exported for its speed alone, before any training.
    """

    data: str
    backbone: str
    graph: str
    architecture: str
    files: dict[str, str]
    study: str
    cell: str
    key: str
    run_id: str = ""
    architectures: dict[str, str] = field(default_factory=dict)
    precisions: list[str] = field(default_factory=lambda: ["fp32"])
    untrained: bool = False
    input_name: str = "images"
    input_shape: list[int] = field(default_factory=lambda: [1, 3, 320, 320])
    outputs: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    protocol: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        for name, digest in self.files.items():
            if name != name.strip() or not name or "/" in name or "\\" in name or name[0] == ".":
                raise ProtocolError(f"file name {name!r} is not a plain name inside one folder")
            if not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
                raise ProtocolError(f"sha256 of {name} is {digest!r}, not 64 lower-case hex digits")

    @property
    def model(self) -> str:
        """Name of the registered model that this export belongs to."""
        name = model_name(self.data, self.backbone, self.graph)
        return f"{name}-untrained" if self.untrained else name

    def file_for(self, precision: str, recipe: Int8Recipe) -> tuple[str, str] | None:
        """Name and architecture of the file that a precision is timed with.

        Args:
            recipe: Which of the quantised files the backend reads.

        Returns:
            None if the folder has no such file.
        """
        name = INT8_FILES[recipe] if precision in QUANTIZED else MODEL_FILE
        architecture = self.architectures.get(name, "")
        if name == MODEL_FILE:
            architecture = architecture or self.architecture
        return (name, architecture) if name in self.files and architecture else None

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ExportManifest:
        """Read ``manifest.json``.

        Raises:
            ProtocolError: not JSON, another protocol version, or a field missing.
        """
        return cls(**_known_fields(cls, _object(text, MANIFEST_FILE), MANIFEST_FILE))

    def to_tags(self) -> dict[str, str]:
        """Tags of the model version, without ``export.state``, which is set last and by itself."""
        return {
            "sharedenc.protocol": str(self.protocol),
            "sharedenc.data": self.data,
            "sharedenc.study": self.study,
            "sharedenc.cell": self.cell,
            "sharedenc.key": self.key,
            "sharedenc.backbone": self.backbone,
            "sharedenc.graph": self.graph,
            "sharedenc.architecture": self.architecture,
            "sharedenc.sha256": json.dumps(self.files, sort_keys=True),
            "sharedenc.architectures": json.dumps(self.architectures, sort_keys=True),
            "sharedenc.precisions": json.dumps(self.precisions),
            "sharedenc.untrained": json.dumps(self.untrained),
        }

    @classmethod
    def from_tags(cls, tags: Mapping[str, str], *, run_id: str = "") -> ExportManifest:
        """What the tags of a model version say.

        Class names, outputs and the input's shape may be long and are in ``manifest.json`` only:
        here they have their defaults.

        Raises:
            ProtocolError: another protocol version, or a tag missing or malformed.
        """
        where = "the version's tags"
        check_protocol(tags.get("sharedenc.protocol"), where)

        def tag(name: str) -> str:
            value = tags.get(f"sharedenc.{name}")
            if not value:
                raise ProtocolError(f"{where} have no sharedenc.{name}: export it again")
            return value

        files = _object(tag("sha256"), "tag sharedenc.sha256")
        architectures = _object(
            tags.get("sharedenc.architectures") or "{}", "tag sharedenc.architectures"
        )
        try:
            precisions = json.loads(tag("precisions"))
        except ValueError as error:
            raise ProtocolError(f"tag sharedenc.precisions is not JSON: {error}") from error
        if not isinstance(precisions, list):
            raise ProtocolError(f"tag sharedenc.precisions is {precisions!r}, not a list")
        return cls(
            data=tags.get("sharedenc.data", ""),
            backbone=tag("backbone"),
            graph=tag("graph"),
            architecture=tag("architecture"),
            files={str(name): str(digest) for name, digest in files.items()},
            study=tag("study"),
            cell=tag("cell"),
            key=tag("key"),
            run_id=run_id,
            architectures={str(name): str(value) for name, value in architectures.items()},
            precisions=[str(name) for name in precisions],
            untrained=tags.get("sharedenc.untrained") == "true",
        )


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """One timing of one architecture, or the reason why there is none.

    `metrics` has ``latency_ms/p50``, ``/mean``, ``/min``, ``/max`` (ms) and those percentiles that
    the count carries (``/p90``, ``/p95``, ``/p99``), ``throughput_qps`` (1/s), ``build_s`` (s) and
    ``n`` (queries timed), the parts ``gpu_compute_ms/..``, ``enqueue_ms/..``, ``h2d_ms/..`` and
    ``d2h_ms/..`` where the backend tells them apart, ``engine_mib`` and ``context_mib`` (MiB of the
    engine and of its execution context) where it tells them, and ``power_w/..``, ``energy_mj`` (per
    inference) where the board measures them; it is empty when there is no figure. `mode` is power
    mode, clock policy and threads; `runtime` is the backend's version with the board's software;
    `settings` says how long and how often was timed.
    """

    device: str
    architecture: str
    precision: str
    load: Load
    mode: str
    backend: str
    runtime: str
    verdict: Verdict
    settings: str = ""
    checked: Checked = "unchecked"
    reasons: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    version: str = ""
    study: str = ""
    backbone: str = ""
    graph: str = ""
    protocol: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("verdict", self.verdict, VERDICTS),
            ("load", self.load, LOADS),
            ("precision", self.precision, PRECISIONS),
            ("checked", self.checked, CHECKED),
        ):
            if value not in allowed:
                raise ProtocolError(f"{name}={value!r} is not one of {', '.join(allowed)}")

    @property
    def key(self) -> str:
        """Identity of the timing: the same key is never timed or reported twice."""
        return bench_key(
            device=self.device,
            architecture=self.architecture,
            precision=self.precision,
            load=self.load,
            mode=self.mode,
            backend=self.backend,
            runtime=self.runtime,
            settings=self.settings,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> BenchResult:
        """Read a spooled result.

        Raises:
            ProtocolError: not JSON, another protocol version, or a field missing.
        """
        return cls(**_known_fields(cls, _object(text, "a bench result"), "a bench result"))

    def to_tags(self) -> dict[str, str]:
        """Tags of the bench run."""
        values = {
            "protocol": str(self.protocol),
            "architecture": self.architecture,
            "precision": self.precision,
            "load": self.load,
            "mode": self.mode,
            "backend": self.backend,
            "runtime": self.runtime,
            "settings": self.settings,
            "verdict": self.verdict,
            "checked": self.checked,
            "reasons": "; ".join(self.reasons)[:TAG_LIMIT],
            "device": self.device,
            "graph": self.graph,
            "backbone": self.backbone,
            "model": self.model,
            "version": self.version,
            "study": self.study,
        }
        tags = {f"sharedenc.{name}": value for name, value in values.items()}
        return {KIND_TAG: BENCH_KIND, BENCH_KEY_TAG: self.key, **tags}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An agent's sign of life: a tag of its device's experiment.

    `at` is in seconds since 1970 by the server's clock; `facts` is what the agent says of itself.
    """

    agent: str
    at: float
    facts: dict[str, Any] = field(default_factory=dict)

    def to_tag(self) -> tuple[str, str]:
        """Name and value of the tag."""
        value = json.dumps({"at": round(self.at, 1), "facts": self.facts}, sort_keys=True)
        if len(value) > TAG_LIMIT:
            raise ProtocolError(f"an agent's facts take {len(value)} characters, not {TAG_LIMIT}")
        return f"{SEEN_TAG}{self.agent}", value


def seen_agents(tags: Mapping[str, str]) -> list[Seen]:
    """The agents that an experiment's tags tell of, last seen first; unreadable tags are left out.

    Args:
        tags: Of the experiment `bench_experiment` of a device.
    """
    found = []
    for name, value in tags.items():
        if name.startswith(SEEN_TAG):
            try:
                told = _object(value, name)
                facts = told.get("facts")
                found.append(
                    Seen(
                        agent=name[len(SEEN_TAG) :],
                        at=float(told["at"]),
                        facts=facts if isinstance(facts, dict) else {},
                    )
                )
            except (ProtocolError, KeyError, TypeError, ValueError):
                continue
    return sorted(found, key=lambda seen: (-seen.at, seen.agent))


# What a comparison of one shared network with two separate ones is called as a graph.
COMPARISON = "seg+det|dual"


def comparison_architecture(architectures: Sequence[str]) -> str:
    """Digest (64 hex) that stands for seg, det and dual together, in this order."""
    return hashlib.sha256(json.dumps(list(architectures)).encode()).hexdigest()


def bench_key(
    *,
    device: str,
    architecture: str,
    precision: str,
    load: str,
    mode: str,
    backend: str,
    runtime: str,
    settings: str = "",
) -> str:
    """sha256 (64 hex) of everything that makes a timing another timing."""
    parts = [device, architecture, precision, load, mode, backend, runtime, settings]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_protocol(version: object, where: str) -> None:
    """Raise `ProtocolError` unless `version` is the one that this code speaks."""
    if str(version) != str(PROTOCOL_VERSION):
        raise ProtocolError(
            f"{where} speak protocol {version}, this agent speaks {PROTOCOL_VERSION}: "
            "install the same release on both sides"
        )


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProtocolError(f"{where} is {type(value).__name__}, not an object")
    return value


def _known_fields(cls: Any, value: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields that `cls` knows; newer optional ones within one protocol version are ignored."""
    check_protocol(value.get("protocol"), where)
    required = {
        f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING
    }
    if missing := sorted(required - set(value)):
        raise ProtocolError(f"{where} lacks {', '.join(missing)}")
    return {f.name: value[f.name] for f in fields(cls) if f.name in value}
