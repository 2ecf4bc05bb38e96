"""Reader of COCO-format annotations: the official COCO 2017 folder and people's own files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from sharedenc.data.classes import (
    CLASS_LISTS,
    ClassList,
    default_names,
    map_categories,
    named_list,
    require_single,
)
from sharedenc.data.dataset import (
    DataRules,
    Record,
    SourceObject,
    Split,
    Tally,
    clip_box,
    read_json,
    slug,
    split_ids,
)
from sharedenc.errors import DataError

OFFICIAL_NAME = "coco2017"
OFFICIAL_IMAGES = (118287, 5000)
"""Images in the official train2017 and val2017; a folder with just these is named coco2017."""


@dataclass(frozen=True)
class CocoFiles:
    """One split: the folder of its images and its annotation file."""

    images: Path
    annotations: Path


@dataclass
class _Parsed:
    """What is kept of one annotation file: records by rising id, all images counted."""

    records: list[Record]
    images: int


class CocoSource:
    """A data set in COCO format.

    An image takes part when it has at least one object of the classes, crowd regions included
    (``empty_images=keep``: always). ``val=None`` takes validation from the training images by
    :func:`sharedenc.data.dataset.split_ids`; every task uses the same split.
    """

    def __init__(
        self,
        name: str,
        *,
        train: CocoFiles,
        val: CocoFiles | None,
        test: CocoFiles,
        rules: DataRules,
        classes: ClassList | None = None,
        merge: Mapping[str, Sequence[str]] | None = None,
        ignore: Sequence[str] = (),
        extra_inputs: Sequence[Path] = (),
    ) -> None:
        self._name = name
        self.rules = rules
        self._asked = classes
        self._merge = dict(merge or {})
        self._ignore = tuple(ignore)
        self._extra_inputs = list(extra_inputs)
        self._files: dict[Split, CocoFiles] = {"train": train, "test": test}
        if val is not None:
            self._files["val"] = val
        self._parsed: dict[Split, _Parsed] = {}
        self._official = False
        self.warnings: list[str] = []

    @classmethod
    def official(cls, folder: Path, rules: DataRules, classes: ClassList) -> CocoSource:
        """Open a folder in the layout of COCO 2017: val2017 is the test split."""

        def files(part: str) -> CocoFiles:
            images = folder / part
            if not images.is_dir() and (folder / "images" / part).is_dir():
                images = folder / "images" / part
            return CocoFiles(images, folder / "annotations" / f"instances_{part}.json")

        source = cls(
            slug(folder.resolve().name),
            train=files("train2017"),
            val=None,
            test=files("val2017"),
            rules=rules,
            classes=classes,
        )
        source._official = True
        return source

    @property
    def name(self) -> str:
        """The data set's name; `coco2017` when the image counts are those of the official one."""
        if self._official and all(split in self._parsed for split in self._files):
            counts = (self._parsed["train"].images, self._parsed["test"].images)
            if counts == OFFICIAL_IMAGES:
                return OFFICIAL_NAME
        # Published numbers stand beside the official set only, whatever a folder is called.
        return f"{self._name}-part" if self._name == OFFICIAL_NAME else self._name

    @cached_property
    def _train_categories(self) -> dict[int, str]:
        path = self._files["train"].annotations
        return _categories(read_json(path), path)

    @cached_property
    def classes(self) -> ClassList:
        """The classes asked for, else all categories of the training annotations by rising id."""
        if self._asked is not None:
            return self._asked
        names = default_names(self._train_categories, self._merge, self._ignore)
        return named_list(names, self._name)

    @property
    def has_masks(self) -> bool:
        """Whether every split has outlines."""
        return all(
            any(
                item.segmentation
                for record in self._parse(split).records
                for item in record.objects
            )
            for split in self._files
        )

    def inputs(self) -> list[Path]:
        """Return the annotation files and image folders."""
        files = [*self._extra_inputs]
        for entry in self._files.values():
            files += [entry.annotations, entry.images]
        return list(dict.fromkeys(files))

    def settings(self) -> dict[str, Any]:
        """Return the classes, merges and ignored names that were asked for."""
        return {
            "reader": "coco",
            "name": self._name,
            "classes": None if self._asked is None else self._asked.to_dict(),
            "merge": {new: list(olds) for new, olds in self._merge.items()},
            "ignore": list(self._ignore),
        }

    def records(self, split: Split) -> list[Record]:
        """Return the images of a split, by rising image id.

        Raises:
            DataError: when annotations are wrong (the text names file and entry) or none is left.
        """
        if split in self._files and not (split == "train" and "val" not in self._files):
            return self._parse(split).records
        records = self._parse("train").records
        train, val = split_ids([record.image_id for record in records], self.rules)
        wanted = set(train if split == "train" else val)
        return [record for record in records if record.image_id in wanted]

    def _parse(self, split: Split) -> _Parsed:
        if split not in self._parsed:
            files = self._files[split]
            content = read_json(files.annotations)
            labels = self._labels(content, files.annotations)
            self._parsed[split] = self._read(content, labels, files, split)
        return self._parsed[split]

    def _labels(self, content: dict[str, Any], path: Path) -> dict[int, int]:
        categories = _categories(content, path)
        if path == self._files["train"].annotations:
            self.__dict__.setdefault("_train_categories", categories)
        if self._asked is None and set(categories.values()) != set(self._train_categories.values()):
            raise DataError(
                f"{path} has the categories {', '.join(sorted(categories.values()))}, but "
                f"{self._files['train'].annotations} has "
                f"{', '.join(sorted(self._train_categories.values()))}. Give the ones to use as "
                "`classes:` in a data.yaml."
            )
        try:
            labels = map_categories(
                categories,
                self.classes,
                merge=self._merge,
                ignore=self._ignore,
                where=str(path),
            )
        except DataError as error:
            if not self._official:
                raise
            raise DataError(
                f"{error} For other classes, describe the data in a data.yaml."
            ) from None
        left = [name for number, name in categories.items() if number not in labels]
        if left and self.classes.name not in CLASS_LISTS:
            self.warnings.append(
                f"{path.name}: not among the classes, so background: {', '.join(sorted(left))}"
            )
        return labels

    def _read(
        self, content: dict[str, Any], labels: dict[int, int], files: CocoFiles, split: Split
    ) -> _Parsed:
        path = files.annotations
        records = _images(content, files)
        if not records:
            raise DataError(f"{path} lists no images: the {split} split is empty")
        known = set(_categories(content, path))
        tally = Tally()
        for number, entry in enumerate(_list(content, "annotations", path)):
            where = f"{path}: annotation {_id(entry, number)}"
            category, record = _field(entry, "category_id", where), _record(entry, records, where)
            if category not in known:
                raise DataError(f"{where} has the unknown category_id {category!r}")
            if category in labels:
                item = _object(entry, labels[category], record, where, tally)
                if item is not None:
                    record.objects.append(item)
        self.warnings += tally.sentences(path.name)
        kept = [records[key] for key in sorted(records)]
        if self.rules.empty_images == "drop":
            kept = [record for record in kept if any(item.label for item in record.objects)]
        if not kept:
            raise DataError(
                f"{path}: none of its {len(records)} images has an object of "
                f"{', '.join(self.classes.names)}: the {split} split is empty"
            )
        if (dropped := len(records) - len(kept)) and self.classes.name not in CLASS_LISTS:
            self.warnings.append(
                f"{path.name}: {dropped} images without an object of the classes are left out "
                "(rule empty_images=drop)"
            )
        return _Parsed(kept, len(records))


def _categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for number, entry in enumerate(_list(content, "categories", path)):
        where = f"{path}: category {_id(entry, number)}"
        key = _field(entry, "id", where)
        if key in found:
            raise DataError(f"{where}: the id is used twice, by {found[key]!r} and by {entry!r}")
        found[key] = str(_field(entry, "name", where))
    if not found:
        raise DataError(f"{path} lists no categories")
    require_single(found.values(), str(path))
    return found


def _images(content: dict[str, Any], files: CocoFiles) -> dict[int, Record]:
    records: dict[int, Record] = {}
    for number, entry in enumerate(_list(content, "images", files.annotations)):
        where = f"{files.annotations}: image {_id(entry, number)}"
        key, name = _field(entry, "id", where), _field(entry, "file_name", where)
        width, height = _field(entry, "width", where), _field(entry, "height", where)
        if not isinstance(key, int) or isinstance(key, bool):
            raise DataError(f"{where}: the id must be a whole number, not {key!r}")
        if not all(isinstance(side, int) and side > 0 for side in (width, height)):
            raise DataError(f"{where}: width {width!r} and height {height!r} must be pixel counts")
        if key in records:
            raise DataError(f"{where}: the id is used twice")
        records[key] = Record(key, files.images / str(name), width, height, [])
    return records


def _record(entry: Any, records: dict[int, Record], where: str) -> Record:
    key = _field(entry, "image_id", where)
    record = records.get(key) if isinstance(key, int) else None
    if record is None:
        raise DataError(f"{where} belongs to image_id {key!r}, which the file does not list")
    return record


def _object(
    entry: dict[str, Any], label: int, record: Record, where: str, tally: Tally
) -> SourceObject | None:
    bbox = _field(entry, "bbox", where)
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(v) for v in bbox):
        raise DataError(f"{where}: bbox must be [x, y, width, height], not {bbox!r}")
    x, y, w, h = (float(v) for v in bbox)
    box, cut = clip_box(x, y, w, h, record.width, record.height)
    if box is None:
        tally.add("boxes of no size or outside of their image are dropped", where)
        return None
    if cut:
        tally.add("boxes that leave their image are clipped", where)
    given = entry.get("area")
    area = float(given) if _is_number(given) else (box[2] - box[0]) * (box[3] - box[1])
    crowd = bool(entry.get("iscrowd", 0)) or label == 0
    outline = _outline(entry.get("segmentation"), record, where, tally)
    return SourceObject(label, box, area, crowd, outline)


def _outline(
    segmentation: Any, record: Record, where: str, tally: Tally
) -> list[list[float]] | dict[str, Any] | None:
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [record.height, record.width]:
            raise DataError(
                f"{where}: its RLE mask has size {segmentation.get('size')}, its image "
                f"[{record.height}, {record.width}] (height, width)"
            )
        if not isinstance(segmentation.get("counts"), list | str):
            raise DataError(f"{where}: its RLE mask has no counts")
        return {"size": segmentation["size"], "counts": segmentation["counts"]}
    if not isinstance(segmentation, list):
        raise DataError(f"{where}: segmentation must be polygons or an RLE mask")
    polygons = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(_is_number(v) for v in polygon):
            raise DataError(f"{where}: a polygon must be a list of numbers x, y, x, y, ...")
        if len(polygon) < 6 or len(polygon) % 2:
            tally.add("polygons of fewer than three points are dropped", where)
            continue
        # The rasteriser walks every pixel of an edge: a stray 1e9 would take hours.
        far = 2 * max(record.width, record.height)
        if min(polygon) < -far or max(polygon) > 2 * far:
            tally.add("polygons that reach far out of their image are clamped", where)
            polygon = [min(max(float(v), -far), 2 * far) for v in polygon]
        polygons.append(polygon)
    return polygons or None


def _list(content: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list):
        raise DataError(
            f"{path} has no list {key!r}; a COCO file has images, annotations and categories"
        )
    return value


def _id(entry: Any, number: int) -> str:
    return f"id {entry['id']}" if isinstance(entry, dict) and "id" in entry else f"#{number}"


def _field(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise DataError(f"{where} has no {key!r}")
    return entry[key]


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
