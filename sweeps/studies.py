"""Studies merged from preset, study file and command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from sharedenc.errors import SpecError, nearest
from sharedenc.presets import DEFAULT_PRESET
from sharedenc.presets import preset as find_preset
from sharedenc.spec import Cell, Recipe
from sweeps.study import KINDS, SEARCH_DEFAULTS, Study

__all__ = ["KINDS", "Study", "read_study_file", "seeds_from", "study_from"]

# Settings with which a study of given cells and rates is never refused for what it searches.
LOOSE: dict[str, Any] = {"lr_search": None, "search_cell": None}


def study_from(
    *layers: Mapping[str, Any], kind: str | None = None, preset: str | None = None
) -> Study:
    """Merge settings: defaults, then the preset, then each layer (later ones win).

    ``recipe``, ``axes``, ``lr`` and ``rules`` are merged by name, everything else is replaced.
    ``kind`` and ``preset`` win over what the layers say.

    Raises:
        SpecError: a setting is unknown (with the nearest name) or of a wrong type, or what is
            chosen leaves nothing to train.
    """
    names = {item.name for item in fields(Study)}
    given: dict[str, Any] = {}
    for layer in layers:
        given.update(layer)
    given["kind"] = kind or given.get("kind", "full-grid")
    given["preset"] = preset or given.get("preset", DEFAULT_PRESET)
    base = find_preset(given["preset"])
    recipe, axes = _merged_recipe(base.recipe, layers)
    merged = {**base.study, **given, "recipe": Recipe.from_dict(recipe), "axes": axes}
    for name in ("lr", "rules"):
        merged[name] = {}
        for layer in layers:
            merged[name].update(_mapping(name, layer.get(name, {})))
    for name in merged:
        if name not in names:
            raise SpecError(f"a study has no setting {name!r}.{nearest(name, names)}")
    values = {name: _as_field(name, value) for name, value in merged.items()}
    return Study(**_without_moot(values, base.study, given))


def _merged_recipe(
    preset: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe settings with one value, and those with several, which are axes."""
    recipe, axes = dict(preset), {}
    for layer in layers:
        settings = _mapping("recipe", layer.get("recipe", {}))
        for name, value in {**settings, **_mapping("axes", layer.get("axes", {}))}.items():
            if isinstance(value, list | tuple) and len(value) != 1:
                axes[name] = tuple(value)
                continue
            axes.pop(name, None)
            recipe[name] = value[0] if isinstance(value, list | tuple) else value
    return recipe, axes


def _without_moot(
    values: Mapping[str, Any], preset: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """What the user gave makes a preset's own search settings moot where they contradict it."""
    kept = dict(values)
    if {"search_trials", "search_range"} & set(given) and "search_lrs" not in given:
        kept.pop("search_lrs", None)
    cells = Study(**{k: v for k, v in kept.items() if k not in SEARCH_DEFAULTS} | LOOSE).cells
    if kept.get("search_cell") and "search_cell" not in given:
        searches = kept["kind"] == "lr-search" or kept.get("lr_search") in ("backbone", "cell")
        if searches or Cell.parse(kept["search_cell"]) not in cells:
            del kept["search_cell"]
            for name in () if searches else set(SEARCH_DEFAULTS) - set(given):
                kept.pop(name, None)
    if "lr_search" in preset and "lr_search" not in given and kept["kind"] != "lr-search":
        if all({cell.backbone, "*"} & set(kept["lr"]) for cell in cells):
            kept["lr_search"] = "published"
    return kept


def seeds_from(text: str) -> int | list[int]:
    """Seeds as a command line gives them: a count (``3``: 0, 1, 2) or a list (``0,5`` or ``7,``).

    Raises:
        SpecError: it is neither.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if not numbers:
        raise SpecError(f"seeds={text!r} is neither a count such as 3 nor a list such as 0,5")
    return numbers[0] if "," not in text else numbers


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(f"{name}={value!r} must be a mapping of names to values")
    return {str(key): item for key, item in value.items()}


def _as_field(name: str, value: Any) -> Any:
    """Values of a YAML file as the types of `Study`."""
    wrong = SpecError(f"study setting {name}={value!r} is not of the right type")
    try:
        if name in {"search_lrs", "search_range", "lr"}:
            if isinstance(value, Mapping):
                return {key: float(rate) for key, rate in value.items()}
            return tuple(float(rate) for rate in value)
        if name == "seeds" and isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise SpecError(f"seeds={value} must be a count, 1 or more, or a list of seeds")
            return tuple(range(value))
        if name in {"seeds", "search_rungs", "synthetic_images"}:
            if isinstance(value, str):
                raise wrong
            return tuple(int(item) for item in value)
    except (TypeError, ValueError):
        raise wrong from None
    if name in {"backbones", "strategies", "freeze", "tasks", "only", "plugins"} | {
        "search_schedulers"
    }:
        if isinstance(value, str) or not all(isinstance(item, str) for item in value):
            raise wrong
        return tuple(value)
    counts = {"search_epochs", "search_factor", "search_trials", "int8_images", "accuracy_images"}
    if name in counts and value is not None:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise wrong
    return value


def read_study_file(path: Path) -> dict[str, Any]:
    """Settings of a YAML study file.

    Raises:
        SpecError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SpecError(f"study file {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"study file {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise SpecError(f"study file {path} must be a mapping, such as `kind: full-grid`")
    return values
