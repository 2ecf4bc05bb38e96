"""What a study found: its tables beside the published ones, and one page to read.

From code, each table and figure is a pandas DataFrame::

    from sharedenc import report

    study = report.load("full-grid-coco2017")  # or "published", which needs no server
    study.table("4.6")

Nothing heavy is imported before `load` is called; `sharedenc.report.frames` says what it gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharedenc.report.frames import Study

__all__ = ["load"]


def load(study: str, uri: str | None = None, *, curves: bool = False) -> Study:
    """Read a study; ``published`` is the reference study's own numbers.

    Args:
        uri: The MLflow server; by default that of ``MLFLOW_TRACKING_URI``.
        curves: Read the training curves too, for the figure ``curves``.

    Raises:
        SpecError: there is no such study, or no server is named.
        TrackingError: the server cannot be reached.
    """
    from sharedenc.report.frames import load as read

    return read(study, uri, curves=curves)
