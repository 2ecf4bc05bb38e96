"""What can time a model. Adding a backend is one class and one line here."""

from __future__ import annotations

import importlib
from typing import cast

from jetson_agent.backends.base import Backend
from jetson_agent.errors import AgentError

BACKENDS: dict[str, str] = {
    "tensorrt": "jetson_agent.backends.tensorrt:TensorRTBackend",
    "onnxruntime": "jetson_agent.backends.onnxruntime:OnnxRuntimeBackend",
}
DEFAULT_BACKEND = "onnxruntime"


def default_backend() -> str:
    """``tensorrt`` where there is a trtexec, else what works everywhere."""
    from jetson_agent.backends.trtexec import find_trtexec

    return "tensorrt" if find_trtexec() else DEFAULT_BACKEND


def load_backend(name: str) -> Backend:
    """The backend of that name, or the class at ``package.module:Class``.

    Raises:
        AgentError: no such backend.
    """
    module, _, attribute = BACKENDS.get(name, name).partition(":")
    try:
        return cast(Backend, getattr(importlib.import_module(module), attribute)())
    except (ImportError, AttributeError, ValueError) as error:
        raise AgentError(
            f"backend={name!r} is not one of {', '.join(sorted(BACKENDS))}, and not a class that "
            f"can be imported as package.module:Class ({error})"
        ) from error
