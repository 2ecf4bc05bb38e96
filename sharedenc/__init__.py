"""Share one image encoder between object detection and semantic segmentation, and prove it.

`load` gives a trained network from a run, a registered version or a checkpoint file.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharedenc.export.load import load as load

__all__ = ["__version__", "load"]

try:
    __version__ = metadata.version("sharedenc")
except metadata.PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import `load` when it is first used: torch takes seconds, `import sharedenc` must not."""
    if name == "load":
        from sharedenc.export.load import load

        return load
    raise AttributeError(f"module 'sharedenc' has no attribute {name!r}")
