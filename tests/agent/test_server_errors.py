"""What the agent says of servers that refuse, break, babble or are not there."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from jetson_agent.credentials import Credentials, Server
from jetson_agent.errors import AuthError, ForbiddenError, ServerError
from jetson_agent.registry import ModelVersion
from jetson_agent.registry_mlflow import MlflowRegistry
from tests.agent.test_protocol import RESULT
from tests.agent.tls import make_authority, tls_proxy

VERSION = ModelVersion(model="m", version="1", run_id="r", source="runs:/r/export/seg", tags={})


@dataclass
class Canned:
    """A server that gives one answer to everything; `headers` are those of the last request."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    port: int = 0

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def canned() -> Iterator[Canned]:
    answer = Canned()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            answer.headers = dict(self.headers)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    answer.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield answer
    server.shutdown()
    server.server_close()
    thread.join(60)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One try per request; what a registry sets is taken back."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("USERNAME", "PASSWORD", "TOKEN", "SERVER_CERT_PATH"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")


def everything(registry: MlflowRegistry, folder: Path) -> list[Callable[[], object]]:
    """Each thing that an agent asks of its server."""
    claims = registry.claims("board")
    return [
        registry.check,
        registry.ready_versions,
        lambda: registry.download(VERSION, "model.onnx", folder),
        lambda: registry.bench_keys("board"),
        lambda: registry.report(replace(RESULT, device="board")),
        lambda: claims.take("ab" * 32, "me", 60.0),
        lambda: claims.seen("me", {}),
    ]


def refusals(registry: MlflowRegistry, folder: Path) -> list[ServerError]:
    """The errors that everything ends in."""
    found = []
    for ask in everything(registry, folder):
        with pytest.raises(ServerError) as caught:
            ask()
        found.append(caught.value)
    return found


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"You are not authenticated.", "text/html"),
        (b'{"error_code": "UNAUTHENTICATED", "message": "who?"}', "application/json"),
        (b'{"detail": "Not authenticated"}', "application/json"),
        (b'{"message": "Unauthorized"}', "application/json"),
    ],
)
def test_401_is_a_state_of_its_own_whatever_its_words(
    canned: Canned, tmp_path: Path, body: bytes, kind: str
) -> None:
    canned.status, canned.body, canned.kind = 401, body, kind
    for error in refusals(MlflowRegistry(canned.uri), tmp_path):
        assert isinstance(error, AuthError), error
        assert "--credentials" in str(error)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"Permission denied", "text/html"),
        (b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "application/json"),
        (b'{"detail": "Permission denied"}', "application/json"),
        (b'{"error": "Forbidden"}', "application/json"),
    ],
)
def test_403_is_a_state_of_its_own_and_says_what_was_tried(
    canned: Canned, tmp_path: Path, body: bytes, kind: str
) -> None:
    canned.status, canned.body, canned.kind = 403, body, kind
    errors = refusals(MlflowRegistry(canned.uri), tmp_path)
    assert all(isinstance(error, ForbiddenError) for error in errors), errors
    assert "may not list the registered models" in str(errors[1])


@pytest.mark.parametrize(
    "body",
    [
        b"<html><body>Welcome to the hotel network</body></html>",
        b"",
        b"[]",
        b"7",
        b"null",
        b"\xff\xfe\x00",
        b'{"experiments": 7}',
        b'{"model_versions": [7], "runs": "x", "run": 7, "experiment": []}',
        b'{"experiment": {"lifecycle_stage": 3, "tags": {}}, "run": {"info": []}}',
        b'{"model_versions": [{"version": {}}], "experiments": [[]]}',
        json.dumps({"error_code": 7, "message": []}).encode(),
    ],
)
def test_an_answer_that_is_not_mlflows_is_a_server_error_or_nothing_at_all(
    canned: Canned, tmp_path: Path, body: bytes
) -> None:
    canned.body = body
    registry = MlflowRegistry(canned.uri)
    for ask in everything(registry, tmp_path)[1:]:
        # An empty answer to a search is a list of nothing; anything else is refused.
        with contextlib.suppress(ServerError):
            found = ask()
            assert not found or isinstance(found, Path), found


def test_a_page_in_the_servers_place_is_called_that(canned: Canned, tmp_path: Path) -> None:
    canned.body, canned.kind = (
        b"<html>\n<body>Welcome to the hotel network</body></html>",
        "text/html",
    )
    with pytest.raises(ServerError, match="a proxy answers in its place"):
        MlflowRegistry(canned.uri).ready_versions()


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_server_in_trouble_is_sent_to_its_log(
    canned: Canned, tmp_path: Path, status: int
) -> None:
    canned.status, canned.body, canned.kind = status, b"<html>oops</html>", "text/html"
    for error in refusals(MlflowRegistry(canned.uri), tmp_path):
        assert not isinstance(error, (AuthError, ForbiddenError))
        assert f"HTTP {status}" in str(error)


def test_a_server_that_is_away_is_told_with_its_address_and_no_credential(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        registry = MlflowRegistry(f"http://me:geheim@127.0.0.1:{port}")
        for error in refusals(registry, tmp_path):
            told = f"no MLflow server answers at http://127.0.0.1:{port} (connection refused)"
            assert str(error).startswith(told)
            assert "geheim" not in str(error)


@pytest.mark.parametrize(
    ("credentials", "sent"),
    [
        (Credentials(token="ey.J0"), "Bearer ey.J0"),
        (Credentials(username="me", password="pw"), "Basic bWU6cHc="),
    ],
)
def test_a_token_and_a_user_are_sent_as_http_has_it(
    canned: Canned, credentials: Credentials, sent: str
) -> None:
    canned.body = b"{}"
    MlflowRegistry(Server(uri=canned.uri, credentials=credentials)).ready_versions()
    assert canned.headers["Authorization"] == sent


class TestTls:
    @pytest.fixture
    def plain(self, canned: Canned) -> Canned:
        canned.body = b"{}"
        return canned

    def test_a_ca_of_ones_own_is_trusted_when_it_is_named_and_only_then(
        self, plain: Canned, tmp_path: Path
    ) -> None:
        authority = make_authority(tmp_path)
        with tls_proxy(authority.issue(tmp_path), plain.port) as uri:
            with pytest.raises(ServerError, match="--ca-file"):
                MlflowRegistry(uri).ready_versions()
            assert MlflowRegistry(Server(uri=uri, ca_file=authority.file)).ready_versions() == []

    def test_the_usual_variable_for_a_ca_is_heeded(
        self, plain: Canned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        authority = make_authority(tmp_path)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
        with tls_proxy(authority.issue(tmp_path), plain.port) as uri:
            registry = MlflowRegistry(uri)
            assert registry.ready_versions() == []
            assert registry.clock.ahead_s() is not None

    def test_a_board_whose_clock_is_behind_is_told_to_set_it(
        self, plain: Canned, tmp_path: Path
    ) -> None:
        authority = make_authority(tmp_path)
        early = authority.issue(tmp_path, starts_in_days=5)
        with tls_proxy(early, plain.port) as uri:
            registry = MlflowRegistry(Server(uri=uri, ca_file=authority.file))
            with pytest.raises(ServerError, match=r"the clock of this machine says .* set it"):
                registry.ready_versions()

    def test_an_expired_certificate_and_one_of_another_name_are_told_apart(
        self, plain: Canned, tmp_path: Path
    ) -> None:
        authority = make_authority(tmp_path)
        for certificate, told in (
            (authority.issue(tmp_path, starts_in_days=-50), "the server needs a new certificate"),
            (authority.issue(tmp_path, address="10.1.2.3"), "the certificate is for another name"),
        ):
            with tls_proxy(certificate, plain.port) as uri:
                registry = MlflowRegistry(Server(uri=uri, ca_file=authority.file))
                with pytest.raises(ServerError, match=told):
                    registry.ready_versions()

    def test_a_port_that_does_not_speak_tls_is_said_to(self, plain: Canned) -> None:
        with pytest.raises(ServerError, match="use an http:// address"):
            MlflowRegistry(plain.uri.replace("http:", "https:")).ready_versions()
