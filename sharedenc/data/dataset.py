"""What a data source gives, whatever its layout: records per split, under named rules.

`open_source` finds the layout. Readers are lazy: opening parses nothing, so that a finished pack
of a large data set opens in milliseconds.

`data.yaml`::

    name: forklifts
    train: {images: photos/train, annotations: train.json}
    val: {images: photos/val, annotations: val.json}    # or a fraction of train: `val: 0.1`
    test: {images: photos/test, annotations: test.json}
    classes: [forklift, pallet]      # optional: ordered names, or a built-in list (voc20)
    merge: {pallet: [euro pallet, half pallet]}             # optional: new name: [old, old]
    ignore: [reflection]             # optional: neither class nor background (255, not scored)
    rules: {overlap: paint_small_last}                      # optional: fields of DataRules

Paths are relative to the file. Categories that are not named become background. A Pascal VOC
folder takes the place of the three splits with ``voc: {folder: VOCdevkit, years: [2007, 2012]}``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, get_type_hints

from sharedenc.data.classes import CLASS_LISTS, VOC20, ClassList, named_list
from sharedenc.errors import DataError, SpecError, check_choice

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
LAYOUTS = (
    "a COCO 2017 folder (annotations/instances_train2017.json, annotations/instances_val2017.json, "
    "train2017/, val2017/), a Pascal VOC folder (VOCdevkit/VOC2012/...), a data.yaml, or a folder "
    "that holds one"
)


@dataclass(frozen=True, kw_only=True)
class DataRules:
    """How annotations become labels. Every field goes into the data digest.

    ``overlap``: pixels of two or more objects become 255 (also of the same class), or the smaller
    object is painted last. ``crowd_seg``: crowd pixels become 255 or their class.
    ``val_fraction``, ``split_seed``: the part of the training images that validates, where the
    source has no validation split. ``empty_images``: images without an object of the classes.
    """

    overlap: Literal["ignore", "paint_small_last"] = "ignore"
    crowd_seg: Literal["ignore", "class"] = "ignore"
    val_fraction: float = 0.05
    split_seed: int = 0
    empty_images: Literal["drop", "keep"] = "drop"

    def __post_init__(self) -> None:
        hints = get_type_hints(DataRules)
        for name in ("overlap", "crowd_seg", "empty_images"):
            check_choice(name, str(getattr(self, name)), get_args(hints[name]))
        for name, kind in (("val_fraction", int | float), ("split_seed", int)):
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise SpecError(f"{name}={value!r} must be a number")
        if not 0 < self.val_fraction < 1:
            raise SpecError(f"val_fraction={self.val_fraction} must lie between 0 and 1")
        if not 0 <= self.split_seed < 2**32:
            raise SpecError(f"split_seed={self.split_seed} must lie between 0 and 2**32 - 1")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataRules:
        """Return the rules of these settings, the others at their defaults.

        Raises:
            SpecError: when a setting does not exist; the nearest name is told.
        """
        for name in data:
            check_choice("data rule", str(name), tuple(f.name for f in fields(cls)))
        return cls(**data)


AskedRules = DataRules | Mapping[str, Any] | None
"""Whole rules; or some fields, in place of the data set's own; or nothing but its own."""


def _ruled(own: Mapping[str, Any], asked: AskedRules) -> DataRules:
    return asked if isinstance(asked, DataRules) else DataRules.from_dict({**own, **(asked or {})})


@dataclass(slots=True)
class SourceObject:
    """One annotated object; ``box`` is xyxy in pixels of the original image, inside of it.

    ``crowd``: dropped in training, an ignore region in scoring. Such an object with label 0 is an
    ignore region for every class. ``segmentation``: COCO polygons or RLE, if there is an outline.
    """

    label: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: list[list[float]] | dict[str, Any] | None = None


@dataclass(slots=True)
class Record:
    """One image of a split.

    The label map is drawn from ``objects``; or read from ``label_map_path``, a palette PNG whose
    values ``label_map_table`` (256 labels) turns into labels; or, with ``unlabelled``, is all 255.
    """

    image_id: int
    path: Path
    width: int
    height: int
    objects: list[SourceObject]
    label_map_path: Path | None = None
    label_map_table: tuple[int, ...] | None = None
    unlabelled: bool = False


class Source(Protocol):
    """A data set in some layout on disk. Nothing is written to it."""

    @property
    def name(self) -> str:
        """Short name, for studies and reports."""

    @property
    def classes(self) -> ClassList:
        """The classes, in the order of their labels."""

    @property
    def rules(self) -> DataRules:
        """The rules that made the records."""

    @property
    def has_masks(self) -> bool:
        """Whether there is anything to learn segmentation from."""

    @property
    def warnings(self) -> list[str]:
        """What was repaired or left out so far, one sentence each; complete after `records`."""

    def records(self, split: Split) -> list[Record]:
        """Return the images of a split, by rising image id."""

    def inputs(self) -> list[Path]:
        """Return the files and folders that the data set consists of, without parsing any."""

    def settings(self) -> dict[str, Any]:
        """Return what else decides the records (asked classes, merges, years), as plain data."""


@dataclass
class Tally:
    """Counts of repaired annotations, told once per kind instead of once per object."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, where: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        self.first.setdefault(what, where)

    def sentences(self, prefix: str) -> list[str]:
        return [
            f"{prefix}: {count} {what} (first: {self.first[what]})"
            for what, count in self.counts.items()
        ]


def split_ids(ids: Sequence[int], rules: DataRules) -> tuple[list[int], list[int]]:
    """Divide image ids into training and validation.

    The rule: sort the ids, permute them with ``numpy.random.RandomState(seed)`` (a stream that
    numpy never changes); the first ``floor((1 - val_fraction) * n)`` train, the others validate.
    The thesis: 95,279 images give 90,515 and 4,764.

    Raises:
        DataError: when either part would be empty.
    """
    import numpy as np

    # Rounding first: 0.7 * 10 must not become 6.
    count = math.floor(round((1 - rules.val_fraction) * len(ids), 9))
    if count == 0 or count == len(ids):
        raise DataError(
            f"{len(ids)} training images with an object cannot be divided into training and "
            f"validation with val_fraction={rules.val_fraction}: one of them would be empty"
        )
    order = np.random.RandomState(rules.split_seed).permutation(len(ids))
    ordered = sorted(ids)
    chosen = [ordered[i] for i in order]
    return sorted(chosen[:count]), sorted(chosen[count:])


def clip_box(
    x: float, y: float, w: float, h: float, width: int, height: int
) -> tuple[tuple[float, float, float, float] | None, bool]:
    """Turn a COCO box (xywh) into xyxy inside the image.

    Returns:
        The box, or None when nothing of it is left, and whether more than half a pixel was cut off
        (official annotations overhang by rounding; that is not worth a word).
    """
    if not all(math.isfinite(v) for v in (x, y, w, h)) or w <= 0 or h <= 0:
        return None, False
    box = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
    if box[2] <= box[0] or box[3] <= box[1]:
        return None, False
    return box, max(-x, -y, x + w - width, y + h - height) > 0.5


def read_json(
    path: Path, kind: type = dict, what: str = "a COCO instances file (an object)"
) -> Any:
    """Read a JSON file that must hold a ``kind``; ``what`` names it in the error.

    Raises:
        DataError: when the file is missing, unreadable, no JSON, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise DataError(f"the file {path} does not exist") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid JSON: {error}. Was its download or copy cut short?"
        ) from error
    if not isinstance(content, kind):
        raise DataError(f"{path} holds a JSON {type(content).__name__}; {what} is needed")
    return content


def slug(text: str) -> str:
    """Return a name that is safe in file names, study names and model names."""
    return re.sub(r"[^a-z0-9+._-]+", "-", text.lower()).strip("-.") or "data"


def open_source(
    path: Path,
    rules: AskedRules = None,
    classes: ClassList | None = None,
    years: Sequence[int] | None = None,
) -> Source:
    """Open a data set folder or `data.yaml` in any known layout.

    Args:
        rules: How annotations become labels. Fields that are not given are those of the
            data.yaml, else the defaults.
        classes: The classes to use; those of the data.yaml, else voc20, if None.
        years: Years of Pascal VOC; all that are there if None.

    Raises:
        DataError: when nothing there has a known layout, or the data.yaml is wrong.
    """
    from sharedenc.data.coco import CocoSource
    from sharedenc.data.voc import VocSource, voc_folders

    path = Path(path)
    if not path.exists():
        raise DataError(f"there is no data set at {path}; give {LAYOUTS}")
    if path.is_file() or (path / "data.yaml").is_file():
        return _open_yaml(path if path.is_file() else path / "data.yaml", rules, classes)
    if (path / "annotations" / "instances_train2017.json").is_file():
        return CocoSource.official(path, _ruled({}, rules), classes or VOC20)
    if voc_folders(path):
        return VocSource(path, _ruled({}, rules), classes or VOC20, years=years)
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise DataError(f"{path} has no known layout (it holds: {found}); give {LAYOUTS}")


YAML_KEYS = ("name", "train", "val", "test", "classes", "merge", "ignore", "rules", "voc")


def _open_yaml(path: Path, asked: AskedRules, classes: ClassList | None) -> Source:
    import yaml

    from sharedenc.data.coco import CocoFiles, CocoSource
    from sharedenc.data.voc import VocSource

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a mapping with name, train, val, test")
    for key in content:
        check_choice(f"key in {path}", str(key), YAML_KEYS)
    name = slug(str(content.get("name") or path.resolve().parent.name))
    settings = dict(content.get("rules") or {})
    val = content.get("val")
    if isinstance(val, int | float) and not isinstance(val, bool):
        settings.setdefault("val_fraction", float(val))
        if not 0 < val < 1:
            raise DataError(f"{path}: `val: {val}` must be a fraction between 0 and 1")
        val = None
    elif val is None and "voc" not in content:
        raise DataError(f"{path} has no `val:`; give images and annotations, or a fraction (0.05)")
    rules = _ruled(settings, asked)
    classes = classes or _yaml_classes(path, content.get("classes"), name)
    merge = _yaml_merge(path, content.get("merge"))
    ignore = _yaml_names(path, "ignore", content.get("ignore"))
    if "voc" in content:
        voc = content["voc"]
        if not isinstance(voc, dict) or "folder" not in voc:
            raise DataError(f"{path}: `voc:` must be {{folder: PATH, years: [..]}}")
        return VocSource(
            path.parent / str(voc["folder"]),
            rules,
            classes or VOC20,
            years=voc.get("years"),
            name=name,
            merge=merge,
            ignore=ignore,
            extra_inputs=[path],
        )

    def files(key: str, entry: Any) -> CocoFiles:
        if not isinstance(entry, dict) or set(entry) != {"images", "annotations"}:
            raise DataError(
                f"{path}: `{key}:` must be {{images: FOLDER, annotations: FILE.json}}, "
                f"not {entry!r}"
            )
        return CocoFiles(
            path.parent / str(entry["images"]), path.parent / str(entry["annotations"])
        )

    return CocoSource(
        name,
        train=files("train", content.get("train")),
        val=None if val is None else files("val", val),
        test=files("test", content.get("test")),
        rules=rules,
        classes=classes,
        merge=merge,
        ignore=ignore,
        extra_inputs=[path],
    )


def _yaml_classes(path: Path, entry: Any, name: str) -> ClassList | None:
    if entry is None:
        return None
    if isinstance(entry, str):
        check_choice("classes", entry, tuple(CLASS_LISTS))
        return CLASS_LISTS[entry]
    return named_list(_yaml_names(path, "classes", entry), name)


def _yaml_names(path: Path, key: str, entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    if not isinstance(entry, list):
        raise DataError(f"{path}: `{key}:` must be a list of names, not {entry!r}")
    if wrong := [v for v in entry if isinstance(v, bool) or not isinstance(v, str | int | float)]:
        # YAML reads an unquoted no or yes as a truth value.
        raise DataError(f"{path}: `{key}:` holds {wrong[0]!r}; put names in quotes")
    return tuple(str(value) for value in entry)


def _yaml_merge(path: Path, entry: Any) -> dict[str, tuple[str, ...]]:
    if entry is None:
        return {}
    if not isinstance(entry, dict):
        raise DataError(f"{path}: `merge:` must be {{new name: [old, old]}}, not {entry!r}")
    return {str(new): _yaml_names(path, f"merge: {new}", olds) for new, olds in entry.items()}
