"""What processes of one node share, read from the kernel's accounts."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from benchmarks import one_node
from benchmarks.one_node import memory_of_this_process

MIB = 2**20


def test_memory_of_ones_own_is_private() -> None:
    before = memory_of_this_process()
    own = np.ones(64 * MIB, np.uint8)
    after = memory_of_this_process()
    assert after["private"] - before["private"] >= 60 * MIB
    assert after["pss"] - before["pss"] >= 60 * MIB
    del own


def test_pages_of_a_file_that_two_map_count_half(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.write_bytes(bytes(32 * MIB))
    with path.open("rb") as file:
        before = memory_of_this_process()
        first = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        assert sum(first[:: mmap.PAGESIZE]) == 0
        alone = memory_of_this_process()
        assert alone["pss"] - before["pss"] >= 30 * MIB
        second = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        assert sum(second[:: mmap.PAGESIZE]) == 0
        both = memory_of_this_process()
        # Mapped twice, in memory once.
        assert both["pss"] - alone["pss"] < 4 * MIB
        first.close()
        second.close()


@pytest.mark.slow
def test_rows_of_memory_and_speed() -> None:
    memory, speed = one_node.run(1, images=(40, 1, 1), counts=(1, 2), turn_s=0.1)
    assert {memory["id"], speed["id"]} == {"one-node"}
    assert memory["case"].startswith("memory that each reader beyond the first adds, 2 read ")
    assert speed["case"].startswith(f"2 readers at once ({speed['images_per_s']:.0f} images/s) ")
    assert (memory["unit"], speed["unit"]) == ("MB", "ms/image")
    assert memory["ours"] > memory["limit"] > 0
    assert memory["memory"]["mapped"]["pss"] < 2 * memory["memory"]["own copy"]["pss"]
    assert speed["images_per_s"] == pytest.approx(1000 / speed["ours"])
    assert speed["images_per_s_of_one"] == pytest.approx(1000 / speed["reference"])


def test_a_process_that_ends_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="a reading process ended"),
        one_node.readers(tmp_path / "no pack", "mapped", 1) as group,
    ):
        group.memory(1)
