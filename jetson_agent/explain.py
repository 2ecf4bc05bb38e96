"""A result's certificate in words: what was timed, how, whether to believe it, how to repeat it."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jetson_agent.errors import AgentError
from jetson_agent.journal import read_all
from jetson_agent.protocol import TIMINGS_HEADER, BenchResult, ProtocolError
from jetson_agent.timing import sha256_of

MIN_KEY_DIGITS = 6
LOADS = {
    "single": "one query at a time (what an application sees)",
    "stream": "two queries in flight (trtexec's default)",
}
VERDICTS = {
    "valid": "may be believed",
    "suspect": "is a figure with doubts",
    "wrong": "counts for nothing: the outputs are wrong",
    "unsupported": "no figure: this backend cannot run the model, and never will",
    "failed": "no figure: it did not work here",
}
CHECKS = {
    "right": "the engine that was timed gave the reference outputs",
    "wrong": "the engine that was timed gave other outputs than the reference",
    "unchecked": "nobody has compared the outputs of the timed engine with the reference",
}


def find_results(what: str, state: Path) -> list[BenchResult]:
    """Results that `what` means: a file, a bench key or its beginning, or a model's name.

    Args:
        what: A JSON file with a result or several, an ONNX file that was timed, the first six or
            more digits of a key, or a model's name or pattern, with or without `` v3``.

    Raises:
        AgentError: nothing is found, with the places that were looked at.
    """
    path = Path(what)
    if path.is_file() and path.suffix != ".onnx":
        return _of_file(path)
    known = list(known_results(state))
    if path.is_file():
        digest = sha256_of(path)
        found = [r for r in known if r.certificate.get("file", {}).get("sha256") == digest]
    else:
        found = [r for r in known if _means(what, r)]
    if not found:
        raise AgentError(
            f"{what!r} is neither a file nor the key or the model of one of the {len(known)} "
            f"results in {state}: name the agent's folder with --state-dir, or download the run's "
            "certificate.json from the server and name that"
        )
    return found


def known_results(state: Path) -> Iterator[BenchResult]:
    """Results that this state folder has, sent or not, by model, precision and load."""
    found: dict[str, BenchResult] = {}
    texts = [entry.result for entry in read_all(state) if entry.result]
    for path in (state / "outbox").glob("*/*.json"):
        # The daemon may have sent it since it was listed; then the journal has it.
        with suppress(FileNotFoundError):
            texts.append(path.read_text())
    for text in texts:
        try:
            result = BenchResult.from_json(text)
        except (ProtocolError, TypeError):
            continue
        found[result.key] = result
    yield from sorted(found.values(), key=lambda r: (r.model, r.precision, r.load, r.mode, r.key))


def in_words(result: BenchResult) -> str:
    """The whole story, as lines for a terminal."""
    c = result.certificate
    version = f" version {result.version}" if result.version else ""
    lines = [
        f"{result.model or 'a file'}{version}, {result.precision}, {result.load}: {result.verdict}",
        f"  {VERDICTS[result.verdict].capitalize()}; {CHECKS[result.checked]}.",
    ]
    lines += [f"  Because: {reason}" for reason in result.reasons]
    lines += ["", "What was timed"]
    file = c.get("file") or {}
    if file:
        lines.append(f"  File {file.get('name')}, {file.get('bytes')} bytes")
        lines.append(f"  sha256 {file.get('sha256')}")
    lines.append(f"  Architecture {result.architecture or 'not told'}")
    lines.append(f"  Key {result.key}")
    lines += ["", "Where"]
    lines.append(f"  Device {result.device}, mode {result.mode}")
    lines.append(f"  Backend {result.backend} {result.runtime}")
    board = ("model", "module", "l4t", "jetpack", "cuda", "tensorrt")
    lines += _facts(c.get("device") or {}, board)
    lines += ["", "How"]
    lines.append(f"  Load: {LOADS[result.load]}")
    lines.append(f"  Settings: {result.settings or 'of an older agent'}")
    lines += _facts(c, ("started_at", "ended_at", "agent", "python"))
    if result.metrics:
        lines += ["", "Figures"]
        lines += [f"  {name:<24} {value:.6g}" for name, value in sorted(result.metrics.items())]
    conditions = c.get("conditions") or {}
    if conditions:
        lines += ["", "Conditions", *_tree(conditions, "  ")]
    if c.get("failed_tries"):
        lines += ["", f"Tries that failed before: {', '.join(c['failed_tries'])}"]
    if command := c.get("command"):
        lines += ["", "To repeat it", f"  {command}"]
    return "\n".join(lines)


def _of_file(path: Path) -> list[BenchResult]:
    try:
        value = _read(path.read_text())
    except (OSError, ValueError) as error:
        raise AgentError(f"{path} is not JSON ({error}): name a result or a certificate") from error
    if isinstance(value, dict) and isinstance(value.get("results"), list):
        value = value["results"]
    if isinstance(value, dict) and isinstance(value.get("result"), str):  # an entry of the journal
        value = json.loads(value["result"] or "{}")
    values = value if isinstance(value, list) else [value]
    try:
        return [_result_of(v) for v in values]
    except (ProtocolError, KeyError, TypeError, AttributeError) as error:
        raise AgentError(
            f"{path} holds neither results nor a certificate of this agent ({error})"
        ) from error


def _read(text: str) -> Any:
    """JSON, or the lines that ``measure --out`` writes."""
    first, *rest = text.splitlines() or [""]
    if rest and first == json.dumps(TIMINGS_HEADER):
        # The last line may have been cut by a power cut.
        lines = [line for line in rest if line.endswith("}")]
        return [json.loads(line) for line in lines]
    return json.loads(text)


def _result_of(value: dict[str, Any]) -> BenchResult:
    """A result as it is spooled or printed, or the result that a certificate alone tells of."""
    if "certificate" in value:
        return BenchResult.from_json(json.dumps(value))
    return BenchResult(
        device=value["device"]["name"],
        architecture="",
        precision=value["precision"],
        load=value["load"],
        mode=value["mode"],
        backend=value["backend"],
        runtime=value["runtime"],
        verdict=value["verdict"],
        reasons=list(value["reasons"]),
        certificate=value,
    )


def _means(what: str, result: BenchResult) -> bool:
    if len(what) >= MIN_KEY_DIGITS and result.key.startswith(what.lower()):
        return True
    names = (result.model, f"{result.model} v{result.version}")
    return any(fnmatch.fnmatchcase(name, what) for name in names)


def _facts(values: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    told = [f"{name} {values[name]}" for name in names if values.get(name)]
    return [f"  {', '.join(told)}"] if told else []


def _tree(value: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for name, part in value.items():
        if isinstance(part, dict):
            lines += [f"{indent}{name}", *_tree(part, f"{indent}  ")]
        else:
            lines.append(f"{indent}{name}: {json.dumps(part)}")
    return lines
