"""Asks for a decision when the code behind a results version changes.

python -m tests.component_lock --unchanged "why the results stay the same"
python -m tests.component_lock --bumped     after raising the number in sharedenc.spec.COMPONENTS
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
from pathlib import Path

from sharedenc.spec import COMPONENTS

ROOT = Path(__file__).resolve().parents[1]
LOCK = Path(__file__).with_name("component_lock.json")

FILES: dict[str, list[str]] = {
    "data": [
        "sharedenc/data/coco.py",
        "sharedenc/data/voc.py",
        "sharedenc/data/dataset.py",
        "sharedenc/data/packed.py",
        "sharedenc/data/packing.py",
        "sharedenc/data/rasterise.py",
        "sharedenc/data/label_runs.py",
        "sharedenc/data/decoded.py",
        "sharedenc/data/classes.py",
    ],
    "transforms": [
        "sharedenc/data/transforms.py",
        "sharedenc/data/transforms_reference.py",
        "sharedenc/data/batch.py",
    ],
    "encoder": [
        "sharedenc/models/encoders.py",
        "sharedenc/models/build.py",
        "sharedenc/models/weights.py",
    ],
    "freeze": ["sharedenc/models/freeze.py"],
    "detection_head": ["sharedenc/models/detection_head.py", "sharedenc/models/boxes.py"],
    "segmentation_head": [
        "sharedenc/models/segmentation_head.py",
        "sharedenc/training/segmentation_loss.py",
    ],
    "losses": ["sharedenc/training/losses.py", "sharedenc/training/matching.py"],
    "schedule": ["sharedenc/training/schedule.py"],
    "loop": [
        "sharedenc/training/loop.py",
        "sharedenc/training/learner.py",
        "sharedenc/training/together.py",
        "sharedenc/training/member.py",
        "sharedenc/training/record.py",
        "sharedenc/training/run.py",
        "sharedenc/training/initialise.py",
        "sharedenc/training/calibrated.py",
        "sharedenc/training/numerics.py",
        "sharedenc/training/depthwise.py",
    ],
    "evaluation": [
        "sharedenc/evaluation/evaluate.py",
        "sharedenc/evaluation/detection.py",
        "sharedenc/evaluation/coco_tables.py",
        "sharedenc/evaluation/scorers.py",
        "sharedenc/evaluation/segmentation.py",
    ],
}


class _WithoutDocstrings(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = body[1:] or [ast.Pass()]
        return node


def code_digest(source: str) -> str:
    """Digest of the code alone: comments, layout and docstrings do not count."""
    tree = _WithoutDocstrings().visit(ast.parse(source))
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def component_digest(name: str) -> str:
    parts = [code_digest((ROOT / file).read_text()) for file in FILES[name]]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--unchanged", metavar="WHY")
    choice.add_argument("--bumped", action="store_true")
    args = parser.parse_args()
    old = json.loads(LOCK.read_text()) if LOCK.exists() else {}
    new = {}
    for name, version in COMPONENTS.items():
        entry = {"version": version, "digest": component_digest(name)}
        before = old.get(name, {})
        changed = before.get("digest") != entry["digest"]
        if changed and args.bumped and before.get("version") == version:
            parser.error(f"{name} changed, but its number in COMPONENTS is still {version}")
        why = args.unchanged if changed and not args.bumped else before.get("decision", "")
        if changed and args.bumped:
            why = f"results version {version}"
        new[name] = entry | {"decision": why}
    LOCK.write_text(json.dumps(new, indent=1) + "\n")


if __name__ == "__main__":
    main()
