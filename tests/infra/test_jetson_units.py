"""The systemd units: what systemd itself says of them, and that the daemon keeps their promises."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest

from jetson_agent.daemon import TURN_S
from jetson_agent.locks import MACHINE_LOCK
from tests.infra.cluster import running
from tests.infra.files import INFRA, ROOT

FOLDER = INFRA / "jetson"
UNITS = ("jetson-agent.service", "jetson-clocks-lock.service")
# Units of systemd and L4T that ours name; the system of the tests need not have them.
OTHERS = (
    *("sysinit.target", "basic.target", "shutdown.target", "multi-user.target"),
    *("network-online.target", "time-sync.target"),
)
MAX_EXPOSURE = 3.0


class Unit(RawConfigParser):
    """A unit file; each name is there once in ours, so the last value is the value."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#",))
        self.read(FOLDER / name)

    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A root with the units, the programs they start and the targets they name."""
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    for name in UNITS:
        shutil.copy(FOLDER / name, units)
    for name in OTHERS:
        (units / name).write_text("[Unit]\nDescription=A stand-in\n")
    for name in UNITS:
        for key, value in Unit(name).items("Service"):
            if key.startswith("Exec"):
                program = tmp_path / value.split()[0].lstrip("/")
                program.parent.mkdir(parents=True, exist_ok=True)
                program.write_text("#!/bin/sh\n")
                program.chmod(0o755)
    return tmp_path


def analyze(verb: str, system: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (make ci-packages)")
    command = [program, verb, f"--root={system}", "--man=no", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_systemd_understands_every_line(system: Path) -> None:
    done = analyze("verify", system, *UNITS)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_systemd_would_have_found_a_mistake(system: Path) -> None:
    path = system / "etc" / "systemd" / "system" / UNITS[0]
    path.write_text(path.read_text().replace("WatchdogSec=120", "WatchdogSecs=120"))
    done = analyze("verify", system, UNITS[0])
    assert re.search("Unknown key.*'WatchdogSecs'", done.stderr)


def test_the_agent_is_exposed_no_more_than_it_must(system: Path) -> None:
    threshold = f"--threshold={MAX_EXPOSURE * 10:.0f}"
    done = analyze("security", system, "--offline=true", "--no-pager", threshold, UNITS[0])
    assert done.returncode == 0, done.stdout[-500:]
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) < MAX_EXPOSURE


def test_what_is_left_open_is_told_with_the_reason(system: Path) -> None:
    text = (FOLDER / UNITS[0]).read_text()
    left_open = text[text.index("# Left open on purpose") :]
    service = Unit(UNITS[0])["Service"]
    for name in ("PrivateDevices", "MemoryDenyWriteExecute", "ProtectProc", "PrivateUsers"):
        assert name not in service
        assert name in left_open
    # CUDA on a Jetson belongs to these groups, and root to nobody.
    assert service["SupplementaryGroups"] == "video render"
    assert service["User"] == "jetson-agent"
    assert "LoadCredential" not in service, "a server without a login has no such file"


def test_the_unit_s_folders_are_those_of_the_agent() -> None:
    service = Unit(UNITS[0])["Service"]
    assert service["Environment"] == "JETSON_AGENT_STATE=/var/lib/jetson-agent"
    assert service["StateDirectory"] == service["CacheDirectory"] == "jetson-agent"
    assert service["ReadWritePaths"] == f"-{MACHINE_LOCK.parent}"
    assert service["ExecStart"].split()[0] == "/opt/jetson-agent/bin/jetson-agent"
    assert service["EnvironmentFile"] == "/etc/jetson-agent/agent.env"


def test_the_watchdog_is_more_patient_than_a_turn_of_the_loop() -> None:
    service = Unit(UNITS[0])["Service"]
    assert service["Type"] == "notify"
    # A sign of life comes every third of it, and for as long as a turn may take.
    assert int(service["WatchdogSec"]) >= 2 * TURN_S


def test_clocks_are_stored_where_nothing_is_left_of_the_last_time() -> None:
    """`jetson_clocks --store` asks before it overwrites a file, and gets no answer here."""
    service = Unit(UNITS[1])["Service"]
    assert "RuntimeDirectoryPreserve" not in service
    stored, restored = (service[name].split()[-1] for name in ("ExecStartPre", "ExecStop"))
    assert stored == restored
    assert Path(stored).parent == Path("/run", service["RuntimeDirectory"])
    assert UNITS[0] in Unit(UNITS[1])["Unit"]["Before"]


def test_the_daemon_says_when_it_is_ready_lives_and_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        address = tmp_path / "notify"
        systemd.bind(str(address))
        systemd.settimeout(240)
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(address),
            "WATCHDOG_USEC": "300000",
            "JETSON_AGENT_STATE": str(tmp_path / "state"),
        }
        command = [sys.executable, "-m", "jetson_agent", "run", "--backend", "onnxruntime"]
        # Nobody listens there: a board may start before its server does.
        command += ["--tracking-uri", "http://127.0.0.1:9"]
        with running(command, tmp_path / "log", environment) as process:
            said = [systemd.recv(4096).decode()]
            while not {"READY=1", "WATCHDOG=1"} <= set(said):
                said.append(systemd.recv(4096).decode())
            process.send_signal(signal.SIGTERM)
            while said[-1] != "STOPPING=1":
                said.append(systemd.recv(4096).decode())
            assert process.wait(120) == 0, (tmp_path / "log").read_text()
    assert any(line.startswith("STATUS=") for line in said)


def test_every_setting_of_the_example_is_one_that_something_reads() -> None:
    text = (FOLDER / "agent.env.example").read_text()
    names = set(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE))
    code = "\n".join(path.read_text() for path in (ROOT / "jetson_agent").rglob("*.py"))
    code += "\n".join((FOLDER / name).read_text() for name in UNITS)
    assert {"MLFLOW_TRACKING_URI", "JETSON_AGENT_OPTIONS"} <= names
    assert {name for name in names if name not in code} == set()
