"""Builds the packed form of a data set: a folder that is either complete or not there.

Per split: `<split>.images` (the original encoded pictures, one after the other), `<split>.masks`
(label maps, drawn once at full size, see `label_runs`), `<split>.npz` (offsets, sizes, boxes).
And `splits.json` (image ids), `pack.json` (names, digest, warnings), which is written last.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from sharedenc.data.dataset import SPLITS, Record, Source, Split
from sharedenc.data.label_runs import to_runs
from sharedenc.data.progress import progress
from sharedenc.data.rasterise import IGNORE, label_map
from sharedenc.errors import DataError

FORMAT = 2
"""Of the files; a pack of another format is built anew. It is not part of the data digest."""
META = "pack.json"


def build(source: Source, folder: Path, *, fingerprint: str, shown: bool) -> str:
    """Write the pack of a source into an existing empty folder and return its digest.

    Raises:
        DataError: when a picture or annotation cannot be used, or the disk is full.
    """
    splits = {split: source.records(split) for split in SPLITS}
    for records in splits.values():
        _require_files(records)
    warnings = [*source.warnings, *_missing_classes(splits, source.classes.names)]
    masks = source.has_masks
    if not masks:
        warnings.append(
            "the annotations have boxes only, no outlines or label maps in every split: "
            "segmentation (seg) and dual are switched off"
        )
    tasks = ["det", "seg"] if masks else ["det"]
    header = {
        "classes": list(source.classes.names),
        "rules": source.rules.to_dict(),
        "tasks": tasks,
    }
    digest = hashlib.sha256(_canonical(header))
    pictures: dict[Split, set[bytes]] = {}
    total = sum(len(records) for records in splits.values())
    with progress(f"packing {source.name}", total, unit="images", shown=shown) as advance:
        for split, records in splits.items():
            pictures[split] = set()
            digest.update(_canonical([split, len(records)]))
            with _Writer(folder, split, masks) as writer:
                for record in records:
                    data, drawn = _read(record), None
                    if masks:
                        drawn = _label_map(record, source)
                    picture = hashlib.sha256(data).digest()
                    pictures[split].add(picture)
                    digest.update(_content(record, picture, drawn))
                    writer.add(record, data, drawn)
                    advance(1)
    warnings += _shared_pictures(pictures)
    ids = {split: [r.image_id for r in records] for split, records in splits.items()}
    _write_json(folder / "splits.json", ids)
    _write_json(
        folder / META,
        {
            "format": FORMAT,
            "name": source.name,
            "classes": source.classes.to_dict(),
            "digest": digest.hexdigest(),
            "tasks": tasks,
            "rules": source.rules.to_dict(),
            "images": {split: len(records) for split, records in splits.items()},
            "warnings": warnings,
            "fingerprint": fingerprint,
        },
    )
    sync_folder(folder)
    return digest.hexdigest()


class _Writer:
    """Writes the files of one split."""

    def __init__(self, folder: Path, split: Split, masks: bool) -> None:
        self._folder, self._split = folder, split
        self._images = (folder / f"{split}.images").open("wb")
        self._masks = (folder / f"{split}.masks").open("wb") if masks else None
        self._records: list[Record] = []
        self._image_ends, self._mask_ends = [0], [0]

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        files = [file for file in (self._images, self._masks) if file]
        try:
            if kind is None:
                self._write_index()
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            for file in files:
                _close(file)

    def add(self, record: Record, data: bytes, drawn: npt.NDArray[np.uint8] | None) -> None:
        self._records.append(record)
        append(self._images, data)
        self._image_ends.append(self._image_ends[-1] + len(data))
        if self._masks is not None:
            assert drawn is not None, "a pack with masks has a label map for every picture"
            runs = to_runs(drawn)
            append(self._masks, runs)
            self._mask_ends.append(self._mask_ends[-1] + len(runs))

    def _write_index(self) -> None:
        items = [item for record in self._records for item in record.objects]
        counts = [len(record.objects) for record in self._records]
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": np.array([record.image_id for record in self._records], np.int64),
            "widths": np.array([record.width for record in self._records], np.int32),
            "heights": np.array([record.height for record in self._records], np.int32),
            "image_ends": np.array(self._image_ends, np.int64),
            "mask_ends": np.array(self._mask_ends, np.int64),
            "box_ends": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            "boxes": np.array([item.box for item in items], np.float64).reshape(-1, 4),
            "labels": np.array([item.label for item in items], np.int64),
            "crowd": np.array([item.crowd for item in items], np.bool_),
            "areas": np.array([item.area for item in items], np.float64),
        }
        with (self._folder / f"{self._split}.npz").open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())


def append(file: IO[bytes], data: bytes) -> None:
    """Write to a pack's file; the one place where a full disk shows first."""
    file.write(data)


def _close(file: IO[bytes]) -> None:
    try:
        file.close()
    except OSError as error:
        # A full disk fails again when the buffer is flushed; the first error is the one to tell.
        if error.errno != errno.ENOSPC:
            raise


@contextmanager
def disk_errors_are_told(folder: Path) -> Iterator[None]:
    """Turn a full or closed disk into a DataError that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"the disk of {folder} is full ({error.strerror}); what was begun there was "
                "removed. A pack is as large as the data set's pictures: free some space, or "
                "choose another disk (packs: --cache-dir or SHAREDENC_CACHE; downloads: --out)."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DataError(
                f"no permission for {error.filename or folder} ({error.strerror}); choose a "
                "folder of your own (packs: --cache-dir or SHAREDENC_CACHE; downloads: --out)."
            ) from error
        raise


def check_picture(data: bytes, record: Record) -> None:
    """Decode a picture wholly.

    Raises:
        DataError: when it is no picture, is cut short, or has another size than its annotation.
    """
    from PIL import Image, UnidentifiedImageError

    where = f"{record.path} (image {record.image_id})"
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind, size = picture.format, picture.size
            picture.load()
    except UnidentifiedImageError as error:  # its text is the address of our buffer
        raise DataError(f"{where} is no picture. Copy or download it again.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{where} cannot be decoded: {error}. Copy or download it again."
        ) from error
    # A decoder invents the end of a JPEG that lacks it. Inside the compressed data FF D9 cannot
    # occur, and thumbnails, which have their own, lie before the last start of scan.
    if kind == "JPEG" and data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0:
        raise DataError(f"{where} is a truncated JPEG (no end marker). Copy or download it again.")
    if size != (record.width, record.height):
        turned = size == (record.height, record.width)
        hint = " Its EXIF tag may turn it: store it upright." if turned else ""
        raise DataError(
            f"{where} is {size[0]}x{size[1]} pixels, but its annotation says "
            f"{record.width}x{record.height}.{hint}"
        )


def _read(record: Record) -> bytes:
    try:
        data = record.path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {record.path}: {error.strerror}") from error
    check_picture(data, record)
    return data


def _label_map(record: Record, source: Source) -> npt.NDArray[np.uint8]:
    if record.unlabelled:
        return np.full((record.height, record.width), IGNORE, np.uint8)
    if record.label_map_path is None:
        return label_map(record, source.rules)
    from PIL import Image

    try:
        with Image.open(record.label_map_path) as picture:
            values = np.array(picture)
    except OSError as error:
        raise DataError(f"{record.label_map_path} cannot be decoded: {error}") from error
    if values.shape != (record.height, record.width) or values.dtype != np.uint8:
        raise DataError(
            f"{record.label_map_path} must be a palette picture of {record.width}x{record.height} "
            f"pixels; it is {values.dtype} {values.shape}"
        )
    assert record.label_map_table is not None
    drawn: npt.NDArray[np.uint8] = np.array(record.label_map_table, np.uint8)[values]
    return drawn


def _content(record: Record, picture: bytes, drawn: npt.NDArray[np.uint8] | None) -> bytes:
    # The drawn labels stand for the outlines, and not the form in which they are stored.
    labels = "" if drawn is None else hashlib.sha256(drawn.tobytes()).hexdigest()
    objects = [[item.label, item.box, item.area, item.crowd] for item in record.objects]
    size = [record.width, record.height]
    return _canonical([record.image_id, size, picture.hex(), labels, objects])


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _require_files(records: Sequence[Record]) -> None:
    missing = [record.path for record in records if not record.path.is_file()]
    if missing:
        some = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{len(missing)} of {len(records)} pictures do not exist: {some}")


def _missing_classes(splits: dict[Split, list[Record]], names: Sequence[str]) -> list[str]:
    warnings = []
    for split, records in splits.items():
        there = {item.label for record in records for item in record.objects if not item.crowd}
        missing = [name for label, name in enumerate(names, start=1) if label not in there]
        if missing:
            warnings.append(
                f"the {split} split has no object of: {', '.join(missing)} (left out of its means)"
            )
    return warnings


def _shared_pictures(pictures: dict[Split, set[bytes]]) -> list[str]:
    pairs: list[tuple[Split, Split]] = [("train", "val"), ("train", "test"), ("val", "test")]
    return [
        f"{count} pictures are in both the {one} and the {other} split: scores on them flatter"
        for one, other in pairs
        if (count := len(pictures[one] & pictures[other]))
    ]


def _write_json(path: Path, value: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put a folder's own entries on the disk: a rename in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
