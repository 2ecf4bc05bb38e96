"""Class lists, and the one place where annotation ids become labels: by name, never by position.

Label 0 is background; label ``i + 1`` is ``names[i]``. Everything that depends on the number of
classes (heads, scores, exports, digests) reads it from a :class:`ClassList`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sharedenc.errors import DataError, nearest

IGNORE_LABEL = 0
"""Label of an object that is neither a class nor background: an ignore region for every class."""

# Other spellings of the same thing, each mapped to the spelling of Pascal VOC's class list below.
ALIASES: dict[str, str] = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "diningtable": "dining table",
    "motorcycle": "motorbike",
    "pottedplant": "potted plant",
    "tv": "tv/monitor",
    "tvmonitor": "tv/monitor",
}


def _doubled(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


@dataclass(frozen=True)
class ClassList:
    """The ordered names that a network tells apart, without background."""

    name: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError(f"the class list {self.name!r} is empty; it needs at least one name")
        if len(self.names) > 254:
            raise DataError(
                f"the class list {self.name!r} has {len(self.names)} names; label maps hold at "
                "most 254 (0 is background, 255 is ignore). Join some with `merge:`."
            )
        if twice := _doubled(self.names):
            raise DataError(f"the class list {self.name!r} names {_quoted(twice)} more than once")

    @property
    def num_classes(self) -> int:
        """Number of labels, background included."""
        return len(self.names) + 1

    def label(self, name: str) -> int:
        """Label of a class name, from 1.

        Raises:
            DataError: when the list has no such name.
        """
        if name not in self.names:
            raise DataError(
                f"class {name!r} is not one of {', '.join(self.names)}.{nearest(name, self.names)}"
            )
        return self.names.index(name) + 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"name": self.name, "names": list(self.names)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassList:
        """Return the list that :meth:`to_dict` wrote."""
        return cls(str(data["name"]), tuple(str(name) for name in data["names"]))


VOC20 = ClassList(
    "voc20",
    (
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "dining table",
        "dog",
        "horse",
        "motorbike",
        "person",
        "potted plant",
        "sheep",
        "sofa",
        "train",
        "tv/monitor",
    ),
)
"""The classes of Pascal VOC, in the order of the thesis's Table 3.1 and of VOC's own label maps."""

CLASS_LISTS: dict[str, ClassList] = {VOC20.name: VOC20}


def named_list(names: Sequence[str], fallback: str) -> ClassList:
    """Return the list of these names; a built-in list keeps its name, others get ``fallback``."""
    for known in CLASS_LISTS.values():
        if known.names == tuple(names):
            return known
    return ClassList(fallback, tuple(names))


def same_class(name: str, others: Iterable[str]) -> str | None:
    """Return the one of ``others`` that means ``name``: the same spelling, else an alias of it."""
    others = list(others)
    if name in others:
        return name
    meaning = ALIASES.get(name, name)
    return next((other for other in others if ALIASES.get(other, other) == meaning), None)


def default_names(
    categories: Mapping[int, str],
    merge: Mapping[str, Sequence[str]] | None = None,
    ignore: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return every category's name in the order of the ids, merged ones once, ignored ones not."""
    target = {old: new for new, olds in (merge or {}).items() for old in olds}
    names = (target.get(categories[i], categories[i]) for i in sorted(categories))
    return tuple(dict.fromkeys(name for name in names if name not in ignore))


def map_categories(
    categories: Mapping[int, str],
    classes: ClassList,
    *,
    merge: Mapping[str, Sequence[str]] | None = None,
    ignore: Sequence[str] = (),
    where: str = "the annotations",
) -> dict[int, int]:
    """Map category ids of one annotation file to labels, by name.

    Args:
        categories: The file's ids and names.
        merge: New name -> the file's names that it stands for.
        ignore: The file's names whose objects become ignore regions (`IGNORE_LABEL`).
        where: The file's name, for the error text.

    Returns:
        Labels of the categories that are classes or ignored; all others are background.

    Raises:
        DataError: when a name is unknown, missing or doubled; the text lists both sides.
    """
    merge = merge or {}
    names = list(categories.values())
    sides = f"{where} has: {', '.join(sorted(names))}. Asked for: {_asked(classes, merge, ignore)}."
    require_single(names, where)
    used = [old for olds in merge.values() for old in olds] + list(ignore)
    if twice := _doubled(used):
        raise DataError(f"`merge:` and `ignore:` use {_quoted(twice)} more than once. {sides}")
    if unknown := [name for name in used if name not in names]:
        hint = nearest(unknown[0], names)
        raise DataError(
            f"`merge:` or `ignore:` names {_quoted(unknown)}, unknown there.{hint} {sides}"
        )
    if unknown := [name for name in merge if name not in classes.names]:
        raise DataError(
            f"`merge:` makes {_quoted(unknown)}, which `classes:` does not name. {sides}"
        )
    if both := [name for name in ignore if name in classes.names and name not in merge]:
        raise DataError(f"{_quoted(both)} cannot be a class and in `ignore:` too. {sides}")

    ids = {name: number for number, name in categories.items()}
    labels = {ids[name]: IGNORE_LABEL for name in ignore}
    missing = []
    for label, name in enumerate(classes.names, start=1):
        free = [other for other in names if other not in used]
        olds = list(merge.get(name, ()))
        if not olds:
            found = same_class(name, free)
            olds = [found] if found is not None else []
        if not olds:
            missing.append(name)
        labels.update({ids[old]: label for old in olds})
    if missing:
        hint = nearest(missing[0], names)
        raise DataError(f"{where} lacks the classes {_quoted(missing)}.{hint} {sides}")
    return labels


def require_single(names: Iterable[str], where: str) -> None:
    """Raise `DataError` when a category's name comes twice."""
    names = list(names)
    if twice := _doubled(names):
        raise DataError(
            f"{where} has more than one category {_quoted(twice)}; it has: "
            f"{', '.join(sorted(names))}"
        )


def _asked(classes: ClassList, merge: Mapping[str, Sequence[str]], ignore: Sequence[str]) -> str:
    parts = [", ".join(classes.names)]
    parts += [f"merge {new} = {' + '.join(olds)}" for new, olds in merge.items()]
    parts += [f"ignore {', '.join(ignore)}"] if ignore else []
    return "; ".join(parts)
