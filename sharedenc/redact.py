"""Credentials out of everything that is written: the one place that knows what looks like one.

Hidden are user and password of any URL, secret values of a URL's query, and the values of
environment variables whose names say that they are secret. Values shorter than `SHORTEST` are
told apart from ordinary words only inside URLs; nobody should use such passwords.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

HIDDEN = "***"
SHORTEST, SURE = 6, 12
"""A secret value shorter than `SURE` is hidden where it stands as a word of its own."""

_USER_INFO = re.compile(r"(?<=://)[^/\s@\"']+@")
_QUERY = re.compile(
    r"(?i)(?<=[?&])([\w.\-]*(?:key|secret|token|password|passwd|signature|credential)[\w.\-]*)="
    r"[^&\s\"']+"
)
_SECRET_NAME = re.compile(
    r"(?i)(password|passwd|passphrase|secret|token|api_?key|access_key|account_key|sas_|"
    r"credential|authorization)"
)
_NOT_SECRET = re.compile(r"(?i)(_file|_path|_dir|_url|_uri|_mode|_expiration|_provider)$")
_TEXT_FILES = frozenset({".yaml", ".yml", ".json", ".jsonl", ".txt", ".md", ".csv", ".log"})
MAX_TEXT_BYTES = 4 << 20


def secrets() -> list[str]:
    """Values of secret environment variables, longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST
        and _SECRET_NAME.search(name)
        and not _NOT_SECRET.search(name)
        and value.lower() not in ("enabled", "disabled")
    }
    return sorted(values, key=len, reverse=True)


def hide_credentials(text: str) -> str:
    """Replace credentials in ``text`` by ``***``."""
    if "://" in text:
        text = _USER_INFO.sub(f"{HIDDEN}@", text)
    if "=" in text:
        text = _QUERY.sub(rf"\1={HIDDEN}", text)
    for value in secrets():
        if value not in text:
            continue
        if len(value) >= SURE:
            text = text.replace(value, HIDDEN)
        else:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", HIDDEN, text)
    return text


def redacted(path: Path) -> str | None:
    """What a text file is to say instead of what it says; None when it holds no credentials."""
    if path.suffix.lower() not in _TEXT_FILES or path.stat().st_size > MAX_TEXT_BYTES:
        return None
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return None
    hidden = hide_credentials(text)
    return None if hidden == text else hidden
