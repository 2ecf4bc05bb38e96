"""The registry in memory and on a real MLflow server, under one contract."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from jetson_agent import registry_mlflow
from jetson_agent.errors import ServerError
from jetson_agent.protocol import BenchResult, ExportManifest, seen_agents
from jetson_agent.registry import MemoryRegistry
from jetson_agent.registry_mlflow import MlflowRegistry
from jetson_agent.server_clock import ServerClock, ask_server
from tests.agent import models
from tests.agent.publishing import Shelf, manifest_of, publish
from tests.contracts.registry import Hands, Publish, RegistryContract


class TestMemoryRegistry(RegistryContract):
    @pytest.fixture
    def shelf(self, hands: Hands) -> Shelf:
        return Shelf(MemoryRegistry(clock=hands))

    @pytest.fixture
    def registry(self, shelf: Shelf) -> MemoryRegistry:
        return shelf.registry

    @pytest.fixture
    def other(self, shelf: Shelf) -> MemoryRegistry:
        return shelf.registry

    @pytest.fixture
    def publish_one(self, shelf: Shelf) -> Publish:
        def add(model: Path, manifest: ExportManifest, ready: bool) -> None:
            version = shelf.add(
                model,
                manifest.architecture,
                graph=manifest.graph,
                state="ready" if ready else "uploading",
            )
            shelf.registry.versions[-1] = replace(
                version, model=manifest.model, tags={**version.tags, **manifest.to_tags()}
            )
            files = shelf.registry.files
            files[manifest.model, version.version, "model.onnx"] = model.read_bytes()

        return add


class Requests:
    """A client that counts its requests and breaks off at one of them.

    `lost` is "request" (it never arrives) or "answer" (it is carried out, and nobody hears of it).
    """

    def __init__(self, client: Any, break_at: int = 0, lost: str = "request") -> None:
        self._client = client
        self._break_at = break_at
        self._lost = lost
        self.made: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def request(*args: Any, **kwargs: Any) -> Any:
            self.made.append(name)
            if len(self.made) != self._break_at:
                return method(*args, **kwargs)
            if self._lost == "answer":
                method(*args, **kwargs)
            raise KeyboardInterrupt

        return request


class TestMlflowRegistry(RegistryContract):
    @pytest.fixture
    def connect(self, mlflow_uri: str, hands: Hands) -> Callable[[], MlflowRegistry]:
        return lambda: MlflowRegistry(mlflow_uri, clock=hands)

    @pytest.fixture
    def registry(self, connect: Callable[[], MlflowRegistry]) -> MlflowRegistry:
        return connect()

    @pytest.fixture
    def other(self, connect: Callable[[], MlflowRegistry]) -> MlflowRegistry:
        return connect()

    @pytest.fixture
    def publish_one(self, mlflow_uri: str) -> Publish:
        def send(model: Path, manifest: ExportManifest, ready: bool) -> None:
            publish(mlflow_uri, model, manifest, ready=ready)

        return send

    @pytest.fixture
    def client(self, mlflow_uri: str) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=mlflow_uri)

    def runs(self, client: Any, device: str, kind: str = "bench") -> list[Any]:
        experiment = client.get_experiment_by_name(f"bench/{device}")
        found = client.search_runs([experiment.experiment_id])
        return [run for run in found if run.data.tags["sharedenc.kind"] == kind]

    def test_a_bench_run_is_as_the_design_says(
        self, registry: MlflowRegistry, result: BenchResult, client: Any, tmp_path: Path
    ) -> None:
        logs = {"build.txt": b"[I] built\n", "runs/times-1.json": b"[]"}
        run = client.get_run(registry.report(result, logs))
        experiment = client.get_experiment(run.info.experiment_id)
        assert experiment.name == f"bench/{result.device}"
        assert run.info.status == "FINISHED"
        assert run.data.metrics == result.metrics
        assert result.to_tags().items() <= run.data.tags.items()
        folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
        assert json.loads((folder / "certificate.json").read_text()) == result.certificate
        assert {name: (folder / name).read_bytes() for name in logs} == logs
        failed = replace(result, load="stream", verdict="failed", metrics={})
        assert client.get_run(registry.report(failed)).info.status == "FAILED"

    def test_a_send_that_was_cut_off_is_completed_in_its_own_run(
        self, registry: MlflowRegistry, result: BenchResult, client: Any
    ) -> None:
        experiment = client.create_experiment(f"bench/{result.device}")
        cut = client.create_run(experiment, tags=result.to_tags()).info.run_id
        assert registry.bench_keys(result.device) == {}
        assert registry.report(result) == cut
        assert client.get_run(cut).data.metrics == result.metrics
        assert registry.bench_keys(result.device) == {result.key: "suspect"}

    @pytest.mark.slow
    @pytest.mark.parametrize("lost", ["request", "answer"])
    @pytest.mark.parametrize("known", [False, True], ids=["new", "replacing"])
    def test_a_report_cut_off_at_any_request_is_completed_by_the_next_one(
        self,
        connect: Callable[[], MlflowRegistry],
        result: BenchResult,
        client: Any,
        lost: str,
        known: bool,
    ) -> None:
        break_at, ended = 0, False
        while not ended:
            break_at += 1
            mine = replace(
                result, device=f"{result.device}-{break_at}", verdict="valid", reasons=[]
            )
            older = replace(mine, runtime="0.9")
            connect().report(older)
            if known:
                connect().report(replace(mine, verdict="suspect", metrics={"latency_ms/p50": 9.0}))
            cut = connect()
            cut._client = Requests(cut._client, break_at, lost)
            try:
                cut.report(mine, {"log.txt": b"log"})
                ended = True
            except KeyboardInterrupt:
                run_id = connect().report(mine, {"log.txt": b"log"})
                counting = [
                    run
                    for run in self.runs(client, mine.device)
                    if run.data.tags["sharedenc.bench_key"] == mine.key
                ]
                assert [run.info.run_id for run in counting] == [run_id], break_at
                assert counting[0].info.status == "FINISHED"
                history = client.get_metric_history(run_id, "latency_ms/p50")
                assert [point.value for point in history] == [1.5]
                names = {file.path for file in client.list_artifacts(run_id)}
                assert names == {"certificate.json", "log.txt"}
                assert connect().bench_keys(mine.device) == {mine.key: "valid"}
                for run in self.runs(client, mine.device, "bench-replaced"):
                    assert run.info.status != "RUNNING"
        assert break_at > 10

    def test_reports_of_one_key_at_one_moment_leave_one_run_that_counts(
        self, connect: Callable[[], MlflowRegistry], result: BenchResult, client: Any
    ) -> None:
        gate = threading.Barrier(3)
        errors = []

        def send(number: int) -> None:
            registry = connect()
            gate.wait(60)
            try:
                registry.report(replace(result, metrics={"latency_ms/p50": 1.0 + number}))
            except ServerError as error:
                errors.append(error)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A moment's collision may be refused; the spool sends it again.
        assert len(errors) < 3
        (run,) = self.runs(client, result.device)
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "latency_ms/p50")) == 1
        assert connect().bench_keys(result.device) == {result.key: "suspect"}

    def test_a_run_that_was_deleted_by_hand_is_measured_and_stored_again(
        self, connect: Callable[[], MlflowRegistry], result: BenchResult, client: Any
    ) -> None:
        first = connect().report(result)
        client.delete_run(first)
        assert connect().bench_keys(result.device) == {}
        second = connect().report(replace(result, metrics={"latency_ms/p50": 2.0}))
        assert second != first
        assert connect().bench_keys(result.device) == {result.key: "suspect"}

    def test_a_stale_run_says_what_made_it_stale(
        self, registry: MlflowRegistry, result: BenchResult, client: Any
    ) -> None:
        old = registry.report(result)
        registry.report(replace(result, runtime="10.7+l4t36.5"))
        assert client.get_run(old).data.tags["sharedenc.stale"] == "10.7+l4t36.5"
        assert client.get_run(old).data.tags["sharedenc.verdict"] == "suspect"

    def test_versions_come_in_pages_and_all_of_them(
        self,
        registry: MlflowRegistry,
        mlflow_uri: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(registry_mlflow, "PAGE", 2)
        model = models.doubling(tmp_path / "m.onnx")
        data = f"d{uuid4().hex[:8]}"
        for number in range(5):
            publish(mlflow_uri, model, manifest_of(model, str(number), data=data))
        found = [v for v in registry.ready_versions() if v.model.startswith(data)]
        assert sorted(v.version for v in found) == ["1", "2", "3", "4", "5"]

    def test_a_source_that_is_no_run_is_an_error_that_names_it(
        self, registry: MlflowRegistry, publish_one: Publish, tmp_path: Path
    ) -> None:
        model = models.doubling(tmp_path / "m.onnx")
        data = f"d{uuid4().hex[:8]}"
        publish_one(model, manifest_of(model, "A", data=data), True)
        version = next(v for v in registry.ready_versions() if v.model.startswith(data))
        with pytest.raises(ServerError, match="'s3://bucket/model'"):
            registry.download(replace(version, source="s3://bucket/model"), "m", tmp_path)
        with pytest.raises(ServerError, match="is no file on the server"):
            registry.download(
                replace(version, source=version.source.rpartition("/")[0]), "seg", tmp_path
            )

    def test_a_deleted_experiment_or_ledger_is_an_error_that_says_what_to_do(
        self,
        connect: Callable[[], MlflowRegistry],
        result: BenchResult,
        device: str,
        client: Any,
    ) -> None:
        client.delete_experiment(client.create_experiment(f"bench/{device}"))
        with pytest.raises(ServerError, match=f"experiment bench/{device} is deleted.*restore it"):
            connect().report(result)
        other = replace(result, device=f"{device}-2")
        connect().report(other)
        (ledger,) = self.runs(client, other.device, "bench-ledger")
        client.delete_run(ledger.info.run_id)
        with pytest.raises(ServerError, match=f"run {ledger.info.run_id}.*restore it"):
            connect().report(other)

    def test_nothing_new_costs_two_requests(
        self, registry: MlflowRegistry, other: MlflowRegistry, result: BenchResult
    ) -> None:
        registry.report(result)
        counted = Requests(other._client)
        other._client = counted

        def poll() -> list[str]:
            counted.made.clear()
            other.ready_versions()
            other.bench_keys(result.device)
            return counted.made

        assert "search_runs" in poll()
        idle = ["search_model_versions", "get_experiment_by_name"]
        assert poll() == idle
        registry.report(replace(result, load="stream"))
        assert "search_runs" in poll()
        assert poll() == idle
        # Who takes a job hears what is done by now, whatever was known before.
        other.claims(result.device).take(result.key, "me", 60.0)
        assert "search_runs" in poll()

    def test_a_sweep_finds_signs_of_life_on_the_experiment_of_the_device(
        self, registry: MlflowRegistry, device: str, hands: Hands, client: Any
    ) -> None:
        registry.claims(device).seen("one", {"version": "1.2", "modes": ["MAXN"]})
        hands.at += 100
        registry.claims(device).seen("two", {})
        registry.claims(device).seen("two", {"version": "1.3"})
        tags = client.get_experiment_by_name(f"bench/{device}").tags
        found = [(seen.agent, seen.at, seen.facts) for seen in seen_agents(tags)]
        assert found == [
            ("two", 1_800_000_100.0, {"version": "1.3"}),
            ("one", 1_800_000_000.0, {"version": "1.2", "modes": ["MAXN"]}),
        ]

    def test_without_a_clock_of_its_own_a_registry_goes_by_the_servers(
        self, mlflow_uri: str, device: str
    ) -> None:
        registry = MlflowRegistry(mlflow_uri)
        woke_in_1970 = ServerClock(lambda: ask_server(registry.server), local=lambda: 86_400.0)
        assert abs(woke_in_1970.now() - time.time()) < 60
        ahead = woke_in_1970.ahead_s()
        assert ahead is not None
        assert abs(ahead - (86_400.0 - time.time())) < 60
        claim = registry.claims(device).take("aa" * 32, "one", 600.0)
        assert claim is not None
        held = registry.claims(device).ledger.read().entries[f"claim.{'aa' * 20}.1"]
        assert abs(json.loads(held)["until"] - time.time() - 600) < 60
