"""`sharedenc sweep`: train a study through Ray Tune, then export, time and report it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from sharedenc.cli.options import (
    RECIPE_HINTS,
    data_options,
    data_rules,
    int8_options,
    load_plugins,
    loading_options,
    plugin_option,
    read_settings,
    recipe_options,
    runs_option,
    runs_root,
    taps_bytes,
    weights_option,
)
from sharedenc.cli.simulate import simulate
from sharedenc.errors import SharedencError, SpecError, TrackingError, check_choice, nearest
from sharedenc.spec import STRATEGIES, TASKS

if TYPE_CHECKING:
    from sharedenc.mlflow_server import Server
    from sharedenc.tracking import Tracker
    from sweeps.budget import Budget
    from sweeps.interrupts import Interrupts
    from sweeps.launch import Launcher
    from sweeps.order import Machine
    from sweeps.progress import Progress
    from sweeps.result import StudyResult
    from sweeps.run import RunOptions
    from sweeps.study import Study

    Step = Callable[[StudyResult], list[str]]

LAUNCHERS = ("ray", "local")
DEVICES = ("auto", "cpu", "cuda")
LR_SEARCHES = ("published", "backbone", "cell")
REUSES = ("strict", "compatible", "none")
FUSES = ("auto", "off")

EXAMPLES = """\b
Examples:
  sharedenc sweep full-grid --preset demo
  sharedenc sweep full-grid --data /data/coco --only 'resnet18/*'
  sharedenc sweep lr-search --data /data/coco --backbones resnet18
  sharedenc sweep study.yaml
  sharedenc sweep full-grid --preset thesis --show > study.yaml
  sharedenc sweep full-grid --data /data/coco --plan
  sharedenc sweep full-grid --data /data/coco --lr-search backbone --seeds 3
  sharedenc sweep status full-grid-coco
  sharedenc sweep full-grid --data /data/coco --latency-budget-ms 10 --device NAME --precision int8
  sharedenc sweep simulate --gpus 8 --trials 44
"""


class SweepGroup(click.Group):
    """A group whose first word may also be a kind of study or a study file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(
    "sweep",
    cls=SweepGroup,
    epilog=EXAMPLES,
    subcommand_metavar="KIND|STUDY.yaml|status|simulate|lr-report",
)
def sweep() -> None:
    """Train a whole study: KIND is `full-grid` or `lr-search`, or give a study file.

    `sharedenc sweep KIND --help` lists all options. To resume a study, run the same command again.

    Exit status: 0 when every cell is done; 1 when one failed, was skipped, or waits because a limit
    was reached; 130 after Ctrl-C or SIGTERM; others when nothing could be started.
    """


def _search_options(function: Any) -> Any:
    options = [
        click.option(
            "--lr-search",
            metavar=f"[{'|'.join(LR_SEARCHES)}]",
            help="Where learning rates come from: Table 3.5; one search per backbone, on its "
            "baselines (the reference study); one per cell [default: published where there is "
            "one, else backbone].",
        ),
        click.option("--search-cell", metavar="CELL", help="Also search this cell's rate."),
        click.option("--search-trials", type=int, help="Rates to propose [default: 8]."),
        click.option(
            "--search-range", metavar="LOW,HIGH", help="Where to propose [default: 1e-5,1e-2]."
        ),
        click.option(
            "--search-schedulers",
            metavar="[plateau|cosine],...",
            help="Schedules to try [default: the recipe's].",
        ),
        click.option(
            "--search-lrs", metavar="RATE,...", help="Rates to try, instead of proposals."
        ),
        click.option("--search-epochs", type=int, help="Epochs of a search trial."),
        click.option("--search-rungs", metavar="EPOCH,...", help="Where a bracket thins out."),
        click.option("--search-factor", type=int, help="By how much it does [default: 2]."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _choice_options(function: Any) -> Any:
    options = [
        click.option("--name", help="The study's name [default: KIND-DATASET]."),
        click.option("--only", multiple=True, metavar="GLOB", help="Cells, such as 'resnet18/*'."),
        click.option("--backbones", metavar="NAME,...", help="Backbones [default: all]."),
        click.option("--strategies", metavar=f"[{'|'.join(STRATEGIES)}],...", help="Strategies."),
        click.option("--freeze", metavar="[none|frozen|bias],...", help="Freeze modes."),
        click.option("--tasks", metavar=f"[{'|'.join(TASKS)}],...", help="Tasks."),
        click.option(
            "--seeds",
            metavar="COUNT|SEED,...",
            help="How many seeds (3: 0, 1 and 2), or which ones (0,7) [default: 1].",
        ),
        click.option("--lr", metavar="RATE|BACKBONE=RATE,...", help="Learning rates."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _invocation_options(function: Any) -> Any:
    """How this invocation runs the study; none of them changes a result."""
    options = [
        click.option("--plan", is_flag=True, help="Say what would run and cost, and exit."),
        click.option(
            "--probe/--no-probe",
            default=True,
            help="With --plan: time a few real steps of what was never measured.",
        ),
        click.option(
            "--reuse",
            default="strict",
            show_default=True,
            metavar=f"[{'|'.join(REUSES)}]",
            help="Finished trials to take over, of this study and of others on the same data: "
            "with the same key; the same apart from numerics; none.",
        ),
        click.option("--rerun", multiple=True, metavar="CELL", help="Train these (globs) again."),
        click.option(
            "--storage",
            envvar="SHAREDENC_STORAGE",
            metavar="DIR|URI",
            help="What survives the machines: checkpoints by key, packs by digest (a folder that "
            "all nodes see, s3://..., gs://...).",
        ),
        click.option(
            "--checkpoint-every",
            default="10m",
            show_default=True,
            metavar="10m|2epochs|500steps",
            help="How much of a trial may be lost.",
        ),
        click.option("--max-gpu-hours", type=float, help="Start nothing more after so many."),
        click.option(
            "--max-concurrent",
            "--concurrent",
            type=click.IntRange(1),
            help="Most trials at once; those that train together count as one.",
        ),
        click.option(
            "--fuse",
            default="auto",
            show_default=True,
            metavar=f"[{'|'.join(FUSES)}]",
            help="Train cells and rates of one frozen encoder together, in one pass over the "
            "pictures: where trials wait for devices (auto), or never (off). Results are the same.",
        ),
        click.option("--pack", is_flag=True, help="Share GPUs by measured peaks of memory."),
        click.option(
            "--preflight/--no-preflight",
            default=True,
            show_default=True,
            help="First run two steps of each kind of trial.",
        ),
        click.option(
            "--grace",
            type=float,
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help="After Ctrl-C or SIGTERM: how long trials may take to save.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _budget_options(function: Any) -> Any:
    """What a deployment may take on a board. With it, --device and --precision are the board's."""
    options = [
        click.option(
            "--latency-budget-ms",
            type=float,
            metavar="MS",
            help="Skip what can be part of no deployment that serves both tasks in so many "
            "milliseconds on a board: --device is then the board's name as its agent reports it, "
            "--precision what it runs in [default: int8].",
        ),
        click.option(
            "--latency-stat",
            default="p99",
            show_default=True,
            metavar="[p50|p90|p95|p99|mean|max]",
            help="Which latency of one query at a time must be within the budget.",
        ),
        click.option(
            "--latency-mode",
            default="",
            metavar="MODE",
            help="Power mode and clocks of the board, such as MAXN-pinned [default: timed last].",
        ),
        click.option(
            "--latency-wait-min",
            type=float,
            default=60.0,
            show_default=True,
            metavar="MINUTES",
            help="How long undecided trials are withheld for the board's figures.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _machine_options(function: Any) -> Any:
    options = [
        click.option("--launcher", default="ray", metavar=f"[{'|'.join(LAUNCHERS)}]"),
        click.option("--address", envvar="RAY_ADDRESS", help="Ray cluster to join."),
        click.option("--cpus", type=float, help="Cores to use [default: all]."),
        click.option("--memory-gib", type=float, help="Memory to use [default: what is free]."),
        click.option(
            "--device",
            default="auto",
            metavar="[auto|cpu|cuda]",
            help="What trials train on; with --latency-budget-ms it may be a board's name.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@sweep.command("run", hidden=True, epilog=EXAMPLES)
@click.argument("kind", metavar="KIND|STUDY.yaml")
@_choice_options
@data_options
@weights_option
@_search_options
@plugin_option
@runs_option
@_invocation_options
@_budget_options
@_machine_options
@loading_options
@click.option("--show", is_flag=True, help="Print the merged settings as a study file and exit.")
@click.option("--export/--no-export", default=True, show_default=True, help="Register ONNX files.")
@int8_options
@click.option("--agent/--no-agent", default=None, help="Time the exports on this machine.")
@click.option("--report/--no-report", default=True, show_default=True, help="Write the report.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--log-json", is_flag=True, help="Events as JSON lines on standard error.")
@recipe_options
@click.pass_context
def run(ctx: click.Context, /, kind: str, **options: Any) -> None:
    """Train a study (KIND or a study file), then export, time and report it.

    Exit status: 0 when every cell is done; 1 when one failed, was skipped, or waits because a limit
    was reached; 130 after Ctrl-C or SIGTERM; others when nothing could be started.
    """
    options["plugins"] = load_plugins(options["plugins"])
    options, budget = split_budget(options)
    study = read_study(ctx, kind, options)
    if options["show"]:
        click.echo(study.to_yaml(), nl=False)
        return
    sweep = _Sweep(study, options, budget)
    ctx.exit(sweep.plan() if options["plan"] else sweep.run())


def split_budget(options: dict[str, Any]) -> tuple[dict[str, Any], Budget | None]:
    """Take the board's device and precision out of the options of a training.

    Raises:
        SpecError: a budget without a board, or a value that is none.
    """
    from sweeps.budget import Budget

    limit_ms = options["latency_budget_ms"]
    if limit_ms is None:
        return options, None
    board = "" if options["device"] in DEVICES else options["device"]
    precision = options["precision"]
    if precision in get_args(RECIPE_HINTS["precision"]):
        chosen, precision = precision, "int8"  # the training's own
    else:
        chosen, precision = None, precision or "int8"
    budget = Budget(
        limit_ms=limit_ms,
        device=board,
        precision=precision,
        stat=options["latency_stat"],
        mode=options["latency_mode"],
        wait_s=options["latency_wait_min"] * 60,
    )
    return {**options, "device": "auto", "precision": chosen}, budget


def read_study(ctx: click.Context, kind: str, options: Mapping[str, Any]) -> Study:
    """Merge preset, study file, settings file and command line; later ones win.

    Raises:
        SpecError: an unknown kind, setting or value, with the nearest name.
    """
    from sweeps.studies import KINDS, read_study_file, study_from

    layers: list[dict[str, Any]] = []
    name: str | None = kind
    if kind not in KINDS:
        if not kind.endswith((".yaml", ".yml")):
            hint = nearest(kind, [*KINDS, *sweep.commands])
            raise SpecError(
                f"{kind!r} is neither a kind of study ({', '.join(KINDS)}) nor a .yaml file.{hint}"
            )
        layers.append(read_study_file(Path(kind)))
        name = None
    if options["config"] is not None:
        layers.append({"recipe": read_settings(options["config"])})
    layers.append(_given(ctx, options))
    return study_from(*layers, kind=name, preset=options["preset"])


def _given(ctx: click.Context, options: Mapping[str, Any]) -> dict[str, Any]:
    """Study settings that stand on the command line."""
    from sweeps.studies import seeds_from

    given: dict[str, Any] = {}
    for name in ("name", "lr_search", "search_cell", "search_epochs", "search_factor", "agent"):
        given[name] = options[name]
    for name in ("backbones", "strategies", "freeze", "tasks", "search_schedulers"):
        given[name] = _split(options[name])
    for name in ("int8", "int8_images", "accuracy_images", "search_trials"):
        given[name] = options[name]
    given["search_range"] = _numbers("--search-range", options["search_range"], float)
    given["seeds"] = None if options["seeds"] is None else seeds_from(options["seeds"])
    given["search_lrs"] = _numbers("--search-lrs", options["search_lrs"], float)
    given["search_rungs"] = _numbers("--search-rungs", options["search_rungs"], int)
    given["only"] = options["only"] or None
    given["rules"] = data_rules(options) or None
    given["plugins"] = options["plugins"] or None
    given["data"] = None if options["data"] is None else str(options["data"])
    if ctx.get_parameter_source("weights") is ParameterSource.COMMANDLINE:
        given["weights"] = options["weights"]
    if options["lr"] is not None:
        given["lr"] = _rates(options["lr"])
    recipe = {name: options[name] for name in RECIPE_HINTS if options.get(name) is not None}
    if recipe:
        given["recipe"] = recipe
    return {name: value for name, value in given.items() if value is not None}


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str | None, kind: type) -> list[Any] | None:
    try:
        return None if text is None else [kind(part) for part in _split(text) or []]
    except ValueError:
        raise SpecError(f"{option} {text!r} is not a list of numbers such as 1,2") from None


def _rates(text: str) -> dict[str, float]:
    rates = {}
    for part in _split(text) or []:
        backbone, equals, rate = part.rpartition("=")
        try:
            rates[backbone if equals else "*"] = float(rate)
        except ValueError:
            raise SpecError(f"--lr {part!r} is neither RATE nor BACKBONE=RATE") from None
    return rates


@dataclass
class _Sweep:
    """One invocation: the study, then everything that comes after its last cell."""

    study: Study
    options: Mapping[str, Any]
    budget: Budget | None = None
    _models: list[str] = field(default_factory=list)

    def run(self) -> int:
        from sharedenc.mlflow_server import serve
        from sweeps.interrupts import Interrupts
        from sweeps.progress import open_progress

        self._check()
        with Interrupts(self.options["grace"]) as interrupts, serve(self.runs_dir) as server:
            progress = open_progress(log_json=self.options["log_json"])
            self._open(server.uri)
            with progress:
                result = self._train(progress, interrupts, server)
            return self._finish(result)

    def plan(self) -> int:
        """Print the price of the study; nothing is trained and no row is written."""
        from sharedenc.mlflow_server import serve
        from sweeps.plan import plan_study
        from sweeps.price_text import plan_text

        self._check()
        if self.budget is not None:
            self._say(
                "the price is of every cell: what --latency-budget-ms will skip is known once "
                f"{self.budget.device} has timed the untrained graphs",
                err=True,
            )
        launcher = self._launcher()

        def machines() -> Sequence[Machine]:
            from sweeps.resources import local_machine

            if self.options["address"]:
                return launcher.machines()
            return [local_machine(self.options["cpus"], self.options["memory_gib"])]

        with serve(self.runs_dir) as server:
            self._open(server.uri)
            try:
                price = plan_study(
                    self.study,
                    self.places,
                    self._run_options(launcher),
                    machines,
                    on_cluster=bool(self.options["address"]),
                    probe=self.options["probe"],
                    note=lambda text: self._say(text, err=True),
                    progress=not self.options["log_json"],
                )
            finally:
                launcher.close()
        as_json = self.options["as_json"]
        click.echo(json.dumps(price.to_dict(), indent=2) if as_json else plan_text(price))
        return 0

    def _check(self) -> None:
        """Refuse, before anything starts, what cannot work."""
        from sharedenc.storage import open_storage
        from sharedenc.training.interval import Interval

        self.runs_dir = runs_root(self.options["runs_dir"])
        self._refuse_private_server()
        check_choice("--launcher", self.options["launcher"], LAUNCHERS)
        check_choice("--device", self.options["device"], DEVICES)
        check_choice("--reuse", self.options["reuse"], REUSES)
        check_choice("--fuse", self.options["fuse"], FUSES)
        Interval.parse(self.options["checkpoint_every"])
        storage = self.options["storage"]
        if storage is None and self.options["address"]:
            raise SpecError(
                "a Ray cluster needs --storage (or SHAREDENC_STORAGE): a folder that all its "
                "nodes see, or s3://... or gs://..., for checkpoints and packed data"
            )
        self._storage = None if storage is None else open_storage(storage).uri

    def _refuse_private_server(self) -> None:
        if self.options["address"] and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise SpecError(
                "a Ray cluster needs a tracking server that all its nodes reach, but "
                "MLFLOW_TRACKING_URI is not set and a private server listens on 127.0.0.1 only; "
                "start one (`mlflow server --host 0.0.0.0 ...`) and set MLFLOW_TRACKING_URI to it, "
                "or leave out --address and RAY_ADDRESS to run on this machine"
            )

    def _open(self, uri: str) -> None:
        from sweeps.inputs import Places

        self.uri = uri
        self.places = Places(
            tracking_uri=uri,
            runs_dir=self.runs_dir,
            cache_dir=self.options["cache_dir"],
            storage=self._storage,
        )

    def _launcher(self) -> Launcher:
        from sweeps.launch import LocalLauncher, RayLauncher

        if self.options["launcher"] == "local":
            return LocalLauncher()
        return RayLauncher(
            storage=self.runs_dir / f".tune-{os.getpid()}-{time.time_ns()}",
            threads=self.study.recipe.cpu_threads,
            address=self.options["address"],
            cpus=self.options["cpus"],
            memory_gib=self.options["memory_gib"],
            share_gpus=self.options["pack"],
        )

    def _device(self, launcher: Launcher) -> str:
        """`auto` on a cluster is what its machines have, whatever this one has."""
        device: str = self.options["device"]
        if device == "auto" and self.options["address"]:
            return "cuda" if any(machine.gpus for machine in launcher.machines()) else "cpu"
        return device

    def _run_options(self, launcher: Launcher) -> RunOptions:
        from sweeps.faults import Rules
        from sweeps.run import RunOptions

        return RunOptions(
            device=self._device(launcher),
            workers=self.options["workers"],
            taps_budget_bytes=taps_bytes(self.options),
            reuse=self.options["reuse"],
            rerun=self.options["rerun"],
            checkpoint_every=self.options["checkpoint_every"],
            rules=Rules(
                max_concurrent=self.options["max_concurrent"],
                max_gpu_hours=self.options["max_gpu_hours"],
            ),
            pack=self.options["pack"],
            preflight=self.options["preflight"],
            fuse=self.options["fuse"],
            budget=self.budget,
            command=" ".join(sys.argv),
        )

    def _train(self, progress: Progress, interrupts: Interrupts, server: Server) -> StudyResult:
        from sweeps.run import run_study

        launcher = self._launcher()
        return run_study(
            self.study,
            self.places,
            launcher,
            progress,
            self._run_options(launcher),
            interrupts=interrupts,
            revive=server.revive,
        )

    def _finish(self, result: StudyResult) -> int:
        """Export, time, report; none of them changes what the cells' states say, or hides it."""
        lines = _summary(result)
        try:
            if not result.interrupted and any(row.state == "done" for row in result.finals):
                for name, step in self._steps():
                    lines += self._step(name, step, result)
        except KeyboardInterrupt:
            result = replace(result, interrupted="stopped by Ctrl-C")
            lines.append("stopped by Ctrl-C after the last cell; run the same command to go on")
        finally:
            lines.append(f"MLflow: {_command()} ui {result.study}{self._where()}")
            for line in lines:
                self._say(line, err=self.options["as_json"])
            if self.options["as_json"]:
                click.echo(json.dumps(result.to_dict(), indent=2))
        return result.exit_code

    def _steps(self) -> Iterator[tuple[str, Step]]:
        if self.options["export"]:
            yield "export", self._export
            if self.study.agent:
                yield "agent", self._time
        if self.options["report"]:
            yield "report", self._report

    def _say(self, text: str, *, err: bool) -> None:
        if self.options["log_json"]:
            click.echo(json.dumps({"event": "note", "text": text}), err=True)
        else:
            click.echo(text, err=err)

    def _step(self, name: str, step: Step, result: StudyResult) -> list[str]:
        from sharedenc.tracking import refusals

        self._say(f"{name} ...", err=True)
        try:
            with refusals():
                return step(result)
        except SharedencError as error:
            return [f"{name}: failed: {error}"]

    def _export(self, result: StudyResult) -> list[str]:
        from sharedenc.data.packed import PackedDataset
        from sharedenc.export.calibration import Calibration
        from sharedenc.export.parity import photos
        from sharedenc.export.registry import Registered, export_study

        def tell(row: Registered) -> None:
            self._say(f"  {row.cell} {row.graph}: {row.outcome}", err=True)

        images = photos(result.pack, 2, self.study.recipe.image_px)
        int8 = None
        if self.study.int8:
            int8 = Calibration(
                pack=PackedDataset.open(result.pack),
                images=self.study.int8_images,
                accuracy_images=self.study.accuracy_images,
                workers=self.options["workers"] or 0,
                shown=not self.options["log_json"],
            )
        rows = export_study(self.uri, result.study, images=images, int8=int8, on_row=tell)
        self._models = [row.model for row in rows if row.ready]
        lines = [f"exports: {len(self._models)} of {len(rows)} graphs registered"]
        for row in rows:
            if row.outcome == "failed":
                lines.append(f"  {row.cell} {row.graph}: {row.reason}")
            elif row.int8_reason and int8 is not None:
                lines.append(f"  {row.cell} {row.graph}: no INT8 files: {row.int8_reason}")
        return lines

    def _time(self, result: StudyResult) -> list[str]:
        import subprocess

        if not self._models:
            return ["timings: nothing was registered"]
        command = [sys.executable, "-m", "jetson_agent", "once", "--tracking-uri", self.uri]
        command += ["--backend", "onnxruntime", "--state-dir", str(self.runs_dir / "agent")]
        command += ["--duration-s", "1", "--runs", "3", "--builds", "1", "--json"]
        for model in self._models:
            command += ["--select", model]
        with tempfile.TemporaryFile("w+") as answer:
            with subprocess.Popen(
                command, stdout=answer, stderr=subprocess.PIPE, text=True
            ) as agent:
                assert agent.stderr is not None
                try:
                    for line in agent.stderr:
                        self._say(line.rstrip(), err=True)
                except BaseException:
                    agent.terminate()
                    raise
            answer.seek(0)
            try:
                return [_timed(json.load(answer))]
            except ValueError:
                return [f"timings: the agent ended with status {agent.returncode} and no answer"]

    def _report(self, result: StudyResult) -> list[str]:
        from sharedenc.report.publish import publish
        from sharedenc.report.write import write_report

        out = self.places.study_dir(result.study) / "report"
        contents, paths = write_report(self.uri, result.study, out)
        lines = [f"report: {paths.index}"]
        try:
            publish(self.uri, contents, out)
        except SharedencError as error:
            lines.append(f"report: not in MLflow: {error}")
        return lines

    def _where(self) -> str:
        given = self.options["runs_dir"]
        return "" if given is None else f" --runs-dir {given}"


def _summary(result: StudyResult) -> list[str]:
    from sweeps.graph import short_rate
    from sweeps.progress import duration

    finals = result.finals
    lines = []
    for row in result.rows:
        if row.state in ("failed", "skipped"):
            lines.append(f"{row.node.id}: {row.state}: {row.reason}")
    counted, what = (finals, "cells") if finals else (result.rows, "searching trials")
    done = sum(row.state == "done" for row in counted)
    took = duration(result.seconds)
    lines.append(f"study {result.study}: {done} of {len(counted)} {what} done in {took} min")
    if result.exhausted:
        waiting = sum(row.state == "waiting" for row in result.rows)
        lines.append(f"{result.exhausted}: {waiting} trials wait; raise --max-gpu-hours to go on")
    for winner in result.winners:
        lines.append(
            f"learning rates of {winner.group or winner.cell}: {winner.trials} trials, "
            f"{winner.stopped} stopped early, best {short_rate(winner.lr)} "
            f"(score {winner.score:.3f})"
        )
    for backbone, rate in result.rates.items():
        lines.append(f"learning rate of {backbone}: {short_rate(rate)} for all its cells")
    return lines


def _timed(answer: Mapping[str, Any]) -> str:
    timed = answer["timed"]
    valid = sum(row["verdict"] == "valid" for row in timed)
    before = answer["already_timed"]
    return (
        f"timings: {len(timed)} timed now ({valid} valid), {before} before, on {answer['device']}"
    )


def _command() -> str:
    """How to call this program again: with the environment's path unless it is on PATH."""
    found = shutil.which("sharedenc")
    own = Path(sys.executable).with_name("sharedenc")
    if found and Path(found).resolve() == own.resolve():
        return "sharedenc"
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)


sweep.add_command(simulate)


@sweep.command(epilog="Example: sharedenc sweep status full-grid-coco2017 --json")
@click.argument("study")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@runs_option
def status(study: str, as_json: bool, runs_dir: Path | None) -> None:
    """Say where a study stands, from any machine that reaches its tracking server."""
    from sharedenc.mlflow_server import serve
    from sharedenc.tracking import MlflowTracker
    from sweeps.progress import status_text
    from sweeps.standing import status as standing

    with serve(runs_root(runs_dir)) as server:
        answer = standing(MlflowTracker(server.uri), study)
    click.echo(json.dumps(answer, indent=2) if as_json else status_text(answer))


@sweep.command("lr-report", epilog="Example: sharedenc sweep lr-report full-grid-coco2017")
@click.argument("study")
@click.option(
    "--full",
    metavar="STUDY",
    help="A study of the same search without rungs: were the stopped ones worse to the end?",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@runs_option
def lr_report(study: str, full: str | None, as_json: bool, runs_dir: Path | None) -> None:
    """Say what a study's learning-rate searches tried, stopped and chose."""
    from sharedenc.mlflow_server import serve
    from sharedenc.tracking import MlflowTracker
    from sweeps import search_report

    with serve(runs_root(runs_dir)) as server:
        tracker = MlflowTracker(server.uri)
        values = _stored_searches(tracker, study)
        if full is not None:
            curves = search_report.curves(_stored_searches(tracker, full))
            values = search_report.report(search_report.read(values), curves, values["rates"])
    click.echo(json.dumps(values, indent=2) if as_json else search_report.markdown(values))


def _stored_searches(tracker: Tracker, study: str) -> dict[str, Any]:
    """The account of a study's searches, as its last invocation stored it."""
    from sharedenc.tracking import KIND, no_study

    parents = [run for run in tracker.runs(study) if run.tags.get(KIND) == "study"]
    if not parents:
        raise TrackingError(no_study(study, tracker.studies()))
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = tracker.download(parents[0].run_id, "searches.json", Path(folder))
        except TrackingError:
            raise SpecError(
                f"study {study!r} has no account of a learning-rate search: it searched nothing, "
                "or did not end yet (Ctrl-C lets it write one)"
            ) from None
        values: dict[str, Any] = json.loads(file.read_text())
    return values
