"""R11 at a small size: one network's three graphs, and what unequal outputs do."""

from __future__ import annotations

import numpy as np
import pytest

import benchmarks.dual_inference as module
from benchmarks.protocol import Unequal

KEYS = {"id", "case", "reference", "ours", "ratio", "limit_share", "check", "load"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return module.run(1, backbones=("mobilenet_v3_large",), image_px=96, queries=1)


def test_r11_has_both_rows_with_equal_outputs(rows: list[dict[str, object]]) -> None:
    assert [row["case"] for row in rows] == [
        "mobilenet_v3_large, both tasks of a photo: dual graph, two graphs",
        "mobilenet_v3_large, dual graph: bound buffers, InferenceSession.run",
    ]
    assert all(set(row) >= KEYS for row in rows)


def test_the_limit_is_that_of_one_encoder_pass_instead_of_two(
    rows: list[dict[str, object]],
) -> None:
    row = rows[0]
    # One encoder and both heads, against two encoders and both heads; GFLOP by hand of perf.md.
    by_hand = (0.871 + 0.036 + 0.189) / (2 * 0.871 + 0.036 + 0.189)
    assert row["limit"] / row["reference"] == pytest.approx(by_hand, rel=0.05)  # type: ignore[operator]
    assert rows[1]["limit"] is None


def test_outputs_that_differ_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(session: object, inputs: object, outputs: dict[str, np.ndarray]) -> object:
        def query() -> None:
            for value in outputs.values():
                value += np.float32(1e-2) * np.abs(value).max()

        return query

    monkeypatch.setattr(module, "_query", other)
    with pytest.raises(Unequal):
        module.run(1, backbones=("mobilenet_v3_large",), image_px=96, queries=1)


def test_near_looks_at_every_output() -> None:
    one = {"a": np.array([1.0, 100.0]), "b": np.array([1.0])}
    assert module.near(one, {"a": np.array([1.009, 100.0]), "b": np.array([1.0])})
    assert not module.near(one, {"a": one["a"], "b": np.array([1.001])})
    assert not module.near(one, {"a": one["a"]})
