"""What a trial ran with: versions of what computes, and a digest of our own code."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from sharedenc.training.software import code_digest, software


def test_versions_are_those_of_the_running_process() -> None:
    found = json.loads(software())
    assert found["torch"] == torch.__version__
    assert ("cuda" in found) == bool(torch.version.cuda)
    assert len(found["code"]) == 12


def test_the_code_is_known_by_its_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    file = tmp_path / "part" / "one.py"
    file.write_text("x = 1\n")
    first = code_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("no code")
    assert code_digest(tmp_path) == first
    file.write_text("x = 2\n")
    second = code_digest(tmp_path)
    file.rename(tmp_path / "part" / "two.py")
    assert len({first, second, code_digest(tmp_path)}) == 3
