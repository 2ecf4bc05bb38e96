from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jetson_agent.protocol import (
    STATE_TAG,
    BenchResult,
    ExportManifest,
    ProtocolError,
    bench_experiment,
    model_name,
)

MANIFEST = ExportManifest(
    data="voc20",
    backbone="resnet18",
    graph="dual",
    architecture="ab" * 32,
    files={"model.onnx": "0f" * 32},
    study="full-grid-voc",
    cell="resnet18/dual",
    key="cd" * 32,
    run_id="r1",
    outputs=["cls_logits", "bbox_regression", "seg_logits"],
    classes=["person", "dog"],
)
RESULT = BenchResult(
    device="board",
    architecture="ab" * 32,
    precision="fp32",
    load="single",
    mode="default-2t",
    backend="onnxruntime",
    runtime="1.20",
    verdict="suspect",
    reasons=["Busy."],
    metrics={"latency_ms/p50": 1.5},
    certificate={"threads": 2},
    model="voc20-resnet18-dual",
    version="3",
)


def test_names_are_those_of_the_design() -> None:
    assert MANIFEST.model == "voc20-resnet18-dual"
    assert model_name("My Photos (2024)", "resnet18", "seg") == "my-photos-2024-resnet18-seg"
    assert bench_experiment("board") == "bench/board"


def test_a_manifest_survives_json() -> None:
    assert ExportManifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_tags_hold_all_but_the_long_lists_and_never_the_state() -> None:
    tags = MANIFEST.to_tags()
    assert STATE_TAG not in tags
    assert json.loads(tags["sharedenc.sha256"]) == MANIFEST.files
    assert all(isinstance(value, str) for value in tags.values())
    read = ExportManifest.from_tags(tags, run_id="r1")
    assert read == replace(MANIFEST, outputs=[], classes=[])


@pytest.mark.parametrize("name", ["architecture", "sha256", "precisions", "key", "graph"])
def test_a_missing_tag_is_named(name: str) -> None:
    tags = MANIFEST.to_tags()
    del tags[f"sharedenc.{name}"]
    with pytest.raises(ProtocolError, match=f"sharedenc.{name}"):
        ExportManifest.from_tags(tags)


@pytest.mark.parametrize("version", ["1", None])
def test_another_protocol_is_refused_with_both_versions(version: str | None) -> None:
    tags = MANIFEST.to_tags()
    tags.pop("sharedenc.protocol")
    if version:
        tags["sharedenc.protocol"] = version
    with pytest.raises(ProtocolError, match=f"protocol {version}, this agent speaks 2"):
        ExportManifest.from_tags(tags)


@pytest.mark.parametrize("text", ["", "[]", '{"protocol": 2}', '{"protocol": 9}', "{"])
def test_a_broken_manifest_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError, match=r"manifest\.json"):
        ExportManifest.from_json(text)


@pytest.mark.parametrize("tag", ["not json", "{}", "3"])
def test_broken_precisions_are_a_protocol_error(tag: str) -> None:
    with pytest.raises(ProtocolError, match="precisions"):
        ExportManifest.from_tags({**MANIFEST.to_tags(), "sharedenc.precisions": tag})


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "a/b.onnx", ".hidden", "", "a\\b"]
)
def test_a_file_name_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(ProtocolError, match="plain name"):
        replace(MANIFEST, files={name: "0f" * 32})


def test_a_digest_is_64_hex_digits() -> None:
    with pytest.raises(ProtocolError, match="64"):
        replace(MANIFEST, files={"model.onnx": "none"})


def test_fields_of_a_newer_release_are_ignored() -> None:
    newer = {**json.loads(MANIFEST.to_json()), "colour": "blue"}
    assert ExportManifest.from_json(json.dumps(newer)) == MANIFEST


def test_a_result_survives_json_and_says_all_in_tags() -> None:
    assert BenchResult.from_json(RESULT.to_json()) == RESULT
    tags = RESULT.to_tags()
    assert tags["sharedenc.kind"] == "bench"
    assert tags["sharedenc.verdict"] == "suspect"
    assert tags["sharedenc.reasons"] == "Busy."
    assert tags["sharedenc.bench_key"] == RESULT.key


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "other"),
        ("architecture", "ef" * 32),
        ("precision", "int8"),
        ("load", "stream"),
        ("mode", "default-1t"),
        ("backend", "tensorrt"),
        ("runtime", "1.21"),
    ],
)
def test_whatever_changes_a_timing_changes_its_key(name: str, value: str) -> None:
    assert replace(RESULT, **{name: value}).key != RESULT.key  # type: ignore[arg-type]


def test_which_version_was_timed_does_not_change_the_key() -> None:
    other = replace(RESULT, version="4", study="s", verdict="valid", metrics={})
    assert other.key == RESULT.key


@pytest.mark.parametrize("field", ["verdict", "load", "precision"])
def test_a_word_outside_the_protocol_is_refused_with_those_inside(field: str) -> None:
    with pytest.raises(ProtocolError, match=f"{field}='fast' is not one of"):
        replace(RESULT, **{field: "fast"})  # type: ignore[arg-type]
