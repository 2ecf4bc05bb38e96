"""`sharedenc sweep`: train a study through Ray Tune, then export, time and report it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sharedenc.cli.options import (
    RECIPE_HINTS,
    data_options,
    data_rules,
    load_plugins,
    plugin_option,
    read_settings,
    recipe_options,
    runs_option,
    runs_root,
    weights_option,
)
from sharedenc.errors import SharedencError, SpecError, check_choice, nearest
from sharedenc.spec import STRATEGIES, TASKS

if TYPE_CHECKING:
    from sweeps.launch import Launcher
    from sweeps.run import StudyResult
    from sweeps.studies import Study

    Step = Callable[[StudyResult], list[str]]

LAUNCHERS = ("ray", "local")

EXAMPLES = """\b
Examples:
  sharedenc sweep full-grid --preset demo
  sharedenc sweep full-grid --data /data/coco --only 'resnet18/*'
  sharedenc sweep lr-search --data /data/coco --backbones resnet18
  sharedenc sweep study.yaml
  sharedenc sweep full-grid --preset thesis --show > study.yaml
  sharedenc sweep status full-grid-coco
"""


class SweepGroup(click.Group):
    """A group whose first word may also be a kind of study or a study file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("sweep", cls=SweepGroup, epilog=EXAMPLES, subcommand_metavar="KIND|STUDY.yaml|status")
def sweep() -> None:
    """Train a whole study: KIND is `full-grid` or `lr-search`, or give a study file.

    `sharedenc sweep KIND --help` lists all options. To resume a study, run the same command again.
    """


def _search_options(function: Any) -> Any:
    options = [
        click.option("--search-cell", metavar="CELL", help="Also search this cell's rate."),
        click.option("--search-lrs", metavar="RATE,...", help="Rates to try."),
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
        click.option("--seeds", metavar="N,...", help="One trial of each cell per seed."),
        click.option("--lr", metavar="RATE|BACKBONE=RATE,...", help="Learning rates."),
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
        click.option("--concurrent", type=click.IntRange(1), help="Most trials at once."),
        click.option("--device", default="auto", metavar="[auto|cpu|cuda]"),
        click.option("--workers", type=click.IntRange(0), default=0, help="Loaders per trial."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@sweep.command("run", hidden=True)
@click.argument("kind", metavar="KIND|STUDY.yaml")
@_choice_options
@data_options
@weights_option
@_search_options
@plugin_option
@runs_option
@_machine_options
@click.option("--show", is_flag=True, help="Print the merged settings as a study file and exit.")
@click.option("--export/--no-export", default=True, show_default=True, help="Register ONNX files.")
@click.option("--agent/--no-agent", default=None, help="Time the exports on this machine.")
@click.option("--report/--no-report", default=True, show_default=True, help="Write the report.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--log-json", is_flag=True, help="Events as JSON lines on standard error.")
@recipe_options
@click.pass_context
def run(ctx: click.Context, /, kind: str, **options: Any) -> None:
    """Train a study (KIND or a study file), then export, time and report it."""
    options["plugins"] = load_plugins(options["plugins"])
    study = read_study(ctx, kind, options)
    if options["show"]:
        click.echo(study.to_yaml(), nl=False)
        return
    ctx.exit(_Sweep(study, options).run())


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
            hint = nearest(kind, [*KINDS, "status"])
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
    given: dict[str, Any] = {}
    for name in ("name", "search_cell", "search_epochs", "search_factor", "agent"):
        given[name] = options[name]
    for name in ("backbones", "strategies", "freeze", "tasks"):
        given[name] = _split(options[name])
    given["seeds"] = _numbers("--seeds", options["seeds"], int)
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
    _models: list[str] = field(default_factory=list)

    def run(self) -> int:
        from sharedenc.mlflow_server import serve
        from sweeps.interrupts import Interrupts
        from sweeps.progress import open_progress

        self.runs_dir = runs_root(self.options["runs_dir"])
        self._refuse_private_server()
        launcher = self._launcher()
        with Interrupts() as interrupts, serve(self.runs_dir) as server:
            progress = open_progress(log_json=self.options["log_json"])
            self.uri = server.uri
            with progress:
                result = self._train(launcher, progress, interrupts.check)
            return self._finish(result)

    def _refuse_private_server(self) -> None:
        if self.options["address"] and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise SpecError(
                "a Ray cluster needs a tracking server that all its nodes reach, but "
                "MLFLOW_TRACKING_URI is not set and a private server listens on 127.0.0.1 only; "
                "start one (`mlflow server --host 0.0.0.0 ...`) and set MLFLOW_TRACKING_URI to it, "
                "or leave out --address and RAY_ADDRESS to run on this machine"
            )

    def _launcher(self) -> Launcher:
        from sweeps.launch import LocalLauncher, RayLauncher

        check_choice("--launcher", self.options["launcher"], LAUNCHERS)
        check_choice("--device", self.options["device"], ("auto", "cpu", "cuda"))
        if self.options["launcher"] == "local":
            return LocalLauncher()
        return RayLauncher(
            storage=self.runs_dir / f".tune-{os.getpid()}-{time.time_ns()}",
            threads=self.study.recipe.cpu_threads,
            address=self.options["address"],
            cpus=self.options["cpus"],
            memory_gib=self.options["memory_gib"],
        )

    def _train(self, launcher: Launcher, progress: Any, check: Callable[[], None]) -> StudyResult:
        from sweeps.run import Places, run_study

        self.places = Places(
            tracking_uri=self.uri, runs_dir=self.runs_dir, cache_dir=self.options["cache_dir"]
        )
        return run_study(
            self.study,
            self.places,
            launcher,
            progress,
            device=self.options["device"],
            workers=self.options["workers"],
            concurrent=self.options["concurrent"],
            command=" ".join(sys.argv),
            check=check,
        )

    def _finish(self, result: StudyResult) -> int:
        """Export, time, report; none of them changes what the cells' states say, or hides it."""
        lines = _summary(result)
        try:
            if not result.interrupted and any(row.state == "done" for row in result.finals):
                for name, step in self._steps():
                    lines += self._step(name, step, result)
        except KeyboardInterrupt:
            result = replace(result, interrupted=True)
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
        from sharedenc.export.parity import photos
        from sharedenc.export.registry import Registered, export_study

        def tell(row: Registered) -> None:
            self._say(f"  {row.cell} {row.graph}: {row.outcome}", err=True)

        images = photos(result.pack, 2, self.study.recipe.image_px)
        rows = export_study(self.uri, result.study, images=images, on_row=tell)
        self._models = [row.model for row in rows if row.ready]
        failed = [row for row in rows if row.outcome == "failed"]
        lines = [f"exports: {len(self._models)} of {len(rows)} graphs registered"]
        return lines + [f"  {row.cell} {row.graph}: {row.reason}" for row in failed]

    def _time(self, result: StudyResult) -> list[str]:
        import subprocess

        if not self._models:
            return ["timings: nothing was registered"]
        command = [sys.executable, "-m", "jetson_agent", "once", "--tracking-uri", self.uri]
        command += ["--backend", "onnxruntime", "--state-dir", str(self.runs_dir / "agent")]
        command += ["--json"]
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
        from sharedenc.report.write import write_report
        from sweeps.run import attach

        out = self.places.study_dir(result.study) / "report"
        paths = write_report(self.uri, result.study, out)
        attach(self.places, result, paths.folder, "report")
        return [f"report: {paths.index}"]

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
    for winner in result.winners:
        lines.append(
            f"learning rates of {winner.cell}: {winner.trials} trials, {winner.stopped} stopped "
            f"early, best {short_rate(winner.lr)} (score {winner.score:.3f})"
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


@sweep.command(epilog="Example: sharedenc sweep status full-grid-coco2017 --json")
@click.argument("study")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@runs_option
def status(study: str, as_json: bool, runs_dir: Path | None) -> None:
    """Say where a study stands, from any machine that reaches its tracking server."""
    from sharedenc.mlflow_server import serve
    from sharedenc.tracking import MlflowTracker
    from sweeps import ledger

    with serve(runs_root(runs_dir)) as server:
        answer = ledger.status(MlflowTracker(server.uri), study)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    for row in [*answer["cells"], *answer["searches"]]:
        score = "" if row["score"] is None else f"{row['score']:.3f}"
        click.echo(f"{row['name']:45} {row['state']:8} {score:6} {row['reason']}".rstrip())
