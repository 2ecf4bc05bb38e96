from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetson_agent.errors import BackendError
from jetson_agent.failures import ACTIONS, FAILURE_KINDS, Failure, FailureKind, classify
from tests.agent.trtexec_texts import NO_KERNEL, V10_3, log

PWN = "/features.7/Conv + PWN(PWN(/features.7/Sigmoid), /features.7/Mul)"
FOREIGN = "{ForeignNode[/head/Constant_output_0.../head/Mul + /head/Add]}"
BUILDING = ["E Engine could not be created from network", "E Building engine failed"]
SET_UP = ["E Failed to create engine from model or file.", "E Engine set up failed"]
SKIPPED = [
    "W [TRT] Tactic Device request: 4229MB Available: 2658MB. Device memory is insufficient to use"
    " tactic.",
    "W [TRT] Skipping tactic 13 due to insufficient memory on requested size of 4229 detected for"
    " tactic 0x0000000000000074.",
    "Try decreasing the workspace size with IBuilderConfig::setMemoryPoolLimit().",
]
OUT_OF_MEMORY = "E Error[2]: [virtualMemoryBuffer.cpp::140] Error Code 2: OutOfMemory (no further)"
# Phrase of each kind, as one line of the log says it.
SIGNS: list[tuple[FailureKind, str]] = [
    ("unsupported", "E Failed to parse onnx file"),
    ("unsupported", "E [TRT] ModelImporter.cpp:954: ERROR: ModelImporter.cpp:195 In function x:"),
    ("unsupported", "E [TRT] In node 4 (importFallback): UNSUPPORTED_NODE: No importer registered"),
    ("unsupported", "E Parsing model failed"),
    ("memory", OUT_OF_MEMORY),
    ("memory", "E Error[1]: [defaultAllocator.cpp::31] Error Code 1: Cuda Runtime (out of memory)"),
    ("memory", "Cuda failure: out of memory"),
    ("memory", "terminate called after throwing an instance of 'std::bad_alloc'"),
    ("memory", "NvMapMemAllocInternalTagged: 1075072515 error 12"),
    ("internal", "E Error[2]: [a.cpp::b::1] Error Code 2: Internal Error (Assertion c failed.)"),
    ("internal", "E Error[9]: [pluginV2Runner.cpp] Error Code 9: Internal Error (no such thing)"),
    ("crash", "E Error[1]: Error Code 1: Cuda Runtime (an illegal memory access was encountered)"),
    ("crash", "Cuda failure: unspecified launch failure"),
    ("crash", "Segmentation fault (core dumped)"),
    ("engine-mismatch", "E Error[1]: Serialization assertion plan->header.magicTag == x failed."),
    (
        "engine-mismatch",
        "E 1: [stdArchiveReader.cpp::42] Error Code 1: Serialization (Serialization assertion"
        " stdVersionRead == serializedVersion failed.Version tag does not match.)",
    ),
    (
        "engine-mismatch",
        "E [TRT] 6: The engine plan file is not compatible with this version of TensorRT, expecting"
        " library version 8.6.1.6 got 8.5.2.2, please rebuild.",
    ),
    (
        "engine-mismatch",
        "E [TRT] 6: The engine plan file is generated on an incompatible device, expecting compute"
        " 8.7 got compute 8.6, please rebuild.",
    ),
    ("engine-mismatch", "E Engine deserialization failed"),
    ("disk", "E Saving engine to file failed."),
    ("disk", "tee: log.txt: No space left on device"),
    ("usage", "E Unknown option: --workspace 2048"),
    ("usage", "E Model missing or format not recognized"),
    ("no-device", "I Cannot find device ID 1!"),
    ("no-device", "I Cannot find any available devices (GPUs)!"),
    ("no-device", "Cuda failure: no CUDA-capable device is detected"),
]


def test_every_kind_has_an_action() -> None:
    assert set(ACTIONS) == set(get_args(FailureKind)) == set(FAILURE_KINDS)


@pytest.mark.parametrize(
    ("kind", "verdict", "attempts", "change"),
    [
        ("unsupported", "unsupported", 1, ""),
        ("int8-kernel", "unsupported", 1, ""),
        ("memory", "failed", 2, "halve-workspace"),
        ("internal", "failed", 3, ""),
        ("crash", "failed", 3, ""),
        ("timeout", "failed", 3, ""),
        ("engine-mismatch", "failed", 2, "rebuild"),
        ("disk", "failed", 2, "evict"),
    ],
)
def test_the_table_of_failures(kind: FailureKind, verdict: str, attempts: int, change: str) -> None:
    action = ACTIONS[kind]
    assert (action.verdict, action.attempts, action.change) == (verdict, attempts, change)


@pytest.mark.parametrize(("kind", "line"), SIGNS)
def test_a_phrase_tells_the_kind_and_is_shown(kind: FailureKind, line: str) -> None:
    failure = classify(log("I Start parsing network model.", line), 1, False)
    assert failure.kind == kind
    assert line.removeprefix("E ").removeprefix("I ").removeprefix("[TRT] ") in failure.lines


@pytest.mark.parametrize(("kind", "line"), [s for s in SIGNS if s[1].startswith("E ")])
def test_a_phrase_in_a_warning_or_a_verbose_line_is_no_failure(
    kind: FailureKind, line: str
) -> None:
    for level in ("W", "V", "I"):
        failure = classify(log(level + line[1:], "E Something else"), 1, False)
        assert (failure.kind, failure.lines) == ("internal", ["Something else"]), kind


@pytest.mark.parametrize(
    ("line", "node"),
    [
        (f"E Error[10]: {NO_KERNEL}{PWN}.", PWN),
        (f"E Error[10]: {NO_KERNEL}{PWN}", PWN),
        (f"[07/12/2023-11:55:50] [TRT] [E] 10: {NO_KERNEL}002_conv.", "002_conv"),
        (f"E 10: [optimizer.cpp::3869] Error Code 10: Internal Error ({NO_KERNEL}{PWN}.)", PWN),
        (f"E Error[10]: Error Code 10: Internal Error ({NO_KERNEL}{FOREIGN}.)", FOREIGN),
        (
            f"E Error[10]: IBuilder::buildSerializedNetwork: Error Code 10: Internal Error"
            f" ({NO_KERNEL}{PWN}. In computeCosts at optimizer/common/tactic/optimizer.cpp:4115)",
            PWN,
        ),
        (f"E [TRT] Error Code 10: Internal Error ({NO_KERNEL}a.b/c [Softmax].)", "a.b/c [Softmax]"),
    ],
)
def test_the_node_without_a_kernel_is_named(line: str, node: str) -> None:
    failure = classify(log(*SKIPPED, line, *BUILDING, *SET_UP), 1, False)
    assert (failure.kind, failure.node) == ("int8-kernel", node)


def test_a_kernel_that_is_missing_for_want_of_memory_is_no_missing_kernel() -> None:
    short = f"E Error Code 10: Internal Error ({NO_KERNEL}{FOREIGN} due to insufficient workspace.)"
    failure = classify(log(short, *BUILDING), 1, False)
    assert (failure.kind, failure.node) == ("memory", FOREIGN)
    failure = classify(log(OUT_OF_MEMORY, f"E Error[10]: {NO_KERNEL}{PWN}.", *BUILDING), 1, False)
    assert (failure.kind, failure.node) == ("memory", PWN)


def test_skipped_tactics_alone_are_no_want_of_memory() -> None:
    assert classify(log(*SKIPPED), 1, False).kind == "internal"
    as_errors = [line.replace("W ", "E ", 1) for line in SKIPPED]
    assert classify(log(*as_errors, "E Parsing model failed"), 1, False).kind == "unsupported"


def test_a_full_disk_is_told_from_the_want_of_memory_before_it() -> None:
    text = log(OUT_OF_MEMORY, "E Saving engine to file failed.", "E Engine set up failed")
    assert classify(text, 1, False).kind == "disk"


def test_the_words_that_belong_to_an_error_are_shown_with_it() -> None:
    text = log(
        "E [TRT] ModelImporter.cpp:954: ERROR: ModelImporter.cpp:195 In function parseNode:",
        "[6] Invalid Node - /Tile",
        "",
        "E Failed to parse onnx file",
        "I Finished parsing network model. Parse time: 0.04",
        "no part of an error",
        "&&&& FAILED TensorRT.trtexec [TensorRT v100300] # trtexec",
    )
    assert classify(text, 1, False).lines == [
        "ModelImporter.cpp:954: ERROR: ModelImporter.cpp:195 In function parseNode:",
        "[6] Invalid Node - /Tile",
        "Failed to parse onnx file",
    ]


def test_a_thousand_errors_are_cut_to_twenty_with_the_telling_one() -> None:
    text = log(*(f"E complaint {i}" for i in range(1000)), f"E Error[10]: {NO_KERNEL}/last/Conv.")
    failure = classify(text, 1, False)
    assert len(failure.lines) == 20
    assert failure.lines[:2] == [f"Error[10]: {NO_KERNEL}/last/Conv.", "complaint 0"]
    assert failure.node == "/last/Conv"


@pytest.mark.parametrize(
    ("returncode", "kind"),
    [
        *((-9, "memory"), (137, "memory"), (-11, "crash"), (139, "crash"), (-6, "crash")),
        *((1, "internal"), (0, "internal"), (None, "internal")),
    ],
)
def test_an_end_without_a_word_is_told_by_its_signal(
    returncode: int | None, kind: FailureKind
) -> None:
    failure = classify(log("I Start parsing network model."), returncode, False)
    assert failure == Failure(kind=kind, lines=["Start parsing network model."])


def test_a_word_weighs_more_than_the_signal() -> None:
    assert classify(log("E Saving engine to file failed."), -9, False).kind == "disk"


def test_what_took_too_long_is_a_timeout_whatever_it_printed() -> None:
    text = log("E Error[1]: Error Code 1: Cuda Runtime (an illegal memory access)", "I Still busy")
    failure = classify(text, -9, True)
    assert failure.kind == "timeout"
    assert failure.lines[-1] == "Still busy"


def test_help_that_is_printed_before_an_error_is_not_read_as_one() -> None:
    text = log("  --skip   Skip when out of memory", "E Unknown option: --x ")
    assert classify(text, 1, False).kind == "usage"


@pytest.mark.parametrize(
    ("name", "kind", "node"),
    [
        ("FAIL_trt10.0_engine_version_mismatch", "engine-mismatch", ""),
        ("FAIL_trt10.3.0_builder_internal_error", "internal", ""),
        ("FAIL_trt10.3.0_parse_error", "unsupported", ""),
        ("FAIL_trt10.3.0_unknown_option", "usage", ""),
        ("FAIL_trt10_calib_without_valid_cache", "crash", ""),
        ("FAIL_trt8.6_bias_quantisation", "internal", ""),
        (
            "FAIL_trt8_int8_no_implementation_and_memory",
            "int8-kernel",
            "/model.22/proto/cv3/conv/Conv + PWN(PWN(/model.22/proto/cv3/act/Sigmoid),"
            " /model.22/proto/cv3/act/Mul)",
        ),
        # It also says that there is no GPU: the parser's complaint is the reason all the same.
        ("FAIL_trtrtx1.7_parse_int32_bias_measured", "unsupported", ""),
    ],
)
def test_real_failures(name: str, kind: str, node: str, shared_data: Path) -> None:
    text = (shared_data / "trtexec_samples" / f"{name}.txt").read_text()
    failure = classify(text, 1, False)
    assert (failure.kind, failure.node) == (kind, node)
    assert failure.lines


def test_failures_cross_a_process_border() -> None:
    failure = Failure(kind="disk", lines=["a"], node="b")
    assert failure.to_json() == {"kind": "disk", "lines": ["a"], "node": "b"}
    assert Failure.from_json(failure.to_json()) == failure


def test_a_backend_says_what_kind_of_failure_it_was() -> None:
    error = BackendError("no kernel", kind="int8-kernel", lines=["x"], node="/conv")
    assert (str(error), error.kind, error.lines, error.node) == (
        *("no kernel", "int8-kernel", ["x"], "/conv"),
    )
    assert BackendError("something").kind == "internal"


@settings(deadline=None, max_examples=200)
@given(st.text(), st.one_of(st.none(), st.integers(-70, 300)), st.booleans())
def test_no_text_crashes_it(text: str, returncode: int | None, timed_out: bool) -> None:
    failure = classify(V10_3[: len(text)] + text, returncode, timed_out)
    assert failure.kind in FAILURE_KINDS
