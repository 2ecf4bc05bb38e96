"""The files of infra/, read the way their programs read them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
DEPLOYING = ROOT / "docs" / "deploying.md"

PINNED = re.compile(r"^(?!.*:latest)[\w./-]+:[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?$")
"""An image with a tag that holds a version, or a digest behind it."""


def load(name: str) -> Any:
    """Return the one YAML document of ``infra/<name>``."""
    return yaml.safe_load((INFRA / name).read_text())


@cache
def constraints() -> dict[str, str]:
    """Return package -> version of infra/constraints-ci.txt, names in lower case."""
    lines = (INFRA / "constraints-ci.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.lower(): version for name, version in pairs}


def shell_blocks(text: str) -> list[str]:
    """Return the command lines of ```shell blocks, continuation lines joined."""
    lines: list[str] = []
    for block in re.findall(r"^```shell\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        lines += [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return lines
