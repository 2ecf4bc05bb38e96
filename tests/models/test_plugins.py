"""Backbones from outside: taken in after a dry run, refused with the contract that they break."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from sharedenc import spec
from sharedenc.cli import main
from sharedenc.errors import SpecError, WeightsError
from sharedenc.models import encoders, plugins, weights
from sharedenc.models.build import build_network
from sharedenc.models.encoders import Encoder, FeatureMap, Level
from sharedenc.models.plugins import load_plugin, register_encoder
from sharedenc.spec import Cell, Recipe, Task, Trial, resolve_numerics

EXAMPLE = Path(__file__).with_name("example_plugin.py")
NAME = "shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def _registries_as_before() -> Iterator[None]:
    tables = (spec.BACKBONES, encoders.ENCODERS, weights.OFFICIAL, plugins._LOADED)
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)  # type: ignore[arg-type]


def keys() -> dict[str, str]:
    return {
        name: Trial(
            cell=Cell(strategy="dual", backbone=name),
            recipe=Recipe(),
            lr=2e-4,
            seed=0,
            data_digest="d" * 64,
            weights_digest="none",
            numerics=resolve_numerics(Recipe(), name, "cpu", "2.14"),
        ).key
        for name in spec.BACKBONES
    }


def test_a_backbone_joins_without_changing_an_existing_trials_key() -> None:
    before = keys()
    assert load_plugin(EXAMPLE) == (NAME,)
    after = keys()
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {NAME}
    assert spec.BACKBONES[NAME].lr == 5e-4
    assert len(spec.BACKBONES[NAME].digest) == 64
    for tasks in (("det",), ("seg",), ("det", "seg")):
        wanted: tuple[Task, ...] = tasks  # type: ignore[assignment]
        network = build_network(NAME, wanted, 4, seed=0).eval()
        with torch.no_grad():
            outputs = network(torch.randn(1, 3, 64, 64))
        assert set(network.tasks) == set(tasks)
        assert outputs[("cls_logits" if "det" in tasks else "seg_logits")].shape[0] == 1
    assert Cell.parse(f"{NAME}/share-bias/seg").backbone == NAME
    with pytest.raises(WeightsError, match="no official weights"):
        weights.resolve_weights("default", NAME)


def test_loading_twice_changes_nothing_and_another_owner_is_refused(tmp_path: Path) -> None:
    assert load_plugin(EXAMPLE, check=False) == load_plugin(EXAMPLE) == (NAME,)
    changed = tmp_path / EXAMPLE.name
    changed.write_text(EXAMPLE.read_text().replace("5e-4", "1e-3"))
    with pytest.raises(SpecError, match=r"'shufflenet_v2_x0_5' of example_plugin.py exists"):
        load_plugin(changed)


def test_the_models_command_lists_a_plugins_backbone() -> None:
    result = CliRunner().invoke(
        main, ["models", "--json", "--plugin", str(EXAMPLE), "--backbones", NAME]
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["graph"] for row in rows] == ["encoder", "seg", "det", "dual"]
    # torchvision's ShuffleNetV2 x0.5 has 1,366,792 parameters, its classifier 1,025,000.
    assert rows[0]["parameters"] == 341_792


class Tiny(Encoder):
    """Three strided convolutions with batch norm; the broken ones below derive from it."""

    feature_maps: ClassVar[dict[Level, FeatureMap]] = {
        "low": FeatureMap("a", 4, 4),
        "mid": FeatureMap("b", 6, 8),
        "high": FeatureMap("c", 8, 16),
    }

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, stride=4, padding=1, bias=bias)
        self.b = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=bias)
        self.c = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=bias)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.a(x)
        mid = self.b(low)
        return {"low": low, "mid": mid, "high": self.c(mid)}


class WrongChannels(Tiny):
    feature_maps: ClassVar[dict[Level, FeatureMap]] = {
        **Tiny.feature_maps,
        "mid": FeatureMap("b", 7, 8),
    }


class WrongStride(Tiny):
    feature_maps: ClassVar[dict[Level, FeatureMap]] = {
        **Tiny.feature_maps,
        "high": FeatureMap("c", 8, 32),
    }


class NoMaps(Tiny):
    feature_maps: ClassVar[dict[Level, FeatureMap]] = {"low": FeatureMap("a", 4, 4)}


class NeverFrozen(Tiny):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return super().forward(x)


class NoBias(Tiny):
    def __init__(self) -> None:
        super().__init__(bias=False)


class NoExport(Tiny):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return super().forward(x + torch.special.bessel_j0(x))


class NotAnEncoder(nn.Module):
    pass


def test_an_encoder_that_keeps_the_contract_is_taken_in() -> None:
    register_encoder("tiny", Tiny)
    assert spec.BACKBONES["tiny"].lr is None
    with pytest.raises(SpecError, match=r"'tiny'.*exists already"):
        register_encoder("tiny", Tiny)
    with pytest.raises(SpecError, match=r"'resnet18'.*exists already"):
        register_encoder("resnet18", Tiny)


@pytest.mark.parametrize(
    ("factory", "contract", "detail"),
    [
        (NotAnEncoder, "encoder", "derive from"),
        (NoMaps, "feature_maps", "low, mid, high"),
        (WrongChannels, "channels", "mid is declared with 7 channels and has 6"),
        (WrongStride, "strides", "high is declared at stride 32"),
        (NeverFrozen, "frozen", "such as calls"),
        (NoBias, "bias", "nothing to tune"),
        (NoExport, "export", "ONNX opset 12"),
    ],
)
def test_a_broken_contract_is_named(factory: type[Encoder], contract: str, detail: str) -> None:
    with pytest.raises(SpecError) as caught:
        register_encoder("broken", factory)
    assert f"'broken' breaks the contract '{contract}'" in str(caught.value)
    assert detail in str(caught.value)
    assert "broken" not in spec.BACKBONES
    assert "broken" not in encoders.ENCODERS


def test_plugins_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no plugin file .*gone.py"):
        load_plugin(tmp_path / "gone.py")
    with pytest.raises(SpecError, match="no plugin 'no_such_module_anywhere'"):
        load_plugin("no_such_module_anywhere")
    (tmp_path / "bad.py").write_text(EXAMPLE.read_text() + "\n1 / 0\n")
    with pytest.raises(SpecError, match=r"plugin bad.py fails on import: ZeroDivisionError"):
        load_plugin(tmp_path / "bad.py", check=False)
    assert NAME not in encoders.ENCODERS
    assert NAME not in spec.BACKBONES


def test_an_installed_package_adds_backbones_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside_backbones.py").write_text(EXAMPLE.read_text())
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sharedenc.backbones]\nshuffle = outside_backbones\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugins.load_entry_points(check=False) == (NAME,)
    assert spec.BACKBONES[NAME].source == "entry point shuffle"
