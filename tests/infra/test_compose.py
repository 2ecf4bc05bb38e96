"""infra/compose.yaml against the Compose specification, and against what we promise about it."""

from __future__ import annotations

import configparser
import importlib.resources
import json
import re
from typing import Any

import jsonschema
import pytest

from tests.infra.files import INFRA, PINNED, constraints, load

SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY")


def schema() -> Any:
    """The Compose specification's own schema, as check-jsonschema ships it."""
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    return json.loads((folder / "compose-spec.json").read_text())


@pytest.fixture(scope="module")
def compose() -> Any:
    return load("compose.yaml")


def test_it_is_a_valid_compose_file(compose: Any) -> None:
    jsonschema.validate(compose, schema())


def test_the_schema_would_find_a_mistake(compose: Any) -> None:
    wrong = json.loads(json.dumps(compose))
    wrong["services"]["mlflow"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.validate(wrong, schema())


def test_images_are_pinned_and_mlflow_is_the_tested_one(compose: Any) -> None:
    images = {name: service["image"] for name, service in compose["services"].items()}
    assert all(PINNED.match(image) for image in images.values()), images
    assert images["mlflow"].rpartition(":")[2] == constraints()["mlflow"]


def test_what_stays_up_is_checked_and_waited_for(compose: Any) -> None:
    services = compose["services"]
    once = {name for name, one in services.items() if one["restart"].startswith("on-failure")}
    assert once == {"buckets"}
    for name, service in services.items():
        assert ("healthcheck" in service) == (name not in once)
        for needed, how in service.get("depends_on", {}).items():
            done = "service_completed_successfully" if needed in once else "service_healthy"
            assert how["condition"] == done
    assert set(services["mlflow"]["depends_on"]) == {"postgres", "store", "buckets"}


def test_state_lies_in_named_volumes(compose: Any) -> None:
    mounted = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
    }
    assert mounted == set(compose["volumes"]) == {"postgres", "store"}


def test_it_listens_on_this_machine_only_unless_told_otherwise(compose: Any) -> None:
    services = compose["services"]
    published = {name: one["ports"] for name, one in services.items() if "ports" in one}
    assert set(published) == {"mlflow", "store"}
    for ports in published.values():
        assert all(re.match(r"^\$\{\w+:-127\.0\.0\.1\}:\d+:\d+$", port) for port in ports)
    assert compose["networks"]["inside"]["internal"] is True
    assert services["postgres"]["networks"] == ["inside"]


def test_no_secret_is_written_down_and_each_must_be_given(compose: Any) -> None:
    needed = set()
    for service in compose["services"].values():
        for name, value in service["environment"].items():
            if SECRET.search(name):
                variable = re.fullmatch(r"\$\{(\w+):\?[^}]+\}", value)
                assert variable, f"{name}: {value}"
                needed.add(variable.group(1))
    sample = (INFRA / ".env.example").read_text()
    assert set(re.findall(r"^(\w+)=$", sample, re.MULTILINE)) == needed
    assert not re.findall(r"^\w+=.+$", sample, re.MULTILINE)
    assert "password" not in " ".join(compose["services"]["mlflow"]["command"]).lower()


def test_every_variable_of_the_file_is_in_the_sample(compose: Any) -> None:
    used = set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text()))
    assert used == set(re.findall(r"^#? ?(\w+)=", (INFRA / ".env.example").read_text(), re.M))


def test_users_and_runs_share_a_database_and_logging_in_is_required(compose: Any) -> None:
    settings = configparser.ConfigParser()
    settings.read(INFRA / "mlflow" / "basic_auth.ini")
    command = compose["services"]["mlflow"]["command"]
    assert "--app-name=basic-auth" in command
    assert f"--backend-store-uri={settings['mlflow']['database_uri']}" in command
    assert settings["mlflow"]["default_permission"] == "READ"
    assert "admin_password" not in settings["mlflow"]
