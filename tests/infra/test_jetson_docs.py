"""docs/jetson.md: what it tells people to type exists, and what can run here is run."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jetson_agent.failures import ACTIONS
from jetson_agent.protocol import VERDICTS, ExportManifest
from jetson_agent.verdict import MAX_GPU_BUILD_SPREAD, MAX_GPU_SPREAD, MAX_GPU_VARIATION
from sharedenc.mlflow_server import serve
from tests.agent import exported, fake_board, models
from tests.agent.fake_trtexec import make_fake_trtexec
from tests.agent.publishing import publish_folder
from tests.infra.cluster import await_true, running
from tests.infra.files import INFRA, ROOT, shell_blocks
from tests.infra.test_jetson_acceptance import acceptance
from tests.test_docs import commands

TEXT = (ROOT / "docs" / "jetson.md").read_text()
SHELL = shell_blocks(TEXT)
SERVER = "http://tracker:5000"
# These need a trained study, and an engine of a network with real heads; both have tests of
# their own, tests/export and tests/agent/test_evaluate*.py.
ELSEWHERE = ("sharedenc export", "jetson-agent evaluate")


def test_every_shell_line_is_one_that_bash_reads() -> None:
    assert len(SHELL) >= 15
    for line in SHELL:
        subprocess.run(["bash", "-n"], input=line, text=True, check=True)


def test_files_and_options_that_it_names_are_there() -> None:
    named = set(re.findall(r"\binfra/[\w./-]*\w", TEXT))
    assert {"infra/jetson/install.sh", "infra/jetson/acceptance.py"} <= named
    assert not [name for name in named if not (ROOT / name).exists()]
    script = (INFRA / "jetson" / "install.sh").read_text()
    lines = [line for line in SHELL if "install.sh" in line]
    assert len(lines) == 2
    for option in {word for line in lines for word in line.split() if word.startswith("--")}:
        assert re.search(rf"^  .*{option}( \||\))", script, re.MULTILINE), option
    assert re.search(r"`--uninstall`", TEXT)


def test_the_acceptance_script_takes_its_commands_and_has_its_steps() -> None:
    lines = [line for line in SHELL if "acceptance.py" in line]
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line)
        _, steps, _ = acceptance.parse_arguments(
            words[words.index("infra/jetson/acceptance.py") + 1 :]
        )
        assert steps
    table = TEXT[TEXT.index("| step | passes when |") :]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(acceptance.STEPS)
    known = [ms for ms in acceptance.KNOWN_MS.values()]
    assert all(f"{ms} ms" in table for ms in known)


def test_verdicts_and_limits_are_those_of_the_code() -> None:
    table = TEXT[TEXT.index("| verdict | means |") :]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)[: len(VERDICTS)]) == VERDICTS
    assert (MAX_GPU_VARIATION, MAX_GPU_SPREAD, MAX_GPU_BUILD_SPREAD) == (0.025, 0.02, 0.05)
    assert "by more than 2.5 %; runs that lie more\nthan 2 % apart, or builds more than 5 %" in TEXT
    # "one more try with half the workspace", "three tries in all"
    assert (ACTIONS["memory"].attempts, ACTIONS["memory"].change) == (2, "halve-workspace")
    assert {ACTIONS[kind].attempts for kind in ("internal", "crash", "timeout")} == {3}
    assert {ACTIONS[kind].attempts for kind in ("unsupported", "int8-kernel")} == {1}


def test_the_container_sees_what_identity_is_read_from() -> None:
    [line] = [line for line in SHELL if line.startswith("docker run")]
    words = shlex.split(line)
    assert "--runtime=nvidia" in words
    mounted = [words[i + 1].split(":")[0] for i, word in enumerate(words) if word == "--volume"]
    for path in ("/etc/machine-id", "/etc/nv_tegra_release", "/etc/nvpmodel.conf", "/run/lock"):
        assert path in mounted
    assert words[words.index("--security-opt") + 1] == "systempaths=unconfined"
    dockerfile = (INFRA / "jetson" / "Dockerfile.agent").read_text()
    assert "JETSON_AGENT_STATE=/var/lib/jetson-agent" in dockerfile
    assert "jetson-agent:/var/lib/jetson-agent" in words


def test_what_was_never_tried_is_said_once_and_at_the_beginning() -> None:
    assert TEXT.count("never tried") == 1
    assert TEXT.index("never tried") < TEXT.index("## What you need")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_command_of_it_that_can_run_here_runs(tmp_path: Path) -> None:
    program = make_fake_trtexec(tmp_path / "bin")
    board = fake_board.build(tmp_path / "root")
    board.write("dev/nvmap", b"")
    (tmp_path / "exports" / "resnet18-dual").mkdir(parents=True)
    folder = exported.export(tmp_path / "exports" / "resnet18-dual" / "dual")
    for name in ("model", "seg", "det", "dual"):
        models.convolution(tmp_path / f"{name}.onnx", seed=len(name))
    lines = [line for line in commands(TEXT) if not line.startswith(ELSEWHERE)]
    assert {shlex.split(line)[1] for line in lines} == {
        *("doctor", "measure", "compare", "explain", "run", "once", "timings")
    }
    status = tmp_path / "state" / "status.json"

    def idle() -> bool:
        return status.exists() and '"doing": "idle"' in status.read_text()

    with serve(tmp_path / "server") as server:
        publish_folder(
            server.uri, folder, ExportManifest.from_json((folder / "manifest.json").read_text())
        )
        environment = {
            **os.environ,
            **board.environment,
            "JETSON_AGENT_TRTEXEC": str(program),
            "JETSON_AGENT_STATE": str(tmp_path / "state"),
            "PYTHONPATH": str(ROOT),
        }
        for line in lines:
            words = shlex.split(line.replace(SERVER, server.uri))
            module = {"jetson-agent": "jetson_agent", "sharedenc": "sharedenc"}[words[0]]
            command = [sys.executable, "-m", module, *words[1:]]
            if words[0] == "sharedenc":
                environment["MLFLOW_TRACKING_URI"] = server.uri
            if words[1] == "run":
                with running(command, tmp_path / "run.log", environment) as daemon:
                    await_true("the daemon has nothing left to do", idle, 600)
                    daemon.send_signal(signal.SIGTERM)
                    assert daemon.wait(120) == 0, (tmp_path / "run.log").read_text()
                continue
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
