"""Parse and build ONNX files with NVIDIA's own library, in a process that may crash.

`python rtx_build.py FILE...` prints one JSON object: an empty text for each file that was built,
the parser's or the builder's errors otherwise. No GPU is needed to build, only to run.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def build(path: str) -> str:
    import tensorrt_rtx_bindings as trt

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    logger = Collector()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        found = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        return "\n".join(found or logger.errors or ["not parsed"])
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None or plan.nbytes == 0:
        return "\n".join(logger.errors or ["not built"])
    return ""


if __name__ == "__main__":
    print(json.dumps({path: build(path) for path in sys.argv[1:]}))
