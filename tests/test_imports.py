"""The direction of imports, as docs/architecture.md draws it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    path
    for package in ("sharedenc", "sweeps", "jetson_agent")
    for path in sorted((ROOT / package).rglob("*.py"))
]

# A module of a layer imports its own layer and lower ones; the longest matching prefix counts.
LAYERS: dict[str, int] = {
    "sharedenc.errors": 0,
    "sharedenc.redact": 0,
    "sharedenc.spec": 0,
    "sharedenc.presets": 1,
    "sharedenc.files": 0,
    "sharedenc.storage": 1,
    "sharedenc.tracking": 1,
    "sharedenc.mlflow_server": 1,
    "sharedenc.data": 1,
    "sharedenc.models": 1,
    "sharedenc.evaluation": 2,
    "sharedenc.training": 2,
    "sharedenc.training.run": 3,
    "sharedenc.export": 3,
    "sharedenc.selftest": 3,
    "sharedenc.report": 4,
    "sweeps": 4,
    "sharedenc.cli": 5,
    "sharedenc.__main__": 6,
}

OUTSIDE: dict[str, set[str]] = {
    "ray": {"sweeps/"},
    "mlflow": {
        "sharedenc/tracking/",
        "sharedenc/export/registry.py",
        "sharedenc/export/bench.py",
        "sweeps/ledger.py",
        "sharedenc/report/collect.py",
        "sharedenc/report/evidence.py",
        "sharedenc/report/publish.py",
        "jetson_agent/registry_mlflow.py",
    },
    "click": {"sharedenc/cli/", "jetson_agent/cli/"},
    "optuna": {"sweeps/"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every absolute module name that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found.add(module)
            found |= {
                f"{module}.{alias.name}"
                for alias in node.names
                if (ROOT / module.replace(".", "/") / f"{alias.name}.py").exists()
            }
    return found


def layer(module: str) -> int:
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in LAYERS:
            return LAYERS[name]
    raise AssertionError(f"{module} has no layer")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    importer = module_name(path)
    ours = {
        name
        for name in imports(path)
        if name.split(".")[0] in {"sharedenc", "sweeps", "jetson_agent"}
    }
    if importer == "sharedenc":
        # `sharedenc.load` is a lazy door to the export layer, opened when called.
        assert ours <= {"sharedenc.export", "sharedenc.export.load"}
        return
    if importer.split(".")[0] == "jetson_agent":
        assert all(name.split(".")[0] == "jetson_agent" for name in ours), ours
        return
    for name in ours:
        if name.split(".")[0] == "jetson_agent":
            assert name in {"jetson_agent", "jetson_agent.protocol"}, f"{importer} imports {name}"
        elif name != "sharedenc":
            assert layer(name) <= layer(importer), f"{importer} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_outside_services_are_imported_in_few_files(path: Path) -> None:
    here = path.relative_to(ROOT).as_posix()
    for name in imports(path):
        package = name.split(".")[0]
        if package in OUTSIDE:
            assert any(here.startswith(place) for place in OUTSIDE[package]), (
                f"{here} imports {package}"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_class_list_knows_how_many_classes_there_are(path: Path) -> None:
    if path.name == "classes.py" or "report" in path.parts:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg in {"num_classes", "classes", "default"}:
            value = node.value
            assert not (isinstance(value, ast.Constant) and value.value in (20, 21)), path
        if isinstance(node, ast.Compare):
            numbers = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            assert not numbers & {20, 21}, f"{path}:{node.lineno}"
