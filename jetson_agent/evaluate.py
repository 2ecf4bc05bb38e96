"""Photos on an engine: scores against annotations, or predictions where there are none.

The engine is built and run in child processes, as for a timing; scoring happens in the second one,
photo by photo, so that neither outputs nor label maps pile up.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetson_agent.backends.base import Backend, Built, Run, opened
from jetson_agent.check import MEANINGLESS
from jetson_agent.coco import Annotated, Photo, find_annotations, label_map, read_annotations
from jetson_agent.decode import Decoding, Detections, read_decoding
from jetson_agent.errors import AgentError
from jetson_agent.images import PHOTO_SUFFIXES, Pixels, draw, nearest, read_photo, require_pillow
from jetson_agent.onnxcheck import check_file
from jetson_agent.predict import coco_results, describe, predict, rows_of
from jetson_agent.protocol import QUANTIZED, Int8Recipe
from jetson_agent.scores import Confusion, average_precision, why_no_scores
from jetson_agent.steps import Say, Steps

# Far more than decoding and running one photo takes on any board.
PHOTO_DEADLINE_S = 5.0
PROGRESS_S = 2.0
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to evaluate; it crosses a process border as JSON.

    `annotations` is empty for plain photos; `count` is how many photos take part. Of a photo's
    detections, those with `min_score` are drawn and listed; all of them are scored.
    """

    model: str
    data: str
    annotations: str
    images: str
    limit: int | None
    count: int
    out: str
    min_score: float
    precision: str
    recipe: Int8Recipe


def make_task(
    model: Path,
    data: Path,
    *,
    precision: str,
    recipe: Int8Recipe,
    split: str | None = None,
    limit: int | None = None,
    out: Path | None = None,
    min_score: float = 0.3,
) -> Task:
    """Find out what is asked for, and refuse what cannot be done before anything is built.

    Raises:
        AgentError: no data there, a model that predicts nothing, a package that is missing.
    """
    require_pillow()
    if not data.is_dir():
        raise AgentError(f"there is no folder {data}. Give a folder of photos with --data")
    annotated = find_annotations(data, split)
    task = Task(
        model=str(model.resolve()),
        data=str(data.resolve()),
        annotations=str(annotated[0].resolve()) if annotated else "",
        images=str((annotated[1] if annotated else data).resolve()),
        limit=limit,
        count=0,
        out=str(out.resolve()) if out else "",
        min_score=min_score,
        precision=precision,
        recipe=recipe,
    )
    photos, _ = _photos(task, _decoding(task))
    return replace(task, count=len(photos))


def evaluate(task: Task, steps: Steps) -> dict[str, Any]:
    """Build the engine, run all photos, and score them where they are annotated.

    Returns:
        ``images`` (count), ``scores`` (see `jetson_agent.scores`), ``not_scored`` (why there are
        none), ``warnings``, ``build_s``, ``options`` of the engine; ``predictions`` of plain
        photos.

    Raises:
        AgentError: a photo or annotation that cannot be used.
        BackendError: the engine cannot be built or run.
        Stopped: the user does not want to wait.
    """
    steps.say(f"build of {Path(task.model).name} {task.precision}")
    engine = steps.build(Path(task.model), task.precision, 0)
    deadline_s = steps.settings.run_deadline_s + PHOTO_DEADLINE_S * task.count
    with steps.scratch() as folder, _told(folder / "progress", task.count, steps.say):
        answer = steps.evaluate(
            engine, deadline_s, task=asdict(task), progress=str(folder / "progress")
        )
    if refused := answer.get("refused"):
        raise AgentError(refused)
    found: dict[str, Any] = answer["found"]
    if task.precision in MEANINGLESS:
        found["warnings"].append(MEANINGLESS[task.precision])
    return found | {"build_s": engine.built.build_s, "options": engine.built.options}


@contextmanager
def _told(progress: Path, count: int, say: Say) -> Iterator[None]:
    """Say how many photos are done, as the child notes it."""
    done = threading.Event()

    def watch() -> None:
        last = ""
        while not done.wait(PROGRESS_S):
            text = progress.read_text() if progress.exists() else ""
            if text and text != last:
                say(f"{text} of {count} photos")
            last = text

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def answer(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    """The step of the child: ``found``, or ``refused`` with what cannot be used.

    Args:
        request: ``built``, ``task``, and the file ``progress`` for the number of photos done.
    """
    task, progress = Task(**request["task"]), Path(request["progress"])
    next_note_s = 0.0

    def note(done: int) -> None:
        nonlocal next_note_s
        if time.monotonic() >= next_note_s:
            part = progress.with_suffix(".part")
            part.write_text(str(done))
            part.replace(progress)
            next_note_s = time.monotonic() + PROGRESS_S / 2

    try:
        with opened(backend, Built.from_json(request["built"])) as run:
            return {"found": run_photos(task, run, note)}
    except AgentError as error:
        return {"refused": str(error)}


def run_photos(task: Task, run: Run, note: Callable[[int], None]) -> dict[str, Any]:
    """Run every photo of the task; returns what `evaluate` does, without the engine.

    Raises:
        AgentError: a photo or annotation that cannot be used.
        BackendError: what `run` raises.
    """
    decoding = _decoding(task)
    photos, annotated = _photos(task, decoding)
    missing = why_no_scores() if annotated else "the photos have no annotations"
    confusion = Confusion(decoding.labels)
    rows: list[npt.NDArray[np.float64]] = []
    listed: list[dict[str, Any]] = []
    has_boxes = False
    for place, photo in enumerate(photos):
        note(place)
        try:
            image = _read(photo, annotated is not None)
        except AgentError as error:
            if annotated:
                raise
            listed.append({"image": photo.path.name, "error": str(error)})
            continue
        found, mask = predict(image, run, decoding, photo.path)
        has_boxes |= found is not None
        found = found or NOTHING
        if annotated and not missing:
            rows.append(rows_of(place, found))
            if mask is not None and annotated.has_masks:
                confusion.add(mask, nearest(label_map(photo), *mask.shape))
        if annotated:
            listed += coco_results(photo, found, annotated, task.min_score)
        else:
            listed.append(describe(photo, found, mask, decoding, task.min_score))
        if task.out:
            picture = draw(image, found, mask, decoding.labels, task.min_score)
            _write(Path(task.out, "pictures", f"{photo.path.stem}-{place}.png"), picture.save)
    note(len(photos))
    scores: dict[str, Any] = {}
    if annotated and not missing:
        if has_boxes:
            scores |= average_precision(photos, np.concatenate(rows), decoding.labels)
        scores |= confusion.scores()
    if task.out:
        text = json.dumps(listed)
        _write(Path(task.out, "predictions.json"), lambda path: path.write_text(text))
    return {
        "images": len(photos),
        "scores": scores,
        "not_scored": missing,
        "warnings": annotated.warnings if annotated else [],
        **({} if annotated else {"predictions": listed}),
    }


def _decoding(task: Task) -> Decoding:
    model = Path(task.model)
    facts = check_file(model, quantised=task.recipe if task.precision in QUANTIZED else None)
    if facts.graph == "encoder":
        raise AgentError(f"{model.name} is an encoder without heads; it predicts nothing")
    return read_decoding(facts.metadata, model.name)


def _photos(task: Task, decoding: Decoding) -> tuple[list[Photo], Annotated | None]:
    if not task.annotations:
        return _plain_photos(task), None
    annotated = read_annotations(
        Path(task.annotations), Path(task.images), decoding.labels, task.limit
    )
    return annotated.photos, annotated


def _plain_photos(task: Task) -> list[Photo]:
    paths = sorted(p for p in Path(task.images).rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    if not paths:
        raise AgentError(
            f"{task.data} holds neither annotations/*.json nor photos ({', '.join(PHOTO_SUFFIXES)})"
        )
    return [Photo(at, path, 0, 0, []) for at, path in enumerate(paths[: task.limit])]


def _read(photo: Photo, annotated: bool) -> Pixels:
    image = read_photo(photo.path, upright=not annotated)
    if annotated and image.shape[:2] != (photo.height, photo.width):
        raise AgentError(
            f"{photo.path} has {image.shape[1]}x{image.shape[0]} pixels, but its annotation says "
            f"{photo.width}x{photo.height}. Do photos and annotations belong together?"
        )
    return image


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        raise AgentError(f"{path} cannot be written: {error.strerror or error}") from error
