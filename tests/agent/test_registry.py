"""The registry in memory and on a real MLflow server, under one contract."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from jetson_agent.errors import ServerError
from jetson_agent.protocol import BenchResult, ExportManifest
from jetson_agent.registry import MemoryRegistry, Registry
from jetson_agent.registry_mlflow import MlflowRegistry, check_server, without_credentials
from tests.agent import models
from tests.agent.publishing import Shelf, manifest_of, publish
from tests.agent.test_protocol import RESULT

Publish = Callable[[Path, ExportManifest, bool], None]


@pytest.fixture
def result() -> BenchResult:
    """A result of a device that no other test knows: the server is shared."""
    return replace(RESULT, device=f"board-{uuid4().hex[:8]}")


class RegistryContract:
    def test_only_ready_versions_are_listed_with_all_their_tags(
        self, registry: Registry, publish_one: Publish, tmp_path: Path
    ) -> None:
        model = models.doubling(tmp_path / "m.onnx")
        data = f"d{uuid4().hex[:8]}"
        ready = manifest_of(model, "A", graph="seg", data=data)
        publish_one(model, ready, True)
        publish_one(model, manifest_of(model, "B", graph="det", data=data), False)
        found = [v for v in registry.ready_versions() if v.model.startswith(data)]
        assert [v.name for v in found] == [f"{data}-resnet18-seg v1"]
        assert ExportManifest.from_tags(found[0].tags) == ready

    def test_a_download_gives_the_bytes_that_were_uploaded(
        self, registry: Registry, publish_one: Publish, tmp_path: Path
    ) -> None:
        model = models.doubling(tmp_path / "m.onnx")
        data = f"d{uuid4().hex[:8]}"
        publish_one(model, manifest_of(model, "A", data=data), True)
        version = next(v for v in registry.ready_versions() if v.model.startswith(data))
        (tmp_path / "down").mkdir()
        path = registry.download(version, "model.onnx", tmp_path / "down")
        assert path == tmp_path / "down" / "model.onnx"
        assert path.read_bytes() == model.read_bytes()

    def test_a_device_without_a_timing_has_no_keys(self, registry: Registry) -> None:
        assert registry.bench_keys("never-seen") == {}

    def test_a_result_is_found_again_by_its_key_on_its_device_only(
        self, registry: Registry, result: BenchResult
    ) -> None:
        registry.report(result)
        assert registry.bench_keys(result.device) == {result.key: "suspect"}
        assert result.key not in registry.bench_keys("another")

    def test_sending_twice_stores_once(self, registry: Registry, result: BenchResult) -> None:
        assert registry.report(result) == registry.report(result)
        assert len(registry.bench_keys(result.device)) == 1

    def test_a_better_verdict_replaces_a_worse_one_and_not_the_other_way_round(
        self, registry: Registry, result: BenchResult
    ) -> None:
        registry.report(replace(result, verdict="failed", metrics={}))
        registry.report(result)
        assert registry.bench_keys(result.device) == {result.key: "suspect"}
        registry.report(replace(result, verdict="valid", reasons=[]))
        registry.report(replace(result, verdict="failed", metrics={}))
        assert registry.bench_keys(result.device) == {result.key: "valid"}


class TestMemoryRegistry(RegistryContract):
    @pytest.fixture
    def shelf(self) -> Shelf:
        return Shelf()

    @pytest.fixture
    def registry(self, shelf: Shelf) -> MemoryRegistry:
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


class TestMlflowRegistry(RegistryContract):
    @pytest.fixture
    def registry(self, mlflow_uri: str) -> MlflowRegistry:
        return MlflowRegistry(mlflow_uri)

    @pytest.fixture
    def publish_one(self, mlflow_uri: str) -> Publish:
        def send(model: Path, manifest: ExportManifest, ready: bool) -> None:
            publish(mlflow_uri, model, manifest, ready=ready)

        return send

    @pytest.fixture
    def client(self, mlflow_uri: str) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=mlflow_uri)

    def test_a_bench_run_is_as_the_design_says(
        self, registry: MlflowRegistry, result: BenchResult, client: Any, tmp_path: Path
    ) -> None:
        run = client.get_run(registry.report(result))
        experiment = client.get_experiment(run.info.experiment_id)
        assert experiment.name == f"bench/{result.device}"
        assert run.info.status == "FINISHED"
        assert run.data.metrics == result.metrics
        assert result.to_tags().items() <= run.data.tags.items()
        path = client.download_artifacts(run.info.run_id, "certificate.json", str(tmp_path))
        assert json.loads(Path(path).read_text()) == result.certificate

    def test_a_send_that_was_cut_off_is_completed_in_its_own_run(
        self, registry: MlflowRegistry, result: BenchResult, client: Any
    ) -> None:
        experiment = client.create_experiment(f"bench/{result.device}")
        cut = client.create_run(experiment, tags=result.to_tags()).info.run_id
        assert registry.bench_keys(result.device) == {}
        assert registry.report(result) == cut
        assert client.get_run(cut).data.metrics == result.metrics
        assert registry.bench_keys(result.device) == {result.key: "suspect"}

    def test_a_repetition_leaves_one_value_per_metric(
        self, registry: MlflowRegistry, result: BenchResult, client: Any
    ) -> None:
        run_id = registry.report(result)
        registry.report(result)
        assert len(client.get_metric_history(run_id, "latency_ms/p50")) == 1

    def test_a_missing_artifact_is_an_error_that_names_it(
        self, registry: MlflowRegistry, publish_one: Publish, tmp_path: Path
    ) -> None:
        model = models.doubling(tmp_path / "m.onnx")
        data = f"d{uuid4().hex[:8]}"
        publish_one(model, manifest_of(model, "A", data=data), True)
        version = next(v for v in registry.ready_versions() if v.model.startswith(data))
        with pytest.raises(ServerError, match=r"other\.onnx of .*-seg v1"):
            registry.download(version, "other.onnx", tmp_path)
        with pytest.raises(ServerError, match="'s3://bucket/model'"):
            registry.download(replace(version, source="s3://bucket/model"), "m", tmp_path)

    def test_a_deleted_experiment_is_an_error_that_says_what_to_do(
        self, registry: MlflowRegistry, result: BenchResult, client: Any
    ) -> None:
        client.delete_experiment(client.create_experiment(f"bench/{result.device}"))
        with pytest.raises(ServerError, match="restore it"):
            registry.report(result)


def test_a_server_that_is_away_is_told_at_once() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        uri = f"http://me:geheim@127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(ServerError, match="no MLflow server answers at") as caught:
            check_server(uri)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "./mlruns", "databricks"])
def test_what_is_no_server_is_refused(uri: str) -> None:
    with pytest.raises(ServerError, match="not an http"):
        check_server(uri)


def test_credentials_are_left_out_of_what_people_read() -> None:
    assert without_credentials("https://me:pw@host:5000/x") == "https://host:5000/x"
    assert without_credentials("https://host/x") == "https://host/x"
