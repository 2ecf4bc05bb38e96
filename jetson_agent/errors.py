"""Errors that end a command with a message and an exit code."""

from __future__ import annotations

from collections.abc import Sequence

from jetson_agent.failures import FailureKind


class AgentError(Exception):
    """Something the user can act on; the command prints it and ends with `exit_code`."""

    exit_code = 1


class BackendError(Exception):
    """A model that a backend cannot build or run, with the reason.

    Args:
        kind: Decides what follows, see `jetson_agent.failures.ACTIONS`.
        lines: What the backend itself printed about it.
        node: The layer that it blamed, or empty.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: FailureKind = "internal",
        lines: Sequence[str] = (),
        node: str = "",
    ) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.lines = list(lines)
        self.node = node


class NoDeviceError(AgentError):
    """There is nothing to time on just now: no GPU, or a tool that cannot be run."""


class ServerError(AgentError):
    """The tracking server does not answer, or refuses.

    Args:
        code: MLflow's name of the error (such as ``RESOURCE_ALREADY_EXISTS``), or empty.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class AuthError(ServerError):
    """The server does not know this user (401): no or wrong credentials."""


class ForbiddenError(ServerError):
    """The server knows this user, who may not do this (403)."""
