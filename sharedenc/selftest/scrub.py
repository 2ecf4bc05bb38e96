"""Take out of a report what says who and where: paths, users, hosts, addresses, secrets."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.I)
# Names that half of all machines have tell nothing and stand in honest words.
COMMON_USERS = frozenset({"root", "user", "ubuntu", "admin", "nobody"})
NAMES = ("<user>", "<host>")
_URL = re.compile(r"\b[a-zA-Z][\w+.-]*://[^\s'\"<>)\]]+")
# An absolute path: of its folders only the last name is kept.
_PATH = re.compile(r"(?<![\w.~/-])~?/(?:[^\s/:,;'\"<>()\[\]]+/)*([^\s/:,;'\"<>()\[\]]+)/?")
_WINDOWS = re.compile(r"\b[A-Za-z]:\\\S+")


def scrub(value: Any, words: Mapping[str, str]) -> Any:
    """Return plain data with every string cleaned, keys included.

    Args:
        words: `private_words`: what to replace, and by what.
    """
    if isinstance(value, str):
        return _clean(value, words)
    if isinstance(value, Mapping):
        return {_clean(str(key), words): scrub(item, words) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(item, words) for item in value]
    return value


def private_words(folders: Iterable[Path] = ()) -> dict[str, str]:
    """Words of this machine and user, and what stands for them; longest first.

    Args:
        folders: Places whose whole name is private, however it is written.
    """
    # As short paths, of which nothing but the last name will be left: they may hold blanks.
    words = {str(path): "/folder" for path in folders}
    words |= {str(path.resolve()): "/folder" for path in folders}
    words[str(Path.home())] = "/home"
    host = socket.gethostname()
    for name in {host, host.split(".")[0], socket.getfqdn()}:
        words[name] = "<host>"
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    if user not in COMMON_USERS:
        words[user] = "<user>"
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name):
            words[value] = "<secret>"
    useful = {word: by for word, by in words.items() if len(word) > 2 and word != "localhost"}
    return dict(sorted(useful.items(), key=lambda item: -len(item[0])))


def _clean(text: str, words: Mapping[str, str]) -> str:
    for word, by in words.items():
        if by not in NAMES:
            text = text.replace(word, by)
    text = _URL.sub("<address>", text)
    text = _WINDOWS.sub("<path>", text)
    text = _PATH.sub(r".../\1", text)
    # Names come last: an address that holds one is to be gone as a whole.
    for word, by in words.items():
        if by in NAMES:
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", by, text)
    return text
