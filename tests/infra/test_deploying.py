"""docs/deploying.md and what it stands on: files, commands and names that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.infra import cluster
from tests.infra.files import DEPLOYING, INFRA, ROOT, shell_blocks

TEXT = DEPLOYING.read_text()
COMMANDS = shell_blocks(TEXT)


def test_every_shell_line_is_one_that_bash_reads() -> None:
    assert len(COMMANDS) >= 10
    for line in COMMANDS:
        subprocess.run(["bash", "-n"], input=line, text=True, check=True)


def test_every_file_of_ours_that_a_command_or_sentence_names_exists() -> None:
    named = set(re.findall(r"\b(?:infra|tests)/[\w./-]*\w", TEXT))
    assert {"infra/compose.yaml", "infra/rayjob.yaml", "infra/sweep.sbatch"} <= named
    missing = {name for name in named if name != "infra/.env" and not (ROOT / name).exists()}
    assert not missing


def test_every_file_of_infra_for_users_is_documented() -> None:
    files = {path.name for path in INFRA.glob("*") if path.is_file()}
    internal = {name for name in files if name.endswith(".dockerignore")}
    assert {name for name in files - internal - {"constraints-ci.txt"} if name not in TEXT} <= {
        "Dockerfile.mlflow"  # the compose file builds it
    }


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("ray ")])
def test_ray_takes_its_commands(line: str) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts")
    name, *words = shlex.split(line)[1:]
    command = scripts.cli.commands[name]
    command.make_context(name, words, resilient_parsing=False)


def test_the_cluster_of_the_tests_is_started_as_documented() -> None:
    starts = [line for line in COMMANDS if line.startswith("ray start")]
    assert starts == [cluster.HEAD_COMMAND, cluster.WORKER_COMMAND]


def test_the_options_for_several_nodes_on_one_machine_are_those_of_the_tests() -> None:
    named = set(re.findall(r"`(--[\w-]+-port|--temp-dir)`", TEXT))
    code = Path(cluster.__file__).read_text()
    options = {option.split("=")[0] for option in cluster._own_ports()}
    used = {option for option in options if option.endswith("-port")}
    assert used <= named
    assert named - used == {"--temp-dir", "--min-worker-port", "--max-worker-port"}
    assert "--temp-dir=" in code


def test_the_drain_script_uses_the_documented_file(tmp_path: Path) -> None:
    """With stand-ins for Ray: the file appears, Ray is told, and the wait ends with the raylet."""
    log = tmp_path / "log"
    for name, text in {
        "ray": 'echo "$*" >>"$LOG"; exit 1',
        "pgrep": 'echo "pgrep $*" >>"$LOG"; [ "$(grep -c pgrep "$LOG")" -lt 3 ]',
        "sleep": "exit 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": str(log), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["sh", str(INFRA / "drain.sh"), "30"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    user = subprocess.run(["id", "-u"], capture_output=True, text=True).stdout.strip()
    assert (tmp_path / f"sharedenc-drain-{user}").exists()
    said = log.read_text().splitlines()
    assert said[0].startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
    assert said[0].endswith("--deadline-remaining-seconds 30")
    assert len(said) == 4, "it looked for the raylet three times"
    assert "ray drain-node failed" in done.stderr, "which keeps no trial from saving"
    mine = {**environment, "SHAREDENC_DRAIN_FILE": str(tmp_path / "mine")}
    subprocess.run(["sh", str(INFRA / "drain.sh")], env=mine, capture_output=True, check=True)
    assert (tmp_path / "mine").exists()
