"""The Dockerfiles: pinned bases, nobody is root, and all that they copy is there."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.infra.files import INFRA, PINNED, ROOT, load

FILES = sorted(path for path in INFRA.rglob("Dockerfile.*") if path.suffix != ".dockerignore")


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return (instruction, arguments) in order, comments dropped and lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name.upper(), rest.strip()) for name, _, rest in pairs]


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def dockerfile(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_all_are_here() -> None:
    names = {path.name for path in FILES}
    assert names == {"Dockerfile.agent", "Dockerfile.mlflow", "Dockerfile.train"}


def test_the_base_is_pinned(dockerfile: Path) -> None:
    bases = [rest.split()[0] for name, rest in instructions(dockerfile) if name == "FROM"]
    assert bases
    assert all(PINNED.match(base) for base in bases), bases


def test_it_runs_as_a_numbered_user_that_is_not_root(dockerfile: Path) -> None:
    users = [rest for name, rest in instructions(dockerfile) if name == "USER"]
    assert users[-1] == "1000:1000"
    made = [rest for name, rest in instructions(dockerfile) if "useradd" in rest]
    assert "--uid 1000" in made[0]


def test_what_it_installs_is_constrained(dockerfile: Path) -> None:
    installs = [rest for name, rest in instructions(dockerfile) if "pip install" in rest]
    assert installs
    assert all("--constraint" in one and "--no-cache-dir" in one for one in installs)


def test_what_it_copies_exists_and_reaches_the_builder(dockerfile: Path) -> None:
    ignore = Path(f"{dockerfile}.dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignore if line.startswith("!")]
    assert "*" in ignore
    for name, rest in instructions(dockerfile):
        if name == "COPY":
            for source in [word for word in rest.split() if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
                assert source in sent, source
    assert not any(fnmatch(".env", pattern) for pattern in sent)


def test_the_instructions_are_docker_s(dockerfile: Path) -> None:
    known = {"FROM", "RUN", "COPY", "USER", "WORKDIR", "ENV", "EXPOSE", "CMD"}
    assert {name for name, _ in instructions(dockerfile)} <= known
    assert instructions(dockerfile)[0][0] == "FROM"


def test_the_image_of_a_ray_node_has_what_its_manifest_calls() -> None:
    text = (INFRA / "Dockerfile.train").read_text()
    worker = load("rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    container = worker["template"]["spec"]["containers"][0]
    program = container["lifecycle"]["preStop"]["exec"]["command"][0]
    assert re.search(rf"^COPY --chmod=755 infra/drain.sh {program}$", text, re.MULTILINE)


def test_the_image_of_a_board_is_of_its_tensorrt_and_starts_the_daemon() -> None:
    """JetPack 6.2.1 has TensorRT 10.3, and Python's package of it is one of the system."""
    steps = instructions(INFRA / "jetson" / "Dockerfile.agent")
    assert steps[0] == ("FROM", "nvcr.io/nvidia/l4t-tensorrt:r10.3.0-devel")
    assert any("--system-site-packages" in rest for name, rest in steps if name == "RUN")
    assert steps[-1] == ("CMD", '["jetson-agent", "run"]')
    [environment] = [rest for name, rest in steps if name == "ENV"]
    assert "JETSON_AGENT_STATE=/var/lib/jetson-agent" in environment
    assert "torch" not in (INFRA / "jetson" / "constraints.txt").read_text()
