"""Side-by-side ratios: ours against what people would write without us, in one run.

``python -m benchmarks`` runs them; `REGISTRY` names them. Each is a module with
``run(rounds: int) -> list[dict]`` whose dicts are made by `benchmarks.protocol.result`.
"""

from __future__ import annotations

REGISTRY: dict[str, str] = {
    "R1": "benchmarks.mean_ap",
    "R2": "benchmarks.sample_path",
    "R3": "benchmarks.label_map",
    "R4": "benchmarks.shared_encoder",
    "R5": "benchmarks.shared_encoder_rates",
    "R6": "benchmarks.train_step",
    "R7": "benchmarks.confusion",
    "R8": "benchmarks.trial_start",
    "R9": "benchmarks.metric_logging",
    "R10": "benchmarks.makespan",
    "R11": "benchmarks.dual_inference",
    "R12": "benchmarks.loss_launches",
    "one-node": "benchmarks.one_node",
    "R13": "benchmarks.agent_overhead",
    "R14": "benchmarks.agent_idle",
    "R15": "benchmarks.memory_kept",
}
"""Benchmark id -> its module, which is imported when it runs."""
