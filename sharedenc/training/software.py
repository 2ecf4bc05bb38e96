"""What a trial ran with, for people to read: no part of any key."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

import sharedenc

LIBRARIES = ("torchvision", "numpy", "opencv-python-headless", "pycocotools")


@cache
def software() -> str:
    """Versions of this package, of its code, and of what computes, as JSON (name to version)."""
    found = {
        "sharedenc": sharedenc.__version__,
        "code": code_digest(Path(sharedenc.__file__).parent),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    return json.dumps(found)


def code_digest(package: Path) -> str:
    """First 12 hex digits of the SHA-256 of a package's Python files and their names."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]
