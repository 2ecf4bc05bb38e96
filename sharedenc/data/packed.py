"""The packed form of a data set, which training reads, and `prepare`, which finds or builds it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from sharedenc.data.classes import IGNORE_LABEL, ClassList
from sharedenc.data.dataset import SPLITS, AskedRules, DataRules, Source, Split, open_source, slug
from sharedenc.data.decoded import find_decoded
from sharedenc.data.label_runs import from_runs
from sharedenc.data.packing import FORMAT, META, build, disk_errors_are_told, sync_folder
from sharedenc.errors import DataError, check_choice
from sharedenc.spec import Task

log = logging.getLogger(__name__)


class UnreadablePackError(DataError):
    """A pack that this machine cannot read now, by no fault of the pack's that is known."""

    kind = "machine"


@dataclass
class RawSample:
    """One image as stored.

    ``image``: uint8 ``[H, W, 3]``, RGB, perhaps read-only. ``label_map``: uint8 ``[H, W]``, 0
    background, 255 ignore; None without masks. ``boxes``: float32 ``[N, 4]``, xyxy in pixels;
    ``labels``: int64 ``[N]``; ``crowd``: bool ``[N]`` (drop in training; label 0: an ignore region
    of no class); ``areas``: float32 ``[N]``, pixels of the outline.
    """

    image: npt.NDArray[np.uint8]
    label_map: npt.NDArray[np.uint8] | None
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float32]
    image_id: int


class PackedSplit(Sequence[RawSample]):
    """The images of one split, by rising image id, decoded on access.

    Files are mapped on first access in each process, so that all readers of a node share the page
    cache; a split can be pickled and read from threads and worker processes.

    Args:
        folder: Of the pack.
        masks: Whether it has label maps.
        decoded: Folder of its decoded pictures, which are then read instead (see `decoded`).
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        classes: ClassList,
        masks: bool,
        decoded: Path | None = None,
    ) -> None:
        self.split = split
        self.classes = classes
        self._images, self._masks = folder / f"{split}.images", folder / f"{split}.masks"
        self._pixels = None if decoded is None else decoded / f"{split}.pixels"
        self._has_masks = masks
        # numpy leaves a file open that it opened itself and cannot read.
        with (folder / f"{split}.npz").open("rb") as file, np.load(file) as index:
            self._index: dict[str, npt.NDArray[Any]] = {key: index[key] for key in index.files}
        self._index["pixel_ends"] = np.concatenate([[0], np.cumsum(self.picture_bytes())])
        self._maps: dict[Path, npt.NDArray[np.uint8]] = {}
        for path, ends in ((self._images, "image_ends"), (self._masks, "mask_ends")):
            size = int(self._index[ends][-1])
            if (masks or path == self._images) and path.stat().st_size != size:
                raise DataError(f"{path} has {path.stat().st_size} bytes instead of {size}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def __len__(self) -> int:
        return len(self._index["ids"])

    @overload
    def __getitem__(self, index: int) -> RawSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[RawSample]: ...
    def __getitem__(self, index: int | slice) -> RawSample | list[RawSample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return self._sample(i, self.decode(i) if self._pixels is None else self._decoded(i))

    def without_picture(self, index: int) -> RawSample:
        """Return a sample whose picture is not read: black, of the right size, without memory."""
        i = range(len(self))[index]
        return self._sample(i, np.broadcast_to(np.uint8(0), (*self._size(i), 3)))

    def decode(self, index: int) -> npt.NDArray[np.uint8]:
        """Decode one picture, uint8 ``[H, W, 3]``, RGB.

        Raises:
            DataError: its bytes are damaged.
        """
        import cv2

        # Annotations count in stored pixels; packing has checked that the sizes agree.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image: Any = cv2.imdecode(self._bytes(self._images, "image_ends", index), flags)
        if image is None:
            raise self._damaged(index)
        return np.asarray(image, np.uint8)

    def _decoded(self, i: int) -> npt.NDArray[np.uint8]:
        assert self._pixels is not None
        return self._bytes(self._pixels, "pixel_ends", i).reshape(*self._size(i), 3)

    def label_map(self, index: int) -> npt.NDArray[np.uint8] | None:
        """Return one label map, uint8 ``[H, W]``; None where the pack has none.

        Raises:
            DataError: its bytes are damaged.
        """
        if not self._has_masks:
            return None
        try:
            return from_runs(self._bytes(self._masks, "mask_ends", index), *self._size(index))
        except ValueError as error:
            raise self._damaged(index) from error

    def _sample(self, i: int, image: npt.NDArray[np.uint8]) -> RawSample:
        objects = self._objects(i)
        return RawSample(
            image=image,
            label_map=self.label_map(i),
            boxes=self._index["boxes"][objects].astype(np.float32),
            labels=self._index["labels"][objects].copy(),
            crowd=self._index["crowd"][objects].copy(),
            areas=self._index["areas"][objects].astype(np.float32),
            image_id=int(self._index["ids"][i]),
        )

    def _damaged(self, i: int) -> DataError:
        return DataError(
            f"image {self.ids[i]} in {self._images.parent} is damaged on the disk: delete that "
            "pack to build it anew"
        )

    def _size(self, i: int) -> tuple[int, int]:
        """Height and width."""
        return int(self._index["heights"][i]), int(self._index["widths"][i])

    @property
    def ids(self) -> list[int]:
        """Image ids, rising."""
        return [int(key) for key in self._index["ids"]]

    def sizes(self) -> npt.NDArray[np.int32]:
        """Width and height of every image, int32 ``[len, 2]``."""
        return np.stack([self._index["widths"], self._index["heights"]], axis=1)

    def picture_bytes(self) -> npt.NDArray[np.int64]:
        """Bytes of every decoded picture, int64 ``[len]``."""
        sizes = self.sizes().astype(np.int64)
        return 3 * sizes[:, 0] * sizes[:, 1]

    def stored_bytes(self) -> int:
        """Size of the split's files."""
        return int(self._index["image_ends"][-1] + self._index["mask_ends"][-1])

    def object_counts(self) -> tuple[dict[str, int], int]:
        """Number of objects of each class (crowd regions not counted), and of crowd regions."""
        crowd = self._index["crowd"]
        counts = np.bincount(self._index["labels"][~crowd], minlength=self.classes.num_classes)
        named = {name: int(n) for name, n in zip(self.classes.names, counts[1:], strict=True)}
        return named, int(crowd.sum())

    def ground_truth(self, limit: int | None = None) -> dict[str, Any]:
        """Return COCO-format annotations of the first ``limit`` images, in original pixels.

        Category ids are labels. Crowd regions have ``iscrowd`` 1; an ignore region of no class is
        one such region of every class.
        """
        count = len(self) if limit is None else min(limit, len(self))
        names = self.classes.names
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(count):
            image_id = int(self._index["ids"][i])
            width, height = (int(self._index[side][i]) for side in ("widths", "heights"))
            images.append({"id": image_id, "width": width, "height": height})
            objects = self._objects(i)
            for box, label, crowd, area in zip(
                *(self._index[key][objects] for key in ("boxes", "labels", "crowd", "areas")),
                strict=True,
            ):
                x1, y1, x2, y2 = (float(v) for v in box)
                every = range(1, len(names) + 1)
                for category in every if label == IGNORE_LABEL else (int(label),):
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": image_id,
                            "category_id": category,
                            "bbox": [x1, y1, x2 - x1, y2 - y1],
                            "area": float(area),
                            "iscrowd": int(crowd),
                        }
                    )
        categories = [{"id": label, "name": name} for label, name in enumerate(names, start=1)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _objects(self, i: int) -> slice:
        return slice(int(self._index["box_ends"][i]), int(self._index["box_ends"][i + 1]))

    def _bytes(self, path: Path, ends: str, i: int) -> npt.NDArray[np.uint8]:
        if path not in self._maps:
            self._maps[path] = np.asarray(np.memmap(path, np.uint8, mode="r"))
        return self._maps[path][int(self._index[ends][i]) : int(self._index[ends][i + 1])]


class PackedDataset:
    """A finished pack. ``warnings`` are what building it had to say, one sentence each."""

    def __init__(self, root: Path, meta: dict[str, Any]) -> None:
        self.root = root
        self.name: str = meta["name"]
        self.classes = ClassList.from_dict(meta["classes"])
        self.digest: str = meta["digest"]
        self.tasks: tuple[Task, ...] = tuple(meta["tasks"])
        self.warnings: list[str] = list(meta["warnings"])
        self.rules = DataRules.from_dict(meta["rules"])
        self.fingerprint: str = meta["fingerprint"]
        decoded = find_decoded(root, self.digest)
        self._splits = {
            split: PackedSplit(root, split, self.classes, "seg" in self.tasks, decoded)
            for split in SPLITS
        }

    @classmethod
    def open(cls, root: Path) -> PackedDataset:
        """Open a finished pack.

        Raises:
            DataError: when there is none, or it is damaged or of another format.
            UnreadablePackError: when the disk or the system refused: it may well be whole.
        """
        root = Path(root).resolve()
        try:
            meta = json.loads((root / META).read_text(encoding="utf-8"))
            if meta["format"] == FORMAT:
                return cls(root, meta)
        except FileNotFoundError as error:
            raise DataError(f"{root} is no finished pack: {error.filename} is missing") from error
        except OSError as error:
            raise UnreadablePackError(
                f"the pack {root} cannot be read now ({error}). It is left as it is; try again, "
                "and delete it if that stays so"
            ) from error
        except (ValueError, KeyError, EOFError, BadZipFile, DataError) as error:
            raise DataError(
                f"the pack {root} is damaged ({error}); delete it to build it anew"
            ) from error
        raise DataError(
            f"the pack {root} has format {meta['format']}, not {FORMAT}: delete it and give the "
            "data set that it was made from"
        )

    def split(self, name: str) -> PackedSplit:
        """Return the split `train`, `val` or `test`."""
        check_choice("split", name, SPLITS)
        return self._splits[name]  # type: ignore[index]


def cache_dir(explicit: Path | None = None) -> Path:
    """Return the cache folder: as given, else SHAREDENC_CACHE, else the XDG cache folder's."""
    if explicit is not None:
        return Path(explicit).resolve()
    if own := os.environ.get("SHAREDENC_CACHE"):
        return Path(own).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "sharedenc"


def prepare(
    path: Path,
    cache: Path | None = None,
    rules: AskedRules = None,
    classes: ClassList | None = None,
    progress: bool = True,
    out: Path | None = None,
) -> PackedDataset:
    """Return the pack of a data set, building it when there is none yet.

    A pack in the cache is found again by a quick fingerprint (names, sizes and times of the source
    files, classes, rules) without reading any picture. Building happens in a folder beside the
    final one and ends with a rename; builders of the same source wait for each other.

    Args:
        path: A data set in any layout that `open_source` knows, or a finished pack.
        cache: See `cache_dir`. Packs lie in its folder `packs`, as `<name>-<digest>`.
        rules: Rules for labels, or some of them; see `open_source`.
        classes: Classes to use; those of the data.yaml, else the built-in default, if None.
        progress: Whether to show it.
        out: Put the pack into exactly this folder instead of the cache.

    Raises:
        DataError: when the source cannot be used or the disk is full, or a finished pack was made
            with other rules.
    """
    path = Path(path)
    if (path / META).is_file():
        pack = PackedDataset.open(path)
        asked = rules.to_dict() if isinstance(rules, DataRules) else rules or {}
        for name, value in asked.items():
            if (made := pack.rules.to_dict()[name]) != value:
                raise DataError(
                    f"{path} is a finished pack, made with {name}={made}; give the data set that "
                    f"it was made from to have {name}={value}"
                )
        return pack
    source = open_source(path, rules, classes)
    fingerprint = _fingerprint(source)
    packs = Path(out).resolve().parent if out is not None else cache_dir(cache) / "packs"
    pointer = packs / f".{fingerprint[:24]}.json"
    with disk_errors_are_told(packs):
        packs.mkdir(parents=True, exist_ok=True)
        with _locked(packs / f".{fingerprint[:24]}.lock"):
            if out is None:
                found = _pointed(pointer)
            else:
                found = _existing(Path(out).resolve(), fingerprint)
            if found is not None:
                return found
            building = packs / f".building-{fingerprint[:24]}"
            # Only a builder that died can have left it: its lock is ours now.
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            try:
                digest = build(source, building, fingerprint=fingerprint, shown=progress)
                final = Path(out).resolve() if out else packs / f"{slug(source.name)}-{digest[:16]}"
                pack = _publish(building, final)
            finally:
                shutil.rmtree(building, ignore_errors=True)
            if out is None:
                _write_pointer(pointer, final)
            return pack


def _publish(building: Path, final: Path) -> PackedDataset:
    """Move a finished pack to its place, unless the same pack got there first."""
    with _locked(final.parent / f".{final.name}.lock"):
        if final.exists() and (found := whole_or_aside(final)) is not None:
            return found
        building.rename(final)
        sync_folder(final.parent)
    return PackedDataset.open(final)


def whole_or_aside(folder: Path) -> PackedDataset | None:
    """Open a pack; if it is damaged, rename it to ``<name>.damaged`` and return None.

    Trials may be reading what is still whole of it, so it is not deleted; the next damaged one of
    this name takes its place. Hold the lock of those who build or fetch ``folder``.

    Raises:
        UnreadablePackError: whether it is damaged cannot be told.
    """
    try:
        return PackedDataset.open(folder)
    except UnreadablePackError:
        raise
    except DataError as error:
        aside = folder.with_name(f"{folder.name}.damaged")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
        log.warning("%s: it is made anew, and kept as %s for trials that read it", error, aside)
        return None


def _pointed(pointer: Path) -> PackedDataset | None:
    try:
        return PackedDataset.open(pointer.parent / json.loads(pointer.read_text())["pack"])
    except UnreadablePackError:
        raise
    except (OSError, ValueError, KeyError, DataError):
        return None


def _write_pointer(pointer: Path, final: Path) -> None:
    temporary = pointer.with_suffix(f".{uuid.uuid4().hex}")
    temporary.write_text(json.dumps({"pack": final.name}))
    temporary.replace(pointer)


def _existing(out: Path, fingerprint: str) -> PackedDataset | None:
    if not out.exists():
        return None
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
        return None
    pack = PackedDataset.open(out) if (out / META).is_file() else None
    if pack is None or pack.fingerprint != fingerprint:
        what = "something else" if pack is None else f"a pack of other data ({pack.name})"
        raise DataError(f"{out} holds {what} already; delete it or choose another --out")
    return pack


def _fingerprint(source: Source) -> str:
    """Digest of what can be known without reading: settings, names, sizes, times."""
    state = [FORMAT, source.settings(), source.rules.to_dict()]
    for path in source.inputs():
        state.append([str(path.resolve()), _listing(path)])
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _listing(path: Path) -> list[tuple[str, int, int]]:
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.is_file():
        status = path.stat()
        return [("", status.st_size, status.st_mtime_ns)]
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            status = os.stat(os.path.join(folder, name))
            place = os.path.relpath(os.path.join(folder, name), path)
            found.append((place, status.st_size, status.st_mtime_ns))
    return sorted(found)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; it goes with its holder, however that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
