"""The memory and bandwidth of devices: the table behind `--device`.

Memory is binary: a "24 GB" Mac has 24 * 2^30 bytes. The GPU may not wire all of it; Metal says how much as
`recommendedMaxWorkingSetSize`. The table gives what macOS up to 15 allows by default, the least of any version:
macOS 26 allows more (11.84 of 16 GiB AlexsJones/llmfit#754, 17.76 of 24 sgl-project/sglang#29949, 107.5 of 128
antirez/ds4#893), so a plan for a named Mac fits on either. `sudo sysctl iogpu.wired_limit_mb=<MiB>` raises it until
the next boot; `this` asks the machine. Bandwidths are the makers' peaks; where bins of a chip differ, the bin that is
sold with that memory. A source is a URL or owner/repo#number; an estimate says so.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction

from mint.core.errors import MintError

GIB = 2**30
THIS = "this"


@dataclass(frozen=True, slots=True)
class Device:
    """A machine that models run on. GB/s are 10^9 bytes; a bandwidth of 0.0 is unknown."""

    name: str
    chip: str  # as the GPU calls itself, without the leading "Apple"
    memory_bytes: int
    working_set_bytes: int  # what its GPU may hold wired by default
    bandwidth_gb_s: float
    source: str

    @property
    def figures(self) -> dict[str, str | int | float]:
        """All but the name, as tables and the API show it."""
        return {
            "chip": self.chip,
            "memory_bytes": self.memory_bytes,
            "working_set_bytes": self.working_set_bytes,
            "gb_per_second": self.bandwidth_gb_s,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class MacChip:
    """A chip and the memory sizes it is sold with at one bandwidth."""

    chip: str
    bandwidth_gb_s: float
    memory_gib: tuple[int, ...]
    source: str


@dataclass(frozen=True, slots=True)
class WorkingSetRule:
    """The share of a Mac's memory, from a size on, that its GPU may hold wired by default."""

    from_bytes: int
    share: Fraction
    source: str


# the rule of the largest size that the memory reaches; the jump lies between 32 and 36 GiB
WORKING_SET_RULES = (
    WorkingSetRule(
        36 * GIB,
        Fraction(3, 4),
        "ggml-org/llama.cpp#1870 (49152 MiB of 64 GiB), #3213 (73728 of 96); llama.cpp discussion #2182 (75 % above"
        " 32 GiB); 36 GiB: 28991.03 MB on macOS 15.7.7, from an M4 Max log that the index gave without its repository",
    ),
    WorkingSetRule(
        0,
        Fraction(2, 3),
        "abetlen/llama-cpp-python#687 (10922.67 MiB of 16 GiB), exo-explore/exo#1672 (10.67 of 16 on macOS 15.6),"
        " ollama/ollama#434 (21845.34 MiB of 32 GiB)",
    ),
)
CUDA_SHARE = Fraction(95, 100)  # MLX's own limit: memory_limit_ in ml-explore/mlx, mlx/backend/cuda/allocator.cpp

_HF = "https://github.com/huggingface/huggingface.js/blob/main/packages/tasks/src/hardware.ts"
_HF_FIX = "huggingface/huggingface.js#1937"
_TABLE = "https://llmcheck.net/blog/apple-silicon-memory-bandwidth-llm/"
_2021 = "https://9to5mac.com/2021/10/18/apple-unveils-next-generation-m1-pro-and-m1-max-chips-for-new-macs/"
_M3_BINS = "https://locara.dev/docs/notes/mac-hardware-lineup; which size has which bin is an estimate"
_CARDS = (
    "https://cpu-gpu.alldbin.com/graphics-card-comparison/GeForce-RTX-3090-and-GeForce-RTX-4070-AD103-comparison.html"
)
_BY = "by https://github.com/rlindsey2/sunkcost/blob/main/data/hardware.json"
_MINI_2024 = f"https://support.apple.com/en-us/121555, {_BY}"
_STUDIO_2025 = f"https://support.apple.com/en-us/122211, {_BY}"
_M5 = "Andyyyy64/whichllm#92, huggingface/huggingface.js#2033"
_STUDIO_2026 = f"https://www.apple.com/mac-studio/specs/ of 2026-08, {_BY}"
_MINI_2026 = f"https://www.apple.com/mac-mini/specs/ of 2026-08, {_BY}"

MAC_CHIPS = (
    MacChip("M1", 68, (8, 16), f"{_TABLE}, {_HF}"),
    MacChip("M1 Pro", 200, (16, 32), f"{_2021}, {_HF_FIX}"),
    MacChip("M1 Max", 400, (32, 64), f"{_2021}, {_HF_FIX}"),
    MacChip("M1 Ultra", 800, (64, 128), f"antirez/ds4#706, {_HF_FIX}"),
    MacChip("M2", 100, (8, 16, 24), f"{_TABLE}, {_HF}"),
    MacChip("M2 Pro", 200, (16, 32), f"{_TABLE}, {_HF_FIX}"),
    MacChip("M2 Max", 400, (32, 64, 96), f"{_TABLE}, {_HF}"),
    MacChip("M2 Ultra", 800, (64, 128, 192), f"antirez/ds4#902, {_HF_FIX}"),
    MacChip("M3", 100, (8, 16, 24), f"{_TABLE}, {_HF}"),
    MacChip("M3 Pro", 150, (18, 36), f"{_TABLE}, {_HF}"),
    MacChip("M3 Max", 300, (36, 96), _M3_BINS),
    MacChip("M3 Max", 400, (48, 64, 128), _M3_BINS),
    MacChip("M3 Ultra", 819, (96, 256, 512), _STUDIO_2025),
    MacChip("M4", 120, (16, 24, 32), _MINI_2024),
    MacChip("M4 Pro", 273, (24, 48, 64), _MINI_2024),
    MacChip("M4 Max", 410, (36,), _STUDIO_2025),
    MacChip("M4 Max", 546, (48, 64, 128), _STUDIO_2025),
    MacChip(
        "M4 Ultra",
        1092,
        (512,),
        "not announced, none was ever sold (youssofal/MTPLX#64): an estimate, twice an M4 Max with 512 GB",
    ),
    MacChip("M5", 153, (16, 24, 32), _M5),
    MacChip("M5 Pro", 307, (24, 48, 64), _M5),
    MacChip("M5 Max", 460, (36,), _STUDIO_2026),
    MacChip("M5 Max", 614, (48, 64, 128), _STUDIO_2026),
    MacChip("M5 Ultra", 1200, (96, 256, 512), _STUDIO_2026),
    MacChip("M6", 153, (16,), _MINI_2026),
    MacChip("M6", 170, (24, 32), _MINI_2026),
)


def mac_working_set(memory_bytes: int) -> int:
    """Bytes that the GPU of a Mac with this memory may hold wired by default, on macOS up to 15."""
    rule = next(rule for rule in WORKING_SET_RULES if memory_bytes >= rule.from_bytes)
    return int(memory_bytes * rule.share)


def _mac(row: MacChip, gib: int) -> Device:
    name = f"{row.chip.lower().replace(' ', '-')}-{gib}"
    return Device(name, row.chip, gib * GIB, mac_working_set(gib * GIB), float(row.bandwidth_gb_s), row.source)


def _cuda(name: str, chip: str, gib: int, bandwidth_gb_s: float, source: str) -> Device:
    return Device(name, chip, gib * GIB, int(gib * GIB * CUDA_SHARE), bandwidth_gb_s, source)


DEVICES = (
    *(_mac(row, gib) for row in MAC_CHIPS for gib in row.memory_gib),
    Device(
        "iphone-16-pro",
        "A18 Pro",
        8 * GIB,
        6 * GIB,
        60.0,
        "8 GB: apple/ml-fastvlm#24; 6 GiB an estimate from an iPhone 15 Pro with the entitlement"
        " increased-memory-limit, 3 without (introlab/rtabmap#1446); bandwidth an estimate",
    ),
    _cuda("rtx-3090", "NVIDIA GeForce RTX 3090", 24, 936.0, _CARDS),
    _cuda("rtx-4070", "NVIDIA GeForce RTX 4070", 12, 504.0, _CARDS),
    _cuda(
        "rtx-4090",
        "NVIDIA GeForce RTX 4090",
        24,
        1008.0,
        f"https://www.pcgamesn.com/nvidia/geforce-rtx-5090-memory-bandwidth-leak, {_HF}",
    ),
    _cuda(
        "rtx-5090",
        "NVIDIA GeForce RTX 5090",
        32,
        1792.0,
        "https://www.nvidia.com/en-us/geforce/graphics-cards/50-series/rtx-5090/",
    ),
    _cuda("a100-80", "NVIDIA A100-SXM4-80GB", 80, 2039.0, "https://glennklockwood.com/garden/processors/A100"),
    _cuda(
        "h100-80",
        "NVIDIA H100 80GB HBM3",
        80,
        3350.0,
        "https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html",
    ),
    Device(
        "dgx-spark",
        "NVIDIA GB10",
        128 * GIB,
        int(122_570 * 2**20 * CUDA_SHARE),  # its GPU sees 122,570 MiB
        273.0,
        f"https://www.nvidia.com/en-us/products/workstations/dgx-spark/, {_BY}",
    ),
)
_BY_NAME = {device.name: device for device in DEVICES}


def device(name: str) -> Device:
    """The device of this name, `this` being the machine at hand; `MintError` names the closest ones."""
    if name == THIS:
        return this_device()
    if name not in _BY_NAME:
        close = get_close_matches(name.lower().replace(" ", "-"), _BY_NAME, n=3, cutoff=0.5)
        near = f" such as {', '.join(close)}" if close else ""
        raise MintError(f"{name!r} is not a known device; needed a name{near}; `mint devices` lists all")
    return _BY_NAME[name]


def this_device() -> Device:
    """The machine at hand, as MLX reports its GPU; `MintError` without one."""
    import mlx.core as mx  # not above: the tables must load without it

    gpu = mx.device_info(mx.gpu)
    chip = str(gpu.get("device_name", "")).removeprefix("Apple ")
    if "max_recommended_working_set_size" in gpu:
        memory = int(gpu["memory_size"])
        working_set = int(gpu["max_recommended_working_set_size"])
        source = "mx.device_info, Metal"
    elif "total_memory" in gpu:
        memory = int(gpu["total_memory"])
        working_set = int(memory * CUDA_SHARE)
        source = "mx.device_info, CUDA"
    else:
        raise MintError(
            "MLX sees no GPU here; --device this needs Apple silicon or MLX CUDA;"
            " name a device instead, `mint devices` lists all"
        )
    return Device(THIS, chip, memory, working_set, _bandwidth(chip, memory), source)


def _bandwidth(chip: str, memory_bytes: int) -> float:
    """GB/s of a chip in the table, of the bin with this memory or else its slowest; 0.0 when it is not there."""
    rows = [row for row in DEVICES if row.chip == chip]
    same = [row for row in rows if row.memory_bytes == memory_bytes]
    return min((row.bandwidth_gb_s for row in same or rows), default=0.0)
