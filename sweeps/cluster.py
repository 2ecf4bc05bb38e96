"""Before a sweep on a cluster: every node can do what trials need, or is refused by its name."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharedenc.errors import SpecError

PACKAGES = ("sharedenc", "ray", "torch")
ANSWER_S = 120.0
REACH_S = 15.0


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What one node says: versions by package, and why storage or tracking server is no use.

    ``error`` says why the node could not be asked at all.
    """

    node: str
    name: str
    versions: dict[str, str]
    storage: str = ""
    tracking: str = ""
    error: str = ""


def check_cluster(*, tracking_uri: str | None = None, storage: str | None = None) -> None:
    """Refuse a cluster on which trials would not run, or would not give the same results.

    Ask the nodes of the Ray that this process has joined. A marker that the driver writes into the
    storage must be there on every node; the tracking server must answer from every node.

    Raises:
        SpecError: naming every node that is not fit, and why.
        StorageError: the driver itself cannot use the storage.
    """
    with _mark(storage) as mark:
        reports = ask_nodes(_probe(), storage or "", mark, tracking_uri or "")
    problems = find_problems(reports, _versions())
    if problems:
        raise SpecError(
            "this cluster cannot run the sweep: " + "; ".join(problems) + ". Install the same "
            "versions on every node (the same image), give a --storage that every node sees and a "
            "tracking server that every node reaches."
        )


def find_problems(reports: Sequence[NodeReport], here: dict[str, str]) -> list[str]:
    """What is wrong on which node, compared with the driver's versions."""
    problems = []
    for report in reports:
        wrong = [
            f"{package} {report.versions.get(package) or 'missing'} (here {version})"
            for package, version in here.items()
            if report.versions.get(package) != version
        ]
        for text in (report.error, report.storage, report.tracking):
            if text:
                wrong.append(text)
        if report.error:
            wrong = [report.error]
        if wrong:
            problems.append(f"node {report.name}: {', '.join(wrong)}")
    return problems


def ask_nodes(probe: Callable[..., dict[str, Any]], *values: str) -> list[NodeReport]:
    """Run a function on every living node, all at once, without taking any of its resources."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=2)(probe)
    asked = []
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append((node, remote.options(scheduling_strategy=here).remote(*values)))
    reports = []
    for node, answer in asked:
        name = f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
        try:
            found = ray.get(answer, timeout=ANSWER_S)
            reports.append(NodeReport(node=node["NodeID"], name=name, **found))
        except Exception as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            reports.append(
                NodeReport(node=node["NodeID"], name=name, versions={}, error=f"no answer: {text}")
            )
    return reports


@contextlib.contextmanager
def _mark(storage: str | None) -> Iterator[str]:
    if storage is None:
        yield ""
        return
    from sharedenc.storage import leave_mark, open_storage

    place = open_storage(storage)
    with tempfile.TemporaryDirectory() as scratch:
        mark = leave_mark(place, Path(scratch))
    try:
        yield mark
    finally:
        place.remove(mark)


def _probe() -> Callable[..., dict[str, Any]]:
    """A function that needs nothing of ours to be unpickled: this package may be missing there."""
    packages, reach_s = PACKAGES, REACH_S

    def probe(storage: str, mark: str, tracking: str) -> dict[str, Any]:
        import platform
        import urllib.request
        from importlib.metadata import PackageNotFoundError, version

        versions = {"python": platform.python_version()}
        for package in packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = ""
        found = {"versions": versions, "storage": "", "tracking": ""}
        if storage and versions["sharedenc"]:
            try:
                from sharedenc.storage import open_storage, require_mark

                require_mark(open_storage(storage), mark)
            except Exception as error:
                found["storage"] = str(error)
        if tracking:
            try:
                with urllib.request.urlopen(tracking.rstrip("/") + "/health", timeout=reach_s):
                    pass
            except OSError as error:
                found["tracking"] = f"no answer from the tracking server {tracking} ({error})"
        return found

    return probe


def _versions() -> dict[str, str]:
    found = _probe()("", "", "")["versions"]
    assert isinstance(found, dict)
    return {name: version for name, version in found.items() if version}
