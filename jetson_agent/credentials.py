"""Which server, as whom, and whose certificates to trust: from a protected file, never from argv.

MLflow's client reads user, password, token and CA from the environment of its own process, so
that is where `Server.apply` puts them; `jetson_agent.proc.child_environment` keeps them from
children, and nothing here ever prints a value.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from jetson_agent.errors import AgentError, ServerError

FILE_VARIABLE = "JETSON_AGENT_CREDENTIALS"
# systemd puts ``LoadCredential=mlflow:FILE`` here.
SYSTEMD_VARIABLE = "CREDENTIALS_DIRECTORY"
SYSTEMD_NAME = "mlflow"
USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
TOKEN, CA_FILE = "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_SERVER_CERT_PATH"
INSECURE = "MLFLOW_TRACKING_INSECURE_TLS"
FORMAT = "two lines username=... and password=..., or one line token=..."
LIMIT_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A user with a password, or a token; `repr` shows neither."""

    username: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A tracking server; `uri` is free of credentials, `warnings` are for the user to see."""

    uri: str
    credentials: Credentials | None = None
    ca_file: Path | None = None
    warnings: tuple[str, ...] = ()

    def apply(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Put them where MLflow's client looks; what is not given here stays as it is."""
        if "@" in environment.get("MLFLOW_TRACKING_URI", ""):
            environment["MLFLOW_TRACKING_URI"] = self.uri
        if self.credentials is not None:
            for name in (USERNAME, PASSWORD, TOKEN):
                environment.pop(name, None)
            if self.credentials.token:
                environment[TOKEN] = self.credentials.token
            else:
                environment[USERNAME] = self.credentials.username
                environment[PASSWORD] = self.credentials.password
        if self.ca_file is not None:
            environment[CA_FILE] = str(self.ca_file)
            environment.pop(INSECURE, None)

    def hide(self, text: str) -> str:
        """`text` without password and token, whoever wrote them there."""
        known = self.credentials or Credentials()
        secrets = [known.password, known.token, os.environ.get(PASSWORD), os.environ.get(TOKEN)]
        for secret in filter(None, secrets):
            text = text.replace(secret, "***")
        return text


def find_server(
    uri: str,
    *,
    credentials_file: Path | None = None,
    ca_file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Server:
    """The server at `uri` with the credentials that are meant for it.

    They come from `credentials_file`, else the file that ``$JETSON_AGENT_CREDENTIALS`` names, else
    ``$CREDENTIALS_DIRECTORY/mlflow`` (systemd), else the address itself, else MLflow's own
    variables and files. The CA comes from `ca_file`, else MLflow's and requests' own variables.

    Raises:
        ServerError: `uri` is no address of a server.
        AgentError: a file that cannot be used, with what to do.
    """
    parts = _checked(uri)
    clean = _without_userinfo(parts)
    warnings = []
    found = None
    if path := credentials_file or _named_file(environment):
        found = read_credentials(path, environment)
    if "@" in parts.netloc:
        warnings.append(
            f"the address of {clean} holds credentials, which other programs can see: put them "
            f"into a file of mode 600 ({FORMAT}) and name it with --credentials"
        )
        if found is None:
            user, password = unquote(parts.username or ""), unquote(parts.password or "")
            found = (
                Credentials(username=user, password=password)
                if password
                else Credentials(token=user)
            )
    if found is not None and parts.scheme == "http" and not _is_local(parts.hostname or ""):
        warnings.append(
            f"credentials travel to {clean} unencrypted: use an https address, with --ca-file for "
            "a CA of your own"
        )
    if ca_file is not None:
        check_ca_file(ca_file)
    return Server(uri=clean, credentials=found, ca_file=ca_file, warnings=tuple(warnings))


def without_credentials(uri: str) -> str:
    """`uri` for people to read: user and password left out."""
    return _without_userinfo(urlsplit(uri)) if "@" in uri else uri


def read_credentials(path: Path, environment: Mapping[str, str] = os.environ) -> Credentials:
    """Read a credentials file.

    Raises:
        AgentError: it cannot be read, others can read it, or it is not of the format; the message
            never holds a value.
    """
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            content = stream.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise AgentError(
            f"credentials file {path} cannot be read ({error.strerror}): it should hold {FORMAT}, "
            "and belong to the user that the agent runs as"
        ) from error
    # systemd lets its one reader in by an access list, which shows as a right of the group.
    of_systemd = path.parent == Path(environment.get(SYSTEMD_VARIABLE) or "/nowhere")
    if mode & (0o007 if of_systemd else 0o077):
        raise AgentError(
            f"credentials file {path} is open to other users (mode {mode:03o}): chmod 600 {path}"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise AgentError(f"credentials file {path} is not UTF-8 text: write {FORMAT}") from None
    if len(content) > LIMIT_BYTES or "\0" in text:
        raise AgentError(f"credentials file {path} is not a short text: write {FORMAT}")
    return _parse(text, path)


def check_ca_file(path: Path) -> None:
    """Raise `AgentError` unless `path` holds certificates in PEM form."""
    try:
        ssl.create_default_context(cafile=str(path))
    except (OSError, ssl.SSLError) as error:
        raise AgentError(
            f"--ca-file {path} cannot be used ({error.strerror or error}): it should hold the "
            "certificate of your CA as text, -----BEGIN CERTIFICATE----- first"
        ) from error


def _parse(text: str, path: Path) -> Credentials:
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        name = name.strip()
        if not equals or name not in ("username", "password", "token") or name in values:
            raise AgentError(
                f"line {number} of credentials file {path} is not one of username=, password= and "
                f"token=, each once: write {FORMAT}"
            )
        values[name] = value
    given = {name for name, value in values.items() if value}
    if given not in ({"username", "password"}, {"token"}):
        has = ", ".join(sorted(given)) or "nothing"
        raise AgentError(f"credentials file {path} gives {has}: write {FORMAT}")
    return Credentials(**values)


def _named_file(environment: Mapping[str, str]) -> Path | None:
    if named := environment.get(FILE_VARIABLE):
        return Path(named)
    if folder := environment.get(SYSTEMD_VARIABLE):
        path = Path(folder, SYSTEMD_NAME)
        return path if path.exists() else None
    return None


def _checked(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        parts.port  # noqa: B018  (raises for what is no number)
    except ValueError:
        good = False
    if not good:
        shown = without_credentials(uri) if "]" not in uri else "with brackets"
        raise ServerError(
            f"tracking URI {shown!r} is not an http(s) address: the agent talks to an MLflow "
            "server; start one with `sharedenc ui` or `mlflow server`"
        )
    return parts


def _without_userinfo(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
