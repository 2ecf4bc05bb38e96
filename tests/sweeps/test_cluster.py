"""Nodes that cannot do what trials need are refused by name."""

from __future__ import annotations

from sweeps.cluster import NodeReport, find_problems

HERE = {"python": "3.11.9", "ray": "2.60.0", "torch": "2.14.0", "sharedenc": "0.1.0"}


def test_equal_nodes_are_fine() -> None:
    assert find_problems([NodeReport(node="a", name="a", versions=dict(HERE))], HERE) == []


def test_each_unfit_node_is_named_with_all_its_reasons() -> None:
    reports = [
        NodeReport(node="a", name="alpha", versions={**HERE, "torch": "2.13.0"}),
        NodeReport(node="b", name="beta", versions=dict(HERE)),
        NodeReport(node="c", name="gamma", versions={**HERE, "sharedenc": ""}),
        NodeReport(node="d", name="delta", versions=dict(HERE), storage="no such place"),
        NodeReport(node="e", name="eta", versions={**HERE, "ray": "2.59.0"}, tracking="no answer"),
        NodeReport(node="f", name="phi", versions={}, error="no answer: timed out"),
    ]
    assert find_problems(reports, HERE) == [
        "node alpha: torch 2.13.0 (here 2.14.0)",
        "node gamma: sharedenc missing (here 0.1.0)",
        "node delta: no such place",
        "node eta: ray 2.59.0 (here 2.60.0), no answer",
        "node phi: no answer: timed out",
    ]
