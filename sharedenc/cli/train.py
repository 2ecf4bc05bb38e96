"""``sharedenc train CELL``: one cell, in this process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from sharedenc.cli.options import (
    build_recipe,
    data_options,
    data_rules,
    load_plugins,
    loading_options,
    plugin_option,
    recipe_options,
    runs_option,
    runs_root,
    taps_bytes,
    weights_option,
)
from sharedenc.errors import CheckpointError, SpecError
from sharedenc.spec import (
    BACKBONES,
    Cell,
    Recipe,
    Trial,
    device_kind,
    installed_torch,
    resolve_numerics,
)
from sharedenc.training.interval import DEFAULT_INTERVAL, Interval

if TYPE_CHECKING:
    from sharedenc.data.packed import PackedDataset
    from sharedenc.tracking import RunHandle, Tracker
    from sharedenc.training.job import EpochReport, OnEpoch, Outcome

KEY, ATTEMPT, STATE = "sharedenc.key", "sharedenc.attempt", "sharedenc.state"
SIGNALS = {signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM"}
SHOWN = ("train/loss", "val/loss", "val/mAP", "val/mIoU")


def checkpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--checkpoint-every`` and ``--storage``."""
    for option in (
        click.option(
            "--storage",
            help="Folder or address (s3://, gs://) for copies of what must survive this machine.",
        ),
        click.option(
            "--checkpoint-every",
            default=DEFAULT_INTERVAL,
            show_default=True,
            callback=_interval,
            help="How often the state is saved: 90s, 10m, 1h, 100steps or 2epochs.",
        ),
    ):
        command = option(command)
    return command


def _interval(_ctx: click.Context, _option: click.Parameter, text: str) -> str:
    Interval.parse(text)
    return text


@click.command()
@click.argument("cell")
@data_options
@recipe_options
@click.option("--lr", type=float, help="Learning rate [default: the backbone's published one].")
@click.option("--seed", type=int, default=0, show_default=True)
@weights_option
@click.option(
    "--encoder",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For a swap: best.safetensors of the other task's baseline. Without it, that baseline is "
    "trained first.",
)
@loading_options
@checkpoint_options
@click.option("--track/--no-track", default=True, help="Write to MLflow [default: yes].")
@runs_option
@plugin_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.pass_context
def train(ctx: click.Context, /, cell: str, **options: Any) -> None:
    """Train one CELL, for example resnet18/baseline/seg, resnet18/swap-bias/det, resnet18/dual.

    Runs through the same code as a sweep, without Ray. Started again after an interruption, it
    goes on from the last saved state; Ctrl-C and SIGTERM save first.
    """
    plugins = load_plugins(options["plugins"])
    wanted = Cell.parse(cell)
    if options["encoder"] is not None and wanted.source is None:
        raise SpecError(f"--encoder is for swap cells; {wanted} starts from --weights.")
    if options["data"] is None:
        raise SpecError("--data DIR is missing: a COCO 2017 or VOC folder, or a data.yaml.")
    recipe = build_recipe(options)

    parent: Path | None = options["encoder"]
    parent_key = None if parent is None else _source_key(parent, wanted)

    from sharedenc.data.packed import prepare

    pack = prepare(options["data"], options["cache_dir"], data_rules(options))
    for warning in pack.warnings:
        click.echo(f"Warning: {warning}", err=True)
    session = Session(
        pack=pack,
        recipe=recipe,
        lr=options["lr"],
        seed=options["seed"],
        weights=options["weights"],
        workers=options["workers"],
        taps_budget_bytes=taps_bytes(options),
        cache_dir=options["cache_dir"],
        plugins=plugins,
        root=runs_root(options["runs_dir"]),
        storage=options["storage"],
        checkpoint_every=options["checkpoint_every"],
    )
    with _tracker(session.root, track=options["track"]) as tracker:
        if wanted.source is not None and parent is None:
            click.echo(f"{wanted} needs {wanted.source} first.", err=True)
            parent, parent_key = session.source(tracker, wanted.source, ctx)
        trial = session.trial(wanted, parent_key)
        run_id, outcome = session.run(tracker, trial, parent)
    _finish(ctx, outcome)
    assert outcome.result is not None, "an outcome that is not failed has a result"
    answer = {
        "cell": wanted.name,
        "key": trial.key,
        "run_id": run_id if options["track"] else None,
        "val": outcome.result.val,
        "test": with_ap_list(outcome.result.test),
    }
    if options["as_json"]:
        click.echo(json.dumps(answer))
        return
    scores = ", ".join(
        f"{name} {value:.4f}"
        for name, value in outcome.result.test.items()
        if name in ("mAP", "mAP50", "mIoU", "pixel_acc")
    )
    click.echo(
        f"{wanted}: test {scores} (best of {outcome.result.epochs} epochs: "
        f"{outcome.result.best_epoch})"
    )
    click.echo(f"checkpoint: {outcome.result.checkpoint}")
    if options["track"]:
        click.echo(f"run {run_id}; `sharedenc ui` shows it.")


@dataclass(frozen=True, kw_only=True)
class Session:
    """What the cells of one call have in common."""

    pack: PackedDataset
    recipe: Recipe
    lr: float | None
    seed: int
    weights: str
    workers: int | None
    taps_budget_bytes: int
    cache_dir: Path | None
    plugins: tuple[str, ...]
    root: Path
    storage: str | None
    checkpoint_every: str

    @property
    def study(self) -> str:
        return f"train-{self.pack.name}"

    def trial(self, cell: Cell, parent_key: str | None) -> Trial:
        """The trial of a cell on this machine, with the published learning rate by default."""
        from sharedenc.models.weights import resolve_weights

        lr = self.lr if self.lr is not None else BACKBONES[cell.backbone].lr
        if lr is None:
            raise SpecError(
                f"backbone {cell.backbone!r} has no published learning rate: give --lr."
            )
        return Trial(
            cell=cell,
            recipe=self.recipe,
            lr=lr,
            seed=self.seed,
            data_digest=self.pack.digest,
            weights_digest=resolve_weights(self.weights, cell.backbone).digest,
            numerics=resolve_numerics(self.recipe, cell.backbone, _kind(), installed_torch()),
            parent_key=parent_key,
        )

    def work_dir(self, trial: Trial) -> Path:
        return self.root / "studies" / self.study / "trials" / trial.key[:16]

    def source(self, tracker: Tracker, cell: Cell, ctx: click.Context) -> tuple[Path, str]:
        """Return a swap's source checkpoint and key; trained now unless it lies there already."""
        from sharedenc.training.keeper import finished_best

        trial = self.trial(cell, None)
        folder = self.work_dir(trial)
        best = finished_best(folder, trial.key)
        if best is None:
            _, outcome = self.run(tracker, trial, None)
            _finish(ctx, outcome)
            assert outcome.result is not None, "a trial that is done has a result"
            best = Path(outcome.result.checkpoint)
        return best, trial.key

    def run(self, tracker: Tracker, trial: Trial, parent: Path | None) -> tuple[str, Outcome]:
        """Train one trial as a run of its own; returns the run's id."""
        from sharedenc.training.run import TrialJob, run_and_record

        cell = trial.cell
        parent_run = tracker.study(self.study, {"sharedenc.data": self.pack.name})
        run = self._open_run(tracker, parent_run, trial)
        job = TrialJob(
            trial=trial,
            pack=self.pack.root,
            weights=self.weights,
            parent=parent,
            work_dir=self.work_dir(trial),
            device=trial.numerics.device,
            workers=_loaders(self.workers, trial.numerics.device),
            taps_budget_bytes=self.taps_budget_bytes,
            cache_dir=self.cache_dir,
            plugins=self.plugins,
            storage=self.storage,
            checkpoint_every=self.checkpoint_every,
        )
        with stop_by_signal() as stop, _progress(cell, self.recipe.epochs) as on_epoch:
            outcome = run_and_record(replace(job, stop=stop), run, on_epoch)
        tracker.resume(parent_run).end("done")
        return run.run_id, outcome

    def _open_run(self, tracker: Tracker, parent_run: str, trial: Trial) -> RunHandle:
        """The run of an interrupted training of this trial, else a new one."""
        from sharedenc.training.job import trial_tags
        from sharedenc.training.keeper import has_state

        if self.storage is not None or has_state(self.work_dir(trial)):
            runs = [r for r in tracker.runs(self.study) if r.tags.get(KEY) == trial.key]
            if runs and runs[-1].tags.get(STATE) != "done":
                attempt = int(runs[-1].tags.get(ATTEMPT, "1")) + 1
                run = tracker.resume(runs[-1].run_id)
                run.tags({ATTEMPT: attempt})
                return run
        tags = trial_tags(
            trial,
            study=self.study,
            stage=trial.cell.strategy,
            data=self.pack.name,
            classes=self.pack.classes,
        )
        return tracker.child(self.study, parent_run, trial.cell.name, {**tags, ATTEMPT: 1})


def with_ap_list(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Metrics with the ten APs, if there are any, also as a list ``ap_per_iou``."""
    per_iou = [value for name, value in sorted(metrics.items()) if name.startswith("AP_0.")]
    return {**metrics, "ap_per_iou": per_iou} if per_iou else dict(metrics)


def _source_key(path: Path, cell: Cell) -> str:
    """Key of the trial that a swap's checkpoint is of.

    Raises:
        CheckpointError: the file is damaged, or of another cell than the swap's source.
    """
    from sharedenc.training.checkpoint import read_checkpoint

    _, meta = read_checkpoint(path)
    if meta.get("cell") != str(cell.source) or not meta.get("key"):
        raise CheckpointError(
            f"{path} is a checkpoint of {meta.get('cell')}, and {cell} starts from the encoder of "
            f"{cell.source}. Give the {path.name} of that cell, or leave out --encoder to train it."
        )
    return str(meta["key"])


def _kind() -> Any:
    """The kind of device that torch can use here: a hidden or unusable GPU is none."""
    import torch

    kind = device_kind()
    return "cpu" if kind == "cuda" and not torch.cuda.is_available() else kind


def _loaders(asked: int | None, device: str) -> int:
    """Most loader processes: as asked, else none on a CPU, which computes with all it has."""
    if asked is not None or device == "cpu":
        return asked or 0
    return max(0, len(os.sched_getaffinity(0)) - 1)


@contextlib.contextmanager
def stop_by_signal() -> Iterator[Callable[[], str]]:
    """Give what a trial asks before each step: the name of a signal that came, or nothing.

    The first Ctrl-C or SIGTERM lets the trial save; a second one ends it at once. Handlers are put
    back at the end.
    """
    came: list[str] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(SIGNALS[signal.Signals(number)])
        click.echo(f"{came[0]}: saving; once more to stop at once.", err=True)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda: came[0] if came else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(ctx: click.Context, outcome: Outcome) -> None:
    """End the command when a trial did not end by itself, with its reason and exit code."""
    if outcome.state == "stopped":
        click.echo("Stopped and saved: the same command goes on from here.", err=True)
        numbers = {name: int(number) for number, name in SIGNALS.items()}
        ctx.exit(128 + numbers[outcome.reason or "SIGINT"])
    if outcome.state == "failed":
        # Status 1 is what none of our own errors has: a bug, whose place is worth showing.
        if outcome.kind == "code" and outcome.exit_code == 1 and outcome.traceback:
            click.echo(outcome.traceback, err=True)
        click.echo(f"Error: {outcome.reason}", err=True)
        ctx.exit(outcome.exit_code)


@contextlib.contextmanager
def _tracker(root: Path, *, track: bool) -> Iterator[Tracker]:
    from sharedenc.tracking import MemoryTracker, MlflowTracker

    if not track:
        memory = MemoryTracker()
        try:
            yield memory
        finally:
            memory.close()
        return
    from sharedenc.mlflow_server import serve

    with serve(root) as server:
        yield MlflowTracker(server.uri)


@contextlib.contextmanager
def _progress(cell: Cell, epochs: int) -> Iterator[OnEpoch]:
    """Show epochs on standard error: a bar on a terminal, and a line for each epoch."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(cell.name, total=epochs)

        def on_epoch(report: EpochReport) -> bool:
            shown = "  ".join(
                f"{name} {report.metrics[name]:.4f}" for name in SHOWN if name in report.metrics
            )
            line = f"epoch {report.epoch}/{report.epochs}  {shown}  {report.seconds:.1f} s"
            if console.is_terminal:
                bar.console.print(line, highlight=False)
            else:
                click.echo(f"{cell}  {line}", err=True)
            bar.update(task, completed=report.epoch)
            return False

        yield on_epoch
