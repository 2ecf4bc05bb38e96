"""``python -m benchmarks [R8 R9 ...] [--rounds N] [--json FILE]``: run and print the ratios."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import REGISTRY
from benchmarks.protocol import table
from sharedenc.files import write_atomic

# Times of one thread can be repeated on a shared machine; those of several cannot.
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
ROUNDS = 5
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, or all; 1 when one of them failed.

    The JSON file is written anew after each of them, so that what comes later loses nothing.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"of {', '.join(REGISTRY)}; all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each side [{ROUNDS}]")
    parser.add_argument("--json", metavar="FILE", help="write the rows; - for standard output")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.ids if name not in REGISTRY]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(REGISTRY)}")
    if options.json in REGISTRY:
        parser.error(
            f"--json {options.json}: that is a benchmark, and --json takes a file. To run it: "
            f"python -m benchmarks {options.json} --json FILE"
        )
    if options.json not in (None, "-") and not Path(options.json).absolute().parent.is_dir():
        parser.error(f"--json {options.json}: there is no such folder")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    if options.rounds < ROUNDS:
        print(f"--rounds {options.rounds}: no figures to publish, {ROUNDS} are", file=sys.stderr)
    for name in ONE_THREAD:
        os.environ[name] = "1"
    # It would choose other kernels than this processor's.
    os.environ.pop("OPENBLAS_CORETYPE", None)
    rows: list[dict[str, Any]] = []
    status = 0
    for name in options.ids or REGISTRY:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += importlib.import_module(REGISTRY[name]).run(options.rounds)
        except KeyboardInterrupt:
            print(f"{name}: interrupted; the rows of those before it follow", file=sys.stderr)
            status = INTERRUPTED
            break
        except Exception as error:
            status = 1
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        if options.json not in (None, "-"):
            write_atomic(Path(options.json), as_json(rows).encode())
    print(as_json(rows) if options.json == "-" else table(rows), end="\n" * (options.json != "-"))
    return status


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a file has them."""
    return json.dumps(rows, indent=2) + "\n"


if __name__ == "__main__":
    sys.exit(main())
