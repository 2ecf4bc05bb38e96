"""The process in which a model is built, checked or timed: ``REQUEST.json ANSWER.json``.

One step per process: a crash or a hang in native code ends this process, not the agent, and no
step finds what another has left in memory.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jetson_agent.backends import load_backend
from jetson_agent.backends.base import (
    Array,
    Backend,
    BuildRequest,
    Built,
    MeasureRequest,
    opened,
    seeded_inputs,
)
from jetson_agent.check import MEANINGLESS, Check, check_outputs
from jetson_agent.errors import BackendError
from jetson_agent.proc import die_with_parent

SELF_DESTRUCT_MARGIN_S = 10.0


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do one step; every problem of the model is an answer too.

    Args:
        request: ``do`` (one of `STEPS`), ``backend``, and what the step needs.

    Returns:
        What the step gives, or ``error`` with the parts of a `BackendError`.
    """
    backend = load_backend(request["backend"])
    try:
        return STEPS[request["do"]](backend, request)
    except BackendError as error:
        found = {"kind": error.kind, "lines": error.lines, "node": error.node}
        return {"error": {"message": str(error), **found}}


def _build(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    cache = request["timing_cache"]
    built = backend.build(
        BuildRequest(
            model=Path(request["model"]),
            precision=request["precision"],
            folder=Path(request["folder"]),
            threads=request["threads"],
            workspace_mib=request["workspace_mib"],
            timing_cache=Path(cache) if cache else None,
            deadline_s=request["deadline_s"],
        )
    )
    return {"built": built.to_json()}


def _check(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    """Outputs against the export's reference; without one, whether they are finite at all."""
    built, model = Built.from_json(request["built"]), Path(request["model"])
    shapes: dict[str, str] = {}

    def run(inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = ask(inputs)
        shapes.update({name: describe(value) for name, value in outputs.items()})
        return outputs

    reference = Path(request["reference"]) if request["reference"] else None
    try:
        with opened(backend, built) as ask:
            check = check_outputs(reference, model.name, run, built.precision, _metadata(model))
            if check.checked == "unchecked" and built.precision not in MEANINGLESS:
                problems = not_finite(run(seeded_inputs(built.inputs, request["seed"])))
                if problems:
                    check = Check(checked="wrong", reasons=problems, details=check.details)
    except BackendError as error:
        if error.kind != "unchecked":
            raise
        check = Check(checked="unchecked", reasons=[str(error)])
    return {"check": check.to_json(), "outputs": shapes}


def _measure(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    profile = request["profile"]
    samples = backend.measure(
        Built.from_json(request["built"]),
        MeasureRequest(
            load=request["load"],
            warmup_s=request["warmup_s"],
            duration_s=request["duration_s"],
            seed=request["seed"],
            cuda_graph=request["cuda_graph"],
            deadline_s=request["deadline_s"],
            profile=Path(profile) if profile else None,
        ),
    )
    return {"samples": samples.to_json()}


def _evaluate(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    from jetson_agent.evaluate import answer as evaluated

    return evaluated(backend, request)


STEPS: dict[str, Callable[[Backend, dict[str, Any]], dict[str, Any]]] = {
    "build": _build,
    "check": _check,
    "measure": _measure,
    "evaluate": _evaluate,
}


def _metadata(model: Path) -> dict[str, str]:
    import onnx

    loaded = onnx.load_model(model, load_external_data=False)
    return {entry.key: entry.value for entry in loaded.metadata_props}


def not_finite(outputs: dict[str, Array]) -> list[str]:
    """One sentence per output that holds NaN or infinity."""
    found = []
    for name, value in outputs.items():
        if value.dtype.kind == "f" and (bad := int(np.count_nonzero(~np.isfinite(value)))):
            found.append(f"Output {name} has {bad} of {value.size} values that are not finite.")
    return found


def describe(value: Array) -> str:
    """Type and shape of an array, such as ``float32[1, 3, 8, 8]``."""
    return f"{value.dtype}{list(value.shape)}"


def main() -> None:
    die_with_parent()
    request_path, answer_path = map(Path, sys.argv[1:3])
    request = json.loads(request_path.read_text())
    # Where nobody else watches the deadline any more, this also ends native code that hangs.
    faulthandler.dump_traceback_later(request["deadline_s"] + SELF_DESTRUCT_MARGIN_S, exit=True)
    part = answer_path.with_suffix(".part")
    part.write_text(json.dumps(answer(request)))
    part.replace(answer_path)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
