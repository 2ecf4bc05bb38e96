"""Every figure here was read by a person from the log it is compared with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from jetson_agent.cli import cli
from jetson_agent.trtexec_log import decode_version, parse
from tests.agent.trtexec_texts import STAMP, SUMMARY, V8_2, V10_3, V10_13, V11, log

ISSUE_KEYS = [
    *("tensorrt_version", "passed", "throughput_qps", "latency_ms", "enqueue_ms", "h2d_ms"),
    *("gpu_compute_ms", "d2h_ms", "warnings", "failure"),
]
OWN = {"8.2": V8_2, "10.3": V10_3, "10.13": V10_13, "11": V11}
WARNING = f"{STAMP} [W] [TRT] a word from the library\n"
# Of each sample: version, verdict, throughput, statistics of the latency, kind of failure.
SAMPLES: dict[str, tuple[str | None, bool | None, float | None, dict[str, float] | None, str]] = {
    "FAIL_trt10.0_engine_version_mismatch": ("10.0.1", False, None, None, "engine-mismatch"),
    "FAIL_trt10.3.0_builder_internal_error": ("10.3.0", False, None, None, "internal"),
    "FAIL_trt10.3.0_parse_error": ("10.3.0", False, None, None, "unsupported"),
    "FAIL_trt10.3.0_unknown_option": ("10.3.0", False, None, None, "usage"),
    "FAIL_trt10_calib_without_valid_cache": (None, None, None, None, "crash"),
    "FAIL_trt8.6_bias_quantisation": (None, None, None, None, "internal"),
    "FAIL_trt8_int8_no_implementation_and_memory": (None, None, None, None, "int8-kernel"),
    "FAIL_trtrtx1.7_parse_int32_bias_measured": (None, None, None, None, "unsupported"),
    "trt10.3.0_jetson_resnet50_fp16_nodatatransfers": (
        "10.3.0",
        True,
        318.007,
        {
            **{"min": 3.12671, "max": 3.15479, "mean": 3.14068, "median": 3.14062},
            **{"p90": 3.14587, "p95": 3.14771, "p99": 3.15039},
        },
        "",
    ),
    "trt10.3.0_orin_build_header_int8_qdq": ("10.3.0", None, None, None, ""),
    "trt10.3.0_orin_nx_header_cudagraph": ("10.3.0", None, None, None, ""),
    "trt10.9.0_rtx3070_resnet50_fp32_full": (
        "10.9.0",
        True,
        691.435,
        {
            **{"min": 1.4209, "max": 3.047, "mean": 1.48372, "median": 1.43823},
            **{"p90": 1.45624, "p95": 1.71796, "p99": 2.61597},
        },
        "",
    ),
    "trt10_issue4177_enqueue_bound_warning": (
        None,
        None,
        130.298,
        {
            **{"min": 5.38672, "max": 13.3664, "mean": 7.60628, "median": 7.16092},
            **{"p90": 10.2996, "p95": 10.8698, "p99": 12.9675},
        },
        "",
    ),
}


def samples(shared_data: Path) -> dict[str, str]:
    """Every real log there is, by its file's name; more may have come since."""
    return {path.stem: path.read_text() for path in (shared_data / "trtexec_samples").glob("*.txt")}


def assert_no_more_than(part: Any, whole: Any, where: str = "") -> None:
    """Every figure and word of `part` is in `whole` too; what is missing is None."""
    if isinstance(part, dict):
        for name, value in part.items():
            if value is not None:
                assert_no_more_than(value, (whole or {}).get(name), f"{where}.{name}")
    elif part is not None and not isinstance(part, list):
        assert part == whole, where


def facts(text: str) -> dict[str, Any]:
    """What a log says of its run, apart from a verdict on why it failed, which needs the end."""
    whole = parse(text).to_dict()
    json.dumps(whole, allow_nan=False)
    return {name: whole[name] for name in whole if name not in ("failure", "runs")}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_real_log_has_the_figures_that_a_person_reads_in_it(name: str, shared_data: Path) -> None:
    version, passed, throughput_qps, latency_ms, failure = SAMPLES[name]
    report = parse(samples(shared_data)[name])
    assert report.tensorrt_version == version
    assert report.passed is passed
    assert report.throughput_qps == throughput_qps
    assert report.latency_ms == latency_ms
    assert (report.failure.kind if report.failure else "") == failure
    assert report.runs == 1


def test_every_real_log_is_read(shared_data: Path) -> None:
    for name, text in samples(shared_data).items():
        report = parse(text)
        assert report.recognised, name
        assert list(report.to_dict())[: len(ISSUE_KEYS)] == ISSUE_KEYS


def test_the_whole_real_log_has_its_smaller_figures_too(shared_data: Path) -> None:
    report = parse(samples(shared_data)["trt10.9.0_rtx3070_resnet50_fp32_full"])
    assert report.queries == 2077
    assert report.warmup_queries == 135
    assert report.walltime_s == 3.0039
    assert report.gpu_compute_s == 2.9983
    assert report.device == "NVIDIA GeForce RTX 3070"
    assert report.build_tag == "b34"
    assert report.command == "trtexec --onnx=resnet50/model.onnx --saveEngine=resnet50/model.trt"
    assert report.build.build_s == 10.7204
    assert report.build.engine_mib == 101.811
    assert report.build.context_mib == 7.84766
    assert report.build.precision == "FP32"
    assert report.h2d_ms == {
        **{"min": 0.0258789, "max": 0.0687256, "mean": 0.0362824, "median": 0.0361328},
        **{"p90": 0.0378418, "p95": 0.0385742, "p99": 0.0616455},
    }
    assert report.d2h_ms is not None
    assert report.d2h_ms["p99"] == 0.00537109
    assert report.gpu_compute_ms is not None
    assert report.gpu_compute_ms["max"] == 3.00439
    assert report.enqueue_ms is not None
    assert report.enqueue_ms["median"] == 0.259033
    assert report.warnings == [
        "* GPU compute time is unstable, with coefficient of variance = 13.1794%.",
        "If not already in use, locking GPU clock frequency or adding --useSpinWait may improve the"
        " stability.",
    ]


def test_any_part_of_a_real_log_says_no_more_than_the_whole(shared_data: Path) -> None:
    chance = random.Random(0)
    for name, text in samples(shared_data).items():
        whole = facts(text)
        summary = max(text.find("=== Performance summary"), 0)
        cuts = {chance.randrange(len(text)) for _ in range(40)}
        cuts |= {chance.randrange(summary, len(text)) for _ in range(60)}
        for cut in cuts:
            try:
                assert_no_more_than(facts(text[:cut]), whole)
            except AssertionError as error:
                raise AssertionError(f"{name} cut at {cut}") from error


@pytest.mark.parametrize("version", OWN)
def test_a_log_cut_anywhere_says_no_more_than_the_whole(version: str) -> None:
    text = OWN[version]
    whole = facts(text)
    for cut in range(len(text)):
        part = facts(text[:cut])
        assert_no_more_than(part, whole)
        assert part["passed"] is (None if "&&&& PASSED" not in text[:cut] else True)


@pytest.mark.parametrize("version", OWN)
def test_a_warning_in_the_middle_of_any_line_changes_nothing(version: str) -> None:
    text = OWN[version]
    whole = parse(text).to_dict()
    for place in range(len(text) + 1):
        mixed = parse(text[:place] + WARNING + text[place:]).to_dict()
        mixed["warnings"].remove("a word from the library")
        assert mixed == whole, text[place - 20 : place + 20]


def test_the_figures_of_10_3() -> None:
    report = parse(V10_3)
    assert report.to_dict() == {
        "tensorrt_version": "10.3.0",
        "passed": True,
        "throughput_qps": 500.25,
        "latency_ms": {
            **{"min": 1.5, "max": 2.75, "mean": 2.01, "median": 2.0},
            **{"p90": 2.25, "p95": 2.5, "p99": 2.625},
        },
        "enqueue_ms": {
            **{"min": 0.25, "max": 0.5, "mean": 0.31, "median": 0.3125},
            **{"p90": 0.375, "p95": 0.4375, "p99": 0.46875},
        },
        "h2d_ms": {
            **{"min": 0.00001, "max": 0.0625, "mean": 0.03, "median": 0.03125},
            **{"p90": 0.046875, "p95": 0.05, "p99": 0.06},
        },
        "gpu_compute_ms": {
            **{"min": 1.25, "max": 2.5, "mean": 1.9, "median": 1.875},
            **{"p90": 2.0, "p95": 2.125, "p99": 2.375},
        },
        "d2h_ms": {
            **{"min": 0.0039, "max": 0.0078, "mean": 0.005, "median": 0.0049},
            **{"p90": 0.006, "p95": 0.0065, "p99": 0.007},
        },
        "warnings": [
            "[libprotobuf WARNING google/protobuf/io/coded_stream.cc:81] The total number of bytes"
            " read",
            "Calibrator is not being used. Users must provide dynamic range for all tensors.",
            "* GPU compute time is unstable, with coefficient of variance = 2.5%.",
            "If not already in use, locking GPU clock frequency may improve the stability.",
        ],
        "failure": None,
        "errors": [],
        "end_to_end_ms": None,
        "queries": 1502,
        "warmup_queries": 100,
        "walltime_s": 3.0025,
        "gpu_compute_s": 2.8538,
        "device": "Orin",
        "build_tag": None,
        "command": "/usr/bin/trtexec --onnx=m.onnx --int8",
        "build": {
            **{"build_s": 42.5, "load_s": 0.125, "engine_mib": 25.25, "context_mib": 7.75},
            "precision": "FP32+INT8",
        },
        "runs": 1,
    }


def test_8_2_has_one_percentile_and_another_latency() -> None:
    report = parse(V8_2)
    assert report.tensorrt_version == "8.2.1"
    assert report.passed is True
    assert report.throughput_qps == 249.5
    assert report.latency_ms == {"min": 3.5, "max": 5, "mean": 4, "median": 4.125, "p99": 4.5}
    assert report.end_to_end_ms == {"min": 7, "max": 9, "mean": 8, "median": 7.875, "p99": 8.5}
    assert report.gpu_compute_ms is not None
    assert report.gpu_compute_ms["p99"] == 4.25
    assert report.queries == 750
    assert report.build.build_s == 12.5
    # "Loaded engine size: 101 MiB" is rounded by the library, and not the size of the file.
    assert report.build.engine_mib is None


@pytest.mark.parametrize(
    ("text", "version", "tag"), [(V10_13, "10.13.3", "b9"), (V11, "11.1.0", "b26")]
)
def test_later_versions_carry_a_build_tag(text: str, version: str, tag: str) -> None:
    report = parse(text)
    assert report.tensorrt_version == version
    assert report.build_tag == tag
    assert report.command == "/usr/bin/trtexec --onnx=m.onnx --int8"


@pytest.mark.parametrize(
    ("number", "version"),
    [
        *(("8201", "8.2.1"), ("8412", "8.4.12"), ("8602", "8.6.2"), ("9300", "9.3.0")),
        *(("100001", "10.0.1"), ("100300", "10.3.0"), ("101303", "10.13.3"), ("110100", "11.1.0")),
        *(("7", None), ("10030", None), ("1003000", None)),
    ],
)
def test_versions_of_the_banner(number: str, version: str | None) -> None:
    assert decode_version(number) == version
    banner = log(f"&&&& PASSED TensorRT.trtexec [TensorRT v{number}] # trtexec")
    assert parse(banner).tensorrt_version == version


def test_an_error_of_usage_still_tells_the_version() -> None:
    """`--version` is no option: 10.3 prints its banner, the help and this."""
    report = parse(
        log(
            "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --version",
            "=== Model Options ===",
            "  --onnx=<file>               ONNX model",
            "E Unknown option: --version ",
            "&&&& FAILED TensorRT.trtexec [TensorRT v100300] # trtexec --version",
        )
    )
    assert report.tensorrt_version == "10.3.0"
    assert report.failure is not None
    assert (report.failure.kind, report.failure.lines) == ("usage", ["Unknown option: --version"])


@pytest.mark.parametrize(
    ("number", "value"),
    [
        *(("2", 2.0), ("1e-05", 0.00001), ("1.5e+06", 1.5e6), ("0", 0.0), ("-0.5", -0.5)),
        *(("inf", None), ("-inf", None), ("nan", None), ("-nan", None), ("1e999", None)),
        # Not what a C++ stream prints in its own locale.
        *(("2,5", None), ("2.5.1", None), ("0x2", None), ("", None), ("\u0661", None)),
    ],
)
def test_numbers(number: str, value: float | None) -> None:
    line = f"I Latency: min = 1 ms, max = {number} ms, mean = 1.5 ms, median = 1.25 ms"
    report = parse(log(f"I Throughput: {number} qps", line))
    assert report.throughput_qps == value
    assert report.latency_ms == {"min": 1.0, "max": value, "mean": 1.5, "median": 1.25}
    if number.strip("-") in ("inf", "nan", "1e999"):
        assert report.warnings == [
            f"{name} is {number} in the log: no figure, so it is left out"
            for name in ("throughput_qps", "max of Latency")
        ]
    json.dumps(report.to_dict(), allow_nan=False)


def test_percentiles_that_were_asked_for_are_read_whatever_they_are() -> None:
    line = "I Latency: min = 1 ms, max = 2 ms, mean = 1.5 ms, median = 1.25 ms"
    more = ", percentile(50%) = 1.25 ms, percentile(99.9%) = 1.75 ms, percentile(100%) = 2 ms"
    latency_ms = parse(log(line + more)).latency_ms
    assert latency_ms is not None
    assert {name: latency_ms[name] for name in latency_ms if name[0] == "p"} == {
        **{"p50": 1.25, "p99.9": 1.75, "p100": 2.0}
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "".join(f"\x1b[1;32m{line}\x1b[0m\n" for line in text.splitlines()),
        lambda text: text.replace("[I] === Trace", "[I] # not a comment\n# (cut here: 9 lines)\n["),
        lambda text: "# SOURCE: somewhere\n" + text,
        lambda text: "".join(f"trtexec-1  | {line}\n" for line in text.splitlines()),
    ],
    ids=["carriage returns", "colours", "comments", "a heading", "a prefix of containers"],
)
def test_what_tools_do_to_logs_changes_no_figure(change: Any) -> None:
    whole, changed = parse(V10_3).to_dict(), parse(change(V10_3)).to_dict()
    for name in set(whole) - {"warnings", "errors"}:
        assert changed[name] == whole[name], name


def test_the_last_run_of_a_log_counts() -> None:
    cut = V8_2[: V8_2.index("&&&& PASSED")]
    report = parse(V10_3 + cut + V10_13)
    assert (report.runs, report.tensorrt_version) == (3, "10.13.3")
    report = parse(V10_3 + cut)
    assert (report.runs, report.passed, report.throughput_qps) == (2, None, 249.5)
    assert report.build.engine_mib is None
    begun = "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --loadEngine=e\n"
    report = parse(V10_3 + begun)
    assert (report.runs, report.passed, report.throughput_qps) == (2, None, None)


def test_runs_without_a_banner_are_told_apart_by_their_summaries() -> None:
    other = [line.replace("500.25", "400.5") for line in SUMMARY]
    report = parse(log(*SUMMARY) + log(*other))
    assert (report.runs, report.throughput_qps) == (2, 400.5)


def test_what_the_library_says_after_the_verdict_begins_no_run() -> None:
    late = log("I [TRT] [MemUsageChange] now: CPU 0, GPU 0 (MiB)", "E Error[3]: [engine.cpp] late")
    report = parse(V10_3 + "user@orin:~$ \n" + late)
    assert (report.runs, report.throughput_qps, report.passed) == (1, 500.25, True)
    assert report.errors == ["Error[3]: [engine.cpp] late"]
    assert report.failure is None


@pytest.mark.parametrize(
    ("word", "passed"), [("PASSED", True), ("FAILED", False), ("WAIVED", False)]
)
def test_a_verdict_is_a_word_and_not_the_presence_of_figures(word: str, passed: bool) -> None:
    report = parse(V10_3.replace("&&&& PASSED", f"&&&& {word}"))
    assert report.passed is passed
    assert report.throughput_qps == 500.25
    assert (report.failure is None) is passed


def test_steps_of_the_tuner_of_11_are_no_verdict() -> None:
    text = log("&&&& TASK_BEGIN TensorRT.trtexec [TensorRT v110100] [b26] # trtexec")
    assert parse(text).passed is None


@pytest.mark.parametrize("text", ["", "\n", "hello\n", "# SOURCE: nothing else\n", "&&&& PASSE"])
def test_a_text_without_output_of_trtexec_is_not_recognised(text: str) -> None:
    report = parse(text)
    assert not report.recognised
    assert report.runs == 0


PIECES = [
    *("&&&& RUNNING ", "&&&& PASSED TensorRT.trtexec [TensorRT v", "[TensorRT v100300]", "] # x"),
    *(f"{STAMP} [I] ", f"{STAMP} [E] ", f"{STAMP} [TRT] [W] ", "Latency: min = ", " ms, max = "),
    *("percentile(", "%) = ", " ms", "Throughput: ", " qps", "inf", "nan", "1e400", "9" * 5000),
    *("\n", "\r", "\x1b[", "\x00", "# ", "=== Performance summary ===\n", "Precision: "),
    *("Could not find any implementation for node ", "(", ")", ".", " due to insufficient "),
    *("Timing trace has ", " queries over", "TensorRT version: 1.", "Cuda failure", "\u2028"),
]


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(PIECES) | st.text(max_size=4)).map("".join),
        st.binary().map(lambda data: data.decode(errors="replace")),
    )
)
def test_no_text_crashes_the_reader(text: str) -> None:
    report = parse(text)
    json.dumps(report.to_dict(), allow_nan=False)
    assert (report.runs > 0) is report.recognised


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(list(OWN)), st.randoms(use_true_random=False))
def test_lines_in_any_order_give_no_other_figures(version: str, chance: random.Random) -> None:
    lines = OWN[version].splitlines(keepends=True)
    # Without the borders of runs: what lies on the wrong side of them would be left out.
    lines = [line for line in lines if "&&&&" not in line and "===" not in line]
    whole = parse("".join(lines))
    chance.shuffle(lines)
    shuffled = parse("".join(lines))
    assert shuffled.latency_ms == whole.latency_ms
    assert shuffled.throughput_qps == whole.throughput_qps
    assert shuffled.build.engine_mib == whole.build.engine_mib


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_bytes_crash_nothing(data: st.DataObject) -> None:
    damaged = bytearray(V10_3.encode())
    for _ in range(data.draw(st.integers(1, 30))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    facts(bytes(damaged).decode(errors="replace"))


@pytest.mark.parametrize(
    "text",
    [
        f"{STAMP} [I] Latency: min = {'9' * 1_000_000}",
        f"{STAMP} [E] Could not find any implementation for node {'. In ' * 100_000}\n",
        f"{STAMP} [E] {'NvMapMem' * 100_000}\n",
        f"{STAMP} [E] " * 20_000,
        "".join(f"{STAMP} [W] warning {number}\n" for number in range(20_000)),
        "\x1b[" * 500_000,
    ],
    ids=["digits", "a node", "a driver", "prefixes", "warnings", "colours"],
)
@pytest.mark.timeout(60)  # each takes well under a second; some took hours in a first form
def test_a_hostile_text_takes_no_time(text: str) -> None:
    json.dumps(parse(text).to_dict(), allow_nan=False)


def test_the_command_prints_the_object(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text(V10_3)
    result = CliRunner().invoke(cli, ["parse-log", str(file), "--json"])
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert list(printed)[: len(ISSUE_KEYS)] == ISSUE_KEYS
    assert printed["latency_ms"]["median"] == 2.0
    assert printed["failure"] is None


def test_the_command_prints_a_table_for_people() -> None:
    result = CliRunner().invoke(cli, ["parse-log", "-"], input=V10_3.encode())
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line}
    assert rows["verdict"] == ["passed"]
    assert rows["throughput"] == ["500.25", "queries/s"]
    assert rows["ms"] == ["min", "max", "mean", "median", "p90", "p95", "p99"]
    assert rows["gpu_compute"] == ["1.25", "2.5", "1.9", "1.875", "2", "2.125", "2.375"]


def test_a_log_of_a_failure_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text(
        log(
            "E Error[10]: Could not find any implementation for node /f/Conv + PWN(/f/Mul).",
            "&&&& FAILED TensorRT.trtexec [TensorRT v8602] # trtexec --int8",
        )
    )
    result = CliRunner().invoke(cli, ["parse-log", str(file)])
    assert result.exit_code == 0
    assert "failure: int8-kernel, node /f/Conv + PWN(/f/Mul)" in result.stdout
    result = CliRunner().invoke(cli, ["parse-log", str(file), "--json"])
    assert json.loads(result.stdout)["failure"]["kind"] == "int8-kernel"


def test_a_file_that_is_no_log_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(b"\xff\xfe bought milk\n")
    result = CliRunner().invoke(cli, ["parse-log", str(file)])
    assert result.exit_code == 1
    assert "&&&& RUNNING, PASSED or FAILED" in str(result.exception)
    assert CliRunner().invoke(cli, ["parse-log", str(tmp_path / "none")]).exit_code == 2
