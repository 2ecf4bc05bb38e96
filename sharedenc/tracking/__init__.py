"""Where a training says what it does: the ``Tracker`` seam, with an MLflow and a memory twin.

One study is one experiment with one parent run; one trial is one child run of it. Everything goes
through ``MlflowClient`` with an explicit URI: no active run, no process-wide tracking URI. A run
that cannot reach its server goes on; what it had to say waits in order, also on disk once the
caller names a folder (:meth:`RunHandle.keep_in`), and is sent with the next message. With such a
folder no training waits for its rows of metrics to arrive.
"""

from __future__ import annotations

from sharedenc.redact import hide_credentials
from sharedenc.tracking.health import check_server
from sharedenc.tracking.memory import MemoryRun, MemoryTracker
from sharedenc.tracking.patience import cause_of, refusals
from sharedenc.tracking.run import SPOOL, MlflowRun
from sharedenc.tracking.seam import (
    KIND,
    MAX_METRICS,
    MAX_PARAM,
    MAX_PARAMS,
    MAX_TAG,
    PARENT,
    REASON,
    REUSED_FROM,
    RUN_NAME,
    RUN_STATUS,
    STATE,
    STUDY,
    THREADS,
    Patience,
    Point,
    RunHandle,
    RunRecord,
    Tracker,
    Version,
    is_study,
    metric_name,
    no_study,
)
from sharedenc.tracking.server import MlflowTracker

__all__ = [
    "KIND",
    "MAX_METRICS",
    "MAX_PARAM",
    "MAX_PARAMS",
    "MAX_TAG",
    "PARENT",
    "REASON",
    "REUSED_FROM",
    "RUN_NAME",
    "RUN_STATUS",
    "SPOOL",
    "STATE",
    "STUDY",
    "THREADS",
    "MemoryRun",
    "MemoryTracker",
    "MlflowRun",
    "MlflowTracker",
    "Patience",
    "Point",
    "RunHandle",
    "RunRecord",
    "Tracker",
    "Version",
    "cause_of",
    "check_server",
    "hide_credentials",
    "is_study",
    "metric_name",
    "no_study",
    "refusals",
]
