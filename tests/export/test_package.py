"""`import sharedenc` costs nothing and opens the door to `load`."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

import sharedenc


def test_the_package_is_light_until_load_is_used() -> None:
    check = (
        "import sys, sharedenc; assert sharedenc.__version__;"
        "assert not {'torch', 'mlflow', 'onnx', 'numpy'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
    assert callable(sharedenc.load)
    assert sharedenc.__version__ == metadata.version("sharedenc")
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        sharedenc.laod  # noqa: B018
