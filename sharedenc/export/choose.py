"""Which of a study's runs are exported: the best of a cell, and those that fit together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

from sharedenc.errors import ExportError
from sharedenc.spec import TASKS, Cell, Task
from sharedenc.tracking import RunRecord

PRUNED = "sharedenc.pruned"

Parts = Mapping[Task, RunRecord]
FindKey = Callable[[str], RunRecord | None]


def score_of(run: RunRecord) -> float:
    """A run's validation score; below all scores where it has none, or one that is no number."""
    score = run.metrics.get("score", -1.0)
    return -1.0 if math.isnan(score) else score


def finished(runs: Sequence[RunRecord], cell: str) -> tuple[list[RunRecord], str]:
    """Runs of ``cell`` whose network can be had, best first (the oldest of equals); or why none."""
    same = [run for run in runs if run.tags.get("sharedenc.cell") == cell]
    done = [run for run in same if run.tags.get("sharedenc.state") == "done"]
    kept = [run for run in done if not run.tags.get(PRUNED)]
    if kept:
        return sorted(kept, key=lambda run: (-score_of(run), run.start_ms)), ""
    if done:
        when = done[-1].tags[PRUNED]
        return [], f"{cell} is done, and its network was pruned on {when}: run the sweep again"
    if not same:
        return [], f"the study has no run of {cell}"
    tags = same[-1].tags
    why = f": {tags['sharedenc.reason']}" if tags.get("sharedenc.reason") else ""
    return [], f"{cell} is {tags.get('sharedenc.state', 'unfinished')}{why}"


def best_run(runs: Sequence[RunRecord], cell: str) -> tuple[RunRecord | None, str]:
    """The finished run of ``cell`` with the best score (the oldest of equals), or why not."""
    found, reason = finished(runs, cell)
    return (found[0] if found else None), reason


def best_of_each(runs: Sequence[RunRecord], cells: Mapping[Task, Cell]) -> list[Parts]:
    """The best run of each cell; their encoders have nothing to do with one another.

    Raises:
        ExportError: a cell has no finished run; it says which, and its state.
    """
    return [{task: found[0] for task, found in _all_finished(runs, cells).items()}]


def pairs(runs: Sequence[RunRecord], cells: Mapping[Task, Cell]) -> list[Parts]:
    """Runs of two shared cells, best mean score first, that started from one encoder.

    Where no two of them did, the best of each alone: whoever needs one encoder will say what
    differs.

    Raises:
        ExportError: see `best_of_each`.
    """
    found = _all_finished(runs, cells)
    every = [{"det": det, "seg": seg} for det in found["det"] for seg in found["seg"]]
    fitting = [pair for pair in every if start_of(pair["det"]) == start_of(pair["seg"])]
    fitting.sort(key=lambda pair: -sum(score_of(run) for run in pair.values()))
    return [{task: pair[task] for task in TASKS} for pair in fitting or every[:1]]


def swaps(
    runs: Sequence[RunRecord], cells: Mapping[Task, Cell], swap: Task, elsewhere: FindKey
) -> list[Parts]:
    """Runs of a swap, best first, each with the very run whose encoder it started from.

    Args:
        swap: which of the two cells is the swap; the other is its source.
        elsewhere: a finished run of any study by its trial's key, for a source that a later sweep
            of this study did not need again.

    Raises:
        ExportError: the swap has no finished run, or none whose source can still be had.
    """
    cell, source = cells[swap], cells[_other(swap)]
    found, reason = finished(runs, cell.name)
    if not found:
        raise ExportError(reason)
    sources, reason = finished(runs, source.name)
    by_key = {run.tags.get("sharedenc.key", ""): run for run in reversed(sources)}
    chosen: list[Parts] = []
    for run in found:
        key = parent_key(run)
        parent = by_key.get(key) or (elsewhere(key) if key else None)
        if parent is not None:
            parts: dict[Task, RunRecord] = {swap: run, _other(swap): parent}
            chosen.append({task: parts[task] for task in TASKS})
    if not chosen:
        key = parent_key(found[0])
        raise ExportError(
            f"{cell} (run {found[0].run_id}) started from the encoder of a run of {source} with "
            f"key {key[:16] or 'unknown'}, and this server has no finished run of that key with "
            f"its network{f' ({reason})' if reason else ''}. Run the sweep again."
        )
    return chosen


def parent_key(run: RunRecord) -> str:
    """Key of the trial that a swap's encoder came from; empty where the run does not say."""
    try:
        return str(json.loads(run.tags["sharedenc.content"]).get("parent") or "")
    except (KeyError, ValueError, AttributeError):
        return ""


def start_of(run: RunRecord) -> tuple[str, ...]:
    """What decides the encoder that a shared trial starts from, and the size it is fed.

    Random weights are drawn by the trial's seed, and their batch norms are settled on its data.
    """
    weights = run.params.get("weights", "")
    seed = run.params.get("seed", "") if weights == "none" else ""
    image_px = run.params.get("recipe.image_px", "")
    return weights, seed, run.tags.get("sharedenc.data_digest", ""), image_px


def _all_finished(
    runs: Sequence[RunRecord], cells: Mapping[Task, Cell]
) -> dict[Task, list[RunRecord]]:
    found: dict[Task, list[RunRecord]] = {}
    reasons: list[str] = []
    for task, cell in cells.items():
        found[task], reason = finished(runs, cell.name)
        reasons += [reason] if reason else []
    if reasons:
        raise ExportError("; ".join(reasons))
    return found


def _other(task: Task) -> Task:
    return "seg" if task == "det" else "det"
