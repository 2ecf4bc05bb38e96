"""Register ONNX files as the sweep side does."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from jetson_agent.protocol import READY, STATE_TAG, ExportManifest
from jetson_agent.registry import MemoryRegistry, ModelVersion


def manifest_of(
    model: Path, architecture: str, *, graph: str = "seg", data: str = "voc20"
) -> ExportManifest:
    return ExportManifest(
        data=data,
        backbone="resnet18",
        graph=graph,
        architecture=architecture,
        files={"model.onnx": hashlib.sha256(model.read_bytes()).hexdigest()},
        study="study",
        cell=f"resnet18/baseline/{graph}",
        key="cd" * 32,
    )


@dataclass
class Shelf:
    """Puts versions into a `MemoryRegistry`."""

    registry: MemoryRegistry = field(default_factory=MemoryRegistry)

    def add(
        self,
        model: Path,
        architecture: str,
        *,
        graph: str = "seg",
        state: str = READY,
        content: bytes | None = None,
        **tags: str,
    ) -> ModelVersion:
        """`content` is what can be downloaded, if not what was registered."""
        manifest = manifest_of(model, architecture, graph=graph)
        number = str(1 + sum(v.model == manifest.model for v in self.registry.versions))
        version = ModelVersion(
            model=manifest.model,
            version=number,
            run_id="r",
            source="",
            tags={**manifest.to_tags(), STATE_TAG: state, **tags},
            created_ms=len(self.registry.versions),
        )
        self.registry.versions.append(version)
        self.registry.files[version.model, number, "model.onnx"] = content or model.read_bytes()
        return version


def publish(
    uri: str, model: Path, manifest: ExportManifest, *, ready: bool = True
) -> tuple[str, str, str]:
    """Upload and register `model` on an MLflow server; returns model name, version, run id."""
    folder = model.parent / f"upload-{uuid4().hex}"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.read_bytes())
    (folder / "manifest.json").write_text(manifest.to_json())
    return publish_folder(uri, folder, manifest, ready=ready)


def publish_folder(
    uri: str, folder: Path, manifest: ExportManifest, *, ready: bool = True
) -> tuple[str, str, str]:
    """Upload and register all files of `folder`; returns model name, version, run id."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("study")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("study")
    run_id = client.create_run(experiment_id).info.run_id
    place = f"export/{manifest.graph}"
    client.log_artifacts(run_id, str(folder), place)
    client.set_terminated(run_id)
    with contextlib.suppress(MlflowException):  # a second version of the same model
        client.create_registered_model(manifest.model)
    version = client.create_model_version(manifest.model, f"runs:/{run_id}/{place}", run_id)
    for name, value in manifest.to_tags().items():
        client.set_model_version_tag(manifest.model, version.version, name, value)
    if ready:
        client.set_model_version_tag(manifest.model, version.version, STATE_TAG, READY)
    return manifest.model, str(version.version), run_id
