"""Before GPU hours are spent: one cell of each kind runs a few real steps on the target device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedenc.data.packed import cache_dir
from sharedenc.spec import Cell
from sweeps.graph import Node
from sweeps.inputs import Inputs, Places
from sweeps.mates import ANY_RATE
from sweeps.order import Demand
from sweeps.study import Study

if TYPE_CHECKING:
    from sharedenc.selftest.rows import Checked
    from sharedenc.training.job import TrialJob

CHECKED_FOLDER = "preflight"

Run = Callable[[list["TrialJob"], Callable[["Checked"], None], Path], Sequence["Checked"]]


def here(
    jobs: list[TrialJob], tell: Callable[[Checked], None], remember: Path
) -> Sequence[Checked]:
    """Check on this machine, in a child process."""
    from sharedenc.selftest.preflight import in_child

    return in_child(jobs, tell, remember=remember)


def on_cluster(demand: Demand, storage: str | None, digest: str, cache: Path | None) -> Run:
    """Check on a machine of the cluster that Ray has joined, with what a trial would have.

    Args:
        demand: Cores and GPUs to ask for.
        storage, digest, cache: Where a node gets the pack from, if it has none.
    """

    def run(
        jobs: list[TrialJob], tell: Callable[[Checked], None], remember: Path
    ) -> Sequence[Checked]:
        import ray

        from sharedenc.selftest.jobs import job_to_dict
        from sharedenc.selftest.rows import Checked

        remote = ray.remote(num_cpus=demand.cpus, num_gpus=demand.gpus, max_retries=2)(_on_node)
        plain = [job_to_dict(job) for job in jobs]
        rows = [
            Checked.from_dict(row)
            for row in ray.get(remote.remote(plain, str(remember), storage, digest, cache))
        ]
        for row in rows:
            tell(row)
        return rows

    return run


def _on_node(
    jobs: list[dict[str, Any]], remember: str, storage: str | None, digest: str, cache: Path | None
) -> list[dict[str, Any]]:
    from sharedenc.data import pack_store
    from sharedenc.models import weight_store
    from sharedenc.selftest.jobs import job_from_dict
    from sharedenc.storage import open_storage

    found = []
    for job in map(job_from_dict, jobs):
        if storage is not None:
            place = open_storage(storage)
            if not job.pack.is_dir():
                job = replace(job, pack=pack_store.fetch(digest, place, cache))
            if job.weights not in ("none", "default"):
                file = weight_store.fetch(Path(job.weights), job.trial.weights_digest, place, cache)
                job = replace(job, weights=str(file))
        found.append(job)
    return [row.to_dict() for row in here(found, lambda row: None, Path(remember))]


def check_first(
    nodes: Sequence[Node],
    to_run: Iterable[str],
    study: Study,
    inputs: Inputs,
    places: Places,
    *,
    note: Callable[[str], None],
    run: Run = here,
) -> list[Node]:
    """Block the nodes whose kind (backbone, graph) fails its preflight; all others as they were.

    A fault of the machine blocks nothing: it may be gone when the trial starts.

    Args:
        to_run: Ids of nodes that have not ended already.
        note: Told of each kind that fails, and how many passed.
        run: Where to check; what passed once with the same code, data and device is remembered.
    """
    wanted = set(to_run)
    jobs = [
        job_of(node, study, inputs) for node in nodes if node.id in wanted and node.blocked is None
    ]
    if not jobs:
        return list(nodes)
    failed: dict[tuple[str, str], str] = {}
    unsure: list[str] = []
    passed = remembered = 0

    def tell(row: Checked) -> None:
        nonlocal passed, remembered
        if row.ok:
            passed += 1
            remembered += row.remembered
            return
        cell = Cell.parse(row.cell)
        first_line = (row.reason.splitlines() or [row.error])[0]
        if row.kind == "machine":
            # It may pass next time, and trials are tried again by themselves.
            unsure.append(row.cell)
        else:
            failed[cell.backbone, cell.graph] = f"preflight of {row.cell} failed ({first_line})"
        note(f"preflight of {row.cell} failed: {row.reason}\n{row.traceback}".rstrip())

    run(jobs, tell, cache_dir(places.cache_dir) / CHECKED_FOLDER)
    known = f", {remembered} of them in an earlier run" if remembered else ""
    count = passed + len(failed) + len(unsure)
    note(f"preflight: {passed} of {count} kinds of trials passed{known}")
    return [_blocked(node, failed) for node in nodes]


def job_of(node: Node, study: Study, inputs: Inputs) -> TrialJob:
    """A job that computes what the node's trial will, whatever its rate and parent are."""
    from sharedenc.training.job import TrialJob

    parent = None
    if node.cell.source is not None:
        parent = inputs.facts.trial(node.cell.source, node.recipe, ANY_RATE, node.seed)
    # Not the trial's own rate: one that diverges is that trial's failure, not its kind's.
    trial = inputs.facts.trial(node.cell, node.recipe, ANY_RATE, node.seed, parent)
    return TrialJob(
        trial=trial,
        pack=inputs.data.root,
        weights=inputs.weights[node.cell.backbone][0],
        parent=None,
        work_dir=Path(),
        device=trial.numerics.device,
        plugins=tuple(study.plugins),
    )


def _blocked(node: Node, failed: dict[tuple[str, str], str]) -> Node:
    reason: Any = failed.get((node.cell.backbone, node.cell.graph))
    return node if reason is None or node.blocked else replace(node, blocked=reason)
