"""Options that several commands share; those of the recipe are made from its dataclass.

A command takes them with ``**options`` and hands that mapping to :func:`build_recipe`. What wins:
the command line, then the ``--config`` file, then the ``--preset``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from sharedenc.data.dataset import DataRules
from sharedenc.errors import SpecError, check_choice
from sharedenc.models import ENTRY_POINT_GROUP
from sharedenc.presets import DEFAULT_PRESET, PRESETS
from sharedenc.spec import Recipe

F = TypeVar("F", bound=Callable[..., Any])

RECIPE_HINTS: dict[str, Any] = get_type_hints(Recipe)


DEFAULT_TAPS_GIB = 4.0

RULE_HINTS: dict[str, Any] = get_type_hints(DataRules)
RULES = {
    "overlap": "Pixels of several objects",
    "crowd_seg": "Pixels of crowds",
    "empty_images": "Images without an object",
    "val_fraction": "Part of the training images that validates, if there is no other",
    "split_seed": "Which part that is",
}


def recipe_options(function: F) -> F:
    """Add ``--preset``, ``--config`` and one option per field of :class:`Recipe`, none required."""
    for field in reversed(fields(Recipe)):
        function = _setting_option(field.name, RECIPE_HINTS[field.name])(function)
    function = click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML file of recipe settings (name: value).",
    )(function)
    return click.option(
        "--preset", metavar=f"[{'|'.join(PRESETS)}]", help="Named set of settings to start from."
    )(function)


def _setting_option(name: str, hint: Any) -> Callable[[F], F]:
    flag = f"--{name.replace('_', '-')}"
    shown = f"[default: {getattr(Recipe, name)}]"
    if hint is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=shown)
    if get_origin(hint) is Literal:
        # Not click.Choice: Recipe itself refuses a wrong value and says the nearest one.
        return click.option(flag, name, metavar=f"[{'|'.join(get_args(hint))}]", help=shown)
    return click.option(flag, name, type=hint, default=None, help=shown)


def recipe_settings(
    options: Mapping[str, Any], *, default_preset: str = DEFAULT_PRESET
) -> dict[str, Any]:
    """Return the recipe settings that preset, file and command line ask for, merged.

    Args:
        options: A command's keyword arguments; keys that are no recipe settings are left alone.
        default_preset: Used when ``--preset`` is not given.
    """
    preset = options.get("preset") or default_preset
    check_choice("preset", preset, tuple(PRESETS))
    settings = dict(PRESETS[preset].recipe)
    config = options.get("config")
    if config is not None:
        settings |= read_settings(config)
    given = {name: options.get(name) for name in RECIPE_HINTS}
    return settings | {name: value for name, value in given.items() if value is not None}


def build_recipe(options: Mapping[str, Any], *, default_preset: str = DEFAULT_PRESET) -> Recipe:
    """Return the recipe of :func:`recipe_settings`, the rest being the defaults of Recipe."""
    settings = recipe_settings(options, default_preset=default_preset)
    return Recipe.from_dict(Recipe().to_dict() | settings)


def read_settings(path: Path) -> dict[str, Any]:
    """Read recipe settings from a YAML file: the mapping itself, or what lies under ``recipe:``.

    Raises:
        SpecError: when the file is no YAML mapping or names a setting that does not exist.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not a YAML file: {error}") from error
    settings = content.get("recipe", content) if isinstance(content, dict) else content
    if not isinstance(settings, dict):
        raise SpecError(f"{path} must hold a mapping of recipe settings, such as `epochs: 10`.")
    for name in settings:
        check_choice(f"setting in {path}", str(name), tuple(RECIPE_HINTS))
    return settings


def data_options(function: F) -> F:
    """Add ``--data`` (None if not given), ``--cache-dir`` and the options of `data_rules`."""
    for name, about in reversed(RULES.items()):
        hint = RULE_HINTS[name]
        choices = f"[{'|'.join(get_args(hint))}]" if get_origin(hint) is Literal else None
        function = click.option(
            f"--{name.replace('_', '-')}",
            name,
            type=None if choices else hint,
            metavar=choices,
            help=f"{about} [default: as the data.yaml says, else {getattr(DataRules, name)}].",
        )(function)
    function = click.option(
        "--cache-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where packed data sets lie [default: $SHAREDENC_CACHE, else the XDG cache folder].",
    )(function)
    return click.option(
        "--data",
        type=click.Path(exists=True, path_type=Path),
        help="COCO 2017 or VOC folder, data.yaml, or a folder that holds one.",
    )(function)


def int8_options(function: F) -> F:
    """Add ``--int8/--no-int8``, ``--int8-images`` and ``--accuracy-images``, None if not given."""
    options = [
        click.option(
            "--int8/--no-int8",
            default=None,
            help="Also make INT8 files, and score all files on the test split [default: --int8 "
            "where the data is at hand].",
        ),
        click.option(
            "--int8-images",
            type=click.IntRange(1),
            help="Photos of the training split to calibrate with [default: 64, or the preset's].",
        ),
        click.option(
            "--accuracy-images",
            type=click.IntRange(1),
            help="Photos of the test split to score on [default: all, or the preset's].",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def data_rules(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data rules that were given on the command line.

    Raises:
        SpecError: a value is not allowed; the nearest is told.
    """
    given = {name: options[name] for name in RULES if options.get(name) is not None}
    DataRules.from_dict(given)
    return given


def runs_option(function: F) -> F:
    """Add ``--runs-dir``; :func:`runs_root` gives its meaning."""
    return click.option(
        "--runs-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where studies and the private MLflow server keep their files "
        "[default: $SHAREDENC_RUNS, else ./sharedenc-runs].",
    )(function)


def weights_option(function: F) -> F:
    """Add ``--weights``, with the grammar of :func:`sharedenc.models.weights.resolve_weights`."""
    return click.option(
        "--weights",
        default="default",
        show_default=True,
        metavar="[default|none|PATH|BACKBONE=PATH,...]",
        help="Initial weights of the encoder: torchvision's, none (random, with a batch-norm "
        "calibration pass), or a file.",
    )(function)


def plugin_option(function: F) -> F:
    """Add ``--plugin`` (repeatable): Python files that register backbones."""
    return click.option(
        "--plugin",
        "plugins",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Python file that registers further backbones; may be given several times.",
    )(function)


def runs_root(runs_dir: Path | None) -> Path:
    """Return the absolute runs folder: the option, ``SHAREDENC_RUNS``, or ``./sharedenc-runs``."""
    return (runs_dir or Path(os.environ.get("SHAREDENC_RUNS", "sharedenc-runs"))).resolve()


def load_plugins(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Load installed plugins and those given on the command line; returns the latter's paths."""
    # Without any, the engine stays unimported: `sweep --show` and help answer at once.
    if entry_points(group=ENTRY_POINT_GROUP):
        from sharedenc.models.plugins import load_entry_points

        load_entry_points()
    found = tuple(str(path.resolve()) for path in paths)
    if found:
        from sharedenc.models.plugins import load_plugin

        for path in found:
            load_plugin(Path(path))
    return found


def loading_options(function: F) -> F:
    """Add ``--workers`` and ``--taps-budget``; neither changes a result."""
    for option in (
        click.option(
            "--taps-budget",
            "taps_budget",
            type=click.FloatRange(0),
            default=DEFAULT_TAPS_GIB,
            show_default=True,
            metavar="GIB",
            help="Disk for what frozen encoders make of the validation set, in the cache folder; "
            "0 computes it every epoch.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(0),
            help="Most loader processes of a trial; it starts as few as keep its steps from "
            "waiting [default: on a GPU its share of the cores, on a CPU none].",
        ),
    ):
        function = option(function)
    return function


def taps_bytes(options: Mapping[str, Any]) -> int:
    """The budget of `loading_options` in bytes."""
    return int(options["taps_budget"] * 2**30)
