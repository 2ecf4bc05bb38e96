"""Initial weights: the option, files and folders, downloads, shapes, calibration."""

from __future__ import annotations

import hashlib
import math
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sharedenc.errors import SpecError, WeightsError
from sharedenc.models import weights
from sharedenc.models.build import build_network
from sharedenc.models.encoders import Encoder, build_encoder
from sharedenc.models.freeze import apply_freeze
from sharedenc.models.weights import (
    OfficialWeights,
    calibrate_batchnorm,
    load_encoder_weights,
    read_state,
    resolve_weights,
)

OFFICIAL_FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "mobilenet_v3_large": "mobilenet_v3_large-5c1a4163.pth",
    "efficientnet_v2_s": "efficientnet_v2_s-dd5fe13b.pth",
    "densenet121": "densenet121-a639ec97.pth",
}


@pytest.fixture(scope="module")
def resnet() -> Encoder:
    torch.manual_seed(0)
    return build_encoder("resnet18")


@pytest.fixture
def fresh(resnet: Encoder) -> Encoder:
    torch.manual_seed(9)
    return build_encoder("resnet18")


def torchvision_state(encoder: Encoder) -> dict[str, Tensor]:
    state = {name.removeprefix("body."): v for name, v in encoder.state_dict().items()}
    return {**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def assert_same(encoder: Encoder, other: Encoder) -> None:
    theirs = other.state_dict()
    assert all(value.equal(theirs[name]) for name, value in encoder.state_dict().items())


def save_official(folder: Path, state: dict[str, Tensor], stem: str = "resnet18") -> Path:
    """A file named like torchvision's, with the first digits of its own SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "file")
    digest = hashlib.sha256((folder / "file").read_bytes()).hexdigest()
    return (folder / "file").rename(folder / f"{stem}-{digest[:8]}.pth")


@pytest.mark.parametrize("backbone", OFFICIAL_FILES)
def test_default_is_torchvisions_default_named_without_a_download(backbone: str) -> None:
    found = resolve_weights("default", backbone)
    assert found.digest == OFFICIAL_FILES[backbone]
    version = "V2" if backbone == "mobilenet_v3_large" else "V1"
    assert found.source.startswith("torchvision:")
    assert found.source.endswith(f"IMAGENET1K_{version}")


def test_options_choose_per_backbone(tmp_path: Path, resnet: Encoder) -> None:
    path = tmp_path / "own.pth"
    torch.save(resnet.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert resolve_weights("none", "resnet18").load is None
    assert resolve_weights(str(path), "resnet18").digest == digest
    only = f"resnet18={path}"
    assert resolve_weights(only, "resnet18").source == str(path)
    assert resolve_weights(only, "densenet121").digest == OFFICIAL_FILES["densenet121"]
    mixed = f"none,resnet18={path}"
    assert resolve_weights(mixed, "resnet18").digest == digest
    assert resolve_weights(mixed, "densenet121").digest == "none"


def test_wrong_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'resnet81'.*Did you mean 'resnet18'"):
        resolve_weights("resnet81=x.pth", "resnet18")
    with pytest.raises(SpecError, match="cannot be read"):
        resolve_weights("none,default", "resnet18")
    with pytest.raises(SpecError, match="cannot be read"):
        resolve_weights("", "resnet18")
    with pytest.raises(SpecError, match="twice"):
        resolve_weights("resnet18=a,resnet18=b", "resnet18")
    with pytest.raises(WeightsError, match=r"no weights at .*gone.pth.*--weights none"):
        resolve_weights(str(tmp_path / "gone.pth"), "resnet18")


@pytest.fixture
def own_hub(tmp_path: Path) -> Iterator[Path]:
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub"
    torch.hub.set_dir(before)


def test_a_download_goes_through_torch_hubs_cache(
    tmp_path: Path, own_hub: Path, monkeypatch: pytest.MonkeyPatch, resnet: Encoder, fresh: Encoder
) -> None:
    path = save_official(tmp_path / "site", torchvision_state(resnet))
    official = OfficialWeights("torchvision:test", path.as_uri())
    monkeypatch.setitem(weights.OFFICIAL, "resnet18", official)
    found = resolve_weights("default", "resnet18")
    assert not own_hub.exists()
    assert found.load is not None
    load_encoder_weights(fresh, found.load())
    assert_same(fresh, resnet)
    assert (own_hub / "checkpoints" / path.name).is_file()


def test_a_failed_download_names_the_ways_out(
    own_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound but not listening: refused at once
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/resnet18-f37072fd.pth"
        monkeypatch.setitem(weights.OFFICIAL, "resnet18", OfficialWeights("torchvision:x", url))
        found = resolve_weights("default", "resnet18")
        assert found.load is not None
        with pytest.raises(WeightsError) as caught:
            found.load()
    for way in ("sharedenc weights fetch --out DIR", "--weights PATH", "--weights none"):
        assert way in str(caught.value)


def test_a_fetched_folder_gives_the_key_of_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet: Encoder, fresh: Encoder
) -> None:
    path = save_official(tmp_path / "weights", torchvision_state(resnet))
    official = OfficialWeights("torchvision:test", f"https://example.invalid/{path.name}")
    monkeypatch.setitem(weights.OFFICIAL, "resnet18", official)
    found = resolve_weights(str(tmp_path / "weights"), "resnet18")
    assert found.digest == resolve_weights("default", "resnet18").digest == path.name
    assert found.load is not None
    load_encoder_weights(fresh, found.load())
    assert_same(fresh, resnet)
    with pytest.raises(WeightsError, match=r"has no densenet121-a639ec97.pth"):
        resolve_weights(str(tmp_path / "weights"), "densenet121")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="SHA-256 begins with"):
        resolve_weights(str(tmp_path / "weights"), "resnet18")


def test_names_of_torchvision_of_the_encoder_and_of_a_network_are_read(
    tmp_path: Path, resnet: Encoder
) -> None:
    network = build_network("resnet18", ("det",), 3, seed=0)
    network.encoder.load_state_dict(resnet.state_dict())
    save_file(network.state_dict(), tmp_path / "best.safetensors")
    for state in (
        torchvision_state(resnet),
        resnet.state_dict(),
        read_state(tmp_path / "best.safetensors"),
    ):
        target = build_encoder("resnet18")
        load_encoder_weights(target, state)
        assert_same(target, resnet)


def test_old_densenet_names_are_read() -> None:
    source, target = build_encoder("densenet121"), build_encoder("densenet121")
    old = {}
    for name, value in source.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        for part in ("norm", "relu", "conv"):
            for number in "12":
                name = name.replace(f".{part}{number}.", f".{part}.{number}.")
        old[name.removeprefix("body.")] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    load_encoder_weights(target, old)
    assert_same(target, source)


def test_wrong_shapes_name_the_first_tensors_with_both_shapes(
    resnet: Encoder, fresh: Encoder
) -> None:
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    state = torchvision_state(resnet)
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    state["layer1.0.conv1.weight"] = torch.zeros(32, 64, 3, 3)
    with pytest.raises(WeightsError) as caught:
        load_encoder_weights(fresh, state)
    text = str(caught.value)
    assert "body.conv1.weight is (64, 1, 7, 7) in the weights and (64, 3, 7, 7) here" in text
    assert "body.layer1.0.conv1.weight is (32, 64, 3, 3)" in text
    assert all(value.equal(before[name]) for name, value in fresh.state_dict().items())
    del state["conv1.weight"], state["layer1.0.conv1.weight"]
    with pytest.raises(WeightsError, match=r"missing are body.conv1.weight"):
        load_encoder_weights(fresh, state)


def test_weights_that_are_not_finite_are_named(resnet: Encoder, fresh: Encoder) -> None:
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    state = torchvision_state(resnet)
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].clone()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = math.nan
    with pytest.raises(WeightsError, match=r"NaN or infinity in body\.layer1\.0\.conv1\.weight"):
        load_encoder_weights(fresh, state)
    assert all(value.equal(before[name]) for name, value in fresh.state_dict().items())


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "text.pth", "list.pth"])
def test_files_that_are_no_weights_are_errors(tmp_path: Path, name: str, resnet: Encoder) -> None:
    path = tmp_path / name
    if name == "cut.safetensors":
        save_file(resnet.state_dict(), path)
    else:
        torch.save([1, 2] if name == "list.pth" else resnet.state_dict(), path)
    if name.startswith("cut"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if name == "text.pth":
        path.write_text("<html>not found</html>")
    with pytest.raises(WeightsError, match=name):
        read_state(path)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state(tmp_path / "module.pth")


def test_the_real_local_file_fills_the_encoder(shared_data: Path) -> None:
    path = shared_data / "weights" / "mobilenet_v3_large_features_from_rvm_int8.pth"
    found = resolve_weights(f"mobilenet_v3_large={path}", "mobilenet_v3_large")
    assert found.digest.startswith("8df95db33f5c7a37e7ee")
    assert found.load is not None
    state = found.load()
    encoder = build_encoder("mobilenet_v3_large").eval()
    assert {f"body.{name}" for name in state} == set(encoder.state_dict())
    load_encoder_weights(encoder, state)
    with torch.no_grad():
        maps = encoder(torch.randn(2, 3, 96, 96))
    assert all(float(value.std()) > 0.01 for value in maps.values())


def test_calibration_wakes_the_deep_features() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("mobilenet_v3_large")
    apply_freeze(encoder, "frozen")
    encoder.eval()
    batches = [torch.randn(4, 3, 64, 64) for _ in range(3)]
    with torch.no_grad():
        assert float(encoder(batches[0])["high"].std()) < 1e-3
    weight = encoder.state_dict()["body.features.0.0.weight"].clone()
    assert calibrate_batchnorm(encoder, iter(batches)) == 3
    norms = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.01}
    assert not any(part.training for part in encoder.modules())
    assert weight.equal(encoder.state_dict()["body.features.0.0.weight"])
    with torch.no_grad():
        assert float(encoder(batches[0])["high"].std()) > 0.01
        # Cumulative averaging: the first statistics are the plain mean over the batches.
        first = encoder.get_submodule("body.features.0.0")
        means = torch.stack([first(batch).mean(dim=(0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(norms[0].running_mean, means, rtol=1e-4, atol=1e-5)


def test_calibration_without_images_is_an_error(resnet: Encoder) -> None:
    with pytest.raises(WeightsError, match="no images"):
        calibrate_batchnorm(resnet, [])
