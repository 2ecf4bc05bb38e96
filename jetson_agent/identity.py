"""Which device this is: read from files of the system, never from the host name.

Every function takes the root of the file system, so that tests can show it another board.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from jetson_agent.board import clocks, modes, software
from jetson_agent.board.clocks import ClockPolicy
from jetson_agent.board.files import read_bytes
from jetson_agent.board.files import read_text as read_text
from jetson_agent.board.load import memory_gib
from jetson_agent.board.load import usable_cpus as usable_cpus
from jetson_agent.protocol import slug

ROOT = Path("/")
SYSROOT_VARIABLE = "JETSON_AGENT_SYSROOT"
MEMORY_SIZES_GB = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)

# Part numbers of NVIDIA's modules, from the device trees of L4T.
MODULES = {
    "p3701-0000": "Jetson AGX Orin (developer kit, 32 GB)",
    "p3701-0002": "IGX Orin",
    "p3701-0004": "Jetson AGX Orin 32GB",
    "p3701-0005": "Jetson AGX Orin 64GB",
    "p3701-0008": "Jetson AGX Orin Industrial",
    "p3767-0000": "Jetson Orin NX 16GB",
    "p3767-0001": "Jetson Orin NX 8GB",
    "p3767-0003": "Jetson Orin Nano 8GB",
    "p3767-0004": "Jetson Orin Nano 4GB",
    "p3767-0005": "Jetson Orin Nano 8GB (developer kit)",
    "p2888-0004": "Jetson AGX Xavier 32GB",
    "p3668-0000": "Jetson Xavier NX (developer kit)",
    "p3668-0001": "Jetson Xavier NX",
}
# Modules that share model name and memory with another one and are not as fast.
NAMED_BY_PART = ("p3701-0000", "p3701-0008")


@dataclass(frozen=True, kw_only=True)
class Device:
    """`name` is the device in experiment names; `power_mode` is one part of a timing's mode.

    `cpus` are those that this process may use, `cores` those that the board has. `sku` is the
    module's part number, and whatever of the software is not there is ``""``.
    """

    name: str
    model: str
    cpu: str
    machine: str
    cpus: int
    memory_gib: float
    power_mode: str
    kernel: str
    module: str = ""
    sku: str = ""
    cores: int = 0
    power_mode_number: int | None = None
    clock_policy: ClockPolicy = "unknown"
    l4t: str = ""
    jetpack: str = ""
    cuda: str = ""
    tensorrt: str = ""
    board_id: str = ""

    @property
    def is_board(self) -> bool:
        """Whether this is a board of NVIDIA's, to whose sensors the stricter limits belong."""
        return bool(self.module or self.l4t)

    def mode(self, threads: int | None) -> str:
        """What apart from the device decides the figures: ``MAXN-pinned``, ``default-4t``.

        Args:
            threads: CPU threads of the backend; None where they do not matter.
        """
        parts = [self.power_mode]
        if self.clock_policy != "unknown":
            parts.append(self.clock_policy)
        if threads is not None:
            parts.append(f"{threads}t")
        return "-".join(parts)

    def runtime(self, backend_runtime: str) -> str:
        """`backend_runtime` with the release of L4T: a change of either makes figures stale."""
        return f"{backend_runtime}+l4t{self.l4t}" if self.l4t else backend_runtime


def sysroot() -> Path:
    """Root of the files that describe this machine: ``/``, or what JETSON_AGENT_SYSROOT says."""
    return Path(os.environ.get(SYSROOT_VARIABLE) or ROOT)


def identify(name: str | None = None, root: Path | None = None) -> Device:
    """Describe this machine.

    Args:
        name: Overrides the name made from the board's model and memory, or from architecture,
            CPU and number of usable CPUs where no device tree names a board.
        root: Where the files of the machine begin; `sysroot()` by default.
    """
    root = root or sysroot()
    machine = platform.machine() or "unknown"
    cpu = cpu_model(root)
    cpus = len(usable_cpus())
    memory = round(memory_gib(root).get("total", 0.0), 2)
    board = read_text(root / "proc/device-tree/model")
    sku = module_sku(root)
    if board:
        derived = f"{slug(board)}-{nominal_memory_gb(memory)}gb"
        if sku in NAMED_BY_PART:
            derived += f"-{sku}"
    else:
        derived = f"{slug(machine)}-{slug(short_cpu_name(cpu))}-{cpus}c"
    installed = software.packages(root)
    release = software.l4t(root, installed)
    return Device(
        name=name or derived,
        model=board or "unknown board",
        cpu=cpu,
        machine=machine,
        cpus=cpus,
        memory_gib=memory,
        power_mode=power_mode(root),
        kernel=platform.release(),
        module=MODULES.get(sku, sku),
        sku=sku,
        cores=core_count(root) or cpus,
        power_mode_number=modes.mode_number(root),
        clock_policy=clocks.policy(root),
        l4t=release,
        jetpack=software.jetpack(release),
        cuda=software.cuda(root, installed),
        tensorrt=software.tensorrt(installed),
        board_id=board_id(root),
    )


def module_sku(root: Path) -> str:
    """Part number of the module, such as ``p3701-0005``; ``""`` if it is none of NVIDIA's.

    The first entry of ``compatible`` is carrier and module, ``nvidia,p3737-0000+p3701-0005``,
    with ``-super`` behind it on an Orin Nano that may draw more.
    """
    for entry in read_bytes(root / "proc/device-tree/compatible").split(b"\0"):
        text = entry.decode(errors="replace")
        if found := re.search(r"(?:\+|^nvidia,)(p[0-9]{4}-[0-9]{4})(?:-|$)", text):
            return found[1]
    return ""


def core_count(root: Path) -> int | None:
    """Number of CPU cores that are there, switched off by a power mode or not."""
    total = 0
    for part in read_text(root / "sys/devices/system/cpu/present", 4096).split(","):
        found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip())
        if not found:
            return None
        total += int(found[2] or found[1]) - int(found[1]) + 1
    return total if total > 0 else None


def board_id(root: Path) -> str:
    """12 hex digits that tell two boards of a kind apart, without telling the machine's id."""
    machine_id = read_text(root / "etc/machine-id", 256)
    return (
        hashlib.sha256(f"jetson-agent:{machine_id}".encode()).hexdigest()[:12] if machine_id else ""
    )


def cpu_model(root: Path = ROOT) -> str:
    """The CPU's name, or on ARM its implementer and part number."""
    facts: dict[str, str] = {}
    for line in read_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip().lower(), value.strip())
    if facts.get("model name"):
        return facts["model name"]
    if "cpu part" in facts:
        return f"arm {facts.get('cpu implementer', '?')} {facts['cpu part']}"
    return "unknown cpu"


def short_cpu_name(cpu: str) -> str:
    """`cpu` without trademarks, clock and filler words."""
    text = re.sub(r"\((r|tm)\)|@.*|\b(cpu|processor|\d+-core)\b", " ", cpu, flags=re.IGNORECASE)
    return " ".join(text.split()) or "unknown"


def nominal_memory_gb(memory_gib: float) -> int:
    """The size on the box: firmware and carve-outs hide a part of it from the kernel."""
    return next((size for size in MEMORY_SIZES_GB if size >= memory_gib), round(memory_gib))


def power_mode(root: Path = ROOT) -> str:
    """Name of the nvpmodel mode (ids differ by board), else the CPU's frequency governor."""
    if name := modes.mode_name(root):
        return name
    governor = read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", 64)
    return governor if re.fullmatch(r"\w+", governor, re.ASCII) else "default"
