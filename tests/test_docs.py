"""What the documents tell people to type exists, and the cheap part of it really runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import click
import pytest

from jetson_agent.cli import cli as agent
from jetson_agent.failures import ACTIONS
from jetson_agent.journal import STATES
from jetson_agent.protocol import PRECISIONS, VERDICTS
from sharedenc.cli import main
from sharedenc.spec import AUTO_NUMERICS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS: dict[str, click.Command] = {"sharedenc": main, "jetson-agent": agent}
FENCE = re.compile(r"^```console([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(text: str, info: str | None = None) -> list[str]:
    """The lines after `$ ` of console blocks, with continuation lines joined."""
    found = []
    for words, block in FENCE.findall(text):
        if info is not None and words.strip() != info:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            assert line.startswith("$ "), f"not a command line: {line!r}"
            found.append(line[2:].strip())
    return found


ALL = [(path, line) for path in DOCUMENTS for line in commands(path.read_text())]


def resolve(command: click.Command, words: list[str]) -> None:
    """Follow sub-commands and let click parse the rest, without running anything."""
    context = click.Context(command, info_name=command.name)
    if isinstance(command, click.Group):
        # A group may rewrite its arguments (a default sub-command).
        command.parse_args(context, list(words))
        rest = [*context._protected_args, *context.args]
        _, child, rest = command.resolve_command(context, rest)
        assert child is not None
        resolve(child, rest)
        return
    options, _, _ = command.make_parser(context).parse_args(list(words))
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name in options:
            if isinstance(parameter.type, click.Choice | click.types.IntParamType):
                parameter.type_cast_value(context, options[parameter.name])
        if parameter.required:
            assert options.get(parameter.name or "") not in (None, ()), f"lacks {parameter.name}"


@pytest.mark.parametrize(("path", "line"), ALL, ids=[f"{p.name}: {c}" for p, c in ALL])
def test_every_command_of_the_documents_parses(path: Path, line: str) -> None:
    words = [w for w in shlex.split(line, comments=True)]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] in PROGRAMS:
        resolve(PROGRAMS[words[0]], words[1:])
    elif words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(words[1:]) <= targets
    elif words[:2] == ["python", "-m"]:
        module = ROOT / words[2].replace(".", "/")
        assert module.with_suffix(".py").exists() or (module / "__main__.py").exists()
    else:
        assert words[0] in {"export", "pip"}, f"{path.name}: what is {words[0]!r}?"


def test_a_wrong_option_in_a_document_would_be_found() -> None:
    for line in ("sharedenc data stats --dta x", "sharedenc sweep full-grid --epoch 3"):
        with pytest.raises(click.UsageError, match="No such option"):
            resolve(main, shlex.split(line)[1:])
    with pytest.raises(click.UsageError, match="there is no command 'swep'"):
        resolve(main, ["swep"])


def test_documents_refer_to_files_that_exist() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} refers to {target}"
    named = re.findall(r"`((?:tests|sharedenc|sweeps|jetson_agent|docs)/[\w/.]+\.\w+)`", _text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_documents_name_no_place_of_one_machine() -> None:
    assert not re.findall(r"/(?:home|work|root|tmp|Users)/|\.\./shared|pypi", _text())


def test_the_layout_names_files_that_exist_and_every_module_of_the_agent() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    layout = text[text.index("## Layout") : text.index("## Imports")]
    named = re.findall(r"(?<!\S)[\w*]+\.py(?![\w.])", layout)
    folders = ("sharedenc", "sweeps", "jetson_agent", "benchmarks")
    for name in named:
        assert any(found for folder in folders for found in (ROOT / folder).rglob(name)), name
    modules = {path.name for path in (ROOT / "jetson_agent").glob("[a-z]*.py")}
    assert modules == {m for m in modules if any(fnmatchcase(m, name) for name in named)}


def test_the_numerics_table_is_the_one_in_the_code() -> None:
    text = (ROOT / "docs" / "methods.md").read_text()
    for (backbone, kind), (precision, memory_format) in AUTO_NUMERICS.items():
        if backbone == "*":
            assert f"| `{kind}` | `{precision}` | `{memory_format}` |" in text


def test_the_tables_of_the_agent_are_those_in_the_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    told: dict[str, tuple[str, int, str]] = {}
    for kinds, tries, verdict in re.findall(
        r"^\| (`[^|]+`) \| (\d) \|[^|]*\| `(\w+)` \|$", text, re.MULTILINE
    ):
        told |= {kind: (kind, int(tries), verdict) for kind in re.findall(r"`([\w-]+)`", kinds)}
    assert told == {
        kind: (kind, action.attempts, action.verdict) for kind, action in ACTIONS.items()
    }
    assert tuple(re.findall(r"^\| `([A-Z]+)` \|", text, re.MULTILINE)) == STATES
    verdicts = text[text.index("| verdict | meaning |") : text.index("### Failures")]
    assert tuple(re.findall(r"^\| `(\w+)` \|", verdicts, re.MULTILINE)) == VERDICTS
    [precisions] = re.findall(r"^\| precision \| (.*) \|$", text, re.MULTILINE)
    assert tuple(re.findall(r"`([\w-]+)`", precisions)) == PRECISIONS


def test_every_open_question_has_one_answer() -> None:
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 33))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_marked_run_work(tmp_path: Path) -> None:
    lines = [line for path in DOCUMENTS for line in commands(path.read_text(), "run")]
    assert len(lines) >= 3
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": programs + os.pathsep + os.environ["PATH"]}
    for line in lines:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (tmp_path / "sheet.png").stat().st_size > 0


def _text() -> str:
    return "\n".join(path.read_text() for path in DOCUMENTS)
