"""Small texts in the shapes that `trtexec` of several versions prints; the figures are made up.

Shapes: NVIDIA/TensorRT, samples/common/sampleReporting.cpp, sampleEngines.cpp and logging.h at the
tags 8.2.1, 8.6.1, v10.3.0, v10.13.3 and v11.1.
"""

from __future__ import annotations

STAMP = "[05/13/2025-10:36:46]"


def log(*lines: str) -> str:
    """A log: lines that start with a level, such as ``I ``, get TensorRT's prefix."""
    whole = []
    for line in lines:
        level, _, text = line.partition(" ")
        whole.append(f"{STAMP} [{level}] {text}" if level in set("IWEFV") else line)
    return "\n".join(whole) + "\n"


SUMMARY = [
    "I ",
    "I === Performance summary ===",
    "I Throughput: 500.25 qps",
    "I Latency: min = 1.5 ms, max = 2.75 ms, mean = 2.01 ms, median = 2 ms, percentile(90%) = 2.25 "
    "ms, percentile(95%) = 2.5 ms, percentile(99%) = 2.625 ms",
    "I Enqueue Time: min = 0.25 ms, max = 0.5 ms, mean = 0.31 ms, median = 0.3125 ms, "
    "percentile(90%) = 0.375 ms, percentile(95%) = 0.4375 ms, percentile(99%) = 0.46875 ms",
    "I H2D Latency: min = 1e-05 ms, max = 0.0625 ms, mean = 0.03 ms, median = 0.03125 ms, "
    "percentile(90%) = 0.046875 ms, percentile(95%) = 0.05 ms, percentile(99%) = 0.06 ms",
    "I GPU Compute Time: min = 1.25 ms, max = 2.5 ms, mean = 1.9 ms, median = 1.875 ms, "
    "percentile(90%) = 2 ms, percentile(95%) = 2.125 ms, percentile(99%) = 2.375 ms",
    "I D2H Latency: min = 0.0039 ms, max = 0.0078 ms, mean = 0.005 ms, median = 0.0049 ms, "
    "percentile(90%) = 0.006 ms, percentile(95%) = 0.0065 ms, percentile(99%) = 0.007 ms",
    "I Total Host Walltime: 3.0025 s",
    "I Total GPU Compute Time: 2.8538 s",
]
# Build and timing in one call, as 10.3 prints it on a Jetson: no build tag.
V10_3 = log(
    "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # /usr/bin/trtexec --onnx=m.onnx --int8",
    "I === Build Options ===",
    "I Precision: FP32+INT8",
    "I === Device Information ===",
    'I   Device 0: "Orin" UUID: GPU-0',
    "I Selected Device: Orin",
    "I Selected Device ID: 0",
    "I TensorRT version: 10.3.0",
    "I [TRT] [MemUsageChange] Init CUDA: CPU +2, GPU +0, now: CPU 31, GPU 3536 (MiB)",
    "[libprotobuf WARNING google/protobuf/io/coded_stream.cc:81] The total number of bytes read",
    "W [TRT] Calibrator is not being used. Users must provide dynamic range for all tensors.",
    "I Engine built in 42.5 sec.",
    "I Created engine with size: 25.25 MiB",
    "I Engine deserialized in 0.125 sec.",
    "I Created execution context with device memory size: 7.75 MiB",
    "I Starting inference",
    "I Warmup completed 100 queries over 200 ms",
    "I Timing trace has 1502 queries over 3.0025 s",
    "I ",
    "I === Trace details ===",
    "I Trace averages of 10 runs:",
    "I Average on 10 runs - GPU latency: 1.9 ms - Host latency: 2.0 ms (enqueue 0.3 ms)",
    *SUMMARY,
    "W * GPU compute time is unstable, with coefficient of variance = 2.5%.",
    "W   If not already in use, locking GPU clock frequency may improve the stability.",
    "I Explanations of the performance metrics are printed in the verbose logs.",
    "I ",
    "&&&& PASSED TensorRT.trtexec [TensorRT v100300] # /usr/bin/trtexec --onnx=m.onnx --int8",
)
# 10.5 and later have a build tag.
V10_13 = (
    V10_3.replace("v100300]", "v101303] [b9]")
    .replace("version: 10.3.0", "version: 10.13.3")
    .replace("2.5%", "5%")
)
# 11: other advice, networks are strongly typed.
V11 = (
    V10_3.replace("v100300]", "v110100] [b26]")
    .replace("version: 10.3.0", "version: 11.1.0")
    .replace("FP32+INT8", "Strongly Typed")
)
# 8.2: one percentile, another latency, no sizes.
V8_2 = log(
    "&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # trtexec --onnx=m.onnx --workspace=1024",
    "I Precision: FP32+FP16",
    "I Selected Device: Xavier",
    "I TensorRT version: 8.2.1",
    "I [TRT] Loaded engine size: 101 MiB",
    "I Engine built in 12.5 sec.",
    "I Starting inference",
    "I Warmup completed 51 queries over 200 ms",
    "I Timing trace has 750 queries over 3.005 s",
    "I Average on 10 runs - GPU latency: 3.9 ms - Host latency: 4 ms (end to end 7.8 ms, enqueue "
    "0.5 ms)",
    "I === Performance summary ===",
    "I Throughput: 249.5 qps",
    "I Latency: min = 3.5 ms, max = 5 ms, mean = 4 ms, median = 4.125 ms, percentile(99%) = 4.5 ms",
    "I End-to-End Host Latency: min = 7 ms, max = 9 ms, mean = 8 ms, median = 7.875 ms, "
    "percentile(99%) = 8.5 ms",
    "I Enqueue Time: min = 0.25 ms, max = 1 ms, mean = 0.5 ms, median = 0.5 ms, "
    "percentile(99%) = 0.75 ms",
    "I H2D Latency: min = 0.125 ms, max = 0.5 ms, mean = 0.25 ms, median = 0.25 ms, "
    "percentile(99%) = 0.375 ms",
    "I GPU Compute Time: min = 3.25 ms, max = 4.5 ms, mean = 3.75 ms, median = 3.75 ms, "
    "percentile(99%) = 4.25 ms",
    "I D2H Latency: min = 0.0625 ms, max = 0.25 ms, mean = 0.125 ms, median = 0.125 ms, "
    "percentile(99%) = 0.1875 ms",
    "I Total Host Walltime: 3.005 s",
    "I Total GPU Compute Time: 2.8125 s",
    "&&&& PASSED TensorRT.trtexec [TensorRT v8201] # trtexec --onnx=m.onnx --workspace=1024",
)
NO_KERNEL = "Could not find any implementation for node "
