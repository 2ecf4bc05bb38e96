"""A study of the full grid with chosen values, as MLflow would hold it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sharedenc.data.classes import VOC20
from sharedenc.report.collect import RunData, VersionData
from sharedenc.report.table_spec import ENCODER_BIASES

BACKBONES = ("resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121")
METHODS = (
    ("baseline", "none"),
    ("swap", "frozen"),
    ("swap", "bias"),
    ("share", "frozen"),
    ("share", "bias"),
)
DIGEST = "ab" * 32
# Baselines: chosen so that the changes below are short decimals.
MIOU, ACC, AP, AP50 = 0.5, 0.8, 0.2, 0.4
# Factors against the baseline, by method: what the change columns must say.
FACTORS = {
    "baseline": 1.0,
    "swap-frozen": 0.8,
    "swap-bias": 0.9,
    "share-frozen": 0.75,
    "share-bias": 0.95,
    "dual": 1.1,
}


# What each graph of a study is exported from.
CELL_OF = {"encoder": "dual", "seg": "baseline/seg", "det": "baseline/det", "dual": "dual"}
# End of the architecture's name of each exported file.
FILES = {"model.onnx": "", "model.int8-trt.onnx": " trt", "model.int8-cpu.onnx": " cpu"}
ACCURACY = {
    "images": 8,
    "split": "test",
    "float": {"mIoU": 0.5, "mAP": 0.25},
    "int8-trt": {"mIoU": 0.49, "mAP": 0.22},
    "int8-cpu": {"mIoU": 0.495},
}


def cell_name(backbone: str, strategy: str, freeze: str, task: str) -> str:
    name = strategy if freeze == "none" else f"{strategy}-{freeze}"
    return f"{backbone}/{name}/{task}" if task else f"{backbone}/{name}"


def run(
    backbone: str,
    strategy: str,
    freeze: str = "none",
    task: str = "",
    *,
    state: str = "done",
    reason: str = "",
    kind: str = "",
    seed: int = 0,
    stage: str = "",
    factor: float | None = None,
    data: str = "coco2017",
    digest: str = DIGEST,
    lr: float = 2e-4,
    recipe: dict[str, str] | None = None,
    end_ms: int = 1000,
    classes: Iterable[str] = VOC20.names,
) -> RunData:
    """One child run with the tags, params and metrics of the contract."""
    cell = cell_name(backbone, strategy, freeze, task)
    tags = {
        "kind": "trial",
        "study": "written",
        "stage": stage or strategy,
        "cell": cell,
        "key": "0" * 64,
        "state": state,
        "backbone": backbone,
        "strategy": strategy,
        "freeze": freeze,
        "task": task,
        "data": data,
        "data_digest": digest,
        "classes": json.dumps(list(classes)),
        "reason": reason,
        "failure_kind": kind,
    }
    method = strategy if freeze == "none" else f"{strategy}-{freeze}"
    by = FACTORS[method] if factor is None else factor
    metrics: dict[str, float] = {}
    if state == "done" and task in ("seg", ""):
        metrics |= {"test/mIoU": MIOU * by, "test/pixel_acc": ACC * by}
    if state == "done" and task in ("det", ""):
        metrics |= {"test/mAP": AP * by, "test/mAP50": AP50 * by}
        metrics |= {f"test/AP_{0.5 + i / 20:.2f}": AP50 * by * (10 - i) / 10 for i in range(10)}
    if state == "done":
        total = {"seg": 11e6, "det": 12e6, "": 12.5e6}[task]
        metrics |= {"params/total": total, "params/encoder": 10e6, "score": 0.25}
    return RunData(
        run_id=f"{cell} {seed} {lr} {end_ms} {sorted((recipe or {}).items())}",
        name=cell,
        tags={f"sharedenc.{name}": value for name, value in tags.items()},
        params={"seed": str(seed), "lr": str(lr), **(recipe or {"recipe.epochs": "1"})},
        metrics=metrics,
        start_ms=end_ms - 500,
        end_ms=end_ms,
    )


def grid(**changes: Any) -> list[RunData]:
    """All 44 cells, done."""
    rows = []
    for backbone in BACKBONES:
        for strategy, freeze in METHODS:
            rows += [run(backbone, strategy, freeze, task, **changes) for task in ("det", "seg")]
        rows.append(run(backbone, "dual", **changes))
    return rows


def versions() -> list[VersionData]:
    """The 16 registered networks; an architecture's name tells which it is."""
    return [
        VersionData(
            model=f"voc20-{backbone}-{graph}",
            version=1,
            tags={
                "sharedenc.study": "written",
                "sharedenc.backbone": backbone,
                "sharedenc.graph": graph,
                "sharedenc.cell": f"{backbone}/{CELL_OF[graph]}",
                "sharedenc.architecture": f"{backbone} {graph}",
                "sharedenc.architectures": json.dumps(
                    {name: f"{backbone} {graph}{end}" for name, end in FILES.items()}
                ),
                "sharedenc.accuracy": json.dumps(ACCURACY if graph == "dual" else {}),
            },
        )
        for backbone in BACKBONES
        for graph in ("encoder", "seg", "det", "dual")
    ]


def bench(
    architecture: str,
    latency_ms: float,
    *,
    verdict: str = "valid",
    reasons: str = "",
    device: str = "desk",
    load: str = "stream",
    precision: str = "fp32",
    backend: str = "onnxruntime",
    end_ms: int = 1000,
    runtime: str = "",
    stale: str = "",
    **metrics: float,
) -> RunData:
    """One bench run; ``metrics`` come beside latency and throughput."""
    tags = {
        "kind": "bench",
        "architecture": architecture,
        "precision": precision,
        "load": load,
        "mode": "2 threads",
        "backend": backend,
        "verdict": verdict,
        "reasons": reasons,
        "device": device,
        "runtime": runtime,
        **({"stale": stale} if stale else {}),
    }
    return RunData(
        run_id=f"bench {architecture} {end_ms}",
        tags={f"sharedenc.{name}": value for name, value in tags.items()},
        metrics={"latency_ms/p50": latency_ms, "throughput_qps": 1000 / latency_ms, **metrics},
        start_ms=end_ms,
        end_ms=end_ms,
    )


def benches() -> list[RunData]:
    """Every architecture timed once: encoder 4 ms, seg 5 ms, det 5 ms, dual 6 ms."""
    times = {"encoder": 4.0, "seg": 5.0, "det": 5.0, "dual": 6.0}
    return [bench(f"{b} {graph}", ms) for b in BACKBONES for graph, ms in times.items()]


def count(backbone: str, graph: str, num_classes: int) -> int:
    """Stands for the package's parameter counter."""
    if graph == ENCODER_BIASES:
        return 5_000
    return {"encoder": 10, "det": 12, "seg": 11, "dual": 13}[graph] * 1_000_000 + num_classes
