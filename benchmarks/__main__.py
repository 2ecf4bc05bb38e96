"""``python -m benchmarks [R8 R9 ...] [--rounds N] [--json FILE]``: run and print the ratios."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import REGISTRY
from benchmarks.protocol import table

# Times of one thread can be repeated on a shared machine; those of several cannot.
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, or all; 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"of {', '.join(REGISTRY)}; all")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side [5]")
    parser.add_argument("--json", metavar="FILE", help="write the rows; - for standard output")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.ids if name not in REGISTRY]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(REGISTRY)}")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    rows: list[dict[str, Any]] = []
    failed = False
    for name in options.ids or REGISTRY:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += importlib.import_module(REGISTRY[name]).run(options.rounds)
        except Exception as error:
            failed = True
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    if options.json == "-":
        print(json.dumps(rows, indent=2))
    else:
        print(table(rows))
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
