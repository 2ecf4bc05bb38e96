"""The rows of `doctor` about the tracking server, who asks it, and the daemon that works for it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetson_agent.credentials import (
    CA_FILE,
    FILE_VARIABLE,
    FORMAT,
    SYSTEMD_NAME,
    SYSTEMD_VARIABLE,
    TOKEN,
    USERNAME,
    check_ca_file,
    find_server,
    read_credentials,
    without_credentials,
)
from jetson_agent.daemon import IN_WORDS, STATUS_FILE
from jetson_agent.doctor import Row
from jetson_agent.errors import AgentError, AuthError, ForbiddenError, ServerError
from jetson_agent.identity import Device

INSTALLED = "etc/jetson-agent/credentials"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the server said. `modes` is None if it said nothing of them, `ahead_s` by how much this
    machine's clock is ahead of its."""

    row: Row
    uri: str | None = None
    modes: set[str] | None = None
    ahead_s: float | None = None


def ask(
    uri: str | None,
    here: Device,
    credentials: Path | None,
    ca_file: Path | None,
    *,
    offline: bool,
) -> Seen:
    """Ask the server whether it lets us in, and in which modes it has figures of this device."""
    if not uri:
        return Seen(
            row=Row(
                check="server",
                state="warn",
                detail="none is named",
                mend="name it with --tracking-uri or MLFLOW_TRACKING_URI; `measure` needs none",
            )
        )
    from jetson_agent.registry_mlflow import MlflowRegistry

    try:
        server = find_server(uri, credentials_file=credentials, ca_file=ca_file)
        if offline:
            row = Row(check="server", state="ok", detail=f"{server.uri}, not asked (--offline)")
            return Seen(row=row, uri=server.uri)
        registry = MlflowRegistry(server)
        ahead_s = registry.clock.ahead_s()
    except AgentError as error:
        shown = None if isinstance(error, ServerError) else without_credentials(uri)
        return Seen(row=Row(check="server", state="missing", detail=str(error)), uri=shown)
    try:
        registry.check()
        ready = len(registry.ready_versions())
        rows = registry.bench_rows(here.name)
    except ServerError as error:
        row = Row(check="server", state="missing", detail=str(error), mend=_mend(error))
        return Seen(row=row, uri=server.uri, ahead_s=ahead_s)
    modes = {mode for _, mode, verdict in rows if verdict in ("valid", "suspect")}
    detail = f"{server.uri} answers, {ready} versions are ready to be timed"
    if server.warnings:
        row = Row(check="server", state="warn", detail=detail, mend=" ".join(server.warnings))
    else:
        row = Row(check="server", state="ok", detail=detail)
    return Seen(row=row, uri=server.uri, modes=modes, ahead_s=ahead_s)


def _mend(error: ServerError) -> str:
    if isinstance(error, AuthError):
        return f"a file of mode 600 with {FORMAT}: --credentials FILE, or install.sh --credentials"
    if isinstance(error, ForbiddenError):
        return "have the server's administrator give this user READ, see docs/jetson.md"
    return "see that it runs and that this board reaches it (curl URI/health)"


def credentials_rows(credentials: Path | None, ca_file: Path | None, root: Path) -> Iterator[Row]:
    """The login's file and the CA's, as far as they are named."""
    check = "credentials"
    named = credentials or _named()
    installed = root / INSTALLED
    if named:
        try:
            found = read_credentials(named)
            who = f"user {found.username}" if found.username else "a token"
            yield Row(check=check, state="ok", detail=f"{who}, from {named}")
        except AgentError as error:
            yield Row(check=check, state="missing", detail=str(error), mend=f"chmod 600 {named}")
    elif os.environ.get(USERNAME) or os.environ.get(TOKEN):
        yield Row(
            check=check,
            state="warn",
            detail="from MLFLOW_TRACKING_... of the environment, which other programs inherit",
            mend=f"a file of mode 600 with {FORMAT}, named by --credentials",
        )
    elif installed.exists():
        mode = stat.S_IMODE(installed.stat().st_mode)
        yield Row(
            check=check,
            state="missing" if mode & 0o077 else "ok",
            detail=f"{installed} (mode {mode:03o}), for the service alone",
            mend=f"sudo chmod 600 {installed}" if mode & 0o077 else "",
        )
    else:
        yield Row(check=check, state="ok", detail="none; a server without a login needs none")
    if authority := ca_file or (Path(value) if (value := os.environ.get(CA_FILE)) else None):
        try:
            check_ca_file(authority)
            yield Row(check="CA", state="ok", detail=str(authority))
        except AgentError as error:
            mend = "copy the CA's own certificate (PEM) there, not the server's key"
            yield Row(check="CA", state="missing", detail=str(error), mend=mend)


def _named() -> Path | None:
    if value := os.environ.get(FILE_VARIABLE):
        return Path(value)
    folder = os.environ.get(SYSTEMD_VARIABLE)
    return Path(folder, SYSTEMD_NAME) if folder and Path(folder, SYSTEMD_NAME).exists() else None


def service_row(state: Path, now_s: float = 0.0) -> Row:
    """What the daemon of this state folder says of itself."""
    try:
        told = json.loads((state / STATUS_FILE).read_text())
        server, waiting = told["server"], int(told["waiting_to_be_sent"])
        doing, pid, updated = str(told["doing"]), int(told["pid"]), float(told["updated"])
    except FileNotFoundError:
        return Row(check="service", state="ok", detail=f"no daemon has worked in {state} yet")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Row(
            check="service",
            state="warn",
            detail=f"{state / STATUS_FILE} cannot be read ({error})",
            mend="run it as the daemon's user: sudo -u jetson-agent ...",
        )
    detail = f"{doing}, {_age(now_s - updated)}; {waiting} results wait to be sent"
    if not Path(f"/proc/{pid}").exists():
        if doing == "stopped":
            return Row(check="service", state="ok", detail=detail)
        return Row(
            check="service",
            state="warn",
            detail=f"its process {pid} is gone; it was: {detail}",
            mend="sudo systemctl start jetson-agent; journalctl -u jetson-agent says why it ended",
        )
    troubles = [IN_WORDS[link] for link in _links(server) if link in IN_WORDS]
    if troubles or told.get("last_error"):
        said = [*troubles, *([f"last error: {told['last_error']}"] if told["last_error"] else [])]
        return Row(
            check="service",
            state="warn",
            detail="; ".join([detail, *said]),
            mend="journalctl -u jetson-agent, and sudo systemctl restart jetson-agent after a "
            "change of settings",
        )
    return Row(check="service", state="ok", detail=detail)


def _links(server: dict[str, Any]) -> list[str]:
    return [str(server.get(name)) for name in ("state", "writing")]


def _age(seconds: float) -> str:
    if seconds < 0 or seconds > 1e9:
        return "written when the clock was another"
    return f"as of {seconds / 60:.0f} min ago"
