"""Whole deployments: which runs they are made of, and one dual graph of two trials."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from mlflow import MlflowClient

import sharedenc
from jetson_agent.protocol import ExportManifest
from sharedenc.cli import main
from sharedenc.data.packed import PackedDataset
from sharedenc.errors import ExportError, SpecError
from sharedenc.export.assemble import assemble
from sharedenc.export.calibration import Calibration
from sharedenc.export.choose import best_run, finished, pairs, swaps
from sharedenc.export.deployment import Deployment, deployments_of, register_deployment
from sharedenc.export.folder import export_folder
from sharedenc.export.load import load_with_meta
from sharedenc.export.parity import natural_images
from sharedenc.export.registered import OpenRun
from sharedenc.export.registry import export_study, register_run
from sharedenc.models.network import Network
from sharedenc.report.collect import collect
from sharedenc.spec import Cell, Task
from sharedenc.tracking import MlflowTracker, RunRecord
from sharedenc.training.checkpoint import save_network
from tests.export.conftest import alive_network, meta_of

SHARED: dict[Task, Cell] = {
    "det": Cell.parse("resnet18/share-frozen/det"),
    "seg": Cell.parse("resnet18/share-frozen/seg"),
}
SWAPPED: dict[Task, Cell] = {
    "det": Cell.parse("resnet18/baseline/det"),
    "seg": Cell.parse("resnet18/swap-frozen/seg"),
}


def key_of(number: int) -> str:
    return f"{number:x}" * 64


# Names.


def test_every_deployment_of_a_backbone_has_a_name_and_its_cells() -> None:
    found = {deployment.name: deployment for deployment in deployments_of("resnet18")}
    assert set(found) == {
        f"resnet18/{rest}"
        for rest in (
            "baseline",
            *("swap/det", "swap/seg", "swap-frozen/det", "swap-frozen/seg"),
            *("swap-bias/det", "swap-bias/seg", "share-frozen", "share-bias"),
            *("dual", "dual-frozen", "dual-bias"),
        )
    }

    def cells(rest: str) -> dict[str, str]:
        return {
            graph: cell.name.removeprefix("resnet18/")
            for graph, cell in found[f"resnet18/{rest}"].cells.items()
        }

    assert cells("baseline") == {"det": "baseline/det", "seg": "baseline/seg"}
    assert cells("share-bias") == {"det": "share-bias/det", "seg": "share-bias/seg"}
    assert cells("swap-frozen/seg") == {"det": "baseline/det", "seg": "swap-frozen/seg"}
    assert cells("swap-bias/det") == {"det": "swap-bias/det", "seg": "baseline/seg"}
    assert cells("dual") == {"dual": "dual"}
    one_graph = {name for name, deployment in found.items() if deployment.graphs == ("dual",)}
    assert one_graph == {
        f"resnet18/{rest}"
        for rest in (
            *("share-frozen", "swap-frozen/det", "swap-frozen/seg"),
            *("dual", "dual-frozen", "dual-bias"),
        )
    }
    assert all(Deployment.parse(name) == deployment for name, deployment in found.items())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet18/shared-frozen", "Did you mean 'resnet18/share-frozen'"),
        ("resnet18/share-frozen/seg", "is a cell, and serves one task; the deployment is"),
        ("resnet18/swap-frozen", "resnet18/swap-frozen/seg"),
        ("resnet81/dual", "Did you mean 'resnet18'"),
        ("", "backbone='' is not one of"),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_nearest(name: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        Deployment.parse(name)


# Which runs.


def record(
    cell: Cell | str,
    run_id: str,
    *,
    score: float = 0.5,
    weights: str = "w",
    seed: int = 0,
    key: str = "",
    parent: str = "",
    **tags: str,
) -> RunRecord:
    return RunRecord(
        run_id=run_id,
        name=str(cell),
        tags={
            "sharedenc.cell": str(cell),
            "sharedenc.state": "done",
            "sharedenc.key": key,
            "sharedenc.content": json.dumps({"parent": parent} if parent else {}),
            **{f"sharedenc.{name}": value for name, value in tags.items()},
        },
        params={"weights": weights, "seed": str(seed)},
        metrics={"score": score},
        status="FINISHED",
        start_ms=int(run_id.strip("abcdefghijklmnopqrstuvwxyz") or 0),
        end_ms=None,
    )


def ids(parts: Mapping[Task, RunRecord]) -> tuple[str, str]:
    return parts["det"].run_id, parts["seg"].run_id


def nowhere(key: str) -> RunRecord | None:
    return None


def test_the_best_run_is_one_with_a_score_and_a_network() -> None:
    cell = "resnet18/dual"
    runs = [
        record(cell, "a1", score=math.nan),
        record(cell, "b2", score=0.9, pruned="2026-01-02"),
        record(cell, "c3", score=0.4),
        record(cell, "d4", score=0.4),
        record(cell, "e5", score=0.95, state="failed"),
    ]
    assert [run.run_id for run in finished(runs, cell)[0]] == ["c3", "d4", "a1"]
    assert best_run(runs[1:2], cell) == (
        None,
        "resnet18/dual is done, and its network was pruned on 2026-01-02: run the sweep again",
    )
    assert best_run([], cell)[1] == "the study has no run of resnet18/dual"


def test_shared_runs_are_paired_by_the_encoder_that_they_started_from() -> None:
    det = [record(SHARED["det"], f"det{s}", score=0.1 * s, seed=s) for s in (1, 2, 3)]
    seg = [record(SHARED["seg"], f"seg{s}", score=0.9 - 0.1 * s, seed=s) for s in (1, 2, 3)]
    # Pretrained: one encoder for all seeds, so the best of each.
    assert ids(pairs([*det, *seg], SHARED)[0]) == ("det3", "seg1")
    assert len(pairs([*det, *seg], SHARED)) == 9
    # Random: an encoder per seed, so the best mean of one seed (0.2 + 0.75 is the largest sum).
    for run in (*det, *seg):
        run.params["weights"] = "none"
    seg[1].metrics["score"] = 0.75
    found = [ids(pair) for pair in pairs([*det, *seg], SHARED)]
    assert found[0] == ("det2", "seg2")
    assert set(found[1:]) == {("det1", "seg1"), ("det3", "seg3")}
    # None fits: the best of each, whose difference is told when they are opened.
    assert [ids(pair) for pair in pairs([det[0], seg[1]], SHARED)] == [("det1", "seg2")]


def test_a_swap_goes_with_the_very_run_that_it_started_from() -> None:
    runs = [
        record(SWAPPED["det"], "det1", score=0.9, key=key_of(1)),
        record(SWAPPED["det"], "det2", score=0.2, key=key_of(2)),
        record(SWAPPED["seg"], "seg3", score=0.5, parent=key_of(1)),
        record(SWAPPED["seg"], "seg4", score=0.6, parent=key_of(2)),
    ]
    found = swaps(runs, SWAPPED, "seg", nowhere)
    assert [ids(pair) for pair in found] == [("det2", "seg4"), ("det1", "seg3")]
    # The best one's source has no network any more: the next best one counts.
    runs[1].tags["sharedenc.pruned"] = "2026-01-02"
    assert [ids(pair) for pair in swaps(runs, SWAPPED, "seg", nowhere)] == [("det1", "seg3")]
    # Unless another study has it.
    other = record(SWAPPED["det"], "other5", key=key_of(2))
    found = swaps(runs, SWAPPED, "seg", {key_of(2): other}.get)
    assert ids(found[0]) == ("other5", "seg4")
    with pytest.raises(ExportError, match=r"run seg4\) started from the encoder of a run of"):
        swaps(runs[2:], SWAPPED, "seg", nowhere)


def test_cells_that_are_not_done_are_all_named() -> None:
    runs = [
        record(SHARED["det"], "det1", state="failed", reason="loss became NaN"),
        record(SHARED["seg"], "seg2", state="waiting"),
    ]
    with pytest.raises(ExportError) as told:
        pairs(runs, SHARED)
    assert str(told.value) == (
        "resnet18/share-frozen/det is failed: loss became NaN; resnet18/share-frozen/seg is waiting"
    )


# One network of two.


def split(whole: Network) -> dict[Task, Network]:
    """Two networks as two trials leave them: equal encoders, one head each."""
    common: dict[str, Any] = {"num_classes": whole.num_classes, "backbone": whole.backbone}
    return {
        "det": Network(
            copy.deepcopy(whole.encoder), det_head=whole.det_head, seg_head=None, **common
        ).eval(),
        "seg": Network(
            copy.deepcopy(whole.encoder), det_head=None, seg_head=whole.seg_head, **common
        ).eval(),
    }


def opened(networks: Mapping[Task, Network], strategy: str = "share-frozen") -> dict[Task, OpenRun]:
    runs: dict[Task, OpenRun] = {}
    for number, (task, network) in enumerate(networks.items(), start=1):
        cell = f"{network.backbone}/{strategy}/{task}"
        meta = meta_of(network, cell=cell, image_px=64, key=key_of(number))
        recipe = {"top_k": 7 * number, "sample_path": "fast"}
        start = {"weights": "w", "seed": "0", "bn_mode": "eval"}
        run_id = f"{number:032x}"
        runs[task] = OpenRun(
            run_id, network, {**meta, "recipe": recipe}, key_of(8 + number), start=start
        )
    return runs


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        "mobilenet_v3_large",
        pytest.param("efficientnet_v2_s", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
    ],
)
def test_the_one_network_gives_what_the_two_gave(backbone: str, tmp_path: Path) -> None:
    networks = split(alive_network(backbone, ("det", "seg"), seed=3))
    images = natural_images(3, 64, seed=9)
    with torch.no_grad():
        theirs = {**networks["det"](images), **networks["seg"](images)}
    made = assemble(f"{backbone}/share-frozen", opened(networks))
    assert made.network.tasks == ("det", "seg")
    with torch.no_grad():
        ours = made.network(images)
    assert set(ours) == {"cls_logits", "bbox_regression", "seg_logits"}
    for name, expected in theirs.items():
        assert ours[name].equal(expected), name

    # As files: the one graph against torch's two networks, one photo at a time.
    done = export_folder(made.network, "dual", tmp_path / "made", meta=made.meta)
    session = onnxruntime.InferenceSession(str(done.info.path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for at in range(len(images)):
        values = session.run(names, {"images": images[at : at + 1].numpy()})
        found = dict(zip(names, values, strict=True))
        for name, expected in theirs.items():
            limit = done.info.parity[name]["limit"] * float(expected.std())
            assert found[name] == pytest.approx(expected[at : at + 1].numpy(), abs=limit), name

    # Timings belong to architectures: it is that of a dual network that was trained as one.
    other = alive_network(backbone, ("det", "seg"), seed=5)
    dual = export_folder(other, "dual", tmp_path / "dual", meta=meta_of(other, image_px=64))
    assert done.manifest.architecture == dual.manifest.architecture


def test_what_it_says_about_itself_comes_from_both_trials(resnet_dual: Network) -> None:
    runs = opened(split(resnet_dual))
    made = assemble("resnet18/share-frozen", runs)
    assert made.recipe == {"top_k": 7, "sample_path": "fast"}
    assert made.meta["cell"] == "resnet18/share-frozen"
    assert made.meta["tasks"] == ["det", "seg"]
    assert made.meta["parts"]["seg"] == {
        "cell": "resnet18/share-frozen/seg",
        "key": key_of(2),
        "run_id": f"{2:032x}",
    }
    assert made.tags["sharedenc.deployment"] == "resnet18/share-frozen"
    parts = json.loads(made.tags["sharedenc.parts"])
    assert parts == {"det": f"{1:032x}", "seg": f"{2:032x}"}
    assert len(made.meta["key"]) == 64
    again = assemble("resnet18/share-frozen", runs)
    assert (again.meta, again.identity) == (made.meta, made.identity)
    runs["seg"] = OpenRun(
        runs["seg"].run_id, runs["seg"].network, {**runs["seg"].meta, "key": key_of(3)}, key_of(7)
    )
    other = assemble("resnet18/share-frozen", runs)
    assert other.meta["key"] != made.meta["key"]
    assert other.identity != made.identity


def refused(runs: Mapping[Task, OpenRun]) -> str:
    with pytest.raises(ExportError) as told:
        assemble("resnet18/share-frozen", runs)
    return str(told.value)


def test_encoders_that_differ_are_refused_by_name(resnet_dual: Network) -> None:
    runs = opened(split(resnet_dual))
    norms = runs["seg"].network.encoder.state_dict()
    name = next(name for name in norms if name.endswith("running_mean"))
    norms[name][0] += 1e-7
    text = refused(runs)
    assert f"1 of the encoder's {len(norms)} tensors differ" in text
    assert name in text
    assert "changed after it was frozen" in text

    def start(**given: str) -> str:
        both = {
            task: OpenRun(run.run_id, run.network, run.meta, "", start={**run.start, **given})
            for task, run in runs.items()
        }
        both["det"] = OpenRun(
            "d" * 32, runs["det"].network, runs["det"].meta, "", start=runs["det"].start
        )
        return refused(both)

    assert "with bn_mode=train those of a frozen encoder move" in start(bn_mode="train")
    assert "different weights. Train both with the same --weights" in start(weights="v")
    runs["det"] = OpenRun(
        "d" * 32,
        runs["det"].network,
        runs["det"].meta,
        "",
        start={"weights": "none", "seed": "1", "bn_mode": "eval"},
    )
    assert "Each seed draws random weights of its own" in start(weights="none")
    assert "statistics from training photos" in start(weights="none", seed="1")
    swapped = opened({task: run.network for task, run in runs.items()}, "swap-frozen")
    assert "its baseline was trained again" in refused(swapped)


def test_a_sign_of_zero_counts_as_a_difference(resnet_dual: Network) -> None:
    runs = opened(split(resnet_dual))
    for run, value in zip(runs.values(), (0.0, -0.0), strict=True):
        next(run.network.encoder.parameters()).data.view(-1)[0] = value
    assert "1 of the encoder's" in refused(runs)


def test_trials_of_other_sizes_or_data_are_refused(resnet_dual: Network) -> None:
    runs = opened(split(resnet_dual))
    for field, value in (("image_px", 96), ("classes", ["cat"]), ("data_digest", "2" * 64)):
        meta = {**runs["seg"].meta, field: value}
        other = OpenRun(runs["seg"].run_id, runs["seg"].network, meta, "")
        assert f"{field} is " in refused({**runs, "seg": other})


# On a server.


class Study:
    """A study on the server whose trials are made by hand; its networks take small images."""

    def __init__(self, uri: str, name: str, folder: Path) -> None:
        self.uri, self.name, self.folder = uri, name, folder
        self.tracker = MlflowTracker(uri)
        self.parent = self.tracker.study(name, {})

    def trial(
        self,
        cell: str,
        network: Network | None,
        *,
        state: str = "done",
        score: float = 0.5,
        seed: int = 0,
        key: str = "",
        parent: str = "",
        **tags: str,
    ) -> str:
        parsed = Cell.parse(cell)
        key = key or key_of(1 + len(self.tracker.runs(self.name)) % 15)
        said = {
            "cell": cell,
            "stage": "final",
            "key": key,
            "backbone": parsed.backbone,
            "strategy": parsed.strategy,
            "freeze": parsed.freeze,
            "content": json.dumps({"parent": parent} if parent else {}),
            **tags,
        }
        run = self.tracker.child(
            self.name, self.parent, cell, {f"sharedenc.{name}": text for name, text in said.items()}
        )
        if network is not None:
            path = self.folder / run.run_id / "best.safetensors"
            path.parent.mkdir(parents=True)
            save_network(network, path, meta_of(network, cell=cell, image_px=64, key=key))
            run.artifact(path, "checkpoint")
        run.params(
            {
                "recipe.nms_iou": 0.4 if parsed.task == "det" else 0.6,
                "recipe.sample_path": "reference",
                "recipe.image_px": 64,
                "weights": "none",
                "seed": seed,
            }
        )
        run.metrics({"score": score}, step=1)
        run.end(state)
        return run.run_id


@pytest.fixture
def study(mlflow_uri: str, tmp_path: Path, request: pytest.FixtureRequest) -> Study:
    return Study(mlflow_uri, request.node.name, tmp_path)


@pytest.fixture
def client(mlflow_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri)


@pytest.fixture(scope="module")
def halves(resnet_dual: Network) -> dict[Task, Network]:
    return split(resnet_dual)


@pytest.fixture(scope="module")
def other_halves() -> dict[Task, Network]:
    return split(alive_network("resnet18", ("det", "seg"), seed=8))


def export(study: Study, *more: str) -> Result:
    arguments = ["export", "--study", study.name, *more]
    return CliRunner(env={"MLFLOW_TRACKING_URI": study.uri}).invoke(main, arguments)


def same_network(one: Network, other: Network) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_two_trials_become_one_version_that_is_found_again(
    study: Study,
    client: MlflowClient,
    halves: dict[Task, Network],
    other_halves: dict[Task, Network],
    resnet_dual: Network,
) -> None:
    dual = study.trial("resnet18/dual", resnet_dual)
    det = study.trial("resnet18/share-frozen/det", halves["det"], score=0.4)
    seg = study.trial("resnet18/share-frozen/seg", halves["seg"], score=0.4)
    # Better, but of another seed's random encoder, and nothing goes with it.
    study.trial("resnet18/share-frozen/seg", other_halves["seg"], score=0.9, seed=1)
    before = {row.graph: row for row in export_study(study.uri, study.name) if row.ready}
    (row,) = register_deployment(study.uri, study.name, "resnet18/share-frozen")
    assert (row.outcome, row.model, row.graph) == ("registered", "pond-resnet18-dual", "dual")
    assert row.cell == "resnet18/share-frozen"
    assert row.architecture == before["dual"].architecture

    version = client.get_model_version(row.model, row.version)
    assert version.tags["export.state"] == "ready"
    assert version.tags["sharedenc.deployment"] == "resnet18/share-frozen"
    assert json.loads(version.tags["sharedenc.parts"]) == {"det": det, "seg": seg}
    manifest = ExportManifest.from_tags(version.tags)
    assert (manifest.study, manifest.cell) == (study.name, "resnet18/share-frozen")
    run = client.get_run(version.run_id)
    assert version.source == f"runs:/{version.run_id}/export/dual"
    assert run.data.tags["sharedenc.kind"] == "export"
    assert run.data.tags["mlflow.parentRunId"] == study.parent
    assert run.info.status == "FINISHED"

    # A second time it is there; so is what the study exports of itself, which is another run's.
    (again,) = register_deployment(study.uri, study.name, "resnet18/share-frozen")
    assert (again.outcome, again.version, again.files) == ("present", row.version, row.files)
    after = {row.graph: row for row in export_study(study.uri, study.name) if row.ready}
    assert after.keys() == before.keys()
    for graph, kept in after.items():
        assert (kept.outcome, kept.run_id) == ("present", dual), graph
        assert kept.version == before[graph].version
    exports = {(e.graph, e.cell): e for e in collect(study.uri, study.name).exports}
    assert exports["dual", "resnet18/share-frozen"].version == int(row.version)
    assert exports["dual", "resnet18/dual"].version == int(before["dual"].version)

    # It is a network as any other: in Python, and as a run that can be exported.
    uri = f"models:/{row.model}/{row.version}"
    loaded = load_with_meta(uri, study.uri)
    assert same_network(loaded.network, resnet_dual)
    assert same_network(sharedenc.load(uri, study.uri), resnet_dual)
    assert loaded.meta["recipe"] == {"nms_iou": 0.4, "sample_path": "reference"}
    assert (loaded.meta["cell"], loaded.meta["study"]) == ("resnet18/share-frozen", study.name)
    assert loaded.meta["parts"]["det"]["run_id"] == det
    rows = register_run(study.uri, version.run_id)
    assert [(row.graph, row.outcome) for row in rows] == [
        ("dual", "present"),
        ("encoder", "registered"),
    ]
    encoder = client.get_model_version(rows[1].model, rows[1].version)
    assert encoder.tags["sharedenc.deployment"] == "resnet18/share-frozen"


def test_a_swap_is_assembled_with_its_own_source(
    study: Study,
    halves: dict[Task, Network],
    other_halves: dict[Task, Network],
    resnet_dual: Network,
    client: MlflowClient,
) -> None:
    study.trial("resnet18/baseline/det", other_halves["det"], score=0.9, key=key_of(1))
    det = study.trial("resnet18/baseline/det", halves["det"], score=0.1, key=key_of(2))
    study.trial("resnet18/swap-frozen/seg", other_halves["seg"], score=0.2, parent=key_of(1))
    seg = study.trial("resnet18/swap-frozen/seg", halves["seg"], score=0.3, parent=key_of(2))
    (row,) = register_deployment(study.uri, study.name, "resnet18/swap-frozen/seg")
    assert (row.outcome, row.cell, row.graph) == ("registered", "resnet18/swap-frozen/seg", "dual")
    version = client.get_model_version(row.model, row.version)
    assert json.loads(version.tags["sharedenc.parts"]) == {"det": det, "seg": seg}
    network = sharedenc.load(f"models:/{row.model}/{row.version}", study.uri)
    assert same_network(network, resnet_dual)
    # The cell alone is another export, of another graph.
    (alone,) = register_run(study.uri, seg)
    assert (alone.cell, alone.graph) == ("resnet18/swap-frozen/seg", "seg")
    cells = {(e.graph, e.cell) for e in collect(study.uri, study.name).exports}
    assert cells == {("dual", "resnet18/swap-frozen/seg"), ("seg", "resnet18/swap-frozen/seg")}


def test_random_encoders_of_two_seeds_are_refused(
    study: Study, halves: dict[Task, Network], other_halves: dict[Task, Network]
) -> None:
    study.trial("resnet18/share-frozen/det", halves["det"], seed=0)
    study.trial("resnet18/share-frozen/seg", other_halves["seg"], seed=1)
    with pytest.raises(ExportError) as told:
        register_deployment(study.uri, study.name, "resnet18/share-frozen")
    for word in ("weights none, seed 0", "weights none, seed 1", "Each seed draws random weights"):
        assert word in str(told.value)


def test_a_swap_whose_source_was_trained_again_is_refused(
    study: Study, halves: dict[Task, Network], other_halves: dict[Task, Network]
) -> None:
    det = study.trial("resnet18/baseline/det", other_halves["det"], key=key_of(1))
    seg = study.trial("resnet18/swap-frozen/seg", halves["seg"], parent=key_of(1))
    with pytest.raises(ExportError) as told:
        register_deployment(study.uri, study.name, "resnet18/swap-frozen/seg")
    for word in (det, seg, "its baseline was trained again since", "body."):
        assert word in str(told.value)


@pytest.mark.slow
def test_what_is_trained_to_other_bits_becomes_another_version(
    study: Study, halves: dict[Task, Network], client: MlflowClient
) -> None:
    study.trial("resnet18/share-frozen/det", halves["det"], key=key_of(1))
    old = study.trial("resnet18/share-frozen/seg", halves["seg"], key=key_of(2))
    (first,) = register_deployment(study.uri, study.name, "resnet18/share-frozen")
    study.tracker.tag(old, {"sharedenc.superseded": "now"})
    changed = copy.deepcopy(halves["seg"])
    assert changed.seg_head is not None
    with torch.no_grad():
        next(changed.seg_head.parameters()).mul_(1.01)
    study.trial("resnet18/share-frozen/seg", changed, key=key_of(2))
    (second,) = register_deployment(study.uri, study.name, "resnet18/share-frozen")
    assert second.outcome == "registered"
    assert int(second.version) > int(first.version)
    assert second.run_id != first.run_id
    # The first one's files are its own and still there.
    assert client.get_model_version(first.model, first.version).tags["export.state"] == "ready"


def test_an_upload_that_was_cut_off_is_completed(
    study: Study, halves: dict[Task, Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    study.trial("resnet18/share-frozen/det", halves["det"])
    study.trial("resnet18/share-frozen/seg", halves["seg"])
    name = "resnet18/share-frozen"
    with monkeypatch.context() as patched:

        def dies(*_given: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(MlflowClient, "log_artifact", dies)
        with pytest.raises(KeyboardInterrupt):
            register_deployment(study.uri, study.name, name)
    (row,) = register_deployment(study.uri, study.name, name)
    assert row.outcome == "registered"
    made = [r for r in study.tracker.runs(study.name) if r.tags["sharedenc.kind"] == "export"]
    assert [run.run_id for run in made] == [row.run_id]
    assert "checkpoint/best.safetensors" in study.tracker.files(row.run_id)


def test_what_needs_two_passes_is_two_graphs_of_its_cells(
    study: Study, halves: dict[Task, Network], other_halves: dict[Task, Network], tmp_path: Path
) -> None:
    runs = {
        "baseline/det": study.trial("resnet18/baseline/det", halves["det"], key=key_of(1)),
        "baseline/seg": study.trial("resnet18/baseline/seg", other_halves["seg"]),
        "swap-bias/seg": study.trial(
            "resnet18/swap-bias/seg", other_halves["seg"], parent=key_of(1)
        ),
    }
    study.trial("resnet18/baseline/det", other_halves["det"], score=0.9, key=key_of(2))
    result = export(
        study, "--deployment", "resnet18/swap-bias/seg", "--deployment", "resnet18/dual", "--json"
    )
    assert result.exit_code == ExportError.exit_code
    assert "1 of 3 exports failed" in result.stderr
    rows = json.loads(result.stdout)["exports"]
    assert [(row["cell"], row["graph"], row["run_id"]) for row in rows[:2]] == [
        ("resnet18/baseline/det", "det", runs["baseline/det"]),
        ("resnet18/swap-bias/seg", "seg", runs["swap-bias/seg"]),
    ]
    assert [row["deployment"] for row in rows] == ["resnet18/swap-bias/seg"] * 2 + ["resnet18/dual"]
    assert rows[2]["reason"] == (
        f"study {study.name} does not give resnet18/dual: the study has no run of resnet18/dual."
    )

    out = tmp_path / "out"
    result = export(study, "--deployment", "resnet18/baseline", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert sorted(str(path.relative_to(out)) for path in out.glob("*/*")) == [
        "resnet18-baseline-det/det",
        "resnet18-baseline-seg/seg",
    ]


def test_the_command_writes_an_assembled_graph_to_a_folder(
    study: Study, halves: dict[Task, Network], tmp_path: Path
) -> None:
    study.trial("resnet18/share-frozen/det", halves["det"])
    study.trial("resnet18/share-frozen/seg", halves["seg"])
    out = tmp_path / "out"
    result = export(study, "--deployment", "resnet18/share-frozen", "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["exports"]
    folder = out / "resnet18-share-frozen" / "dual"
    assert (row["outcome"], row["path"]) == ("written", str(folder / "model.onnx"))
    manifest = ExportManifest.from_json((folder / "manifest.json").read_text())
    assert (manifest.cell, manifest.graph) == ("resnet18/share-frozen", "dual")
    assert manifest.study == study.name
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    entries = session.get_modelmeta().custom_metadata_map
    assert json.loads(entries["sharedenc.postprocess"])["nms_iou"] == 0.4
    # Nothing was registered or left on the server.
    kinds = [run.tags["sharedenc.kind"] for run in study.tracker.runs(study.name)]
    assert "export" not in kinds


def test_the_command_says_what_is_wrong(study: Study, halves: dict[Task, Network]) -> None:
    study.trial("resnet18/share-frozen/det", halves["det"])
    study.trial("resnet18/share-frozen/seg", None, state="failed", reason="out of memory")

    def told(*arguments: str, code: int) -> str:
        result = CliRunner(env={"MLFLOW_TRACKING_URI": study.uri}).invoke(
            main, ["export", *arguments]
        )
        assert result.exit_code == code, result.output
        return result.stderr

    named = ["--deployment", "resnet18/share-frozen"]
    of_study = ["--study", study.name]
    text = told(*named, *of_study, code=ExportError.exit_code)
    assert f"study {study.name} does not give resnet18/share-frozen: " in text
    assert "resnet18/share-frozen/seg is failed" in text
    assert "Add --study NAME" in told(*named, code=2)
    wrong = ["--deployment", "resnet18/share-frosen"]
    assert "Did you mean 'resnet18/share-frozen'" in told(*wrong, *of_study, code=2)
    for more in (("resnet18/dual",), ("--graph", "dual")):
        assert "has its own runs and graphs" in told(*more, *named, *of_study, code=2)
    assert "has no study 'nope'" in told(*named, "--study", "nope", code=8)


@pytest.mark.slow
def test_int8_files_and_scores_are_those_of_the_assembled_graph(
    study: Study,
    halves: dict[Task, Network],
    pond: PackedDataset,
    client: MlflowClient,
    tmp_path: Path,
) -> None:
    study.trial("resnet18/share-frozen/det", halves["det"])
    study.trial("resnet18/share-frozen/seg", halves["seg"])
    int8 = Calibration(pack=pond, images=2, accuracy_images=3, shown=False)
    name = "resnet18/share-frozen"
    (plain,) = register_deployment(study.uri, study.name, name)
    (row,) = register_deployment(study.uri, study.name, name, int8=int8)
    assert (row.outcome, row.version != plain.version) == ("registered", True)
    assert list(row.precisions) == ["fp32", "int8", "int8-unscaled"]
    (again,) = register_deployment(study.uri, study.name, name, int8=int8)
    assert (again.outcome, again.version) == ("present", row.version)
    # Each file has the architecture of a trained dual's, so nothing is timed again.
    other = alive_network("resnet18", ("det", "seg"), seed=5)
    dual = export_folder(
        other, "dual", tmp_path / "dual", meta=meta_of(other, image_px=64), int8=int8
    )
    assert row.architectures == dual.manifest.architectures
    # Scores are logged on its own run, and stand in the report's row.
    metrics = client.get_run(row.run_id).data.metrics
    (export_row,) = collect(study.uri, study.name).exports
    assert export_row.cell == name
    for kind in ("float", "int8-trt", "int8-cpu"):
        scored = metrics[f"export/dual/{kind}/mIoU"]
        assert export_row.scores[kind]["mIoU"] == pytest.approx(scored, abs=1e-5)
        assert f"export/dual/{kind}/mAP" in metrics
