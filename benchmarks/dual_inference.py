"""R11: both tasks from one dual graph against a detection and a segmentation graph, on a CPU.

The three files are our exports of one network. Reference: ``InferenceSession.run`` in a loop over
the two networks, as ONNX Runtime's first page shows it. Ours: the agent's own query (buffers bound
once). CPU time of one thread per photo. The limit is the reference's time with one encoder pass
left out, by FLOPs. A second row compares the agent's query with a plain ``run`` of the same dual
file: what the harness itself costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.protocol import Side, interleaved, result, timed
from jetson_agent.backends.onnxruntime import _query, _session
from sharedenc.export.onnx import INPUT, OUTPUTS, export_graph
from sharedenc.export.parity import natural_images
from sharedenc.models.build import build_network, model_rows
from sharedenc.models.encoders import batch_norms
from sharedenc.models.network import Network
from sharedenc.spec import BACKBONES, TASKS

PX, CLASSES, QUERIES = 320, 21, 6
TOLERANCE = 1e-4

Arrays = dict[str, np.ndarray]


def run(
    rounds: int,
    backbones: Sequence[str] = tuple(BACKBONES),
    image_px: int = PX,
    queries: int = QUERIES,
) -> list[dict[str, Any]]:
    """Two rows per backbone: dual against two networks, and bound buffers against plain calls."""
    torch.set_num_threads(1)
    rows = []
    for backbone in backbones:
        with tempfile.TemporaryDirectory(prefix="bench-dual-") as folder:
            graphs = _Graphs(backbone, Path(folder), image_px, queries)
            duel = interleaved(graphs.apart, graphs.dual, rounds, same=near)
            share = graphs.share_of_two(image_px)
            rows.append(
                result(
                    "R11",
                    f"{backbone}, both tasks of a photo: dual graph, two graphs",
                    duel,
                    unit="ms",
                    limit=duel.reference * share,
                    check=f"outputs within {TOLERANCE:g} of their range",
                )
            )
            duel = interleaved(graphs.plain, graphs.dual, rounds, same=near)
            rows.append(
                result(
                    "R11",
                    f"{backbone}, dual graph: bound buffers, InferenceSession.run",
                    duel,
                    unit="ms",
                    check=f"outputs within {TOLERANCE:g} of their range",
                )
            )
    return rows


class _Graphs:
    """Sessions of one network's graphs, and one photo for all of them."""

    def __init__(self, backbone: str, folder: Path, image_px: int, queries: int) -> None:
        self._backbone, self._queries = backbone, queries
        network = settled_network(backbone, image_px)
        photos = natural_images(1, image_px)
        self._inputs = {INPUT: photos.numpy()}
        sessions = {}
        for graph in ("det", "seg", "dual"):
            path = folder / f"{graph}.onnx"
            # The files are proved against torch by the exports' own tests; here they are compared
            # with each other, in every round.
            export_graph(
                network,
                graph,
                path,
                meta=_meta(network, image_px),
                image_px=image_px,
                tolerance=1e-2,
            )
            sessions[graph] = _session(path, threads=1)
        self._sessions = sessions
        self._outputs: Arrays = self._all("dual")
        self._query: Callable[[], object] = _query(sessions["dual"], self._inputs, self._outputs)

    def _all(self, graph: str) -> Arrays:
        names = list(OUTPUTS[graph])  # type: ignore[index]
        values = self._sessions[graph].run(names, self._inputs)
        return dict(zip(names, values, strict=True))

    def apart(self) -> Side:
        """Both networks, one after the other."""
        return self._side(lambda: self._all("det") | self._all("seg"))

    def plain(self) -> Side:
        """The dual graph without bound buffers."""
        return self._side(lambda: self._all("dual"))

    def dual(self) -> Side:
        """The dual graph as the agent asks it."""

        def one() -> Arrays:
            self._query()
            return self._outputs

        return self._side(one)

    def _side(self, one: Callable[[], Arrays]) -> Side:
        def several() -> Arrays:
            for _ in range(self._queries):
                answer = one()
            return answer

        side = timed(several)
        return Side(1000 * side.figure / self._queries, side.answer)

    def share_of_two(self, image_px: int) -> float:
        """FLOPs of the dual graph in those of both others."""
        gflops = {
            row["graph"]: row["gflops"]
            for row in model_rows(CLASSES, [self._backbone], image_px=image_px)
        }
        return float(gflops["dual"] / (gflops["det"] + gflops["seg"]))


def near(one: Arrays, other: Arrays) -> bool:
    """Whether two sets of outputs are equal up to `TOLERANCE` of each output's largest value."""
    return one.keys() == other.keys() and all(
        float(np.abs(one[name] - other[name]).max()) <= TOLERANCE * float(np.abs(one[name]).max())
        for name in one
    )


def settled_network(backbone: str, image_px: int) -> Network:
    """A random dual network whose batch norms know photos: without that, deep features vanish."""
    network = build_network(backbone, TASKS, CLASSES, seed=0)
    network.eval()
    for norm in batch_norms(network).values():
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        network(natural_images(4, image_px))
    return network.eval()


def _meta(network: Network, image_px: int) -> dict[str, Any]:
    return {
        "backbone": network.backbone,
        "tasks": list(network.tasks),
        "num_classes": network.num_classes,
        "classes": [f"class {number}" for number in range(1, network.num_classes)],
        "class_list": "numbers",
        "image_px": image_px,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "cell": f"{network.backbone}/dual",
        "key": "0" * 64,
        "data": "noise",
        "data_digest": "0" * 64,
        "plugins": [],
    }
