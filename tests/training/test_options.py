"""Recipe settings from preset, file and command line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sharedenc.cli.options import build_recipe, recipe_options, runs_root
from sharedenc.errors import SpecError
from sharedenc.spec import Recipe


def parse(*arguments: str) -> Recipe:
    found: list[Recipe] = []

    @click.command()
    @recipe_options
    def command(**options: Any) -> None:
        found.append(build_recipe(options))

    result = CliRunner().invoke(command, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert found, result.output
    return found[0]


def test_every_setting_is_an_option() -> None:
    assert parse() == Recipe()
    changed = Recipe(augment=False, tf32=True, scheduler="cosine", weight_decay=0.25, epochs=7)
    arguments = ["--no-augment", "--tf32", "--scheduler", "cosine", "--weight-decay", ".25"]
    assert parse(*arguments, "--epochs", "7") == changed
    for item in fields(Recipe):
        if not isinstance(item.default, bool):
            flag = f"--{item.name.replace('_', '-')}"
            assert parse(flag, str(item.default)) == Recipe()


def test_the_command_line_beats_the_file_and_the_file_the_preset(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("recipe:\n  batch_size: 4\n  weight_decay: 1e-3\n  epochs: 5\n")
    recipe = parse("--preset", "quick", "--config", str(config), "--epochs", "2")
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (2, 4, 0.001)
    assert recipe.early_stop_patience == 6


def test_wrong_names_are_told_with_the_nearest(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("epoch: 5\n")
    with pytest.raises(SpecError, match=r"recipe\.yaml.*Did you mean 'epochs'"):
        parse("--config", str(config))
    config.write_text("- epochs\n")
    with pytest.raises(SpecError, match="must hold a mapping"):
        parse("--config", str(config))
    with pytest.raises(SpecError, match="Did you mean 'thesis'"):
        parse("--preset", "thesys")
    with pytest.raises(SpecError, match="Did you mean 'plateau'"):
        parse("--scheduler", "platau")


def test_the_runs_folder_is_the_option_or_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs_root(None) == tmp_path / "sharedenc-runs"
    monkeypatch.setenv("SHAREDENC_RUNS", str(tmp_path / "elsewhere"))
    assert runs_root(None) == tmp_path / "elsewhere"
    assert runs_root(Path("here")) == tmp_path / "here"
