"""Run a study: inputs, graph, rows, preflight, launcher, and what is left to say at the end."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sharedenc.errors import TrackingError
from sharedenc.redact import hide_credentials
from sharedenc.tracking import MlflowTracker, Patience
from sweeps import preflight
from sweeps.budget import Budget
from sweeps.budget_watch import BudgetWatch, open_watch
from sweeps.estimates import Estimates, comparable
from sweeps.events import EventLog
from sweeps.faults import Rules
from sweeps.fusion import Fuse
from sweeps.graph import Node, Resolver, expand, short_rate
from sweeps.inputs import Inputs, Places, gather
from sweeps.interrupts import Interrupts
from sweeps.launch import Launcher, Payload
from sweeps.lease import Lease
from sweeps.ledger import Ledger, Reuse
from sweeps.lookup import look_up
from sweeps.mates import Mates
from sweeps.order import Demand
from sweeps.packing import pack_trials
from sweeps.payload import Payloads
from sweeps.price import to_run, with_works
from sweeps.progress import JsonLines, Progress
from sweeps.rates import common_rates, find_winners
from sweeps.resources import fit
from sweeps.result import StudyResult
from sweeps.search_report import chosen_rates, markdown, report, search_trials
from sweeps.state import Row, SweepState
from sweeps.study import Study

# How long a driver waits for a server that is away before it gives up on it.
SERVER_WAIT_S = 900.0
# The same once somebody has pressed Ctrl-C, and waits.
STOPPED_WAIT_S = 15.0


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How one invocation runs a study; nothing of it changes a result.

    Args:
        device: `cpu` or `cuda`; `auto` takes what this machine has.
        workers: Most loader processes of each trial; None: what its share of the cores allows.
        taps_budget_bytes: Disk for what frozen encoders make of validation pictures; 0: none.
        reuse: Which finished trials are taken over: `strict` (the same key), `compatible` (the
            same apart from numerics), `none`.
        rerun: Cells (globs) that are trained again.
        checkpoint_every: How often a trial saves its state.
        rules: Retries and limits.
        pack: Share GPUs by measured peaks of memory.
        preflight: Check one cell of each kind first.
        fuse: Whether frozen trials of one encoder train together where that pays: `auto`, `off`.
        budget: What a deployment may take on a board; cells of none that meets it are skipped.
        command: What the user typed, noted on the parent run.
    """

    device: str = "auto"
    workers: int | None = None
    taps_budget_bytes: int = 4 << 30
    reuse: Reuse = "strict"
    rerun: tuple[str, ...] = ()
    checkpoint_every: str = "10m"
    rules: Rules = field(default_factory=Rules)
    pack: bool = False
    preflight: bool = True
    fuse: Fuse = "auto"
    budget: Budget | None = None
    command: str = ""


def run_study(
    study: Study,
    places: Places,
    launcher: Launcher,
    progress: Progress,
    options: RunOptions | None = None,
    *,
    interrupts: Interrupts | None = None,
    revive: Callable[[], object] = lambda: None,
) -> StudyResult:
    """Run every trial of a study that has not been done yet.

    Args:
        interrupts: Asked at every beat; the first signal drains the sweep, the second ends it.
        revive: Called at every beat: brings a private tracking server back that was killed.

    Raises:
        SharedencError: data, weights, study or server cannot be used, or another sweep has the
            study; nothing was started.
    """
    options = options or RunOptions()
    started = time.monotonic()
    inputs = gather(
        study,
        places,
        options.device,
        progress=not isinstance(progress, JsonLines),
        note=progress.note,
    )
    sweep = _Sweep(
        replace(study, name=inputs.name),
        inputs,
        places,
        progress,
        options,
        interrupts or Interrupts(),
        revive,
    )
    return sweep.run(launcher, started)


@dataclass
class _Sweep:
    study: Study
    inputs: Inputs
    places: Places
    progress: Progress
    options: RunOptions
    interrupts: Interrupts
    revive: Callable[[], object]
    lease: Lease | None = None
    budget: BudgetWatch | None = None
    state: SweepState | None = None
    _unwritten: list[Row] = field(default_factory=list)

    def run(self, launcher: Launcher, started: float) -> StudyResult:
        """Hold the study's lease, run it, and record how it ended."""
        self.patience = Patience(SERVER_WAIT_S, tell=self.progress.note, meanwhile=self._beat)
        tracker = MlflowTracker(self.places.tracking_uri, patience=self.patience)
        data = self.inputs.data
        self.ledger = Ledger(
            tracker=tracker,
            study=self.inputs.name,
            data=data.name,
            digest=data.digest,
            classes=data.classes,
            folder=self.places.runs_dir / "verified",
        )
        parent_id = self.ledger.attach()
        quick = MlflowTracker(self.places.tracking_uri)
        with Lease(quick, parent_id, self.inputs.name, note=self.progress.note) as lease:
            self.lease = lease
            self.ledger.open(self.study.to_dict(), self.options.command)
            self._store_settings()
            interrupted = ""
            try:
                state = self._open(launcher)
                try:
                    with self.interrupts.draining(state.drain):
                        if not state.finished:  # else the launcher is not even open
                            launcher.run(state, self._payload(state), self._beat)
                except KeyboardInterrupt:
                    interrupted = state.draining or "stopped by Ctrl-C"
            except KeyboardInterrupt:
                self.patience.seconds = STOPPED_WAIT_S
                self._give_up("stopped", "stopped before the first trial")
                raise
            except BaseException as error:
                self._give_up("failed", str(error) or type(error).__name__)
                raise
            finally:
                launcher.close()
            return self._end(state, interrupted or state.draining, started)

    def _give_up(self, state: str, reason: str) -> None:
        with contextlib.suppress(TrackingError):
            if self.lease is not None:
                self.lease.check()  # another sweep has the study: what it says is left alone
            self.ledger.close(state, reason)

    # Before the first trial.

    def _open(self, launcher: Launcher) -> SweepState:
        nodes = expand(self.study, self.inputs.facts)
        resolver = Resolver(nodes, self.study, self.inputs.facts, self.ledger.proposed)
        options = self.options
        known = look_up(self.ledger, nodes, resolver, reuse=options.reuse, rerun=options.rerun)
        left = to_run(nodes, known.done)[0]
        machines = launcher.machines() if left else []
        demands = [node.demand for node in left]
        if left and not launcher.elastic:
            # What no machine can hold is told at once; a preflight would wait for it for ever.
            demands = fit(demands, machines)
        on_cluster = bool(left) and launcher.check(
            tracking_uri=self.places.tracking_uri, storage=self.places.storage
        )
        self._publish(bool(left))
        if left and options.preflight:
            nodes = self._preflight(nodes, left, demands[0] if on_cluster else None)
        name = "" if on_cluster else self.inputs.device_name
        measured = comparable(self.ledger.measured(), self.inputs.facts, self.study.recipe, name)
        if options.pack and left:
            nodes = pack_trials(nodes, machines, measured, self.progress.note)
        self.estimates = estimates = Estimates(
            nodes,
            self.inputs.facts.images,
            device="cuda" if self.inputs.facts.device_kind == "cuda" else "cpu",
            threads=self.study.recipe.cpu_threads,
            measured=measured,
        )
        nodes = with_works(nodes, estimates)
        self.log = EventLog(self.places.study_dir(self.inputs.name) / "events.jsonl")
        state = SweepState(
            nodes,
            machines,
            resolve=resolver.trial,
            settled=self.ledger.settled,
            rules=_at_once(options.rules, launcher),
            listener=self._on_event,
            note=self.progress.note,
            log=self.log,
            estimates=estimates,
            elastic=launcher.elastic,
            mates=None if options.fuse == "off" else Mates(resolver),
        )
        for node in nodes:
            state.rows[node.id].trial = known.trials.get(node.id)
        self.ledger.create(state.rows)
        self.progress.watch(state, estimates.expected)
        state.begin()
        self._open_budget(state, nodes)
        self.payloads = Payloads(
            study=self.study,
            inputs=self.inputs,
            places=self.places,
            workers=options.workers,
            taps_budget_bytes=options.taps_budget_bytes,
            checkpoint_every=options.checkpoint_every,
            rerun=self.ledger.rerun,
            reuse=options.reuse != "none",
        )
        return state

    def _payload(self, state: SweepState) -> Payload:
        """What makes the input of a trial that has started."""

        def make(row: Row) -> dict[str, Any]:
            return self.payloads.make(state.rows, row, state.group(row.node.id).demand)

        return make

    def _preflight(
        self, nodes: Sequence[Node], left: Sequence[Node], demand: Demand | None
    ) -> list[Node]:
        """Check here, or with a demand on a machine of the cluster."""
        run: preflight.Run = preflight.here
        if demand is not None:
            run = preflight.on_cluster(
                demand, self.places.storage, self.inputs.data.digest, self.places.cache_dir
            )
        return preflight.check_first(
            nodes,
            [node.id for node in left],
            self.study,
            self.inputs,
            self.places,
            note=self.progress.note,
            run=run,
        )

    def _open_budget(self, state: SweepState, nodes: Sequence[Node]) -> None:
        """Have the graphs of what waits timed, and decide what the board has told already."""
        if self.options.budget is None or state.finished:
            return
        self.budget = open_watch(
            self.options.budget,
            nodes,
            [row.node for row in state.rows.values() if row.state == "waiting"],
            uri=self.places.tracking_uri,
            study=self.inputs.name,
            pack=self.inputs.data.root,
            recipe=self.study.recipe,
            note=self.progress.note,
        )
        self.state = state
        self.budget.beat(state)

    def _publish(self, to_run: bool) -> None:
        """Put pack and own weights where other machines, and later sweeps, find them by digest."""
        if not to_run or self.places.storage is None:
            return
        from sharedenc.data import pack_store
        from sharedenc.models import weight_store
        from sharedenc.storage import open_storage

        storage = open_storage(self.places.storage)
        pack_store.publish(self.inputs.data.root, storage)
        for option, digest in self.inputs.weights.values():
            if Path(option).is_file():
                weight_store.publish(Path(option), digest, storage)

    def _store_settings(self) -> None:
        """Keep the merged study file with the parent run."""
        folder = self.places.study_dir(self.inputs.name)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "study.yaml"
        file.write_text(hide_credentials(self.study.to_yaml()))
        self.ledger.summary({}, [(file, "")])

    # While it runs.

    def _beat(self) -> None:
        self.interrupts.check()
        if self.lease is not None:
            self.lease.check()
        self.revive()
        if self.budget is not None and self.state is not None:
            self.budget.beat(self.state)
        self.progress.beat()

    def _on_event(self, event: str, row: Row) -> None:
        self.estimates.hear(event, row)
        try:
            if event == "start":
                self.ledger.started(row)
            elif event == "again":
                self.ledger.again(row)
            elif event == "end":
                self.ledger.ended(row)
        except TrackingError as error:
            # The sweep outlives its server; ends are written again when everything has run.
            self.progress.note(f"{row.node.id}: not recorded yet: {error}")
            if event == "end":
                self._unwritten.append(row)
        self.progress.event(event, row)

    # After the last trial.

    def _end(self, state: SweepState, interrupted: str, started: float) -> StudyResult:
        if interrupted:
            self.patience.seconds = STOPPED_WAIT_S
            self.progress.note(f"{interrupted}: finished cells stay finished")
            state.interrupt(interrupted)
        rows = list(state.rows.values())
        result = StudyResult(
            study=self.inputs.name,
            parent_id=self.ledger.parent_id,
            pack=self.inputs.data.root,
            rows=rows,
            winners=find_winners(rows),
            rates=common_rates(rows) if self.study.kind == "lr-search" else {},
            why_not=why_not(self.ledger, state.rows),
            seconds=time.monotonic() - started,
            interrupted=interrupted,
            exhausted=state.exhausted,
        )
        self.log.close()
        self._record_end(result, state)
        return result

    def _record_end(self, result: StudyResult, state: SweepState) -> None:
        try:
            self._close(result, state)
        except TrackingError as error:
            self.progress.note(f"the study's end is not recorded: {error}")

    def _close(self, result: StudyResult, state: SweepState) -> None:
        for row in self._unwritten:
            self.ledger.ended(row)
        tags = {"sharedenc.exit_code": str(result.exit_code)}
        for winner in result.winners:
            name = (winner.group or winner.cell).replace("/", ".")
            tags[f"sharedenc.lr.{name}"] = short_rate(winner.lr)
        for backbone, rate in result.rates.items():
            tags[f"sharedenc.lr.{backbone}"] = short_rate(rate)
        if result.exhausted:
            for row in result.rows:
                if row.state == "waiting":
                    self.ledger.waits(row, result.exhausted)
        self.ledger.summary(tags, self._search_files(result, state))
        self.ledger.close(*parent_state(result))

    def _search_files(self, result: StudyResult, state: SweepState) -> list[tuple[Path, str]]:
        """The account of the searches, as JSON and to read."""
        trials = search_trials(result.rows)
        if not trials:
            return []
        values = report(trials, rates=chosen_rates(state.rows))
        folder = self.places.study_dir(self.inputs.name)
        files = {"searches.json": json.dumps(values, indent=1), "searches.md": markdown(values)}
        for name, text in files.items():
            (folder / name).write_text(text)
        return [(folder / name, "") for name in files]


def _at_once(rules: Rules, launcher: Launcher) -> Rules:
    """The rules, with no more at once than the launcher runs."""
    if launcher.at_once is None:
        return rules
    return replace(
        rules, max_concurrent=min(rules.max_concurrent or launcher.at_once, launcher.at_once)
    )


def why_not(ledger: Ledger, rows: Mapping[str, Row]) -> dict[str, str]:
    """Why each row that was not taken over had to run, by node id; silent while no server is."""
    reasons: dict[str, str] = {}
    with contextlib.suppress(TrackingError):
        for name, row in rows.items():
            if not row.reused and row.trial is not None:
                reasons[name] = ledger.why_not(row.trial)
    return reasons


def parent_state(result: StudyResult) -> tuple[str, str | None]:
    """How the parent run ends."""
    if result.interrupted:
        return "stopped", result.interrupted
    return ("done" if result.exit_code == 0 else "failed"), result.exhausted or None
