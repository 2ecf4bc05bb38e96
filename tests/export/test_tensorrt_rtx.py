"""NVIDIA's real parser and builder accept every graph of every backbone, float and `trt` INT8.

TensorRT-RTX shares the ONNX parser with TensorRT 10 and builds without a GPU: evidence, no proof,
for the boards' 10.3.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from jetson_agent.protocol import Int8Recipe
from sharedenc.export.calibrate import Ranges, float_values
from sharedenc.export.onnx import INPUT, export_graph
from sharedenc.export.quantize import quantise
from sharedenc.spec import BACKBONES, GRAPHS, Graph
from tests.export import rtx_build
from tests.export.conftest import alive_network, meta_of

PX = 320

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx_bindings") is None,
        reason="tensorrt-rtx is not installed (pip install 'sharedenc[rtx]'; x86_64 Linux only)",
    ),
]


def build(*files: Path) -> dict[Path, str]:
    """The errors of each file, by file, from a process of its own: a crash fails one test."""
    child = subprocess.run(
        [sys.executable, rtx_build.__file__, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if "ImportError" in child.stderr:
        pytest.skip(f"tensorrt-rtx cannot be imported: {child.stderr.strip().splitlines()[-1]}")
    assert child.returncode == 0, f"exit {child.returncode}: {child.stderr[-2000:]}"
    errors: dict[str, str] = json.loads(child.stdout.splitlines()[-1])
    return {Path(path): text for path, text in errors.items()}


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """Write float files and their INT8 twins; whether they build is not a matter of photos."""

    def files(backbone: str, graphs: tuple[Graph, ...], *recipes: Int8Recipe) -> list[Path]:
        network = alive_network(backbone, ("det", "seg"))
        made = []
        for graph in graphs:
            folder = tmp_path_factory.mktemp(f"{backbone}-{graph}")
            source = folder / "model.onnx"
            export_graph(network, graph, source, meta=meta_of(network), image_px=PX)
            made.append(source)
            model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
            values = dict.fromkeys([INPUT, *float_values(model)], (0.0, 4.0))
            ranges = Ranges(values=values, images=1)
            for recipe in recipes:
                out = folder / f"{recipe}.onnx"
                quantise(source, out, recipe, [], backbone=backbone, graph=graph, ranges=ranges)
                made.append(out)
        return made

    return files


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_graph_is_parsed_and_built(write: Callable[..., list[Path]], backbone: str) -> None:
    files = write(backbone, GRAPHS, "trt")
    assert len(files) == 2 * len(GRAPHS)
    assert build(*files) == dict.fromkeys(files, "")


def test_int32_biases_are_refused_so_that_this_test_can_fail(
    write: Callable[..., list[Path]], tmp_path: Path
) -> None:
    source, cpu = write("resnet18", ("encoder",), "cpu")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(source.read_bytes()[:1000])
    errors = build(source, cpu, cut)
    assert errors[source] == ""
    assert "Int32" in errors[cpu]
    assert errors[cut]
