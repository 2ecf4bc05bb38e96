"""Outputs of an engine file, through TensorRT's Python API and Polygraphy's runner.

Good for comparing outputs and not for timing: the runner's own time includes copies and waits.
JetPack installs `tensorrt` for the system's Python, Polygraphy comes with the agent.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from jetson_agent.backends.base import Array, Run
from jetson_agent.errors import BackendError

NEEDED = {
    "tensorrt": "JetPack's python3-libnvinfer, in an environment made with --system-site-packages",
    "polygraphy": "pip install 'sharedenc[agent]'",
}


def what_is_missing() -> str:
    """Which package is missing to run engines and where it comes from; imports nothing."""
    for name, remedy in NEEDED.items():
        spec = importlib.util.find_spec(name)
        # A folder of that name, such as type stubs leave behind, can be found and is nothing.
        if spec is None or spec.origin is None:
            return f"the Python package {name} is not installed ({remedy})"
    return ""


@contextmanager
def open_engine(engine_file: Path) -> Iterator[Run]:
    """A function that gives outputs by name, on an engine that is loaded once.

    Raises:
        BackendError: kind ``unchecked``, here or in the function, if nothing here can run this
            engine or its inputs are not those that were given.
    """
    try:
        import tensorrt as trt
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    except (ImportError, OSError) as error:  # OSError: a library that it loads
        raise BackendError(
            f"TensorRT's Python API cannot be loaded: {error}", kind="unchecked"
        ) from error
    with ExitStack() as stack:
        with _told(trt.__version__):
            # Polygraphy loads the plugin library too, as trtexec does.
            engine: trt.ICudaEngine = EngineFromBytes(BytesFromPath(str(engine_file)))()
            wanted = {
                name
                for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
                if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            }
            runner = stack.enter_context(TrtRunner(engine))

        def run(inputs: dict[str, Array]) -> dict[str, Array]:
            if wanted != set(inputs):
                raise BackendError(
                    f"the engine has inputs {', '.join(sorted(wanted))} instead of "
                    f"{', '.join(sorted(inputs))}",
                    kind="unchecked",
                )
            with _told(trt.__version__):
                # The next call uses the runner's buffers again.
                return {name: np.array(value) for name, value in runner.infer(inputs).items()}

        yield run


@contextmanager
def _told(version: str) -> Iterator[None]:
    """Turn whatever TensorRT's Python API raises into a `BackendError`."""
    try:
        yield
    # Polygraphy's exception and those of the binding have no common base.
    except Exception as error:
        raise BackendError(
            f"TensorRT {version} for Python cannot run this engine: {error}", kind="unchecked"
        ) from error


def run_engine(engine_file: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    """Outputs by name, of one input; raises as `open_engine`."""
    with open_engine(engine_file) as run:
        return run(inputs)
