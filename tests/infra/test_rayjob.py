"""infra/rayjob.yaml: KubeRay's own schema, Kubernetes' schema of its pods, and what we promise."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from sharedenc.cli import main
from tests.infra.files import PINNED, constraints, load
from tests.test_docs import resolve

KUBERNETES = "1.34"


@pytest.fixture(scope="module")
def job() -> Any:
    return load("rayjob.yaml")


@pytest.fixture(scope="module")
def cluster(job: Any) -> Any:
    return job["spec"]["rayClusterSpec"]


def templates(job: Any) -> dict[str, Any]:
    cluster = job["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    head = cluster["headGroupSpec"]["template"]
    return {"submitter": job["spec"]["submitterPodTemplate"], "head": head, **workers}


def crd() -> Any:
    return json.loads((Path(__file__).parent / "rayjob_v1.json").read_text())


def test_it_is_what_kuberay_takes(job: Any) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    jsonschema.validate(job["spec"], crd())


def test_the_schema_would_find_a_mistake(job: Any) -> None:
    wrong = json.loads(json.dumps(job["spec"]))
    wrong["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(wrong, crd())


def test_its_pods_are_what_kubernetes_takes(job: Any) -> None:
    for name, template in templates(job).items():
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}}
        kubernetes_validate.validate({**whole, "template": template}, KUBERNETES, strict=True)


def test_kubernetes_schema_would_find_a_mistake(job: Any) -> None:
    wrong = json.loads(json.dumps(templates(job)["head"]))
    wrong["spec"]["containers"][0]["imagePullPolice"] = "Always"
    whole = {"apiVersion": "v1", "kind": "PodTemplate", "template": wrong}
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def test_rules_of_the_operator_that_no_schema_holds(job: Any, cluster: Any) -> None:
    spec = job["spec"]
    # A job that Kueue suspends must give its cluster back, and must bring its own.
    assert spec["shutdownAfterJobFinishes"] is True
    assert "clusterSelector" not in spec
    assert "suspend" not in spec, "Kueue sets it"
    assert cluster["enableInTreeAutoscaling"] is False
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_kueue_holds_it_by_its_labels(job: Any) -> None:
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]


def test_every_node_has_the_tested_ray_and_one_image(job: Any, cluster: Any) -> None:
    assert cluster["rayVersion"] == constraints()["ray"]
    images = {pod["spec"]["containers"][0]["image"] for pod in templates(job).values()}
    assert len(images) == 1
    assert PINNED.match(images.pop())


def test_nobody_is_root(job: Any) -> None:
    for template in templates(job).values():
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == 1000
        for container in template["spec"]["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}


def test_the_head_stays_and_trains_nothing_while_workers_may_go(job: Any, cluster: Any) -> None:
    capacity = "karpenter.sh/capacity-type"
    pods = templates(job)
    assert pods["head"]["spec"]["nodeSelector"][capacity] == "on-demand"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert pods["spot-gpu"]["spec"]["nodeSelector"][capacity] == "spot"


def test_a_worker_that_goes_has_time_to_save(job: Any) -> None:
    worker = templates(job)["spot-gpu"]["spec"]
    hook = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[0].endswith("sharedenc-drain")
    assert int(hook[1]) + 10 <= worker["terminationGracePeriodSeconds"] <= 120


def test_secrets_are_named_not_written(job: Any, cluster: Any) -> None:
    assert cluster["authOptions"] == {"mode": "token", "secretName": "sharedenc-ray-token"}
    for template in templates(job).values():
        for container in template["spec"]["containers"]:
            names = {one["name"] for one in container.get("env", []) if "value" in one}
            assert not [name for name in names if "PASSWORD" in name or "KEY" in name]


def test_its_command_is_one_of_ours(job: Any) -> None:
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[0] == "sharedenc"
    assert "--storage" in words
    resolve(main, words[1:])
