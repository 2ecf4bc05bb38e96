"""Launchers: the one file that builds a `tune.Tuner`, and its in-process twin."""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sharedenc.errors import SharedencError
from sweeps.order import Machine
from sweeps.ray_session import RaySession
from sweeps.resources import local_machine, node_of, per_gpu
from sweeps.state import Row, SweepState
from sweeps.stopping import Stop
from sweeps.worker import Execute, execute, make_trainable, stopped

if TYPE_CHECKING:
    from sweeps.autoscaler import DemandTeller
    from sweeps.signals import Signals

Payload = Callable[[Row], dict[str, Any]]
Beat = Callable[[], None]

# How often the cluster's machines, its demand and the kernel's counters are looked at.
LOOK_S = 5.0
LOCAL_BEAT_S = 0.2


class Launcher(Protocol):
    """Runs the trials of a `SweepState` until it is finished."""

    @property
    def elastic(self) -> bool:
        """Whether machines may come that are not there yet."""

    @property
    def at_once(self) -> int | None:
        """How many processes run trials at once; None for as many as the machines hold."""

    def machines(self) -> list[Machine]:
        """What there is to run on; the launcher is open from here on."""

    def check(self, *, tracking_uri: str, storage: str | None) -> bool:
        """Refuse machines of a cluster that are not fit for trials; whether it is a cluster.

        Raises:
            SpecError: naming each one that is not, and why.
        """

    def run(self, state: SweepState, payload: Payload, beat: Beat) -> None:
        """Run everything. ``payload`` makes a started row's input, ``beat`` is called often.

        Once the state drains, what runs is told to save and stop.
        """

    def close(self) -> None:
        """Stop what still runs and leave no process behind."""


@dataclass
class LocalLauncher:
    """One trial, or group of them, after the other in this process.

    For tests, debugging and machines without Ray.
    """

    run_trial: Execute = execute
    elastic: bool = False
    sleep: Callable[[float], None] = time.sleep

    @property
    def at_once(self) -> int | None:
        """One after the other."""
        return 1

    def machines(self) -> list[Machine]:
        """One slot, whatever a trial asks for."""
        whole = local_machine()
        return [Machine(cpus=whole.cpus, gpus=whole.gpus, memory=whole.memory)]

    def check(self, *, tracking_uri: str, storage: str | None) -> bool:
        """There is only this process."""
        return False

    def run(self, state: SweepState, payload: Payload, beat: Beat) -> None:
        """Run every trial to its end before the next one starts."""
        while not state.finished:
            row = state.next()
            if row is None:
                # Something waits for its back-off, or another process for the drain.
                beat()
                self.sleep(LOCAL_BEAT_S)
                continue
            members = [state.rows[name] for name in state.group(row.node.id).members]
            self._run(state, [payload(member) for member in members], beat)
            beat()

    def close(self) -> None:
        """Nothing was started."""

    def _run(self, state: SweepState, payloads: list[dict[str, Any]], beat: Beat) -> None:
        drain = payloads[0].get("drain_file")
        heard = 0.0

        def on_report(name: str, report: dict[str, Any]) -> bool:
            cut = state.epoch(name, report)
            beat()
            return cut

        def stopping() -> str:
            nonlocal heard
            if time.monotonic() - heard >= LOCAL_BEAT_S:
                heard = time.monotonic()
                beat()
            return state.draining or stop()

        with Stop(None if drain is None else Path(drain)) as stop:
            reason = stop()
            if not reason:
                self.run_trial(payloads, on_report, state.end, stopping)
        for payload in payloads if reason else ():
            state.end(payload["node"], stopped(reason))


@dataclass
class RayLauncher:
    """Ray Tune on this machine, or on the cluster at ``address``.

    A Ray that this process has joined already is used as it is, and left running.

    Args:
        storage: A folder of this launcher's own for Tune's (few) files; removed at the end.
        threads: Threads of one trial, for the libraries that read them from the environment.
        address: A Ray cluster to join; None starts a private Ray on this machine.
        cpus, memory_gib, gpus: Limits of this machine that differ from what it has.
        run_trial: What a worker does for trials that train together.
        records: Folder in which a private Ray is recorded, for the next one to clean up after it
            should this process be killed; None for the folder around ``storage``.
        growing: Whether the cluster can grow; None to find out.
        share_gpus: Trials may share a GPU: each GPU counts as a machine of its own.
    """

    storage: Path
    threads: int = 1
    address: str | None = None
    cpus: float | None = None
    memory_gib: float | None = None
    gpus: float | None = None
    run_trial: Execute = execute
    records: Path | None = None
    growing: bool | None = None
    share_gpus: bool = False
    _session: RaySession | None = None
    _elastic: bool = False

    @property
    def elastic(self) -> bool:
        """Whether machines may come that are not there yet; known once the launcher is open."""
        return self._elastic

    @property
    def at_once(self) -> int | None:
        """As many as the machines hold."""
        return None

    def machines(self) -> list[Machine]:
        """Start or join Ray and read off its nodes.

        Raises:
            SpecError: the cluster cannot be joined.
        """
        from sweeps.autoscaler import can_grow

        if self._session is None:
            self._session = RaySession(
                records=self.records or self.storage.parent,
                threads=self.threads,
                address=self.address,
                cpus=self.cpus,
                memory_gib=self.memory_gib,
                gpus=self.gpus,
            )
            self._session.open()
            grows = self.growing
            self._elastic = (
                can_grow() if grows is None and not self._session.private else bool(grows)
            )
        return self._split(self._session.machines())

    def _split(self, machines: list[Machine]) -> list[Machine]:
        return per_gpu(machines) if self.share_gpus else machines

    def check(self, *, tracking_uri: str, storage: str | None) -> bool:
        """Ask every node of a cluster for its versions, the storage and the tracking server."""
        from sweeps.cluster import check_cluster

        assert self._session is not None, "machines() opens the launcher"
        if self._session.private:
            return False
        check_cluster(tracking_uri=tracking_uri, storage=storage)
        return True

    def run(self, state: SweepState, payload: Payload, beat: Beat) -> None:
        """Run the whole graph with one Tuner; another one takes over should Tune itself fail."""
        from ray.tune import TuneError

        from sweeps.lost import OomKills, lost
        from sweeps.signals import Signals

        assert self._session is not None, "machines() opens the launcher"
        self.storage.mkdir(parents=True, exist_ok=True)
        watch = _Watch(state, self._session, Signals(), OomKills(), beat, self._split)
        try:
            while not state.finished:
                try:
                    self._fit(state, payload, watch)
                    return
                except (RuntimeError, TuneError) as error:
                    # Tune wraps what our own callbacks raise.
                    own = _own(error)
                    if own is not None:
                        raise own from None
                    running = state.running
                    if not running:
                        raise
                    for row in running:
                        state.end(row.node.id, lost(f"{error}\n{traceback.format_exc()}"))
        finally:
            watch.close()

    def _fit(self, state: SweepState, payload: Payload, watch: _Watch) -> None:
        from ray import tune

        from sweeps.searcher import BracketScheduler, GraphSearcher, Quiet, Watcher

        scheduler = BracketScheduler(state, watch.signals.cut)
        searcher = GraphSearcher(state, payload, watch)
        trainable = make_trainable(self.run_trial, watch.signals.name)
        tuner = tune.Tuner(
            tune.with_resources(trainable, placement),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.storage.resolve()),
                callbacks=[
                    Watcher(state, watch, watch.lost, scheduler, searcher.running),
                    Quiet(),
                ],
                progress_reporter=_Silent(),
                verbose=0,
            ),
        )
        tuner.fit()

    def close(self) -> None:
        """Shut a private Ray down with all its processes, or leave the cluster."""
        if self._session is not None:
            self._session.close()
            self._session = None
        shutil.rmtree(self.storage, ignore_errors=True)


@dataclass
class _Watch:
    """What is done beside the trials, at every beat or every few seconds."""

    state: SweepState
    session: RaySession
    signals: Signals
    kills: Any
    beat: Beat
    split: Callable[[list[Machine]], list[Machine]]
    teller: DemandTeller = field(init=False)
    _looked: float = -1e9

    def __post_init__(self) -> None:
        from sweeps.autoscaler import DemandTeller

        self.teller = DemandTeller()

    def __call__(self) -> None:
        self.beat()
        if self.state.draining:
            self.signals.stop(self.state.draining)
        if time.monotonic() - self._looked >= LOOK_S:
            self.look()

    def look(self) -> None:
        """Take over which machines there are, and tell a cluster what is wanted."""
        self._looked = time.monotonic()
        self.kills.recent()
        if self.session.private:
            return
        for node in self.session.draining():
            self.signals.stop("preempted: its node is being drained", node)
        self.state.set_machines(self.split(self.session.machines()))
        self.teller.tell(self.state.wanted)

    def lost(self, text: str, machine: str) -> dict[str, Any]:
        """Sort what Ray says of a worker that is gone."""
        from sweeps.lost import lost

        node = node_of(machine)
        here = not node or node == self.session.node
        gone = self.session.is_gone(node)
        if gone:
            self.look()  # nothing more is to be started there
        return lost(text, node_is_gone=gone, oom_kill=here and self.kills.recent())

    def close(self) -> None:
        """Nothing more is wanted, and nobody asks any more."""
        # A cluster that is gone needs no goodbye, and must not hide why the sweep ends.
        with contextlib.suppress(Exception):
            if not self.session.private:
                self.teller.withdraw()
            self.signals.close()


def _own(error: BaseException) -> SharedencError | None:
    """The error of ours behind one of Tune's, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SharedencError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


class _Silent:
    """A progress reporter of Tune that reports nothing; ours reads `SweepState`."""

    def setup(self, **info: Any) -> None: ...

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: Any) -> None: ...


def placement(config: dict[str, Any]) -> Any:
    """What a trial occupies, on the machine that was chosen for it."""
    from ray import tune

    bundle = {"CPU": config["cpus"], "memory": config["memory"]}
    if config["gpus"]:
        bundle["GPU"] = config["gpus"]
    node = node_of(config["machine"])
    if not node:
        return tune.PlacementGroupFactory([bundle])
    here = {"ray.io/node-id": node}
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=[here])


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.trial_id}"
