"""Errors that end a command with a message and an exit code."""

from __future__ import annotations


class AgentError(Exception):
    """Something the user can act on; the command prints it and ends with `exit_code`."""

    exit_code = 1


class BackendError(Exception):
    """A model that a backend cannot build or run, with the reason."""


class ServerError(AgentError):
    """The tracking server does not answer, or refuses."""
