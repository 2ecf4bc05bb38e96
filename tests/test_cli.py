"""The command group: light, and clear about what it does not know."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sharedenc.cli import COMMANDS, main


def leaves(command: click.Command, words: list[str]) -> Iterator[list[str]]:
    """Every command that people can call, as words after `sharedenc`."""
    if not isinstance(command, click.Group):
        yield words
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        if not child.hidden:
            yield from leaves(child, [*words, name])


@pytest.mark.parametrize("words", list(leaves(main, [])), ids=" ".join)
def test_every_command_loads_and_has_an_example(words: list[str]) -> None:
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0, result.output
    assert "xample" in result.output, f"{words} --help shows no example"


def test_help_lists_every_command() -> None:
    output = CliRunner().invoke(main, ["--help"]).output
    for name in COMMANDS:
        assert f"  {name} " in output


def test_an_unknown_command_gets_the_nearest_name() -> None:
    result = CliRunner().invoke(main, ["sweeep"])
    assert result.exit_code == 2
    assert "Did you mean 'sweep'?" in result.output


def test_a_place_that_cannot_be_written_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    out = str(tmp_path / "file" / "drawn")
    result = CliRunner().invoke(main, ["data", "synthetic", "--out", out, "--images", "3"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert out in result.stderr


@pytest.mark.parametrize(
    "module",
    [
        "sharedenc",
        "sharedenc.cli",
        "sharedenc.spec",
        "sharedenc.presets",
        "jetson_agent.cli",
        "jetson_agent.protocol",
    ],
)
def test_import_stays_light(module: str) -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'cv2', 'onnxruntime', 'matplotlib'}"
    check = f"import sys, {module}; assert not {heavy} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize("module", ["sharedenc", "jetson_agent"])
def test_python_dash_m_answers_and_importing_main_runs_nothing(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage" in done.stdout
    subprocess.run([sys.executable, "-c", f"import {module}.__main__"], check=True)


def test_help_answers_at_once() -> None:
    def seconds_of_help() -> float:
        before = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "sharedenc", "--help"], capture_output=True, check=True
        )
        return time.monotonic() - before

    # Half a second on a quiet machine; the best of several, with room for a busy one.
    assert min(seconds_of_help() for _ in range(5)) < 2.0
