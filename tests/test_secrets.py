"""Secrets planted where a user could put one, looked for in everything that is written."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedenc.mlflow_server import serve
from sharedenc.redact import hide_credentials, redacted

IN_URI = ("planted-user", "planted-uri-password-4711")
ENVIRONMENT = {
    "MLFLOW_TRACKING_TOKEN": "planted-token-of-mlflow-0815",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED42",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret/key/EXAMPLEKEY",
    "AWS_SESSION_TOKEN": "planted-aws-session-token-xyz",
    "RAY_AUTH_TOKEN": "planted-ray-auth-token-abcdef",
    "PGPASSWORD": "planted-postgres-password",
    "HF_TOKEN": "hf_plantedplantedplanted",
    "GOOGLE_API_KEY": "planted-google-api-key",
}
STORAGE = "s3://planted-storage-key:planted-storage-secret@bucket/path"
SHORT = ("--epochs", "1", "--batch-size", "4", "--image-px", "64", "--weights", "none")

RAISES = '''
"""A backbone that puts the whole environment into its error, as careless libraries do."""
import os
raise RuntimeError(f"cannot reach the store with {dict(os.environ)}")
'''


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A real server's folder, and its address with user and password in it."""
    root = tmp_path / "server"
    with serve(root) as server:
        yield root, server.uri.replace("://", f"://{IN_URI[0]}:{IN_URI[1]}@")


def planted() -> dict[str, bytes]:
    """Every secret in each form in which it could be written."""
    secrets = [IN_URI[1], *ENVIRONMENT.values(), "planted-storage-key", "planted-storage-secret"]
    forms = {secret: secret.encode() for secret in secrets}
    login = base64.b64encode(":".join(IN_URI).encode())
    return forms | {"basic authentication": login}


def leaks(*folders: Path) -> list[str]:
    """Which secret stands in which file below ``folders``."""
    found = []
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            content = path.read_bytes()
            found += [f"{name} in {path}" for name, form in planted().items() if form in content]
    return found


def run(*words: str, uri: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command with all secrets in its environment; its output is kept beside its files."""
    environment = os.environ | ENVIRONMENT | {"MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(
        [sys.executable, "-m", "sharedenc", *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        timeout=500,
        check=False,
    )
    for name, output in (("stdout", done.stdout), ("stderr", done.stderr)):
        (folder / f"{words[0]}.{name}").write_bytes(output)
    return done


def test_a_search_for_leaks_can_find_one(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"connecting with {ENVIRONMENT['AWS_SECRET_ACCESS_KEY']}\n")
    assert len(leaks(tmp_path)) == 1


@pytest.mark.slow
def test_a_training_writes_no_secret(
    tiny_dataset: Path, tmp_path: Path, store: tuple[Path, str]
) -> None:
    server, uri = store
    folder = tmp_path / "work"
    folder.mkdir()
    cell = ("train", "mobilenet_v3_large/baseline/seg", "--data", str(tiny_dataset), *SHORT)
    done = run(*cell, "--runs-dir", "runs", uri=uri, folder=folder)
    assert done.returncode == 0, done.stderr.decode()
    assert list(folder.rglob("best.safetensors"))
    assert list(server.rglob("best.safetensors"))
    assert leaks(folder, server) == []


@pytest.mark.slow
def test_errors_show_no_secret(tiny_dataset: Path, tmp_path: Path, store: tuple[Path, str]) -> None:
    server, uri = store
    folder = tmp_path / "work"
    folder.mkdir()
    cell = ("train", "mobilenet_v3_large/baseline/seg", "--data", str(tiny_dataset), *SHORT)
    refused = run(*cell, "--storage", STORAGE, uri=uri, folder=folder)
    assert refused.returncode not in (0, -9)
    assert leaks(folder, server) == []
    (folder / "plugin.py").write_text(RAISES)
    failed = run(*cell, "--plugin", "plugin.py", uri=uri, folder=folder)
    assert failed.returncode != 0
    assert b"cannot reach the store" in failed.stderr
    away = run(*cell, uri=uri.rpartition(":")[0] + ":9", folder=folder)
    assert away.returncode == 8
    assert leaks(folder, server) == []


@pytest.mark.slow
def test_a_sweep_writes_no_secret(
    tiny_dataset: Path, tmp_path: Path, store: tuple[Path, str]
) -> None:
    server, uri = store
    folder = tmp_path / "work"
    folder.mkdir()
    sweep = ("sweep", "full-grid", "--data", str(tiny_dataset), "--name", "s", *SHORT)
    only = ("--only", "mobilenet_v3_large/baseline/seg", "--no-export", "--no-report")
    done = run(*sweep, *only, "--runs-dir", "runs", uri=uri, folder=folder)
    assert done.returncode == 0, done.stderr.decode()
    assert list(server.rglob("best.safetensors"))
    assert leaks(folder, server) == []


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://me:pw@host/x", "http://***@host/x"),
        ("'s3://key:secret@bucket/a' failed", "'s3://***@bucket/a' failed"),
        (
            "s3://b?access_key=AK&secret_key=S&region=eu",
            "s3://b?access_key=***&secret_key=***&region=eu",
        ),
        ("https://h/x?X-Amz-Signature=abc", "https://h/x?X-Amz-Signature=***"),
        ("postgresql://ml:pg@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("https://host/a@b", "https://host/a@b"),
        ("plain text, a = b", "plain text, a = b"),
    ],
)
def test_what_looks_like_a_credential_is_hidden(text: str, hidden: str) -> None:
    assert hide_credentials(text) == hidden


def test_values_of_secret_variables_are_hidden_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-long-token-value")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "ocelot")
    monkeypatch.setenv("RAY_AUTH_MODE", "token-mode")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/run/aws/credentials")
    monkeypatch.setenv("SHORT_SECRET", "demo")
    told = "a-long-token-value! xa-long-token-valuex ocelot ocelots token-mode /run/aws/credentials"
    assert hide_credentials(f"{told} demo") == (
        "***! x***x *** ocelots token-mode /run/aws/credentials demo"
    )


def test_binary_files_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-long-token-value")
    for name in ("a.json", "a.png"):
        (tmp_path / name).write_text("a-long-token-value")
    assert redacted(tmp_path / "a.json") == "***"
    assert redacted(tmp_path / "a.png") is None
    (tmp_path / "b.json").write_text("nothing")
    assert redacted(tmp_path / "b.json") is None
