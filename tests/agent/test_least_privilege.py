"""MLflow's own login behind TLS: a board's user does the whole job, and can do nothing else."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests

from jetson_agent.credentials import find_server
from jetson_agent.errors import AuthError, ForbiddenError, ServerError
from jetson_agent.protocol import ExportManifest
from jetson_agent.registry_mlflow import MlflowRegistry
from tests.agent import models
from tests.agent.publishing import manifest_of, publish
from tests.agent.test_protocol import RESULT
from tests.agent.tls import make_authority, tls_proxy
from tests.infra.cluster import mlflow_server

ADMIN, BOARD, STRANGER = "admin-of-test", "board", "stranger"
VARIABLES = ("USERNAME", "PASSWORD", "TOKEN", "SERVER_CERT_PATH")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Place:
    """A server with users; `uri` is the proxy's, `behind` the plain server's own."""

    uri: str
    behind: str
    ca_file: Path
    untrusted: Path
    passwords: dict[str, str]
    model: str
    run_id: str
    content: bytes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("login")
    passwords = {name: secrets.token_hex(12) for name in (ADMIN, BOARD, STRANGER)}
    settings = folder / "basic_auth.ini"
    settings.write_text(
        "[mlflow]\n"
        "default_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder}/users.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # Hashing a password takes longer than all the rest of a request.
        "auth_cache_ttl_seconds = 600\n"
    )
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": passwords[ADMIN],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    authority = make_authority(folder)
    (folder / "another").mkdir()
    untrusted = make_authority(folder / "another").file
    model = models.doubling(folder / "m.onnx")
    manifest = manifest_of(model, "double")
    with (
        mlflow_server(folder, ["--app-name=basic-auth"], environment) as behind,
        tls_proxy(authority.issue(folder), int(behind.rpartition(":")[2])) as uri,
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", passwords[ADMIN])
            name, _, run_id = publish(behind, model, manifest)
            from mlflow import MlflowClient

            study = MlflowClient(tracking_uri=behind).get_experiment_by_name("study")

            def tell(path: str, **body: str) -> None:
                answer = requests.post(
                    f"{behind}/api/{path}", json=body, auth=(ADMIN, passwords[ADMIN]), timeout=60
                )
                assert answer.ok, answer.text

            for user in (BOARD, STRANGER):
                tell("2.0/mlflow/users/create", username=user, password=passwords[user])
            # All that the owner of a server has to do for a board.
            for kind, number in (("registered_model", name), ("experiment", study.experiment_id)):
                tell(
                    "3.0/mlflow/users/permissions/grant",
                    username=BOARD,
                    resource_type=kind,
                    resource_id=number,
                    permission="READ",
                )
        yield Place(
            uri=uri,
            behind=behind,
            ca_file=authority.file,
            untrusted=untrusted,
            passwords=passwords,
            model=name,
            run_id=run_id,
            content=model.read_bytes(),
        )


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a registry sets is taken back; one try per request."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in VARIABLES:
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")


def log_in(place: Place, folder: Path, user: str, password: str | None = None) -> MlflowRegistry:
    path = folder / f"credentials-{user}"
    path.write_text(f"username={user}\npassword={password or place.passwords[user]}\n")
    path.chmod(0o600)
    server = find_server(place.uri, credentials_file=path, ca_file=place.ca_file, environment={})
    assert server.warnings == ()
    return MlflowRegistry(server)


def test_a_boards_user_does_the_whole_job(place: Place, tmp_path: Path) -> None:
    registry = log_in(place, tmp_path, BOARD)
    registry.check()
    (version,) = registry.ready_versions()
    assert ExportManifest.from_tags(version.tags).architecture == "double"
    path = registry.download(version, "model.onnx", tmp_path)
    assert path.read_bytes() == place.content
    claims = registry.claims("board")
    claims.seen("agent", {"version": "1"})
    result = replace(RESULT, device="board", architecture="double", verdict="valid")
    claim = claims.take(result.key, "agent", 60.0)
    assert claim is not None
    claim.renew()
    assert claim.still_mine()
    run_id = registry.report(result, {"log.txt": b"log"})
    claim.release()
    registry.report(replace(result, runtime="2.0"))
    assert set(registry.bench_keys("board").values()) == {"valid"}
    # Another process of the same user, with nothing in memory.
    again = log_in(place, tmp_path, BOARD)
    assert again.report(result) == run_id


def test_a_boards_user_can_change_nothing_of_others(place: Place, tmp_path: Path) -> None:
    from mlflow.exceptions import MlflowException

    client: Any = log_in(place, tmp_path, BOARD)._client
    model = tmp_path / "model.onnx"
    model.write_bytes(b"evil")
    attempts = [
        lambda: client.set_tag(place.run_id, "x", "y"),
        lambda: client.log_metric(place.run_id, "test/mAP", 1.0),
        lambda: client.log_param(place.run_id, "x", "y"),
        lambda: client.delete_run(place.run_id),
        lambda: client.log_artifact(place.run_id, str(model), "export/seg"),
        lambda: client.set_model_version_tag(place.model, "1", "export.state", "no"),
        lambda: client.delete_model_version_tag(place.model, "1", "export.state"),
        lambda: client.set_registered_model_alias(place.model, "best", "1"),
        lambda: client.create_model_version(place.model, "runs:/x/y", None),
        lambda: client.delete_registered_model(place.model),
        lambda: client.create_run(client.get_experiment_by_name("study").experiment_id),
    ]
    for attempt in attempts:
        with pytest.raises((MlflowException, OSError), match=r"403|PERMISSION_DENIED|Permission"):
            attempt()
    kept = log_in(place, tmp_path, ADMIN)
    (version,) = kept.ready_versions()
    assert kept.download(version, "model.onnx", tmp_path).read_bytes() == place.content


def test_a_wrong_password_and_an_unknown_user_are_401(place: Place, tmp_path: Path) -> None:
    for user, password in ((BOARD, "wrong-password-1"), ("nobody", "wrong-password-2")):
        registry = log_in(place, tmp_path, user, password)
        with pytest.raises(AuthError, match="--credentials") as caught:
            registry.ready_versions()
        assert password not in str(caught.value)
        with pytest.raises(AuthError):
            registry.report(replace(RESULT, device="board"))
        with pytest.raises(AuthError):
            registry.claims("board").take("ab" * 32, "me", 60.0)


def test_what_a_user_may_not_read_is_403_or_not_there(place: Place, tmp_path: Path) -> None:
    (version,) = log_in(place, tmp_path, BOARD).ready_versions()
    log_in(place, tmp_path, BOARD).claims("board").seen("agent", {})
    stranger = log_in(place, tmp_path, STRANGER)
    assert stranger.ready_versions() == []
    with pytest.raises(ForbiddenError, match=r"may not download model\.onnx"):
        stranger.download(version, "model.onnx", tmp_path)
    with pytest.raises(ForbiddenError, match="bench/<device>"):
        stranger.report(replace(RESULT, device="board"))
    with pytest.raises(ForbiddenError):
        stranger.bench_keys("board")


def test_a_ca_that_is_not_named_or_another_one_is_an_error_that_names_the_option(
    place: Place, tmp_path: Path
) -> None:
    with pytest.raises(ServerError, match="--ca-file"):
        MlflowRegistry(place.uri).check()
    server = find_server(place.uri, ca_file=place.untrusted, environment={})
    with pytest.raises(ServerError, match="--ca-file"):
        MlflowRegistry(server).check()
