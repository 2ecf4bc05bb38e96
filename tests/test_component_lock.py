"""A component's code does not change without a decision about its results."""

from __future__ import annotations

import json

import pytest

from sharedenc.spec import COMPONENTS
from tests.component_lock import FILES, LOCK, ROOT, code_digest, component_digest


@pytest.mark.parametrize("name", COMPONENTS)
def test_changed_code_needs_a_decision(name: str) -> None:
    entry = json.loads(LOCK.read_text())[name]
    assert (entry["version"], entry["digest"]) == (COMPONENTS[name], component_digest(name)), (
        f"the code of {name!r} ({', '.join(FILES[name])}) changed. If results change, raise its "
        "number in sharedenc.spec.COMPONENTS and run `python -m tests.component_lock --bumped`; "
        "if not, run it with --unchanged and the reason."
    )
    assert entry["decision"]


def test_comments_and_docstrings_are_not_code_but_numbers_are() -> None:
    one = 'def f(x):\n    """Say."""\n    return x + 1\n'
    other = "def f(x):\n    # why\n    return x + 1\n"
    assert code_digest(one) == code_digest(other)
    assert code_digest(one) != code_digest(one.replace("1", "2"))


def test_every_component_names_files_that_exist() -> None:
    assert set(FILES) == set(COMPONENTS)
    for files in FILES.values():
        for file in files:
            assert (ROOT / file).is_file(), file
