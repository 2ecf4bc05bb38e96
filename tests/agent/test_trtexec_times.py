from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jetson_agent.errors import BackendError
from jetson_agent.trtexec_log import Report
from jetson_agent.trtexec_times import Times, agree, read_times

QUERY = {
    **{"startEnqMs": 2000.5, "endEnqMs": 2000.9, "startH2dMs": 2000.5, "endH2dMs": 2000.6},
    **{"startComputeMs": 2000.6, "endComputeMs": 2002.6, "startD2hMs": 2002.6},
    **{"endD2hMs": 2002.7, "h2dMs": 0.1, "computeMs": 2.0, "d2hMs": 0.125, "latencyMs": 2.225},
}
# What trtexec itself prints, query by query, with spaces and commas where it puts them.
TEXT = """[
  { "startEnqMs" : 201.5, "endEnqMs" : 201.75, "startH2dMs" : 201.5, "endH2dMs" : 201.53, \
"startComputeMs" : 201.53, "endComputeMs" : 203.53, "startD2hMs" : 203.53, "endD2hMs" : 203.534, \
"h2dMs" : 0.03125, "computeMs" : 2, "d2hMs" : 0.00390625, "latencyMs" : 2.03516 }
, { "startEnqMs" : 203.5, "endEnqMs" : 203.75, "startH2dMs" : 203.5, "endH2dMs" : 203.53, \
"startComputeMs" : 203.53, "endComputeMs" : 206.03, "startD2hMs" : 206.03, "endD2hMs" : 206.034, \
"h2dMs" : 0.03125, "computeMs" : 2.5, "d2hMs" : 1e-05, "latencyMs" : 2.53126 }
]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "times.json"
    path.write_text(text)
    return path


def test_the_file_as_trtexec_writes_it(tmp_path: Path) -> None:
    times = read_times(write(tmp_path, TEXT))
    assert times.latencies_ms == [2.03516, 2.53126]
    assert times.parts == {
        "gpu_compute_ms": [2.0, 2.5],
        "h2d_ms": [0.03125, 0.03125],
        "d2h_ms": [0.00390625, 0.00001],
    }
    # From the first copy to the device to the last one back.
    assert times.wall_s == pytest.approx(0.004534)
    # Six digits of 201.5 and of 206.034 ms: half of 0.001 ms each.
    assert times.wall_error_s == pytest.approx(1e-6)


def test_the_queries_of_a_warm_up_are_left_out(tmp_path: Path) -> None:
    assert read_times(write(tmp_path, TEXT), queries=1).latencies_ms == [2.53126]
    assert len(read_times(write(tmp_path, TEXT), queries=9).latencies_ms) == 2


@pytest.mark.parametrize("cut", range(0, len(TEXT) - 3, 41))
def test_a_cut_file_is_refused(cut: int, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"times\.json of trtexec is cut"):
        read_times(write(tmp_path, TEXT[:cut]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds no list of timed queries"),
        ("{}", "holds no list of timed queries"),
        ("[1]", "without the number latencyMs"),
        ('[{"name": "conv"}]', "without the number latencyMs"),
        (json.dumps([{**QUERY, "computeMs": "2"}]), "without the number computeMs"),
        (json.dumps([{**QUERY, "computeMs": True}]), "without the number computeMs"),
        (json.dumps([{**QUERY, "computeMs": -0.5}]), "has computeMs=-0.5"),
        (json.dumps([{**QUERY, "latencyMs": 1e999}]), "Infinity is no time"),
        (json.dumps([QUERY]).replace("2.225", "1e999"), "has latencyMs=inf"),
        (json.dumps([QUERY]).replace("2.225", "inf"), "cut or not its own"),
        (json.dumps([{**QUERY, "endD2hMs": 1.0}]), "before its start"),
        ("[" * 100_000, "cut or not its own"),
        ("\x00", "cut or not its own"),
    ],
)
def test_a_foreign_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=message):
        read_times(write(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="left no times to read"):
        read_times(tmp_path / "none.json")


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200) | st.integers(0, len(TEXT)).map(lambda n: TEXT[n:].encode()))
def test_no_file_does_anything_but_be_refused_or_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(data)
    with contextlib.suppress(BackendError):
        assert read_times(path).latencies_ms


TIMES = Times(
    latencies_ms=[2.25, 2.125, 2.5, 4.0],
    parts={"gpu_compute_ms": [2.0, 2.0, 2.25, 3.5], "h2d_ms": [0.0] * 4, "d2h_ms": [0.0] * 4},
    wall_s=0.01,
    wall_error_s=1e-7,
)
# Of four values (ascending 2.125, 2.25, 2.5, 4): the 90th and the 50th percentile of trtexec.
LATENCY: dict[str, float | None] = {
    **{"min": 2.125, "max": 4.0, "mean": 2.71875, "median": 2.375, "p90": 4.0, "p50": 2.25},
}
REPORT = Report(throughput_qps=400.0, latency_ms=LATENCY, queries=4, walltime_s=0.01, runs=1)


def test_a_text_that_says_the_same_agrees() -> None:
    assert agree(REPORT, TIMES) == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("min", 2.13), ("max", 4.001), ("mean", 2.72), ("median", 2.25), ("p90", 2.5), ("p50", 2.375)],
)
def test_each_statistic_is_compared(name: str, wrong: float) -> None:
    report = replace(REPORT, latency_ms={**LATENCY, name: wrong})
    found = agree(report, TIMES)
    assert len(found) == 1
    assert f"{wrong:g} as {name} of latency_ms" in found[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"throughput_qps": 401.0}, "401 queries per second, the times 400"),
        ({"throughput_qps": None}, "The text has no throughput."),
        ({"latency_ms": None}, "The text has no median of the latency."),
        ({"queries": 5}, "counts 5 timed queries, the times 4"),
        ({"walltime_s": 0.0101}, "0.0101 s of walltime, the times 0.01 s"),
        ({"gpu_compute_ms": {"max": 3.6}}, "3.6 as max of gpu_compute_ms, the times 3.5"),
        ({"h2d_ms": {"mean": 0.01}}, "0.01 as mean of h2d_ms, the times 0"),
    ],
)
def test_each_figure_is_compared(change: dict[str, Any], sentence: str) -> None:
    found = agree(replace(REPORT, **change), TIMES)
    assert len(found) == 1
    assert sentence in found[0]


def test_rounding_to_six_digits_is_no_disagreement() -> None:
    latencies = [1234.56789, 1000.0]
    times = replace(TIMES, latencies_ms=[1234.57, 1000.0], parts={})
    said = {"max": 1234.57, "median": float(f"{sum(latencies) / 2:.6g}"), "min": 1000.0}
    report = Report(throughput_qps=200.001, latency_ms=said, runs=1)
    assert agree(report, times) == []
    assert agree(replace(report, latency_ms={**said, "max": 1234.6}), times) != []
