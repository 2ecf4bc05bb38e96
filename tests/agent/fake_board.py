"""The files of /proc, /sys, /etc and /var that the agent reads, as another machine has them.

`build` writes a tree; JETSON_AGENT_SYSROOT (or `root=`) shows it to the agent. The methods of
`FakeBoard` change it while something runs: each file is replaced in one step, never half written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

Kind = Literal["agx-orin-64", "agx-orin-32", "orin-nano", "x86"]


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One power mode: its caps as nvpmodel.conf has them."""

    name: str
    cores: int
    cpu_khz: int
    gpu_hz: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is soldered on."""

    model: str
    compatible: tuple[str, ...]
    memory_kib: int
    cores: int
    rails: tuple[tuple[str, ...], ...]
    modes: tuple[Mode, ...]
    gpu_min_hz: int = 306_000_000
    cpu_min_khz: int = 729_600


MODELS: dict[str, Model] = {
    "agx-orin-64": Model(
        model="NVIDIA Jetson AGX Orin Developer Kit",
        compatible=("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"),
        memory_kib=62841 * 1024,
        cores=12,
        rails=(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("NC", "VDDQ_VDD2_1V8AO", "NC")),
        modes=(
            Mode(name="MAXN", cores=12, cpu_khz=2_201_600, gpu_hz=1_300_500_000),
            Mode(name="MODE_15W", cores=4, cpu_khz=1_113_600, gpu_hz=408_000_000),
            Mode(name="MODE_30W", cores=8, cpu_khz=1_728_000, gpu_hz=612_000_000),
            Mode(name="MODE_50W", cores=12, cpu_khz=1_497_600, gpu_hz=816_000_000),
        ),
    ),
    "agx-orin-32": Model(
        model="NVIDIA Jetson AGX Orin Developer Kit",
        compatible=("nvidia,p3737-0000+p3701-0004", "nvidia,p3701-0004", "nvidia,tegra234"),
        memory_kib=30697 * 1024,
        cores=8,
        rails=(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("NC", "VDDQ_VDD2_1V8AO", "NC")),
        modes=(
            Mode(name="MAXN", cores=8, cpu_khz=2_188_800, gpu_hz=930_750_000),
            Mode(name="MODE_15W", cores=4, cpu_khz=1_113_600, gpu_hz=408_000_000),
            Mode(name="MODE_30W", cores=8, cpu_khz=1_728_000, gpu_hz=612_000_000),
            Mode(name="MODE_40W", cores=8, cpu_khz=1_497_600, gpu_hz=816_000_000),
        ),
    ),
    "orin-nano": Model(
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        compatible=(
            "nvidia,p3768-0000+p3767-0005-super",
            "nvidia,p3767-0005",
            "nvidia,tegra234",
        ),
        memory_kib=7620 * 1024,
        cores=6,
        rails=(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"),),
        modes=(
            Mode(name="15W", cores=6, cpu_khz=1_510_400, gpu_hz=612_000_000),
            Mode(name="25W", cores=6, cpu_khz=1_344_000, gpu_hz=918_000_000),
            Mode(name="MAXN_SUPER", cores=6, cpu_khz=1_728_000, gpu_hz=1_020_000_000),
        ),
    ),
}
ZONES = ("cpu-thermal", "gpu-thermal", "cv0-thermal", "soc0-thermal", "tj-thermal")
SWITCHED_OFF = ("cv0-thermal",)
COOLING = (
    "cpufreq-cpu0",
    "devfreq-17000000.gpu",
    "cpu-throttle-alert",
    "gpu-throttle-alert",
    "hot-surface-alert",
    "pwm-fan",
)
# The temperature of a sensor that is powered down.
OFF_MILLI_C = -256_000


@dataclass
class FakeBoard:
    """A tree under `root`, and hands to turn its knobs while the agent looks at it."""

    root: Path
    kind: Kind
    gpu: str = "17000000.gpu"
    mode: Mode | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, text: str | bytes) -> Path:
        """Put `text` into ``root/name`` in one step."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(text if isinstance(text, bytes) else text.encode())
        part.replace(path)
        return path

    def remove(self, name: str) -> None:
        """Take a file away."""
        (self.root / name).unlink()

    def gpu_clock(self, mhz: float, *, low: float | None = None, high: float | None = None) -> None:
        """The GPU runs at `mhz`; `low` and `high` are its range, unchanged if None."""
        base = f"sys/devices/platform/{self.gpu}/devfreq/{self.gpu}"
        self.write(f"{base}/cur_freq", f"{mhz * 1e6:.0f}\n")
        if low is not None:
            self.write(f"{base}/min_freq", f"{low * 1e6:.0f}\n")
        if high is not None:
            self.write(f"{base}/max_freq", f"{high * 1e6:.0f}\n")

    def cpu_clock(self, khz: int, *, low: int | None = None, high: int | None = None) -> None:
        """Every core runs at `khz`."""
        cores = MODELS[self.kind].cores if self.kind != "x86" else 4
        for core in range(cores):
            base = f"sys/devices/system/cpu/cpu{core}/cpufreq"
            self.write(f"{base}/scaling_cur_freq", f"{khz}\n")
            if low is not None:
                self.write(f"{base}/scaling_min_freq", f"{low}\n")
            if high is not None:
                self.write(f"{base}/scaling_max_freq", f"{high}\n")

    def pin(self, pinned: bool = True) -> None:
        """What ``jetson_clocks`` does, or its opposite."""
        assert self.mode is not None
        model, top = MODELS[self.kind], self.mode.gpu_hz / 1e6
        low = top if pinned else model.gpu_min_hz / 1e6
        self.gpu_clock(low, low=low, high=top)
        slow = self.mode.cpu_khz if pinned else model.cpu_min_khz
        self.cpu_clock(slow, low=slow, high=self.mode.cpu_khz)

    def select(self, name: str) -> None:
        """Another power mode; the clocks stay as they are."""
        modes = MODELS[self.kind].modes
        number = next(i for i, mode in enumerate(modes) if mode.name == name)
        self.mode = modes[number]
        self.write("var/lib/nvpmodel/status", f"pmode:{number:04d} fmode:quiet\n")

    def heat(self, celsius: float) -> None:
        """All sensors that are switched on show this temperature."""
        for number, zone in enumerate(ZONES):
            milli = OFF_MILLI_C if zone in SWITCHED_OFF else round(celsius * 1000)
            self.write(f"sys/class/thermal/thermal_zone{number}/temp", f"{milli}\n")

    def draw(self, watts: float) -> None:
        """The whole board draws `watts`: all of it through the first rail or, on an AGX, three."""
        rails = MODELS[self.kind].rails[0]
        parts = [watts, 0.2, 0.1] if rails[0] == "VDD_IN" else [watts / 2, watts / 4, watts / 4]
        for channel, part in enumerate(parts, start=1):
            base = f"{self._ina(0)}/curr{channel}"
            self.write(f"{base}_input", f"{part / 5.0 * 1000:.0f}\n")

    def over_current(self, channel: int, count: int) -> None:
        """Counter `channel`: 1 under-voltage, 2 average, 3 instantaneous over-current."""
        self.write(f"sys/class/hwmon/hwmon5/oc{channel}_event_cnt", f"{count}\n")

    def cooling(self, name: str, state: int) -> None:
        """State of a cooling device, 0 = does nothing."""
        number = COOLING.index(name)
        self.write(f"sys/class/thermal/cooling_device{number}/cur_state", f"{state}\n")

    def alarm(self, channel: int, on: bool = True, *, level: str = "crit") -> None:
        """An alarm of the first power monitor."""
        self.write(f"{self._ina(0)}/curr{channel}_{level}_alarm", f"{int(on)}\n")

    def gpu_load(self, share: float) -> None:
        """GPU load, 0 to 1; the kernel tells it in per mille."""
        self.write(f"sys/devices/platform/{self.gpu}/load", f"{share * 1000:.0f}\n")

    def cpu_ticks(self, busy: int, idle: int = 1000, steal: int = 0) -> None:
        """Ticks since boot of each core, the same for all."""
        cores = MODELS[self.kind].cores if self.kind != "x86" else 4
        lines = [
            f"cpu  {busy * cores} 0 0 {idle * cores} 0 0 0 {steal * cores} 0 0",
            *(f"cpu{core} {busy} 0 0 {idle} 0 0 0 {steal} 0 0" for core in range(cores)),
        ]
        self.write("proc/stat", "\n".join(lines) + "\nctxt 1\n")

    def memory(self, total_kib: int, free_kib: int, swap_kib: int = 0) -> None:
        """Memory; `swap_kib` of 16 GiB of swap are in use."""
        swap = 16 * 1024 * 1024
        self.write(
            "proc/meminfo",
            f"MemTotal:       {total_kib} kB\nMemFree:        {free_kib // 2} kB\n"
            f"MemAvailable:   {free_kib} kB\nSwapTotal:      {swap} kB\n"
            f"SwapFree:       {swap - swap_kib} kB\n",
        )

    def _ina(self, number: int) -> str:
        return f"sys/bus/i2c/devices/1-004{number}/hwmon/hwmon{number + 1}"


def build(
    root: Path,
    kind: Kind = "agx-orin-64",
    *,
    pinned: bool = True,
    mode: str | None = None,
    temperature_c: float = 45.0,
    power_w: float = 12.0,
    gpu_load: float = 0.0,
    l4t: str = "36.4.4",
    tensorrt: str = "10.3.0.30",
    jetpack5: bool = False,
) -> FakeBoard:
    """Write the tree of a machine.

    Args:
        mode: Power mode by name; None for the first of the board's list.
        l4t: Version in ``/etc/nv_tegra_release`` and of package nvidia-l4t-core.
        tensorrt: Version of the packages libnvinfer10 and libnvinfer-bin; ``""`` for none.
        jetpack5: The GPU has its name of JetPack 5 (``17000000.ga10b``).
    """
    board = FakeBoard(root=root, kind=kind, environment={"JETSON_AGENT_SYSROOT": str(root)})
    board.write("etc/machine-id", sha256(kind.encode()).hexdigest()[:32] + "\n")
    board.write("proc/loadavg", "0.10 0.20 0.30 1/200 4242\n")
    if kind == "x86":
        board.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Plain CPU 3000 @ 3.00GHz\n")
        board.write("sys/devices/system/cpu/present", "0-3\n")
        board.memory(16_000_000, 12_000_000)
        board.cpu_ticks(100)
        return board
    model = MODELS[kind]
    if jetpack5:
        board.gpu = "17000000.ga10b"
    board.write("proc/device-tree/model", model.model.encode() + b"\0")
    board.write("proc/device-tree/compatible", "".join(f"{c}\0" for c in model.compatible))
    board.write("proc/cpuinfo", "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n")
    board.write("sys/devices/system/cpu/present", f"0-{model.cores - 1}\n")
    board.memory(model.memory_kib, model.memory_kib * 3 // 4)
    board.cpu_ticks(100)
    _software(board, l4t, tensorrt)
    _modes(board, model)
    board.select(mode or model.modes[0].name)
    _sensors(board, model)
    for core in range(model.cores):
        base = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        board.write(f"{base}/scaling_governor", "schedutil\n")
    board.pin(pinned)
    board.heat(temperature_c)
    board.draw(power_w)
    board.gpu_load(gpu_load)
    return board


def _software(board: FakeBoard, l4t: str, tensorrt: str) -> None:
    major, _, revision = l4t.partition(".")
    board.write(
        "etc/nv_tegra_release",
        f"# R{major} (release), REVISION: {revision}, GCID: 41062509, BOARD: generic, "
        "EABI: aarch64, DATE: Mon Jun 16 16:07:13 UTC 2025\n# KERNEL_VARIANT: oot\n",
    )
    packages = {"nvidia-l4t-core": f"{l4t}-20250616085344", "cuda-cudart-12-6": "12.6.68-1"}
    if tensorrt:
        packages |= {
            "libnvinfer10": f"{tensorrt}-1+cuda12.5",
            "libnvinfer-bin": f"{tensorrt}-1+cuda12.5",
        }
    board.write(
        "var/lib/dpkg/status",
        "\n".join(
            f"Package: {name}\nStatus: install ok installed\nArchitecture: arm64\n"
            f"Version: {version}\nDescription: one\n more lines\n"
            for name, version in packages.items()
        ),
    )
    board.write(
        "usr/local/cuda/version.json",
        '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}, '
        '"cuda_cudart": {"name": "CUDA Runtime (cudart)", "version": "12.6.68"}}\n',
    )


def _modes(board: FakeBoard, model: Model) -> None:
    blocks = []
    for number, mode in enumerate(model.modes):
        lines = [f"< POWER_MODEL ID={number} NAME={mode.name} >"]
        lines += [f"CPU_ONLINE CORE_{i} {int(i < mode.cores)}" for i in range(model.cores)]
        lines += [
            "FBP_POWER_GATING FBP_PG_MASK 0",
            f"CPU_A78_0 MIN_FREQ {model.cpu_min_khz}",
            f"CPU_A78_0 MAX_FREQ {mode.cpu_khz if number else -1}",
            "GPU MIN_FREQ 0",
            f"GPU MAX_FREQ {mode.gpu_hz if number else -1}",
            f"EMC MAX_FREQ {2_133_000_000 if number else 0}",
        ]
        blocks.append("\n".join(lines))
    header = "# One line of comment: < POWER_MODEL ID=9 NAME=COMMENT >\n"
    board.write("etc/nvpmodel.conf", header + "\n\n".join(blocks) + "\n\n< PM_CONFIG DEFAULT=0 >\n")


def _sensors(board: FakeBoard, model: Model) -> None:
    for chip, rails in enumerate(model.rails):
        board.write(f"sys/bus/i2c/devices/1-004{chip}/name", "ina3221\n")
        for channel, label in enumerate(rails, start=1):
            base = board._ina(chip)
            board.write(f"{base}/in{channel}_label", f"{label}\n")
            board.write(f"{base}/in{channel}_input", "5000\n")
            board.write(f"{base}/curr{channel}_input", "60\n")
            board.write(f"{base}/curr{channel}_max", "32760\n")
            board.write(f"{base}/curr{channel}_crit", "32760\n")
            board.write(f"{base}/curr{channel}_max_alarm", "0\n")
            board.write(f"{base}/curr{channel}_crit_alarm", "0\n")
        board.write(f"{board._ina(chip)}/in7_label", "sum of shunt voltages\n")
        board.write(f"{board._ina(chip)}/in7_input", "99\n")
        board.write(f"{board._ina(chip)}/curr4_crit_alarm", "0\n")
    board.write("sys/class/hwmon/hwmon5/name", "soctherm_oc\n")
    for channel in (1, 2, 3):
        board.write(f"sys/class/hwmon/hwmon5/oc{channel}_throt_en", "1\n")
        board.over_current(channel, 0)
    for number, zone in enumerate(ZONES):
        board.write(f"sys/class/thermal/thermal_zone{number}/type", f"{zone}\n")
    for number, name in enumerate(COOLING):
        board.write(f"sys/class/thermal/cooling_device{number}/type", f"{name}\n")
        board.write(f"sys/class/thermal/cooling_device{number}/max_state", "10\n")
        board.cooling(name, 3 if name == "pwm-fan" else 0)
    gpu = f"sys/devices/platform/{board.gpu}/devfreq/{board.gpu}"
    board.write(f"{gpu}/governor", "nvhost_podgov\n")
    board.write(f"{gpu}/available_frequencies", "306000000 1300500000\n")
    link = board.root / "sys/class/devfreq" / board.gpu
    link.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(f"../../devices/platform/{board.gpu}/devfreq/{board.gpu}", link)
    os.symlink(f"../../../{board.gpu}", board.root / gpu / "device")
