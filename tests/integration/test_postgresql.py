"""A team's tracking server: MLflow on PostgreSQL and an S3 store, behind a login.

The server is started with the very command and settings of infra/compose.yaml; only the names of
the other services are replaced by addresses on this machine.
"""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import boto3
import psycopg2
import pytest

from sharedenc.errors import TrackingError
from sharedenc.tracking import MlflowTracker
from tests.infra.cluster import Postgres, mlflow_server, postgres_server, s3_server
from tests.infra.files import INFRA, load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STUDY = "postgresql-test"
TRIALS, EPOCHS = 8, 50
NAMES = ("train/loss", "val/loss", "val/mAP", "val/mIoU", "val/pixel_acc", "lr", "images_per_s")
ADMIN, PASSWORD = "admin", "a long password of a test"


@dataclass(frozen=True)
class Team:
    """The running services, and the environment of who may log in."""

    uri: str
    postgres: Postgres
    s3: str


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    with postgres_server() as postgres, s3_server(folder) as s3:
        compose = load("compose.yaml")["services"]
        here = {"postgres:5432": f"127.0.0.1:{postgres.port}", "http://store:8333": s3}

        def local(text: str) -> str:
            for name, address in here.items():
                text = text.replace(name, address)
            return text

        secrets = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "PGPASSWORD": postgres.password,
            "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs forms",
        }
        settings = {
            name: local(secrets.get(name, value.partition(":-")[2].rstrip("}") or value))
            for name, value in compose["mlflow"]["environment"].items()
        }
        ini = folder / "basic_auth.ini"
        ini.write_text(local((INFRA / "mlflow" / "basic_auth.ini").read_text()))
        settings["MLFLOW_AUTH_CONFIG_PATH"] = str(ini)
        environment = {**os.environ, **settings}
        buckets = [*compose["buckets"]["command"]]
        assert buckets[1] == "/opt/mlflow/buckets.py"
        buckets[:2] = [sys.executable, str(INFRA / "mlflow" / "buckets.py")]
        for _ in range(2):  # a second start finds them there
            subprocess.run(buckets, env=environment, check=True)
        own = ("--host", "--port", "--workers")
        options = [local(one) for one in compose["mlflow"]["command"][2:]]
        options = [one for one in options if one.split("=")[0] not in own]
        with mlflow_server(folder, [*options, "--workers=2"], environment) as uri:
            yield Team(uri, postgres, s3)


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user gives it: in the environment, never in the address."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def value(trial: int, epoch: int, name: str) -> float:
    return trial * 1000 + epoch + NAMES.index(name) / 16


def log_like_a_trial(uri: str, number: int, start: Barrier, folder: Path) -> None:
    """What one trial says: its params, every epoch, a few tags, its best checkpoint."""
    tracker = MlflowTracker(uri, wait_s=30)
    start.wait()
    parent = tracker.study(STUDY, {"sharedenc.kind": "study"})
    run = tracker.child(STUDY, parent, f"trial {number}", {"trial": number})
    run.params({f"recipe.{index}": f"{number}-{index}" for index in range(40)})
    for epoch in range(1, EPOCHS + 1):
        run.metrics({name: value(number, epoch, name) for name in NAMES}, step=epoch)
        if epoch % 10 == 0:
            run.tags({"sharedenc.epoch": epoch})
    checkpoint = folder / f"best-{number}.bin"
    checkpoint.write_bytes(bytes([number]) * 100_000)
    run.artifact(checkpoint, "checkpoint")
    run.end("done")


@pytest.fixture
def eight_trials(team: Team, tmp_path: Path, logged_in: None) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(TRIALS)
    trials = [
        context.Process(target=log_like_a_trial, args=(team.uri, number, start, tmp_path))
        for number in range(TRIALS)
    ]
    for trial in trials:
        trial.start()
    for trial in trials:
        trial.join(400)
    assert [trial.exitcode for trial in trials] == [0] * TRIALS


def test_eight_trials_at_once_lose_and_double_nothing(
    team: Team, eight_trials: None, tmp_path: Path
) -> None:
    tracker = MlflowTracker(team.uri)
    runs = tracker.runs(STUDY)
    assert len(runs) == TRIALS + 1, "one parent, although all eight asked for it at once"
    trials = {run.name: run for run in runs if run.name.startswith("trial ")}
    assert set(trials) == {f"trial {number}" for number in range(TRIALS)}
    parents = {run.tags["mlflow.parentRunId"] for run in trials.values()}
    assert parents == {run.run_id for run in runs if run.name == STUDY}
    for number in range(TRIALS):
        run = trials[f"trial {number}"]
        assert run.status == "FINISHED"
        assert run.params == {f"recipe.{index}": f"{number}-{index}" for index in range(40)}
        assert run.tags["sharedenc.epoch"] == str(EPOCHS)

    # What the tables hold, past MLflow.
    connection = psycopg2.connect(
        host="127.0.0.1",
        port=team.postgres.port,
        user="mlflow",
        password=team.postgres.password,
        dbname="mlflow",
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT run_uuid, key, step, value FROM metrics")
        rows = cursor.fetchall()
    connection.close()
    expected = sorted(
        (trials[f"trial {number}"].run_id, name, epoch, value(number, epoch, name))
        for number in range(TRIALS)
        for epoch in range(1, EPOCHS + 1)
        for name in NAMES
    )
    assert len(expected) == 2800
    assert sorted(rows) == expected

    # The artifacts are in the S3 store, and come back through the server.
    client = boto3.client(
        "s3",
        endpoint_url=team.s3,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    stored = client.list_objects_v2(Bucket="mlflow")["Contents"]
    assert sorted(one["Size"] for one in stored) == [100_000] * TRIALS
    back = tracker.download(trials["trial 3"].run_id, "checkpoint/best-3.bin", tmp_path / "back")
    assert back.read_bytes() == b"\x03" * 100_000


def test_nobody_enters_without_a_login(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrackingError, match=r"not authenticated|401|MLFLOW_TRACKING_USERNAME"):
        MlflowTracker(team.uri).studies()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a wrong password")
    with pytest.raises(TrackingError) as refused:
        MlflowTracker(team.uri).studies()
    assert "a wrong password" not in str(refused.value)


def test_a_board_reads_everything_and_changes_no_study(
    team: Team, monkeypatch: pytest.MonkeyPatch, logged_in: None
) -> None:
    """docs/deploying.md: a user of its own for each board, with READ, which is the default."""
    study = MlflowTracker(team.uri)
    parent = study.study("of-the-team", {})
    request = urllib.request.Request(
        f"{team.uri}/api/2.0/mlflow/users/create",
        json.dumps({"username": "board", "password": "another long password"}).encode(),
        {"Content-Type": "application/json"},
    )
    manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    manager.add_password(None, team.uri, ADMIN, PASSWORD)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
    with opener.open(request) as answer:
        assert answer.status == 200
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "board")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another long password")
    board = MlflowTracker(team.uri)
    assert [run.run_id for run in board.runs("of-the-team")] == [parent]
    with pytest.raises(TrackingError):
        board.child("of-the-team", parent, "not mine", {})
    bench = board.study("bench/orin", {})
    board.child("bench/orin", bench, "a timing", {}).end("done")
    assert len(board.runs("bench/orin")) == 2


def test_other_names_for_the_server_are_refused(team: Team) -> None:
    """DNS rebinding: only the hosts of MLFLOW_ALLOWED_HOSTS are answered."""
    login = base64.b64encode(f"{ADMIN}:{PASSWORD}".encode()).decode()
    url = f"{team.uri}/api/2.0/mlflow/experiments/search?max_results=1"
    headers = {"Authorization": f"Basic {login}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        assert answer.status == 200
    headers["Host"] = "evil.example"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(url, headers=headers))
