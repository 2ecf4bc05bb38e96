"""Run a study: data, weights, graph, rows, launcher, and what is left to say at the end."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedenc.errors import SpecError, TrackingError, WeightsError
from sharedenc.spec import device_kind, installed_torch
from sharedenc.tracking import MlflowTracker
from sweeps.graph import SEARCH_STAGE, Facts, Node, expand, short_rate
from sweeps.launch import Launcher
from sweeps.ledger import Ledger, exit_code
from sweeps.progress import JsonLines, Progress
from sweeps.state import Row, SweepState
from sweeps.studies import Study

if TYPE_CHECKING:
    from torch import Tensor

    from sharedenc.data.packed import PackedDataset
    from sharedenc.models.weights import InitialWeights

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a sweep keeps its files and its rows."""

    tracking_uri: str
    runs_dir: Path
    cache_dir: Path | None = None

    def study_dir(self, study: str) -> Path:
        """The folder of one study."""
        return self.runs_dir / "studies" / study

    def work_dir(self, study: str, node: Node) -> Path:
        """The folder of one trial; a search trial never shares one with a final trial."""
        kind = "search" if node.stage == SEARCH_STAGE else "trials"
        return self.study_dir(study) / kind / node.trial.key[:16]


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best learning rate of one search; ``stopped`` counts the trials that were cut."""

    cell: str
    lr: float
    score: float
    trials: int
    stopped: int


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """How a study ended.

    ``pack`` is the packed data set's folder; ``rates`` maps backbones to the one rate that serves
    their baselines.
    """

    study: str
    parent_id: str
    pack: Path
    rows: list[Row]
    winners: list[Winner] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def finals(self) -> list[Row]:
        """Rows of the study's cells, searches left out."""
        return [row for row in self.rows if row.node.stage != SEARCH_STAGE]

    @property
    def exit_code(self) -> int:
        """0 when all is done, 1 when something failed or was skipped, 130 after Ctrl-C."""
        if self.interrupted:
            return INTERRUPTED
        searches = [row.state for row in self.rows if row.node.stage == SEARCH_STAGE]
        return exit_code([row.state for row in self.finals], searches)

    def to_dict(self) -> dict[str, Any]:
        """The object of ``sharedenc sweep --json``."""
        return {
            "study": self.study,
            "cells": [_row_dict(row) for row in self.finals],
            "searches": [_row_dict(row) for row in self.rows if row.node.stage == SEARCH_STAGE],
            "learning_rates": {w.cell: w.lr for w in self.winners},
            "seconds": round(self.seconds, 1),
            "exit_code": self.exit_code,
        }


def _row_dict(row: Row) -> dict[str, Any]:
    return {
        "cell": row.node.cell.name,
        "name": row.node.id,
        "seed": row.node.trial.seed,
        "lr": row.node.trial.lr,
        "state": row.state,
        "reason": row.reason,
        "key": row.node.trial.key,
        "run_id": row.run_id,
        "attempts": row.attempts,
        "score": None if math.isnan(row.score) else row.score,
    }


def open_data(study: Study, places: Places, *, progress: bool = True) -> PackedDataset:
    """Pack the study's data set, drawing the synthetic one when none was given."""
    from sharedenc.data.packed import cache_dir, prepare

    if study.data is not None:
        return prepare(Path(study.data), places.cache_dir, study.rules, progress=progress)
    if not study.synthetic_images:
        raise SpecError(
            "which data? Give --data DIR (COCO, Pascal VOC or a data.yaml), or take "
            "--preset demo, which draws its own"
        )
    from sharedenc.data.synthetic import write_synthetic

    train, val, test = study.synthetic_images
    counts = "-".join(str(n) for n in study.synthetic_images)
    source = cache_dir(places.cache_dir) / "synthetic" / counts
    if not (source / "data.yaml").is_file():
        source.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
            write_synthetic(Path(scratch) / counts, (train, val, test))
            try:
                (Path(scratch) / counts).rename(source)
            except OSError:
                if not (source / "data.yaml").is_file():  # another sweep may have been faster
                    raise
    return prepare(source, places.cache_dir, study.rules, progress=progress)


def find_weights(study: Study) -> dict[str, tuple[str, str]]:
    """Option and digest of each backbone's initial encoder, read (or downloaded) once.

    Raises:
        WeightsError: they cannot be had, before any trial starts.
    """
    cells = [*study.cells, *(search.cell for search in study.searches)]
    backbones = list(dict.fromkeys(cell.backbone for cell in cells))
    if study.weights == "none":
        return dict.fromkeys(backbones, ("none", "none"))
    from sharedenc.models.weights import resolve_weights

    found = {}
    for backbone in backbones:
        weights = resolve_weights(study.weights, backbone)
        if weights.load is not None:
            _check_weights(backbone, weights.source, weights.load())
        found[backbone] = (_weights_option(weights), weights.digest)
    return found


def _check_weights(backbone: str, source: str, state: dict[str, Tensor]) -> None:
    """Refuse weights of another network, by loading them into an encoder without memory."""
    import torch

    from sharedenc.models.encoders import build_encoder
    from sharedenc.models.weights import load_encoder_weights

    with torch.device("meta"):
        encoder = build_encoder(backbone)
    try:
        load_encoder_weights(encoder, state)
    except WeightsError as error:
        raise WeightsError(f"{source} cannot start {backbone!r}: {error}") from None


def _weights_option(weights: InitialWeights) -> str:
    if weights.load is None:
        return "none"
    path = Path(weights.source)
    return str(path.resolve()) if path.is_file() else "default"


def run_study(
    study: Study,
    places: Places,
    launcher: Launcher,
    progress: Progress,
    *,
    device: str = "auto",
    workers: int = 0,
    concurrent: int | None = None,
    command: str = "",
    check: Callable[[], None] = lambda: None,
) -> StudyResult:
    """Run every trial of a study that this study has not done yet.

    Args:
        device: `cpu` or `cuda`; `auto` takes what this machine has.
        workers: Data loading workers of each trial.
        concurrent: Most trials at once; None for as many as fit.
        command: What the user typed, noted on the parent run.
        check: Called often; may raise KeyboardInterrupt.

    Raises:
        SharedencError: data, weights, study or server cannot be used; nothing was started.
    """
    started = time.monotonic()
    data = open_data(study, places, progress=not isinstance(progress, JsonLines))
    for warning in data.warnings:
        progress.note(f"warning: {warning}")
    weights = find_weights(study)
    sizes = [len(data.split(name)) for name in ("train", "val", "test")]
    facts = Facts(
        data_name=data.name,
        data_digest=data.digest,
        tasks=data.tasks,
        images=(sizes[0], sizes[1], sizes[2]),
        weights={backbone: digest for backbone, (_, digest) in weights.items()},
        device_kind=_device_kind(device),
        torch_version=installed_torch(),
    )
    study = replace(study, name=study.name or f"{study.kind}-{data.name}")
    assert study.name is not None
    sweep = _Sweep(study, study.name, places, progress, data, weights, workers, concurrent, check)
    return sweep.run(expand(study, facts), launcher, command, started)


def _device_kind(device: str) -> Any:
    kind = device_kind()
    if device == "auto":
        return kind
    if device == "cuda":
        return "cuda"
    return "cpu" if kind == "cuda" else kind


@dataclass
class _Sweep:
    study: Study
    name: str
    places: Places
    progress: Progress
    data: PackedDataset
    weights: dict[str, tuple[str, str]]
    workers: int
    concurrent: int | None
    check: Callable[[], None]
    _unwritten: list[Row] = field(default_factory=list)

    def run(
        self, nodes: Sequence[Node], launcher: Launcher, command: str, started: float
    ) -> StudyResult:
        self.ledger = Ledger(
            tracker=MlflowTracker(self.places.tracking_uri),
            study=self.name,
            data=self.data.name,
            digest=self.data.digest,
            classes=self.data.classes,
        )
        self.ledger.open(self.study.to_dict(), command)
        self._store_settings()
        interrupted = False
        try:
            state = self._open(nodes, launcher)
            try:
                launcher.run(state, lambda row: self._payload(state, row), self._beat)
            except KeyboardInterrupt:
                interrupted = True
                self.progress.note("stopping: finished cells stay finished")
        except BaseException as error:
            self.ledger.close("failed", str(error) or type(error).__name__)
            raise
        finally:
            launcher.close()
        if interrupted:
            state.interrupt("stopped by Ctrl-C")
        rows = list(state.rows.values())
        winners = find_winners(rows)
        result = StudyResult(
            study=self.name,
            parent_id=self.ledger.parent_id,
            pack=self.data.root,
            rows=rows,
            winners=winners,
            rates=common_rates(rows) if self.study.kind == "lr-search" else {},
            seconds=time.monotonic() - started,
            interrupted=interrupted,
        )
        self._record_end(result)
        return result

    def _beat(self) -> None:
        self.check()
        self.progress.beat()

    def _open(self, nodes: Sequence[Node], launcher: Launcher) -> SweepState:
        reused = self.ledger.reused(nodes)
        to_run = any(node.blocked is None and node.id not in reused for node in nodes)
        state = SweepState(
            nodes,
            launcher.machines() if to_run else [],
            reused=reused,
            concurrent=self.concurrent,
            listener=self._on_event,
        )
        self.ledger.create(state.rows)
        self.progress.watch(state)
        state.skip_blocked()
        return state

    def _on_event(self, event: str, row: Row) -> None:
        try:
            if event == "start":
                self.ledger.started(row)
            elif event == "end":
                self.ledger.ended(row)
        except TrackingError as error:
            # The sweep outlives its server; ends are written again when everything has run.
            self.progress.note(f"{row.node.id}: not recorded yet: {error}")
            if event == "end":
                self._unwritten.append(row)
        self.progress.event(event, row)

    def _payload(self, state: SweepState, row: Row) -> dict[str, Any]:
        node = row.node
        search = node.stage == SEARCH_STAGE
        return {
            "node": node.id,
            "trial": node.trial.to_dict(),
            "pack": str(self.data.root),
            "weights": self.weights[node.cell.backbone][0],
            "parent": self._parent(state, node),
            "work_dir": str(self.places.work_dir(self.name, node).resolve()),
            "device": node.trial.numerics.device,
            "workers": self.workers,
            "plugins": list(self.study.plugins),
            "predictions": not search,
            "test": not search,
            "tracking_uri": self.places.tracking_uri,
            "run_id": row.run_id,
        }

    def _parent(self, state: SweepState, node: Node) -> dict[str, str] | None:
        if not node.needs:
            return None
        row = state.rows[node.needs[0]]
        path = self.places.work_dir(self.name, row.node).resolve() / "best.safetensors"
        return {"path": str(path), "run_id": row.run_id}

    def _store_settings(self) -> None:
        """Keep the merged study file with the parent run."""
        folder = self.places.study_dir(self.name)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "study.yaml"
        file.write_text(self.study.to_yaml())
        self.ledger.summary({}, [(file, "")])

    def _record_end(self, result: StudyResult) -> None:
        try:
            self._close(result)
        except TrackingError as error:
            self.progress.note(f"the study's end is not recorded: {error}")

    def _close(self, result: StudyResult) -> None:
        for row in self._unwritten:
            self.ledger.ended(row)
        tags = {"sharedenc.exit_code": str(result.exit_code)}
        for winner in result.winners:
            tags[f"sharedenc.lr.{winner.cell.replace('/', '.')}"] = short_rate(winner.lr)
        for backbone, rate in result.rates.items():
            tags[f"sharedenc.lr.{backbone}"] = short_rate(rate)
        self.ledger.summary(tags)
        self.ledger.close(*_parent_state(result))


def _parent_state(result: StudyResult) -> tuple[str, str | None]:
    if result.interrupted:
        return "stopped", "stopped by Ctrl-C"
    return ("done" if result.exit_code == 0 else "failed"), None


def attach(places: Places, result: StudyResult, folder: Path, to: str) -> None:
    """Upload a folder's files to the parent run, below ``to``.

    Raises:
        TrackingError: the server is away; the files stay where they are.
    """
    parent = MlflowTracker(places.tracking_uri).resume(result.parent_id)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parent.artifact(path, str(Path(to) / path.parent.relative_to(folder)))
        if parent.unsent:
            raise TrackingError(
                f"the server went away, so that {path.name} and what follows is not uploaded; "
                f"all of it is in {folder}"
            )
    parent.end(*_parent_state(result))


def find_winners(rows: Sequence[Row]) -> list[Winner]:
    """The best rate of each search; of equal scores the lower rate."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.node.group is not None:
            groups.setdefault(row.node.group, []).append(row)
    winners = []
    for cell, group in groups.items():
        scored = [row for row in group if not math.isnan(row.score)]
        if not scored:
            continue
        best = max(scored, key=lambda row: (row.score, -row.node.trial.lr))
        winners.append(
            Winner(
                cell=cell,
                lr=best.node.trial.lr,
                score=best.score,
                trials=len(group),
                stopped=sum(row.state == "stopped" for row in group),
            )
        )
    return winners


def common_rates(rows: Sequence[Row]) -> dict[str, float]:
    """The rate that serves all searched baselines of a backbone.

    It has the best mean, over the tasks, of score / best score of that task.
    """
    scores: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        if row.node.group is not None and not math.isnan(row.score):
            tasks = scores.setdefault(row.node.cell.backbone, {})
            tasks.setdefault(row.node.group, {})[row.node.trial.lr] = row.score
    rates = {}
    for backbone, tasks in scores.items():
        everywhere = set.intersection(*(set(by_rate) for by_rate in tasks.values()))
        if everywhere:
            rates[backbone] = max(sorted(everywhere), key=lambda lr: _mean_share(tasks, lr))
    return rates


def _mean_share(tasks: dict[str, dict[float, float]], lr: float) -> float:
    shares = []
    for by_rate in tasks.values():
        best = max(by_rate.values())
        shares.append(by_rate[lr] / best if best > 0 else 1.0)
    return sum(shares) / len(shares)
