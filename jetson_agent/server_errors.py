"""What went wrong between the agent and its server, said so that a person can mend it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone

from jetson_agent.credentials import Server
from jetson_agent.errors import AuthError, ForbiddenError, ServerError

SHOWN = 300
UNKNOWN_CA = (
    "nobody vouches for its certificate: name it, or your CA's, with --ca-file (or "
    "MLFLOW_TRACKING_SERVER_CERT_PATH)"
)
OTHER_NAME = "the certificate is for another name: use the name that it is made for"
# Phrase of OpenSSL or of Python's ssl -> what to do; the first one counts.
TLS = {
    "not yet valid": "the clock of this machine says {now}, which is before the certificate was "
    "made: set it (timedatectl set-ntp true, or date -s)",
    "has expired": "the clock of this machine says {now}: if that is right, the server needs a new "
    "certificate, else set the clock",
    "mismatch": OTHER_NAME,
    "doesn't match": OTHER_NAME,
    "not valid for": OTHER_NAME,
    "CERTIFICATE_VERIFY_FAILED": UNKNOWN_CA,
    "WRONG_VERSION_NUMBER": "it does not speak TLS: use an http:// address, or the port that does",
}
WORDS = {
    r"unauthori[sz]ed|unauthenticated|not authenticated|authentication|invalid token": 401,
    r"forbidden|permission denied|access denied|not allowed": 403,
}
AWAY = {
    "refused": "connection refused",
    "resolve": "its name is not known",
    "Name or service not known": "its name is not known",
    "timed out": "no answer in time",
    "timeout": "no answer in time",
    "unreachable": "no way to it through the network",
    "No route": "no way to it through the network",
    "Connection aborted": "the connection broke",
    "Connection broken": "the connection broke",
    "reset by peer": "the connection broke",
}


def explain(error: BaseException, action: str, server: Server) -> ServerError:
    """The `ServerError` for what MLflow's client raised while it should `action`."""
    text = server.hide(" ".join(str(part) for part in _chain(error)))
    code = str(getattr(error, "error_code", ""))
    status = _status(error, text)
    if status == 401:
        return AuthError(
            f"{server.uri} does not accept this user or token (401): give --credentials FILE with "
            "username= and password=, or token=",
            code=code,
        )
    if status == 403:
        return ForbiddenError(
            f"this user may not {action} on {server.uri} (403): the agent needs to read registered "
            "models and their runs, and to write its own experiment, bench/<device>",
            code=code,
        )
    if "SSL" in text:
        now = datetime.now(timezone.utc).isoformat(timespec="minutes")
        for phrase, hint in TLS.items():
            if phrase in text:
                told = hint.format(now=now)
                return ServerError(f"no secure connection to {server.uri}: {told}", code=code)
    if trouble := re.search(r"too many (\d{3}) error responses", text):
        return ServerError(
            f"{server.uri} has trouble of its own (HTTP {trouble.group(1)}) and would not "
            f"{action}: look into the server's log",
            code=code,
        )
    if _from_network(error) or "Max retries exceeded" in text:
        why = next((told for sign, told in AWAY.items() if sign in text), _first_line(text))
        return ServerError(
            f"no MLflow server answers at {server.uri} ({why}): start it, or give another address "
            "with --tracking-uri or MLFLOW_TRACKING_URI",
            code=code,
        )
    if "not in a valid JSON format" in text or not code:
        return ServerError(
            f"what answers at {server.uri} is no MLflow server, or not of a version from 2.22 "
            f"on, or a proxy answers in its place; it would not {action}: {_first_line(text)}",
            code=code,
        )
    return ServerError(f"the tracking server would not {action}: {_first_line(text)}", code=code)


def _status(error: BaseException, text: str) -> int | None:
    """The HTTP status behind an error, as far as it can be told."""
    for part in _chain(error):
        answer = getattr(part, "response", None)
        if answer is not None and hasattr(answer, "status_code"):
            return int(answer.status_code)
    if found := re.search(r"failed with error code (\d{3})", text):
        return int(found.group(1))
    code = str(getattr(error, "error_code", ""))
    named = {"PERMISSION_DENIED": 403, "UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401}
    if code == "INTERNAL_ERROR" and "error_code" not in getattr(error, "json", {"error_code": ""}):
        # A refusal in JSON that is not MLflow's: its client drops the status, the words are left.
        for pattern, status in WORDS.items():
            if re.search(pattern, text, re.IGNORECASE):
                return status
    return named.get(code)


def _from_network(error: BaseException) -> bool:
    """Whether the connection failed, as opposed to an answer that says no."""
    names = ("ConnectionError", "Timeout", "ChunkedEncodingError", "ProtocolError")
    return any(
        isinstance(part, (ConnectionError, TimeoutError)) or type(part).__name__.endswith(names)
        for part in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:SHOWN] if lines else "without a word"
