"""TensorRT's Python API, played by ONNX Runtime: right outputs of the very engine file, or wrong.

An engine of the fake trtexec holds the sha256 of the ONNX file that it was built from; that file is
looked for in the folder that ``FAKE_MODELS`` names.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
from pathlib import Path
from typing import Any

from jetson_agent.backends.tensorrt import TensorRTBackend

MODELS = "FAKE_MODELS"


def right(engine: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the network computes."""
    import onnxruntime

    digest = engine.read_text().splitlines()[2]
    for model in Path(os.environ[MODELS]).glob("*.onnx"):
        if hashlib.sha256(model.read_bytes()).hexdigest() == digest:
            session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
            names = [value.name for value in session.get_outputs()]
            return dict(zip(names, session.run(names, inputs), strict=True))
    raise AssertionError(f"no model of {digest}")


def wrong(engine: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs as an engine with broken kernels gives them: finite, and something else."""
    return {name: 1.5 * value + 0.25 for name, value in right(engine, inputs).items()}


def crash(_engine: Path, _inputs: dict[str, Any]) -> dict[str, Any]:
    """As a package that was built for another NumPy does."""
    print("numpy.core.multiarray failed to import", flush=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")


class CrashingTensorRT(TensorRTBackend):
    def __init__(self) -> None:
        super().__init__(runner=crash)


class RightTensorRT(TensorRTBackend):
    def __init__(self) -> None:
        super().__init__(runner=right)


class WrongTensorRT(TensorRTBackend):
    def __init__(self) -> None:
        super().__init__(runner=wrong)
