"""Reader of Pascal VOC: boxes from XML, label maps from palette PNGs where there are any."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sharedenc.data.classes import IGNORE_LABEL, VOC20, ClassList, map_categories
from sharedenc.data.dataset import (
    DataRules,
    Record,
    SourceObject,
    Split,
    Tally,
    clip_box,
    slug,
    split_ids,
)
from sharedenc.errors import DataError

OFFICIAL_IMAGES = {2007: 9963, 2012: 17125}
"""Annotated images of the two usual years (2007 with its test images)."""


@dataclass(frozen=True)
class _Image:
    """One image on disk: the year's folder and its name without suffix."""

    folder: Path
    name: str


def voc_folders(path: Path) -> dict[int, Path]:
    """Return the year folders of a devkit, of its parent, or the one year folder that `path` is."""
    found: dict[int, Path] = {}
    candidates = [path, *sorted(path.glob("VOC20??")), *sorted(path.glob("VOCdevkit/VOC20??"))]
    for folder in candidates:
        if (folder / "ImageSets" / "Main").is_dir() and (folder / "Annotations").is_dir():
            year = re.fullmatch(r"VOC(20\d\d)", folder.resolve().name)
            found.setdefault(int(year.group(1)) if year else 0, folder)
    return found


class VocSource:
    """Pascal VOC, one or several years.

    Splits: where a year has test annotations (2007), these are the test split, and the `trainval`
    lists of all years are divided into training and validation by
    :func:`sharedenc.data.dataset.split_ids`. Without any test annotations (2012 alone), `val` is
    the test split and `train` is divided.

    Objects marked `difficult` are like crowd: dropped in training, an ignore region in scoring.
    Boxes are 1-based and inclusive in the files; here they are xyxy edges from 0. Label maps keep
    VOC's border label 255; images without a label map are 255 everywhere, so that segmentation
    neither learns from them nor is scored on them.
    """

    def __init__(
        self,
        path: Path,
        rules: DataRules,
        classes: ClassList = VOC20,
        *,
        years: Sequence[int] | None = None,
        name: str | None = None,
        merge: Mapping[str, Sequence[str]] | None = None,
        ignore: Sequence[str] = (),
        extra_inputs: Sequence[Path] = (),
    ) -> None:
        folders = voc_folders(path)
        if not folders:
            raise DataError(f"{path} is no Pascal VOC folder (VOCdevkit/VOC2012/ImageSets/Main)")
        if missing := [year for year in years or () if year not in folders]:
            there = ", ".join(map(str, sorted(folders)))
            raise DataError(f"{path} has no VOC year {missing[0]}; it has {there}")
        self._folders = {year: folders[year] for year in sorted(years or folders)}
        self._given_name = name
        self._path = path
        self._extra_inputs = list(extra_inputs)
        self._merge, self._ignore = dict(merge or {}), tuple(ignore)
        self.rules = rules
        self.classes = classes
        self.warnings: list[str] = []
        self._records: dict[Split, list[Record]] = {}
        labels = map_categories(
            dict(enumerate(VOC20.names, start=1)),
            classes,
            merge=merge,
            ignore=ignore,
            where="Pascal VOC",
        )
        self._labels = {VOC20.names[number - 1]: label for number, label in labels.items()}
        table = [labels.get(value, 0) for value in range(255)] + [255]
        for name_ignored in self._ignore:
            table[VOC20.label(name_ignored)] = 255
        self._table = tuple(table)

    @property
    def name(self) -> str:
        """`voc2007+2012` when the images are the official ones, else the folder's name."""
        if self._given_name:
            return self._given_name
        counts = {
            year: sum(1 for _ in (folder / "Annotations").glob("*.xml"))
            for year, folder in self._folders.items()
        }
        if all(OFFICIAL_IMAGES.get(year) == count for year, count in counts.items()):
            return "voc" + "+".join(map(str, counts))
        return slug(self._path.resolve().name)

    @property
    def has_masks(self) -> bool:
        """Whether every split has at least one label map."""
        return all(
            any(record.label_map_path for record in self.records(split))
            for split in ("train", "val", "test")
        )

    def inputs(self) -> list[Path]:
        """Return the folders of each year."""
        parts = ("ImageSets/Main", "Annotations", "JPEGImages", "SegmentationClass")
        files = [folder / part for folder in self._folders.values() for part in parts]
        return self._extra_inputs + [path for path in files if path.exists()]

    def settings(self) -> dict[str, Any]:
        """Return the years, classes, merges and ignored names."""
        return {
            "reader": "voc",
            "name": self._given_name,
            "years": list(self._folders),
            "classes": self.classes.to_dict(),
            "merge": {new: list(olds) for new, olds in self._merge.items()},
            "ignore": list(self._ignore),
        }

    def records(self, split: Split) -> list[Record]:
        """Return the images of a split, by rising image id.

        Raises:
            DataError: when a listed file is missing or wrong, or no image is left.
        """
        if split not in self._records:
            if split == "test":
                self._records["test"] = self._read(self._lists[1], "test")
            else:
                records = self._read(self._lists[0], "training")
                train, val = (
                    set(part) for part in split_ids([r.image_id for r in records], self.rules)
                )
                self._records["train"] = [r for r in records if r.image_id in train]
                self._records["val"] = [r for r in records if r.image_id in val]
        return self._records[split]

    @cached_property
    def _lists(self) -> tuple[dict[int, _Image], dict[int, _Image]]:
        test = self._listed("test", optional=True)
        if test:
            training = self._listed("trainval")
        else:
            training, test = self._listed("train"), self._listed("val")
        images = sorted({*training, *test}, key=lambda image: (image.name, str(image.folder)))
        official = {image: _official_id(image.name) for image in images}
        ids = {
            image: number
            if (known := official[image]) is None or None in official.values()
            else known
            for number, image in enumerate(images, start=1)
        }
        # One photo can be in several years' folders; a test image never trains.
        by_id = {ids[image]: image for image in test}
        return {ids[image]: image for image in training if ids[image] not in by_id}, by_id

    def _listed(self, name: str, optional: bool = False) -> list[_Image]:
        images = []
        for folder in self._folders.values():
            path = folder / "ImageSets" / "Main" / f"{name}.txt"
            if not path.is_file():
                if optional:
                    continue
                raise DataError(f"{path} does not exist; it lists the images of VOC's {name} set")
            listed = [
                _Image(folder, line.split()[0])
                for line in path.read_text().splitlines()
                if line.strip()
            ]
            if optional:
                # VOC2012's test list comes without annotations.
                listed = [i for i in listed if (folder / "Annotations" / f"{i.name}.xml").is_file()]
            images += listed
        return images

    def _read(self, images: Mapping[int, _Image], what: str) -> list[Record]:
        tally = Tally()
        records = [self._record(key, images[key], tally) for key in sorted(images)]
        if self.rules.empty_images == "drop":
            records = [r for r in records if any(item.label for item in r.objects)]
        if not records:
            raise DataError(
                f"{self._path}: no {what} image has an object of {', '.join(self.classes.names)}"
            )
        self.warnings += tally.sentences(f"VOC {what} images")
        without = sum(record.unlabelled for record in records)
        if 0 < without < len(records):
            self.warnings.append(
                f"VOC {what} images: {without} of {len(records)} have no label map; segmentation "
                "ignores them"
            )
        return records

    def _record(self, key: int, image: _Image, tally: Tally) -> Record:
        path = image.folder / "Annotations" / f"{image.name}.xml"
        try:
            root = ElementTree.parse(path).getroot()
        except FileNotFoundError:
            raise DataError(f"the annotation file {path} does not exist") from None
        except ElementTree.ParseError as error:
            raise DataError(f"{path} is not valid XML: {error}") from error
        width, height = (int(_number(root, f"size/{side}", path)) for side in ("width", "height"))
        objects = []
        for entry in root.iter("object"):
            item = self._object(entry, width, height, path, tally)
            if item is not None:
                objects.append(item)
        label_map = image.folder / "SegmentationClass" / f"{image.name}.png"
        there = label_map.is_file()
        return Record(
            image_id=key,
            path=image.folder / "JPEGImages" / f"{image.name}.jpg",
            width=width,
            height=height,
            objects=objects,
            label_map_path=label_map if there else None,
            label_map_table=self._table if there else None,
            unlabelled=not there,
        )

    def _object(
        self, entry: ElementTree.Element, width: int, height: int, path: Path, tally: Tally
    ) -> SourceObject | None:
        name = (entry.findtext("name") or "").strip()
        known = map_name(name)
        if known is None:
            raise DataError(f"{path} has an object of the unknown class {name!r}")
        if known not in self._labels:
            return None
        x1, y1, x2, y2 = (
            _number(entry, f"bndbox/{edge}", path) for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        box, cut = clip_box(x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1, width, height)
        if box is None:
            tally.add("boxes of no size or outside of their image are dropped", str(path))
            return None
        if cut:
            tally.add("boxes that leave their image are clipped", str(path))
        label = self._labels[known]
        difficult = (entry.findtext("difficult") or "0").strip() == "1"
        area = (box[2] - box[0]) * (box[3] - box[1])
        return SourceObject(label, box, area, difficult or label == IGNORE_LABEL)


def map_name(name: str) -> str | None:
    """Return the class list's spelling of a name in VOC's XML, or None when it is no VOC class."""
    from sharedenc.data.classes import same_class

    return same_class(name, VOC20.names)


def _official_id(name: str) -> int | None:
    """Image id of an official name: `000005` -> 5, `2008_000008` -> 8000008."""
    match = re.fullmatch(r"(?:20(\d\d)_)?(\d{6})", name)
    return int(match.group(1) or 0) * 10**6 + int(match.group(2)) if match else None


def _number(element: ElementTree.Element, tag: str, path: Path) -> float:
    text = element.findtext(tag)
    try:
        return float(text or "")
    except ValueError:
        raise DataError(f"{path}: <{tag}> must be a number, not {text!r}") from None
