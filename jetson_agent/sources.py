"""Which file a precision is timed with, when a person names a file or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jetson_agent.engines import sha256_of
from jetson_agent.errors import AgentError
from jetson_agent.onnxcheck import ModelRefused, check_file
from jetson_agent.protocol import (
    INT8_FILES,
    MANIFEST_FILE,
    MODEL_FILE,
    QUANTIZED,
    REFERENCE_FILE,
    ExportManifest,
    Int8Recipe,
    ProtocolError,
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file to time; what it does not say about itself is empty."""

    model: Path
    architecture: str = ""
    reference: Path | None = None
    name: str = ""
    study: str = ""
    backbone: str = ""
    graph: str = ""


def find_source(given: Path, precision: str, recipe: Int8Recipe) -> Source:
    """The file of a precision.

    A folder made by an export names its files in ``manifest.json``. Beside ``m.onnx``, int8 is
    looked for in ``m.int8-trt.onnx`` or ``m.int8-cpu.onnx``; a file that is quantised itself, or
    has no such neighbour, is taken as it is.

    Args:
        given: An ONNX file or a folder.
        recipe: Which of the quantised files the backend reads.

    Raises:
        AgentError: the folder has no such file, or another one than its manifest says.
    """
    if given.is_dir():
        return _from_manifest(given, precision, recipe)
    model = given
    if precision in QUANTIZED:
        suffix = INT8_FILES[recipe].removeprefix(Path(MODEL_FILE).stem)
        neighbour = given.with_name(given.stem + suffix)
        if neighbour.is_file():
            model = neighbour
    try:
        facts = check_file(model, quantised=recipe if precision in QUANTIZED else None)
    except ModelRefused:  # its timing says so, and is a row like any other
        return Source(model=model, name=model.stem)
    manifest = given.with_name(MANIFEST_FILE)
    reference = given.with_name(REFERENCE_FILE)
    known = manifest.is_file() and _is_as_listed(manifest, (model, reference))
    return Source(
        model=model,
        architecture=facts.architecture,
        reference=reference if known else None,
        name=model.stem,
        backbone=facts.backbone,
        graph=facts.graph,
    )


def _from_manifest(folder: Path, precision: str, recipe: Int8Recipe) -> Source:
    path = folder / MANIFEST_FILE
    try:
        manifest = ExportManifest.from_json(path.read_text())
    except (OSError, ProtocolError) as error:
        raise AgentError(
            f"{folder} is no folder of an export: {error}. Give an ONNX file, or the folder that "
            "`sharedenc export` wrote"
        ) from error
    found = manifest.file_for(precision, recipe)
    if found is None:
        raise AgentError(
            f"{folder} has no file for precision {precision} of this backend (it has "
            f"{', '.join(sorted(manifest.files))}): export it with --int8, or ask for another"
        )
    name, architecture = found
    reference = folder / REFERENCE_FILE if REFERENCE_FILE in manifest.files else None
    for file in [folder / name, *([reference] if reference else [])]:
        if not file.is_file() or sha256_of(file) != manifest.files[file.name]:
            raise AgentError(
                f"{file} is not the file that {MANIFEST_FILE} lists: copy the folder again, or "
                "export again"
            )
    return Source(
        model=folder / name,
        architecture=architecture,
        reference=reference,
        name=manifest.model,
        study=manifest.study,
        backbone=manifest.backbone,
        graph=manifest.graph,
    )


def _is_as_listed(manifest: Path, files: tuple[Path, ...]) -> bool:
    try:
        listed = ExportManifest.from_json(manifest.read_text()).files
        return all(sha256_of(file) == listed.get(file.name) for file in files)
    except (OSError, ProtocolError):
        return False
