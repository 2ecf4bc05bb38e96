"""Networks: what they return, what their seeds decide, and that checkpoints move between them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sharedenc.errors import SpecError
from sharedenc.models.build import build_network
from sharedenc.spec import Task

ALL: dict[str, tuple[Task, ...]] = {"det": ("det",), "seg": ("seg",), "dual": ("det", "seg")}


def state_of(module: nn.Module | None) -> dict[str, Tensor]:
    assert module is not None
    return module.state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


@pytest.mark.parametrize("graph", ALL)
def test_outputs_are_those_of_the_tasks(graph: str) -> None:
    network = build_network("resnet18", ALL[graph], 4, seed=0).eval()
    assert network.tasks == ALL[graph]
    with torch.no_grad():
        outputs = network(torch.randn(1, 3, 64, 64))
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    det = {"cls_logits": (1, 6 * 24, 4), "bbox_regression": (1, 6 * 24, 4)}
    seg = {"seg_logits": (1, 4, 64, 64)}
    assert shapes == {"det": det, "seg": seg, "dual": {**det, **seg}}[graph]
    parts = {name.split(".")[0] for name in network.state_dict()}
    assert parts == {"encoder", *(f"{task}_head" for task in ALL[graph])}


def test_each_part_depends_on_the_seed_and_on_no_other_part() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    networks = {graph: build_network("resnet18", tasks, 4, seed=3) for graph, tasks in ALL.items()}
    assert torch.random.get_rng_state().equal(before)
    dual = networks["dual"]
    assert same(state_of(networks["det"].encoder), state_of(dual.encoder))
    assert same(state_of(networks["seg"].encoder), state_of(dual.encoder))
    assert same(state_of(networks["det"].det_head), state_of(dual.det_head))
    assert same(state_of(networks["seg"].seg_head), state_of(dual.seg_head))
    other = build_network("resnet18", ("det",), 4, seed=4)
    assert not same(state_of(other.encoder), state_of(dual.encoder))
    assert not same(state_of(other.det_head), state_of(dual.det_head))


@pytest.mark.parametrize(
    "backbone", ["resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121"]
)
def test_an_encoder_moves_between_baseline_swap_and_dual_unchanged(backbone: str) -> None:
    source = build_network(backbone, ("det",), 3, seed=1)
    for tasks in (("seg",), ("det", "seg")):
        target = build_network(backbone, tasks, 3, seed=2)
        target.encoder.load_state_dict(source.encoder.state_dict(), strict=True)
        assert same(state_of(target.encoder), state_of(source.encoder))


def test_wrong_requests_are_named() -> None:
    with pytest.raises(SpecError, match="task='depth' is not one of det, seg"):
        build_network("resnet18", ("depth",), 3, seed=0)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="at least one task"):
        build_network("resnet18", (), 3, seed=0)
    with pytest.raises(SpecError, match="num_classes=1 must be at least 2"):
        build_network("resnet18", ("seg",), 1, seed=0)
