"""The preflight of a sweep: one cell of each kind on the target device, before hours are spent.

`in_child` runs it in a process of its own and outlives whatever happens there; a Ray task on the
target device calls `preflight`, or `in_child` there. Cells that passed before, with nothing
changed, are remembered. `probe` times cells in the same way, for the price of a sweep.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sharedenc.files import write_atomic
from sharedenc.selftest.child import Child, ChildDiedError
from sharedenc.selftest.jobs import fingerprint, job_to_dict
from sharedenc.selftest.rows import Checked
from sharedenc.spec import Cell, Graph
from sharedenc.training.job import TrialJob

Kind = tuple[str, Graph]
OnCell = Callable[[Checked], None]
Check = Callable[[TrialJob, dict[str, Any]], Checked]
Sign = Callable[[TrialJob, dict[str, Any]], str]

STEPS, VAL_IMAGES = 2, 2
PROBE_STEPS, PROBE_VAL_IMAGES = 8, 16
# A processor has no memory limit to find and no kernels to choose: a small check shows the same.
CPU_BATCH, CPU_PX = 2, 160
DEADLINE_S = 900.0
FREEZE_ORDER = {"none": 0, "bias": 1}
"""What needs more memory comes first; other modes last."""


def kind_of(cell: Cell) -> Kind:
    """What the preflight has one cell of: backbone and graph."""
    return cell.backbone, cell.graph


def chosen(jobs: Iterable[TrialJob]) -> list[TrialJob]:
    """One job per kind, the one that trains most and needs no parent if there is one."""
    best: dict[Kind, TrialJob] = {}
    for job in jobs:
        kind = kind_of(job.trial.cell)
        if kind not in best or _rank(job) < _rank(best[kind]):
            best[kind] = job
    return list(best.values())


def _rank(job: TrialJob) -> tuple[int, bool]:
    cell = job.trial.cell
    return FREEZE_ORDER.get(cell.freeze, len(FREEZE_ORDER)), cell.source is not None


def preflight(
    jobs: Iterable[TrialJob], on_cell: OnCell | None = None, *, remember: Path | None = None
) -> list[Checked]:
    """Check one cell of each kind (backbone, graph) among ``jobs``, in this process.

    A swap's parent is made on the fly. A failed cell does not stop the others.

    Args:
        jobs: Every trial to come; ``work_dir`` and ``parent`` are not used.
        on_cell: Told of each row as it is known.
        remember: A folder that keeps what passed; nothing is kept if None.
    """
    return _each(chosen(jobs), _here, lambda job, s: fingerprint(job, **s), on_cell, remember)


def in_child(
    jobs: Iterable[TrialJob],
    on_cell: OnCell | None = None,
    *,
    remember: Path | None = None,
    environment: Mapping[str, str] | None = None,
    deadline_s: float = DEADLINE_S,
) -> list[Checked]:
    """`preflight` in a child process, with a deadline per cell.

    A child that dies or hangs is charged to the cell it was at; the others go on in a new one.
    """
    with Child(environment) as child:

        def check(job: TrialJob, settings: dict[str, Any]) -> Checked:
            return _there(child, job, settings, deadline_s)

        def sign(job: TrialJob, settings: dict[str, Any]) -> str:
            request = {"do": "fingerprint", "job": job_to_dict(job), "settings": settings}
            try:
                return str(child.call(request, deadline_s=deadline_s).get("fingerprint", ""))
            except ChildDiedError:
                return ""  # the check will say why

        return _each(chosen(jobs), check, sign, on_cell, remember)


def _each(
    jobs: Iterable[TrialJob],
    check: Check,
    sign: Sign,
    on_cell: OnCell | None,
    remember: Path | None,
) -> list[Checked]:
    rows = []
    for job in jobs:
        settings = _settings(job)
        memory = None
        if remember is not None and (signature := sign(job, settings)):
            memory = remember / f"{signature[:32]}.json"
        row = _recall(memory)
        if row is None:
            row = check(job, settings)
            if row.ok and memory is not None:
                write_atomic(memory, json.dumps(row.to_dict(), indent=1).encode())
        rows.append(row)
        if on_cell is not None:
            on_cell(row)
    return rows


def _settings(job: TrialJob) -> dict[str, Any]:
    settings: dict[str, Any] = {"steps": STEPS, "val_images": VAL_IMAGES}
    if job.device == "cpu":
        recipe = job.trial.recipe
        settings["batch_size"] = min(CPU_BATCH, recipe.batch_size)
        settings["image_px"] = min(CPU_PX, recipe.image_px)
    return settings


def _recall(memory: Path | None) -> Checked | None:
    """The row of an earlier check that passed with the same fingerprint."""
    if memory is None:
        return None
    try:
        row = Checked.from_dict(json.loads(memory.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return replace(row, remembered=True) if row.ok else None


def _here(job: TrialJob, settings: dict[str, Any]) -> Checked:
    from sharedenc.selftest.check import check_cell

    with tempfile.TemporaryDirectory(prefix="sharedenc-check-") as folder:
        return check_cell(_alone(job, folder), **settings)


def _there(
    child: Child, job: TrialJob, settings: dict[str, Any], deadline_s: float | None
) -> Checked:
    cell = job.trial.cell.name
    with tempfile.TemporaryDirectory(
        prefix="sharedenc-check-", ignore_cleanup_errors=True
    ) as folder:
        request = {
            "do": "check",
            "cell": cell,
            "job": job_to_dict(_alone(job, folder)),
            "settings": settings,
        }
        try:
            row = Checked.from_dict(child.call(request, deadline_s=deadline_s))
        except ChildDiedError as error:
            return error.row(cell)
    if not row.ok and job.device != "cpu":
        child.kill()  # an error may have left the device's context unusable
    return row


def _alone(job: TrialJob, folder: str) -> TrialJob:
    return replace(job, work_dir=Path(folder), parent=None)


def probe(
    jobs: Iterable[TrialJob],
    on_row: Callable[[dict[str, Any]], None] | None = None,
    *,
    steps: int = PROBE_STEPS,
    val_images: int = PROBE_VAL_IMAGES,
    deadline_s: float = DEADLINE_S,
) -> list[dict[str, Any]]:
    """Time one job of each (backbone, strategy, freeze, graph) for a few steps, in a child.

    Rows are plain: ``cell``, ``backbone``, ``strategy``, ``freeze``, ``graph``, ``batch_size``,
    ``image_px``, ``device``, and those of `Checked` (``ok``, ``step_s``, ``val_s_per_image``,
    ``peak_memory_bytes``, ``checkpoint_bytes``, ...). A swap trains like a share, whatever encoder
    it starts from: strategies that compute the same are timed once.
    """
    rows: list[dict[str, Any]] = []
    timed: dict[tuple[str, str, Graph, int, int], Checked] = {}
    settings = {"steps": steps, "val_images": val_images, "export": False}
    seen = set()
    with Child() as child:
        for job in jobs:
            cell, recipe = job.trial.cell, job.trial.recipe
            size = recipe.batch_size, recipe.image_px
            if (cell.strategy, cell.backbone, cell.freeze, cell.graph, *size) in seen:
                continue
            seen.add((cell.strategy, cell.backbone, cell.freeze, cell.graph, *size))
            same = (cell.backbone, cell.freeze, cell.graph, *size)
            if same not in timed:
                timed[same] = _there(child, job, settings, deadline_s)
            row = {
                **replace(timed[same], cell=cell.name).to_dict(),
                "backbone": cell.backbone,
                "strategy": cell.strategy,
                "freeze": cell.freeze,
                "graph": cell.graph,
                "batch_size": recipe.batch_size,
                "image_px": recipe.image_px,
                "device": job.device,
            }
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return rows
