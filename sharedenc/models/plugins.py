"""Backbones and freeze modes from outside the package, checked before they are taken in.

A plugin is a Python file, a module, or an entry point of the group ``sharedenc.backbones``. On
import it calls `register_encoder` (and, if it likes, `register_freeze`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from sharedenc.errors import SharedencError, SpecError
from sharedenc.models import ENTRY_POINT_GROUP
from sharedenc.models.dry_run import check_encoder
from sharedenc.models.encoders import ENCODERS, Encoder
from sharedenc.models.freeze import register_freeze
from sharedenc.models.weights import OFFICIAL, OfficialWeights
from sharedenc.spec import BACKBONES, BackboneInfo, register_backbone

__all__ = ["load_entry_points", "load_plugin", "register_encoder", "register_freeze"]


@dataclass
class _Origin:
    """The plugin that is being loaded: where it came from and what it has registered."""

    source: str
    digest: str
    check: bool
    names: list[str] = field(default_factory=list)


_ORIGIN: ContextVar[_Origin | None] = ContextVar("sharedenc_plugin_origin", default=None)
_LOADED: dict[tuple[str, str], tuple[str, ...]] = {}


def register_encoder(
    name: str,
    factory: Callable[[], Encoder],
    lr: float | None = None,
    *,
    weights: OfficialWeights | None = None,
) -> None:
    """Add a backbone after a dry run of its contract.

    Args:
        name: Its name on the backbone axis.
        factory: Makes a randomly initialised encoder from torch's global random state.
        lr: AdamW's learning rate; None means that a study has to search it.
        weights: What ``--weights default`` downloads; without it that option is an error.

    Raises:
        SpecError: the name is taken, or the encoder breaks the contract that the text names.
    """
    origin = _ORIGIN.get() or _Origin(source=f"module {factory.__module__}", digest="", check=True)
    if name in ENCODERS:
        raise SpecError(
            f"backbone {name!r} of {origin.source} exists already "
            f"(from {BACKBONES[name].source}); give yours another name"
        )
    if not name or "/" in name or "=" in name or "," in name or name != name.strip():
        raise SpecError(f"backbone name {name!r} must not be empty or hold / = , or outer spaces")
    if origin.check:
        check_encoder(name, factory)
    register_backbone(BackboneInfo(name, lr, source=origin.source, digest=origin.digest))
    ENCODERS[name] = factory
    if weights is not None:
        OFFICIAL[name] = weights
    origin.names.append(name)


def load_plugin(plugin: str | Path, *, check: bool = True) -> tuple[str, ...]:
    """Load a plugin file (``*.py``) or an importable module; loading it again changes nothing.

    ``check=False`` skips the dry run, for workers of a sweep whose driver has done it.

    Returns:
        The names of the backbones that it registered.

    Raises:
        SpecError: there is no such plugin, it fails on import, or it registers nothing usable.
    """
    path = Path(plugin)
    if path.suffix == ".py":
        if not path.is_file():
            raise SpecError(
                f"there is no plugin file {path}; if it lies elsewhere, say where with --plugin"
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return _load(path.name, digest, check, lambda: _import_file(path, digest))
    spec = _find_module(str(plugin))
    return _load(str(plugin), spec, check, lambda: importlib.import_module(str(plugin)))


def load_entry_points(*, check: bool = True) -> tuple[str, ...]:
    """Load every installed plugin of the group ``sharedenc.backbones``; see `load_plugin`.

    An entry point names a module, or a function in one that registers backbones when called.
    """
    names: list[str] = []
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):

        def run(entry: metadata.EntryPoint = entry) -> None:
            loaded = entry.load()
            if callable(loaded):
                loaded()

        names += _load(f"entry point {entry.name}", _find_module(entry.module), check, run)
    return tuple(names)


def _find_module(name: str) -> str:
    """Digest of a module's file, so that a changed plugin changes its trials' keys."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise SpecError(f"there is no plugin {name!r}: neither a file ending in .py nor a module")
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()


def _load(source: str, digest: str, check: bool, run: Callable[[], object]) -> tuple[str, ...]:
    if (source, digest) in _LOADED:
        return _LOADED[source, digest]
    with _origin(_Origin(source, digest, check)) as origin:
        try:
            run()
        except Exception as error:
            # All or nothing: a plugin that is mended and loaded again finds its names free.
            for name in origin.names:
                for table in (ENCODERS, BACKBONES, OFFICIAL):
                    table.pop(name, None)
            if isinstance(error, SharedencError):
                raise
            raise SpecError(
                f"plugin {source} fails on import: {type(error).__name__}: {error}"
            ) from error
    _LOADED[source, digest] = tuple(origin.names)
    return _LOADED[source, digest]


@contextmanager
def _origin(origin: _Origin) -> Iterator[_Origin]:
    token = _ORIGIN.set(origin)
    try:
        yield origin
    finally:
        _ORIGIN.reset(token)


def _import_file(path: Path, digest: str) -> None:
    name = f"sharedenc_plugin_{path.stem}_{digest[:12]}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
