"""`--plan`: what a study would reuse, train and cost, without training or writing anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedenc.spec import Cell, Trial
from sharedenc.tracking import MlflowTracker
from sweeps.estimates import Estimates, comparable
from sweeps.graph import Node, Resolver, expand
from sweeps.inputs import Inputs, Places, gather
from sweeps.ledger import Ledger, Measured
from sweeps.lookup import look_up
from sweeps.mates import likely_keys
from sweeps.order import Machine
from sweeps.packing import pack_trials
from sweeps.preflight import job_of
from sweeps.price import Price, price, to_run
from sweeps.resources import fit, per_gpu
from sweeps.run import RunOptions
from sweeps.study import Study

if TYPE_CHECKING:
    from sweeps.price import Probed

# A processor takes the same time for each picture of a batch, a GPU does not.
CPU_PROBE_BATCH = 4
CPU_PROBE_STEPS, GPU_PROBE_STEPS = 3, 8


class _Row:
    """A row of the probe, as `price` reads it."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.cell: str = row["cell"]
        self.step_s: float | None = row["step_s"]
        self.val_s_per_image: float | None = row["val_s_per_image"]
        self.batch_size: int = row["batch_size"]


def plan_study(
    study: Study,
    places: Places,
    options: RunOptions,
    machines: Callable[[], Sequence[Machine]],
    *,
    on_cluster: bool = False,
    probe: bool = True,
    note: Callable[[str], None] = lambda text: None,
    progress: bool = True,
) -> Price:
    """Price a study on the machines at hand.

    Args:
        machines: Gives what there is to run on.
        on_cluster: They are a cluster's: which device they have is not known here.
        probe: Time a few real steps on this machine's device for kinds of trials that no earlier
            run has measured.
        note: Told what is being timed.

    Raises:
        SharedencError: data, weights, study or server cannot be used, or no machine can hold it.
    """
    inputs = gather(study, places, options.device, progress=progress, note=note)
    study = replace(study, name=inputs.name)
    nodes = expand(study, inputs.facts)
    ledger = Ledger(
        tracker=MlflowTracker(places.tracking_uri),
        study=inputs.name,
        data=inputs.data.name,
        digest=inputs.data.digest,
        classes=inputs.data.classes,
        folder=places.runs_dir / "verified",
    )
    ledger.read()
    resolver = Resolver(nodes, study, inputs.facts, ledger.proposed)
    known = look_up(ledger, nodes, resolver, reuse=options.reuse, rerun=options.rerun)
    name = "" if on_cluster else inputs.device_name
    measured = comparable(ledger.measured(), inputs.facts, study.recipe, name)
    offered = per_gpu(machines()) if options.pack else list(machines())
    left = to_run(nodes, known.done)[0]
    if options.pack and left:
        nodes = pack_trials(nodes, offered, measured, note)
        left = to_run(nodes, known.done)[0]
    fitted = fit([node.demand for node in left], offered) if left else []
    on_gpu = inputs.facts.device_kind == "cuda"
    steps = GPU_PROBE_STEPS if on_gpu else CPU_PROBE_STEPS
    rows = _probe(left, study, inputs, measured, steps, on_gpu, note) if probe else []
    estimates = Estimates(
        nodes,
        inputs.facts.images,
        device="cuda" if on_gpu else "cpu",
        threads=study.recipe.cpu_threads,
        measured=measured,
        probe={
            Cell.parse(row.cell): (row.step_s / row.batch_size, row.val_s_per_image or 0.0)
            for row in rows
            if row.step_s is not None
        },
    )
    reasons = {
        node.id: _why_not(ledger, node, known.trials.get(node.id))
        for node in nodes
        if node.id not in known.done and node.blocked is None
    }
    return price(
        inputs.name,
        nodes,
        known.done,
        estimates,
        offered,
        measured=measured,
        probe=_seen(rows),
        probe_steps=steps,
        why_not=reasons,
        demands={
            **{node.id: node.demand for node in nodes},
            **{node.id: demand for node, demand in zip(left, fitted, strict=True)},
        },
        pack_bytes=_size(inputs.data.root) if places.storage else 0,
        keys=likely_keys(left, inputs.facts) if options.fuse == "auto" else None,
    )


def _why_not(ledger: Ledger, node: Node, trial: Trial | None) -> str:
    if trial is not None:
        return ledger.why_not(trial)
    if node.search is not None:
        return "its rate is proposed when it starts"
    if not node.after:
        return f"{node.needs[0]}, which it starts from, waits for a learning-rate search"
    return "its learning rate is searched first"


def _seen(rows: Sequence[_Row]) -> Sequence[Probed]:
    return rows


def _probe(
    nodes: Sequence[Node],
    study: Study,
    inputs: Inputs,
    measured: Sequence[Measured],
    steps: int,
    on_gpu: bool,
    note: Callable[[str], None],
) -> list[_Row]:
    """Time one cell for each backbone and freeze mode that was never measured on this data."""
    from sharedenc.selftest.preflight import probe

    def kind_of(cell: Cell) -> tuple[str, str]:
        return cell.backbone, cell.freeze

    known = {kind_of(row.cell) for row in measured if row.seconds_per_epoch > 0}
    jobs = {}
    for node in nodes:
        kind = kind_of(node.cell)
        if kind in known or kind in jobs:
            continue
        job = job_of(node, study, inputs)
        if not on_gpu:
            recipe = job.trial.recipe
            small = replace(recipe, batch_size=min(recipe.batch_size, CPU_PROBE_BATCH))
            job = replace(job, trial=replace(job.trial, recipe=small))
        jobs[kind] = job
    if not jobs:
        return []
    note(f"timing {steps} steps of {len(jobs)} trials (--no-probe leaves that out) ...")

    def tell(row: dict[str, Any]) -> None:
        took = f"{row['step_s']:.2f} s a step" if row["ok"] else f"failed: {row['reason']}"
        note(f"  {row['cell']}: {took}")

    found = probe(list(jobs.values()), tell, steps=steps, val_images=8)
    return [_Row(row) for row in found if row["ok"]]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
