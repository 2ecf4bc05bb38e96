"""Whether a tracking server is there, and is one that we can speak to."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from sharedenc.errors import TrackingError
from sharedenc.redact import hide_credentials

MIN_MAJOR = 3
"""Oldest major version of an MLflow server that is spoken to."""


def check_server(uri: str, *, wait_s: float = 8.0) -> None:
    """Raise TrackingError, with what to do, unless a server answers at ``uri`` within ``wait_s``.

    Any HTTP answer counts, 401 too: whether the user may log in is found out by the first request.
    """
    shown = hide_credentials(uri)
    if urlsplit(uri).scheme not in ("http", "https"):
        raise TrackingError(
            f"tracking URI {shown!r} is not an http:// or https:// address. sharedenc always talks "
            "to an MLflow server: unset MLFLOW_TRACKING_URI for a private one, or start one with "
            "`mlflow server --backend-store-uri sqlite:///mlflow.db`."
        )
    bare = urlsplit(uri)
    address = f"{bare.scheme}://{bare.netloc.rpartition('@')[2]}{bare.path.rstrip('/')}"
    deadline = time.monotonic() + wait_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=max(0.5, left_s)):
                return _check_version(address, shown)
        except urllib.error.HTTPError as answer:
            answer.close()
            return
        except OSError as error:
            reason = getattr(error, "reason", error)
        if time.monotonic() + 1.0 >= deadline:
            raise TrackingError(
                f"no MLflow server answers at {shown} ({reason}). Start it, correct "
                "MLFLOW_TRACKING_URI, or unset MLFLOW_TRACKING_URI so that sharedenc starts a "
                "private server."
            )
        time.sleep(0.5)


def _check_version(address: str, shown: str) -> None:
    """Refuse a server of an older major version; one that does not say it is let pass."""
    try:
        with urllib.request.urlopen(f"{address}/version", timeout=10.0) as answer:
            version = answer.read(100).decode(errors="replace").strip()
    except OSError:
        return
    found = re.match(r"(\d+)\.\d+", version)
    if found and int(found[1]) < MIN_MAJOR:
        raise TrackingError(
            f"the MLflow server at {shown} is version {version}; sharedenc needs {MIN_MAJOR}.0 or "
            "newer. Upgrade the server (`pip install --upgrade mlflow`, then `mlflow db upgrade` "
            "on its store), or unset MLFLOW_TRACKING_URI so that sharedenc starts a private one."
        )
