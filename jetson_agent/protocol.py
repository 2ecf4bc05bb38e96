"""What the sweep side and the agent say to each other; standard library only, Python 3.10.

The sweep side writes an `ExportManifest` beside each ONNX file and, in short, as tags of the
registered model version. The agent reads the tags, and answers with one `BenchResult` per
architecture, precision and load. This is the only module of the agent that `sharedenc` and
`sweeps` import.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, get_args

PROTOCOL_VERSION = 1

Verdict = Literal["valid", "suspect", "wrong", "failed"]
Load = Literal["stream", "single"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
LOADS: tuple[Load, ...] = get_args(Load)
PRECISIONS = ("fp32", "tf32", "fp16", "int8", "int8_fp16", "int8-unscaled")

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
CERTIFICATE_FILE = "certificate.json"

STATE_TAG = "export.state"
READY = "ready"
KIND_TAG = "sharedenc.kind"
BENCH_KIND = "bench"
BENCH_KEY_TAG = "sharedenc.bench_key"

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
    """What one exported folder holds; `files` maps each file name to its sha256 (64 hex)."""

    data: str
    backbone: str
    graph: str
    architecture: str
    files: dict[str, str]
    study: str
    cell: str
    key: str
    run_id: str = ""
    precisions: list[str] = field(default_factory=lambda: ["fp32"])
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
        return model_name(self.data, self.backbone, self.graph)

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
            "sharedenc.precisions": json.dumps(self.precisions),
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
            precisions=[str(name) for name in precisions],
        )


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """One timing of one architecture, or the reason why there is none.

    `metrics` has ``latency_ms/p50``, ``/p90``, ``/p99``, ``/mean``, ``/min``, ``/max`` (ms),
    ``throughput_qps`` (1/s), ``build_s`` (s) and ``n`` (queries timed); it is empty when `verdict`
    is ``failed``. `mode` is power mode and threads; `runtime` is the backend's version.
    """

    device: str
    architecture: str
    precision: str
    load: Load
    mode: str
    backend: str
    runtime: str
    verdict: Verdict
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
            "verdict": self.verdict,
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


def bench_key(
    *,
    device: str,
    architecture: str,
    precision: str,
    load: str,
    mode: str,
    backend: str,
    runtime: str,
) -> str:
    """sha256 (64 hex) of everything that makes a timing another timing."""
    parts = [device, architecture, precision, load, mode, backend, runtime]
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
