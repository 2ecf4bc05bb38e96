"""Where credentials come from, where they go, and where they never appear."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jetson_agent.credentials import (
    Credentials,
    Server,
    find_server,
    read_credentials,
    without_credentials,
)
from jetson_agent.errors import AgentError, ServerError
from jetson_agent.proc import child_environment

SECRET = "pa=ss word#1"


def protected(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"username=me\npassword={SECRET}\n", Credentials(username="me", password=SECRET)),
        (
            f"# the board's user\r\n\r\nusername=me\r\npassword={SECRET}\r\n",
            Credentials(username="me", password=SECRET),
        ),
        ("\ufefftoken=ey.J0", Credentials(token="ey.J0")),
        (" password=x\n username=jo\u00e9", Credentials(username="jo\u00e9", password="x")),
    ],
)
def test_a_file_holds_a_user_with_a_password_or_a_token(
    tmp_path: Path, text: str, expected: Credentials
) -> None:
    path = tmp_path / "credentials"
    path.write_bytes(text.encode())
    path.chmod(0o600)
    assert read_credentials(path) == expected


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o601])
def test_a_file_that_others_can_open_is_refused_with_the_command_that_mends_it(
    tmp_path: Path, mode: int
) -> None:
    path = protected(tmp_path / "c", f"username=me\npassword={SECRET}\n", mode)
    with pytest.raises(AgentError, match=f"mode {mode:o}.*chmod 600 {path}") as caught:
        read_credentials(path)
    assert SECRET not in str(caught.value)


def test_systemds_access_list_looks_like_a_right_of_the_group_and_is_none(tmp_path: Path) -> None:
    path = protected(tmp_path / "mlflow", "token=t\n", 0o440)
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read_credentials(path, environment) == Credentials(token="t")
    path.chmod(0o444)
    with pytest.raises(AgentError, match="chmod 600"):
        read_credentials(path, environment)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "gives nothing"),
        ("username=me\n", "gives username"),
        (f"password={SECRET}\n", "gives password"),
        ("username=me\npassword=\n", "gives username"),
        (f"username=me\npassword={SECRET}\ntoken=t\n", "gives password, token, username"),
        (f"username=me\npasswort={SECRET}\n", "line 2"),
        (f"{SECRET}\n", "line 1"),
        (f"password={SECRET}\npassword=x\n", "line 2"),
        (f"[mlflow]\npassword={SECRET}\n", "line 1"),
        (f"username=me\npassword={SECRET}\0\n", "not a short text"),
        (f"token={'x' * 20_000}\n", "not a short text"),
    ],
)
def test_what_is_not_of_the_format_is_refused_without_a_word_of_its_content(
    tmp_path: Path, text: str, told: str
) -> None:
    path = protected(tmp_path / "c", text)
    with pytest.raises(AgentError, match=told) as caught:
        read_credentials(path)
    assert str(path) in str(caught.value)
    assert "username=... and password=..." in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="No such file"):
        read_credentials(tmp_path / "none")
    with pytest.raises(AgentError, match="directory"):
        read_credentials(tmp_path)
    path = tmp_path / "c"
    path.write_bytes(b"token=\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(AgentError, match="not UTF-8"):
        read_credentials(path)


def test_the_nearest_source_wins(tmp_path: Path) -> None:
    named, variable = protected(tmp_path / "a", "token=a"), protected(tmp_path / "b", "token=b")
    (tmp_path / "systemd").mkdir()
    protected(tmp_path / "systemd" / "mlflow", "token=c")
    everything = {
        "JETSON_AGENT_CREDENTIALS": str(variable),
        "CREDENTIALS_DIRECTORY": str(tmp_path / "systemd"),
    }

    def token(uri: str = "https://host", file: Path | None = None, **environment: str) -> str:
        found = find_server(uri, credentials_file=file, environment=environment).credentials
        return found.token if found else ""

    assert token(file=named, **everything) == "a"
    assert token(**everything) == "b"
    del everything["JETSON_AGENT_CREDENTIALS"]
    assert token(**everything) == "c"
    assert token("https://d@host", **everything) == "c"
    assert token("https://d@host") == "d"
    (tmp_path / "systemd" / "mlflow").unlink()
    assert token(**everything) == ""


def test_credentials_in_an_address_are_taken_out_at_once_and_warned_about() -> None:
    server = find_server("https://me:pa%3Ass%40@host:5000/mlflow/", environment={})
    assert server.uri == "https://host:5000/mlflow/"
    assert server.credentials == Credentials(username="me", password="pa:ss@")
    (warning,) = server.warnings
    assert "--credentials" in warning
    assert not [part for part in ("pa:", "pa%", "ss@", "ss%") if part in warning]
    environment = {"MLFLOW_TRACKING_URI": "https://me:pa%3Ass%40@host:5000/mlflow/"}
    server.apply(environment)
    assert environment == {
        "MLFLOW_TRACKING_URI": "https://host:5000/mlflow/",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "pa:ss@",
    }


@pytest.mark.parametrize(
    ("uri", "warned"),
    [
        ("http://server:5000", True),
        ("https://server:5000", False),
        ("http://127.0.0.1:5000", False),
        ("http://localhost:5000", False),
    ],
)
def test_credentials_that_would_travel_in_the_clear_are_warned_about(
    tmp_path: Path, uri: str, warned: bool
) -> None:
    path = protected(tmp_path / "c", "token=t")
    server = find_server(uri, credentials_file=path, environment={})
    assert ["unencrypted" in warning for warning in server.warnings] == [True] * warned
    assert find_server(uri, environment={}).warnings == ()


def test_a_file_replaces_what_the_environment_says_and_nothing_leaves_it_alone() -> None:
    before = {"MLFLOW_TRACKING_USERNAME": "old", "MLFLOW_TRACKING_PASSWORD": "old"}
    environment = dict(before)
    Server(uri="https://host").apply(environment)
    assert environment == before
    Server(uri="https://host", credentials=Credentials(token="t")).apply(environment)
    assert environment == {"MLFLOW_TRACKING_TOKEN": "t"}
    Server(uri="https://host", credentials=Credentials(username="a", password="b")).apply(
        environment
    )
    assert environment == {"MLFLOW_TRACKING_USERNAME": "a", "MLFLOW_TRACKING_PASSWORD": "b"}


def test_a_ca_of_ones_own_is_checked_and_turns_the_check_of_certificates_on(
    tmp_path: Path,
) -> None:
    with pytest.raises(AgentError, match=r"none\.pem cannot be used \(No such file"):
        find_server("https://host", ca_file=tmp_path / "none.pem", environment={})
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(AgentError, match="BEGIN CERTIFICATE"):
        find_server("https://host", ca_file=tmp_path / "bad.pem", environment={})
    environment = {"MLFLOW_TRACKING_INSECURE_TLS": "true"}
    Server(uri="https://host", ca_file=tmp_path / "ca.pem").apply(environment)
    assert environment == {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(tmp_path / "ca.pem")}


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db",
        "./mlruns",
        "databricks",
        "",
        "http://",
        "https://me:pw@",
        "http://h:x",
    ],
)
def test_what_is_no_server_is_refused(uri: str) -> None:
    with pytest.raises(ServerError, match="not an http") as caught:
        find_server(uri, environment={})
    assert "pw" not in str(caught.value)


def test_credentials_are_left_out_of_what_people_read() -> None:
    assert without_credentials("https://me:pw@host:5000/x") == "https://host:5000/x"
    assert without_credentials("https://host/x") == "https://host/x"
    shown = repr(
        Server(uri="https://host", credentials=Credentials(username="u", password="pw", token="tk"))
    )
    assert "pw" not in shown
    assert "tk" not in shown


def test_a_message_that_repeats_a_secret_is_shown_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(uri="https://host", credentials=Credentials(username="me", password="hush-1"))
    assert server.hide("Basic hush-1 refused") == "Basic *** refused"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hush-2")
    assert Server(uri="https://host").hide("hush-2!") == "***!"


def test_children_and_proc_see_nothing_of_them(tmp_path: Path) -> None:
    path = protected(tmp_path / "c", f"username=me\npassword={SECRET}\n")
    code = (
        "import sys, os, pathlib\n"
        "from jetson_agent.credentials import find_server\n"
        "from jetson_agent.proc import child_environment\n"
        "find_server('https://host').apply()\n"
        "secret = os.environ['MLFLOW_TRACKING_PASSWORD']\n"
        "assert len(secret) == 12\n"
        "for name in ('environ', 'cmdline'):\n"
        "    shown = pathlib.Path('/proc/self', name).read_bytes()\n"
        "    assert secret.encode() not in shown, shown\n"
        "assert not [v for v in child_environment().values() if secret in v]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JETSON_AGENT_CREDENTIALS": str(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_environment_of_children_has_no_variable_of_mlflows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN", "SERVER_CERT_PATH", "URI"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "x")
    assert not [name for name in child_environment() if name.startswith("MLFLOW")]
