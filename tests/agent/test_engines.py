"""Engines that are kept."""

from __future__ import annotations

import os
from pathlib import Path

from jetson_agent.backends.base import Built, TensorInfo
from jetson_agent.engines import EngineCache


def build(cache: EngineCache, key: str, content: bytes = b"engine") -> Built:
    place = cache.workplace(key)
    (place / "engine.plan").write_bytes(content)
    made = Built(
        engine=place / "engine.plan",
        precision="fp32",
        threads=1,
        build_s=2.5,
        inputs=(TensorInfo(name="images", shape=(1, 3, 8, 8), dtype="float32"),),
        outputs=("y",),
        options={"version": "10.3.0"},
    )
    return cache.put(key, made)


def test_what_was_built_is_found_again_by_its_key_alone(tmp_path: Path) -> None:
    built = build(EngineCache(tmp_path), "a")
    found = EngineCache(tmp_path).get("a")
    assert found == built
    assert found is not None
    assert found.engine.read_bytes() == b"engine"
    assert EngineCache(tmp_path).get("b") is None


def test_a_build_that_was_interrupted_is_not_found(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    (cache.workplace("a") / "engine.plan").write_bytes(b"half")
    assert cache.get("a") is None
    # The next build begins with an empty folder.
    assert list(cache.workplace("a").iterdir()) == []


def test_an_engine_that_changed_or_a_note_that_is_damaged_counts_for_nothing(
    tmp_path: Path,
) -> None:
    cache = EngineCache(tmp_path)
    build(cache, "a").engine.write_bytes(b"other")
    assert cache.get("a") is None
    note = build(cache, "b").engine.with_name("built.json")
    for text in ("", "[]", '{"built": {}, "sha256": ""}'):
        note.parent.mkdir(exist_ok=True)
        note.write_text(text)
        assert cache.get("b") is None
    assert list(tmp_path.iterdir()) == []


def test_those_not_used_for_longest_go_when_there_is_no_room(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, max_bytes=2500)
    for age, key in enumerate(("a", "b")):
        note = build(cache, key, bytes(700)).engine.with_name("built.json")
        os.utime(note, (1000 + age, 1000 + age))
    assert cache.get("a") is not None  # used just now
    build(cache, "c", bytes(700))
    assert {p.name for p in tmp_path.iterdir()} == {"a", "c"}
    # The newest stays even if it is too large by itself.
    build(cache, "d", bytes(9000))
    assert {p.name for p in tmp_path.iterdir()} == {"d"}


def test_an_engine_that_is_the_model_itself_is_not_copied(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    cache.workplace("a")
    model = tmp_path / "m.onnx"
    made = Built(
        engine=model, precision="fp32", threads=1, build_s=1, inputs=(), outputs=(), options={}
    )
    assert cache.put("a", made) == made
    assert list((tmp_path / "cache").iterdir()) == []
