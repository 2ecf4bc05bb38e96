"""infra/jetson/install.sh, run below another root: with a pip that copies, and once for real."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.agent.bare import find_python_3_10
from tests.agent.tls import make_authority
from tests.infra.files import INFRA, ROOT

SCRIPT = INFRA / "jetson" / "install.sh"
SHELLCHECK = Path(sys.executable).parent / "shellcheck"
URI = "https://mlflow.example.org"
PASSWORD = "planted-password-4711"

# A Python that makes an environment with itself in it, and whose pip copies what it is given.
PYTHON = """#!/bin/bash
last=${{!#}}
case "$1 $2" in
"-m venv")
  mkdir -p "$last/bin"
  cp "$0" "$last/bin/python"
  ;;
"-m pip")
  echo "$last" >>"$LOG"
  lib=$(dirname "$0")/../lib
  mkdir -p "$lib"
  if [[ -n ${{PIP_FAILS:-}} ]]; then echo "no such thing" >&2; exit 1; fi
  cp -R "${{last%\\[agent\\]}}/jetson_agent" "$lib/"
  printf '#!/bin/sh\\nexec "%s" -m jetson_agent "$@"\\n' "$0" >"$(dirname "$0")/jetson-agent"
  chmod 755 "$(dirname "$0")/jetson-agent"
  ;;
*)
  export PYTHONPATH=$(dirname "$0")/../lib
  exec {python} "$@"
  ;;
esac
"""


@dataclass
class Place:
    """A root to install below, and what was said while it was done."""

    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def link(self) -> Path:
        return self.root / "opt" / "jetson-agent"

    @property
    def pip_log(self) -> Path:
        return self.folder / "pip.log"

    def run(
        self, *options: str | Path, umask: int = 0o022, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        own = {"DESTDIR": str(self.root), "LOG": str(self.pip_log), "TMPDIR": str(self.folder)}
        done = subprocess.run(
            ["bash", str(SCRIPT), *map(str, options)],
            env={"PATH": os.environ["PATH"], **own, **environment},
            capture_output=True,
            text=True,
            timeout=280,
            umask=umask,
        )
        self.said.append(done.stdout + done.stderr)
        return done

    def install(self, *options: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run("--python", self.folder / "python", *options, **more)

    def left(self, done: subprocess.CompletedProcess[str]) -> list[str]:
        """What would have been done to the running system, in order."""
        lines = done.stdout.splitlines()
        return [line.removeprefix("left to you: ") for line in lines if line.startswith("left")]

    def releases(self) -> list[str]:
        return sorted(path.name for path in self.link.parent.glob("jetson-agent-*"))

    def version(self) -> str:
        command = [self.link / "bin" / "jetson-agent", "--version"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def place(tmp_path: Path) -> Place:
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    return Place(tmp_path)


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    path = tmp_path / "board-1.txt"
    path.write_text(f"username=board-1\npassword={PASSWORD}\n")
    path.chmod(0o600)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_bash_and_shellcheck_read_it() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    checked = subprocess.run([str(SHELLCHECK), str(SCRIPT)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_help_names_every_option_and_installs_nothing(place: Place) -> None:
    done = place.run("--help")
    text = SCRIPT.read_text()
    assert done.returncode == 0
    for option in ("--tracking-uri", "--credentials", "--ca-file", "--source", "--lock-clocks"):
        assert option in done.stdout
        assert f"{option})" in text or f"{option} |" in text
    assert not place.root.exists()


def test_the_first_time_puts_everything_in_its_place(place: Place, credentials: Path) -> None:
    ca = make_authority(place.folder).file
    done = place.install(
        *("--tracking-uri", URI, "--credentials", credentials, "--ca-file", ca, "--lock-clocks")
    )
    assert done.returncode == 0, done.stderr
    assert place.version().startswith("jetson-agent, version")
    assert place.releases() == [os.readlink(place.link)]
    settings = place.root / "etc" / "jetson-agent"
    lines = (settings / "agent.env").read_text().splitlines()
    assert f"MLFLOW_TRACKING_URI={URI}" in lines
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH=/etc/jetson-agent/ca.pem" in lines
    assert sum("MLFLOW_TRACKING_URI=" in line for line in lines) == 1
    assert (settings / "ca.pem").read_bytes() == ca.read_bytes()
    assert (settings / "credentials").read_text() == credentials.read_text()
    units = place.root / "etc" / "systemd" / "system"
    for name in ("jetson-agent.service", "jetson-clocks-lock.service"):
        assert (units / name).read_text() == (INFRA / "jetson" / name).read_text()
    drop_in = (units / "jetson-agent.service.d" / "credentials.conf").read_text()
    assert drop_in == "[Service]\nLoadCredential=mlflow:/etc/jetson-agent/credentials\n"
    assert place.left(done) == [
        "groupadd --system --force video",
        "groupadd --system --force render",
        "useradd --system --user-group --no-create-home --home-dir /var/lib/jetson-agent"
        " --shell /usr/sbin/nologin jetson-agent",
        "usermod --append --groups video,render jetson-agent",
        "systemctl daemon-reload",
        "systemctl enable jetson-clocks-lock.service",
        "systemctl enable jetson-agent.service",
        "systemctl restart jetson-clocks-lock.service",
        "systemctl restart jetson-agent.service",
    ]
    assert PASSWORD not in "".join(place.said)
    # A build in the checkout itself would leave files of root's there.
    assert str(ROOT) not in place.pip_log.read_text()
    leftovers = {path.name for path in place.folder.iterdir()}
    assert leftovers == {"root", "python", "pip.log", "ca.pem", credentials.name}


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_agent_can_read_what_it_needs_and_nobody_a_secret(
    place: Place, credentials: Path, umask: int
) -> None:
    credentials.chmod(0o644)
    done = place.install("--tracking-uri", URI, "--credentials", credentials, umask=umask)
    assert done.returncode == 0, done.stderr
    copy = place.root / "etc" / "jetson-agent" / "credentials"
    assert mode(copy) == 0o600
    for path in [place.root, *place.root.rglob("*")]:
        if path == copy or path.is_symlink():
            continue
        assert mode(path) & 0o022 == 0, f"others can write {path}"
        if path not in (place.root, place.root / "opt", place.root / "etc"):
            assert mode(path) & 0o004, f"the agent cannot read {path}"
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes()


def test_a_second_run_updates_and_keeps_settings(place: Place, credentials: Path) -> None:
    first = place.install("--tracking-uri", URI, "--credentials", credentials)
    assert first.returncode == 0, first.stderr
    before = place.releases()
    file = place.root / "etc" / "jetson-agent" / "agent.env"
    file.write_text(file.read_text() + "JETSON_AGENT_OPTIONS=--precision int8\n")
    file.chmod(0o640)
    # Without an address, too: it is known already.
    second = place.install("--no-start")
    assert second.returncode == 0, second.stderr
    assert "left to you: systemctl restart" not in second.stdout
    assert len(place.releases()) == 1
    assert place.releases() != before
    third = place.install("--tracking-uri", "http://tracker:5000")
    assert third.returncode == 0, third.stderr
    lines = file.read_text().splitlines()
    assert "JETSON_AGENT_OPTIONS=--precision int8" in lines
    assert [line for line in lines if line.startswith("MLFLOW_TRACKING_URI")] == [
        "MLFLOW_TRACKING_URI=http://tracker:5000"
    ]
    assert mode(file) == 0o640
    assert (file.parent / "credentials").read_text() == credentials.read_text()
    assert place.version()


def test_an_update_that_fails_leaves_the_old_one_as_it_was(place: Place, tmp_path: Path) -> None:
    assert place.install("--tracking-uri", URI).returncode == 0
    before = place.releases()
    unit = place.root / "etc" / "systemd" / "system" / "jetson-agent.service"
    unit.write_text("of the old one\n")
    failing = place.install("--tracking-uri", "http://other:5000", PIP_FAILS="1")
    assert failing.returncode == 1
    assert "nothing is changed" in failing.stderr
    assert place.left(failing) == []
    bad = tmp_path / "bad.txt"
    bad.write_text(f"user=board-1\npassword={PASSWORD}\n")
    refused = place.install("--credentials", bad)
    assert refused.returncode == 2
    assert "line 1 of credentials file" in refused.stderr
    (tmp_path / "no-ca.pem").write_text("nothing")
    assert "cannot be used" in place.install("--ca-file", tmp_path / "no-ca.pem").stderr
    assert place.releases() == before
    assert unit.read_text() == "of the old one\n"
    assert URI in (place.root / "etc" / "jetson-agent" / "agent.env").read_text()
    assert not (unit.parent / "jetson-agent.service.d").exists()
    assert PASSWORD not in "".join(place.said)
    assert place.version()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "say where the MLflow server is"),
        (("--tracking-uri", f"https://me:{PASSWORD}@mlflow.example.org"), "--credentials FILE"),
        (("--tracking-uri", "mlflow.example.org"), "is no address of an MLflow server"),
        (("--tracking-uri", 'http://a/"; rm'), "is no address of an MLflow server"),
        (("--tracking-uri",), "--tracking-uri needs a value"),
        (("--frobnicate",), "unknown option --frobnicate"),
        (("--tracking-uri", URI, "--credentials", "gone.txt"), "gone.txt cannot be read"),
        (("--tracking-uri", URI, "--python", "no-python"), "no-python is older than 3.10"),
        (("--tracking-uri", URI, "--source", str(INFRA)), "is no checkout of this project"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_changed(
    place: Place, options: tuple[str, ...], told: str
) -> None:
    done = place.install(*options)
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert not [path for path in place.root.rglob("*") if path.is_file()]


def test_a_folder_of_somebody_else_is_not_overwritten(place: Place) -> None:
    place.link.mkdir(parents=True)
    (place.link / "precious").touch()
    done = place.install("--tracking-uri", URI)
    assert done.returncode == 1
    assert "move it away first" in done.stderr
    assert (place.link / "precious").exists()


def test_uninstall_takes_programs_and_leaves_settings_and_results(
    place: Place, credentials: Path
) -> None:
    place.install("--tracking-uri", URI, "--credentials", credentials)
    results = place.root / "var" / "lib" / "jetson-agent" / "outbox"
    results.mkdir(parents=True)
    done = place.run("--uninstall")
    assert done.returncode == 0, done.stderr
    assert place.left(done)[0] == "systemctl disable --now jetson-agent.service"
    assert list(place.link.parent.iterdir()) == []
    assert list((place.root / "etc" / "systemd" / "system").iterdir()) == []
    kept = {path.name for path in (place.root / "etc" / "jetson-agent").iterdir()}
    assert kept == {"agent.env", "credentials"}
    assert results.is_dir()
    assert place.run("--uninstall").returncode == 0, "twice is no error"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_with_a_real_pip_and_python_3_10_the_installed_doctor_runs(place: Place) -> None:
    python = find_python_3_10()
    if python is None:
        pytest.skip("there is no Python 3.10: neither python3.10 on the PATH nor one of pyenv")
    done = place.run("--python", python, "--tracking-uri", URI)
    assert done.returncode == 0, done.stderr
    absent = "import importlib.util as u; print([u.find_spec(m) for m in ('torch', 'ray')])"
    command = [place.link / "bin" / "python", "-c", absent]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[None, None]"
    doctor = subprocess.run(
        [place.link / "bin" / "jetson-agent", "doctor", "--offline"], capture_output=True, text=True
    )
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "onnxruntime" in doctor.stdout
    shutil.rmtree(place.root)
