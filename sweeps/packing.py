"""`--pack`: trials share GPUs by the peaks of memory that earlier trials had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sharedenc.errors import SpecError
from sweeps.graph import Node
from sweeps.order import Machine
from sweeps.resources import gpu_memory, pack, peaks_of, share_width

if TYPE_CHECKING:
    from sweeps.ledger import Measured


def pack_trials(
    nodes: Sequence[Node],
    machines: Sequence[Machine],
    measured: Sequence[Measured],
    note: Callable[[str], None],
    memory: Callable[[], int] = gpu_memory,
) -> list[Node]:
    """Nodes whose demands share GPUs; kinds whose peak is not known keep a whole one.

    Args:
        machines: What there is to run on.
        measured: Finished trials; only those on a GPU count.
        note: Told how many trials share.
        memory: Gives the bytes of the smallest GPU; this machine's stands for all.

    Raises:
        SpecError: there is no GPU to share, or its memory cannot be had.
    """
    cores = [machine.cpus / machine.gpus for machine in machines if machine.gpus]
    if not cores:
        raise SpecError(
            "--pack shares GPUs, and no machine has one; trials on CPUs are packed by cores and "
            "memory anyway. Leave --pack out."
        )
    size = memory()
    if not size:
        raise SpecError(
            "--pack needs the GPUs' memory, and nvidia-smi does not tell it on this machine; run "
            "the command on a machine with the same GPUs, or leave --pack out"
        )
    peaks = peaks_of(row for row in measured if row.numerics.get("device") == "cuda")
    packed = pack(nodes, peaks, size, min(cores))
    sharing = sum(0 < demand.gpus < 1 for demand in packed.values())
    note(
        f"--pack: {sharing} of {len(nodes)} trials share a GPU by measured peaks"
        + ("; the others get a whole one, which measures them" if sharing < len(nodes) else "")
    )

    def width(node: Node) -> int:
        share = packed[node.id].gpus
        peak = peaks.get((node.cell.name, node.recipe.image_px, node.recipe.batch_size))
        if peak is None or not 0 < share < 1:
            return node.width
        return share_width(peak, share, size, node.width)

    return [replace(node, demand=packed[node.id], width=width(node)) for node in nodes]
