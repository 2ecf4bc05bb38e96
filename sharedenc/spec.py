"""What identifies a trial: cell, recipe, numerics and the content key. No torch in here.

The key is a digest of everything that decides a trial's result. Two rules keep it stable:
a recipe field that a cell does not use is not in its key, and a field that is added later is
left out of the key as long as it has the value that all earlier trials had (`LATER_FIELDS`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from sharedenc.errors import SpecError, check_choice, nearest

Task = Literal["det", "seg"]
Graph = Literal["encoder", "seg", "det", "dual"]
Strategy = Literal["baseline", "swap", "share", "dual"]
Freeze = Literal["none", "frozen", "bias"]
State = Literal["waiting", "running", "done", "failed", "skipped", "stopped"]
DeviceKind = Literal["cpu", "cpu-bf16", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]
Scheduler = Literal["plateau", "cosine", "constant"]
BatchNormMode = Literal["eval", "train"]
BiasSet = Literal["named", "bn_beta"]
SamplePath = Literal["fast", "reference"]
CompileLoss = Literal["auto", "on", "off"]

TASKS: tuple[Task, ...] = get_args(Task)
GRAPHS: tuple[Graph, ...] = get_args(Graph)
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

# Open axis: a plugin's freeze mode adds its name here (sharedenc.models.freeze).
FREEZES: list[str] = list(get_args(Freeze))

# Freeze modes that make sense for each strategy: a shared encoder that trains freely is a
# baseline, and a baseline whose encoder is fixed is a shared one.
_EXCLUDED: dict[Strategy, frozenset[str]] = {
    "baseline": frozenset({"frozen", "bias"}),
    "swap": frozenset(),
    "share": frozenset({"none"}),
    "dual": frozenset(),
}


@dataclass(frozen=True)
class BackboneInfo:
    """A backbone's name and published learning rate; ``digest`` is that of a plugin's file."""

    name: str
    lr: float | None
    source: str = "builtin"
    digest: str = ""


BACKBONES: dict[str, BackboneInfo] = {
    "resnet18": BackboneInfo("resnet18", 2e-4),
    "mobilenet_v3_large": BackboneInfo("mobilenet_v3_large", 8e-4),
    "efficientnet_v2_s": BackboneInfo("efficientnet_v2_s", 2e-4),
    "densenet121": BackboneInfo("densenet121", 2e-4),
}


def register_backbone(info: BackboneInfo) -> None:
    """Add a backbone's name; the same plugin twice is fine, another owner of the name is not."""
    known = BACKBONES.get(info.name)
    if known is not None and (known.source, known.digest) != (info.source, info.digest):
        raise SpecError(
            f"backbone {info.name!r} of {info.source} exists already (from {known.source}); "
            "give yours another name"
        )
    BACKBONES[info.name] = info


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the grid: strategy x backbone x freeze x task; `dual` has both tasks.

    Raises:
        SpecError: a name is unknown, or the parts cannot be combined.
    """

    strategy: Strategy
    backbone: str
    freeze: str = "none"
    task: Task | None = None

    def __post_init__(self) -> None:
        check_choice("strategy", self.strategy, STRATEGIES)
        check_choice("backbone", self.backbone, BACKBONES)
        check_choice("freeze", self.freeze, FREEZES)
        if self.freeze in _EXCLUDED[self.strategy]:
            allowed = [f for f in FREEZES if f not in _EXCLUDED[self.strategy]]
            raise SpecError(
                f"strategy {self.strategy!r} cannot be combined with freeze={self.freeze!r}; "
                f"it allows {', '.join(allowed)}"
            )
        if self.strategy == "dual":
            if self.task is not None:
                raise SpecError(
                    f"a dual cell has both tasks, so task={self.task!r} must be left out"
                )
        else:
            check_choice("task", self.task or "", TASKS)

    @property
    def name(self) -> str:
        """``<backbone>/<strategy>[-<freeze>][/<task>]``."""
        freeze = "" if self.freeze == "none" else f"-{self.freeze}"
        task = "" if self.task is None else f"/{self.task}"
        return f"{self.backbone}/{self.strategy}{freeze}{task}"

    def __str__(self) -> str:
        return self.name

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks whose heads are trained."""
        return TASKS if self.task is None else (self.task,)

    @property
    def graph(self) -> Graph:
        """The graph that this cell's network exports."""
        return "dual" if self.task is None else self.task

    @property
    def source(self) -> Cell | None:
        """The cell whose best encoder a swap starts from: the other task's baseline."""
        if self.strategy != "swap":
            return None
        other: Task = "det" if self.task == "seg" else "seg"
        return Cell(strategy="baseline", backbone=self.backbone, task=other)

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read a cell's name, for example ``resnet18/swap-bias/seg``."""
        parts = text.strip().split("/")
        if len(parts) not in (2, 3):
            raise SpecError(
                f"{text!r} is not a cell; a cell is <backbone>/<strategy>[-<freeze>][/<task>], "
                "for example resnet18/baseline/seg, resnet18/swap-bias/seg or resnet18/dual"
            )
        strategy, _, freeze = parts[1].partition("-")
        check_choice("backbone", parts[0], BACKBONES)
        check_choice("strategy", strategy, STRATEGIES)
        task = parts[2] if len(parts) == 3 else None
        if task is not None:
            check_choice("task", task, TASKS)
        return cls(
            strategy=strategy,  # type: ignore[arg-type]  # checked in the lines above
            backbone=parts[0],
            freeze=freeze or "none",
            task=task,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every training setting that is not part of the cell; defaults are the reference study's.

    Lengths are in pixels at ``image_px``, probabilities and fractions in [0, 1].
    Source: thesis, sections 3.4 and 3.5, Table 3.5.
    """

    epochs: int = 1000
    batch_size: int = 32
    image_px: int = 320
    weight_decay: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.999
    scheduler: Scheduler = "plateau"
    plateau_factor: float = 0.5
    plateau_patience: int = 10
    early_stop_patience: int = 25
    grad_clip: float = 0.0
    alpha: float = 6.0
    bn_mode: BatchNormMode = "eval"
    bias_set: BiasSet = "named"
    calibration_images: int = 256
    augment: bool = True
    crop_scale_min: float = 0.5
    crop_ratio_max: float = 4 / 3
    flip_p: float = 0.5
    jitter_brightness: float = 0.2
    jitter_contrast: float = 0.2
    jitter_saturation: float = 0.2
    jitter_hue: float = 0.1
    jitter_p: float = 1.0
    blur_kernel: int = 5
    blur_sigma_min: float = 0.1
    blur_sigma_max: float = 2.0
    blur_p: float = 1.0
    min_box_px: float = 1.0
    min_visible: float = 0.25
    score_threshold: float = 0.001
    nms_iou: float = 0.55
    top_k: int = 300
    detections_per_image: int = 300
    precision: Precision = "auto"
    memory_format: MemoryFormat = "auto"
    tf32: bool = False
    cpu_threads: int = 1
    sample_path: SamplePath = "fast"
    compile_loss: CompileLoss = "auto"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        for name, (lowest, highest) in BOUNDS.items():
            value = getattr(self, name)
            if not lowest <= value <= highest:
                limit = f"at least {lowest}" if highest == math.inf else f"{lowest} to {highest}"
                raise SpecError(f"{name}={value} must be {limit}")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float) and (not math.isfinite(value) or value < 0):
                raise SpecError(f"{item.name}={value} must be a finite number, 0 or more")
        if self.image_px % 32:
            raise SpecError(f"image_px={self.image_px} must be a multiple of 32 (encoder stride)")
        if not 0 < self.crop_scale_min <= 1:
            raise SpecError(f"crop_scale_min={self.crop_scale_min} must lie in (0, 1]")
        for name in ("beta1", "beta2", "plateau_factor"):
            if getattr(self, name) >= 1:
                raise SpecError(f"{name}={getattr(self, name)} must be below 1")
        if self.blur_kernel % 2 == 0:
            raise SpecError(f"blur_kernel={self.blur_kernel} must be odd")
        if not 0 < self.blur_sigma_min <= self.blur_sigma_max:
            raise SpecError(
                f"blur_sigma_min={self.blur_sigma_min} must be above 0 and at most "
                f"blur_sigma_max={self.blur_sigma_max}"
            )

    def to_dict(self) -> dict[str, Any]:
        """All settings, in the order of their definition."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build a recipe from settings by name; whole numbers are accepted for fractions."""
        types = {item.name: type(item.default) for item in fields(cls)}
        checked: dict[str, Any] = {}
        for name, value in values.items():
            if name not in types:
                raise SpecError(f"there is no recipe setting {name!r}.{nearest(name, types)}")
            checked[name] = _as_type(name, value, types[name])
        return cls(**checked)


CHOICES: dict[str, tuple[str, ...]] = {
    "scheduler": get_args(Scheduler),
    "bn_mode": get_args(BatchNormMode),
    "bias_set": get_args(BiasSet),
    "precision": get_args(Precision),
    "memory_format": get_args(MemoryFormat),
    "sample_path": get_args(SamplePath),
    "compile_loss": get_args(CompileLoss),
}


# Smallest and largest value of a setting, both allowed.
BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            "epochs",
            "batch_size",
            "image_px",
            "calibration_images",
            "blur_kernel",
            "crop_ratio_max",
            "top_k",
            "detections_per_image",
            "cpu_threads",
        ),
        (1, math.inf),
    ),
    **dict.fromkeys(("plateau_patience", "early_stop_patience"), (0, math.inf)),
    **dict.fromkeys(
        ("flip_p", "jitter_p", "blur_p", "min_visible", "score_threshold", "nms_iou"), (0, 1)
    ),
    "jitter_hue": (0, 0.5),
}


def _as_type(name: str, value: Any, kind: type) -> Any:
    wrong = SpecError(f"{name}={value!r} is not of type {kind.__name__}")
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise wrong
        return value
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 5e-4 as text.
        try:
            return float(value)
        except ValueError:
            raise wrong from None
    if kind is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, kind):
        raise wrong
    return value


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """How a trial computes, fully resolved: part of the key, since it changes bits."""

    device: str
    precision: str
    memory_format: str
    tf32: bool
    cpu_threads: int
    sample_path: str
    torch: str
    compile_loss: bool = False
    revision: int = 1

    def content(self) -> dict[str, Any]:
        """What of it is in a key: settings added later only where they differ from before."""
        values = asdict(self)
        return {n: v for n, v in values.items() if LATER_NUMERICS.get(n) != v}


# What `auto` means, by kind of device; a backbone may differ by an entry (backbone, kind).
AUTO_NUMERICS: dict[tuple[str, DeviceKind], tuple[str, str]] = {
    ("*", "cpu"): ("float32", "channels_last"),
    ("*", "cpu-bf16"): ("bfloat16", "channels_last"),
    ("*", "cuda"): ("bfloat16", "channels_last"),
}

# Whether `auto` lets torch.compile fuse upsampling and segmentation loss, likewise. It rounds
# differently, so it is part of the key. Off until `make bench-gpu` has shown on a device that it
# pays; on a CPU the loss over bands takes a fifth of the compiled one's time (4.4 and 22 ms).
AUTO_COMPILE_LOSS: dict[tuple[str, DeviceKind], bool] = {
    ("*", "cpu"): False,
    ("*", "cpu-bf16"): False,
    ("*", "cuda"): False,
}

# Raised where a precision on a device comes to give other bits; 1 where it never has.
# cpu, bfloat16: 2: float32 gradients of some depthwise convolutions, AdamW's fused kernel.
REVISIONS: dict[tuple[str, str], int] = {("cpu", "bfloat16"): 2}

# Numerics added after the first release: name -> the value that older trials had.
LATER_NUMERICS: dict[str, Any] = {"compile_loss": False, "revision": 1}


def resolve_numerics(
    recipe: Recipe, backbone: str, kind: DeviceKind, torch_version: str
) -> Numerics:
    """Resolve ``auto`` from the table, so that any machine computes the same key."""
    precision, memory_format = AUTO_NUMERICS.get((backbone, kind), AUTO_NUMERICS["*", kind])
    if recipe.precision != "auto":
        precision = recipe.precision
    if recipe.memory_format != "auto":
        memory_format = recipe.memory_format
    compile_loss = AUTO_COMPILE_LOSS.get((backbone, kind), AUTO_COMPILE_LOSS["*", kind])
    if recipe.compile_loss != "auto":
        compile_loss = recipe.compile_loss == "on"
    on_cpu = kind != "cuda"
    device = "cpu" if on_cpu else "cuda"
    return Numerics(
        device=device,
        precision=precision,
        memory_format=memory_format,
        tf32=recipe.tf32 and not on_cpu,
        cpu_threads=recipe.cpu_threads if on_cpu else 0,
        sample_path=recipe.sample_path,
        torch=torch_version,
        compile_loss=compile_loss,
        revision=REVISIONS.get((device, precision), 1),
    )


def device_kind() -> DeviceKind:
    """The kind of device of this machine: a CUDA GPU, a CPU with bfloat16 units, or a CPU."""
    if Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists():
        return "cuda"
    return cpu_kind()


def cpu_kind() -> DeviceKind:
    """The kind of this machine's CPU, whether or not it has a GPU."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "cpu"
    return "cpu-bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "cpu"


def installed_torch() -> str:
    """``major.minor`` of the installed torch, without importing it; empty when there is none."""
    try:
        return ".".join(metadata.version("torch").split(".")[:2])
    except metadata.PackageNotFoundError:
        return ""


# Bumped by hand when a component's results change; tests/component_lock.json holds a digest of
# each component's code, and a test asks for a decision when it differs.
COMPONENTS: dict[str, int] = {
    "data": 1,
    "transforms": 1,
    "encoder": 1,
    "freeze": 1,
    "detection_head": 1,
    "segmentation_head": 2,
    "losses": 1,
    "schedule": 1,
    "loop": 1,
    "evaluation": 1,
}

_DET_ONLY = {
    "score_threshold",
    "nms_iou",
    "top_k",
    "detections_per_image",
    "min_box_px",
    "min_visible",
}
_PLATEAU_ONLY = {"plateau_factor", "plateau_patience"}
_NUMERIC = {"precision", "memory_format", "tf32", "cpu_threads", "sample_path", "compile_loss"}
_AUGMENT_PREFIXES = ("crop_", "flip_", "jitter_", "blur_")

# Recipe fields added after the first release: name -> the value that older trials had.
LATER_FIELDS: dict[str, Any] = {}


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of one cell: what its content key is made of.

    ``weights_digest`` is that of the initial encoder ("none" for random); ``parent_key`` is the
    key of the trial that gave a swap its encoder, ``parent_compatible`` that trial's
    `compatible_key` (not in the key); ``lr`` is AdamW's.
    """

    cell: Cell
    recipe: Recipe
    lr: float
    seed: int
    data_digest: str
    weights_digest: str
    numerics: Numerics
    parent_key: str | None = None
    parent_compatible: str | None = None
    components: Mapping[str, int] = field(default_factory=lambda: dict(COMPONENTS))

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise SpecError(f"lr={self.lr} must be a finite number above 0")
        if not 0 <= self.seed < 2**63:
            raise SpecError(f"seed={self.seed} must be a whole number from 0 to 2**63 - 1")
        if (self.parent_key is None) != (self.cell.source is None):
            raise SpecError(f"{self.cell}: a parent key belongs to swap cells, and only to them")
        if self.parent_compatible is not None and self.parent_key is None:
            raise SpecError(f"{self.cell}: parent_compatible comes with a parent key")

    def content(self) -> dict[str, Any]:
        """Everything that decides the result, as plain JSON values."""
        info = BACKBONES[self.cell.backbone]
        content: dict[str, Any] = {
            "cell": self.cell.name,
            "recipe": self._used_recipe(),
            "lr": self.lr,
            "seed": self.seed,
            "data": self.data_digest,
            "weights": self.weights_digest,
            "numerics": self.numerics.content(),
            "components": self._used_components(),
        }
        if self.parent_key is not None:
            content["parent"] = self.parent_key
        if info.digest:
            content["backbone_digest"] = info.digest
        return content

    def _used_recipe(self) -> dict[str, Any]:
        unused = set(_NUMERIC)
        cell, recipe = self.cell, self.recipe
        if "det" not in cell.tasks:
            unused |= _DET_ONLY
        if len(cell.tasks) == 1:
            unused.add("alpha")
        if cell.freeze == "none":
            unused.add("bn_mode")
        if cell.freeze != "bias":
            unused.add("bias_set")
        if recipe.scheduler != "plateau":
            unused |= _PLATEAU_ONLY
        if self.weights_digest != "none" or cell.strategy == "swap":
            unused.add("calibration_images")
        values = recipe.to_dict()
        if not recipe.augment:
            unused |= {n for n in values if n.startswith(_AUGMENT_PREFIXES)}
        unused |= {n for n, old in LATER_FIELDS.items() if values[n] == old}
        return {name: value for name, value in values.items() if name not in unused}

    def _used_components(self) -> dict[str, int]:
        unused = set()
        if "det" not in self.cell.tasks:
            unused.add("detection_head")
        if "seg" not in self.cell.tasks:
            unused.add("segmentation_head")
        if self.cell.freeze == "none":
            unused.add("freeze")
        return {name: v for name, v in self.components.items() if name not in unused}

    @property
    def key(self) -> str:
        """SHA-256 of the canonical content, 64 hexadecimal digits."""
        return _digest(self.content())

    @property
    def compatible_key(self) -> str:
        """The key without the numerics, the parent's likewise.

        Two trials with one compatible key train the same thing on another machine: equal up to
        rounding. A swap whose parent's compatible key is not known is compatible with its own
        parent only.
        """
        content = self.content()
        del content["numerics"]
        if self.parent_compatible is not None:
            content["parent"] = self.parent_compatible
        return _digest(content)

    def to_dict(self) -> dict[str, Any]:
        """Plain values from which `from_dict` builds an equal trial."""
        return {
            "cell": self.cell.name,
            "recipe": self.recipe.to_dict(),
            "lr": self.lr,
            "seed": self.seed,
            "data_digest": self.data_digest,
            "weights_digest": self.weights_digest,
            "numerics": asdict(self.numerics),
            "parent_key": self.parent_key,
            "parent_compatible": self.parent_compatible,
            "components": dict(self.components),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """Inverse of `to_dict`."""
        return cls(
            cell=Cell.parse(values["cell"]),
            recipe=Recipe.from_dict(values["recipe"]),
            lr=float(values["lr"]),
            seed=int(values["seed"]),
            data_digest=values["data_digest"],
            weights_digest=values["weights_digest"],
            numerics=Numerics(**values["numerics"]),
            parent_key=values["parent_key"],
            parent_compatible=values.get("parent_compatible"),
            components=dict(values["components"]),
        )
