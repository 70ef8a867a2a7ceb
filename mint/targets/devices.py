"""The memory and bandwidth of devices: the table behind `--device`, `devices.toml`.

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
from functools import cache
from pathlib import Path
from typing import Any

from mint.core.errors import MintError

GIB = 2**30
THIS = "this"
_MACS = ("mac", "macbook", "imac", "mini", "studio", "air", "apple")  # words of products, which have several chips
CUDA_SHARE = Fraction(95, 100)  # MLX's own limit: memory_limit_ in ml-explore/mlx, mlx/backend/cuda/allocator.cpp


@dataclass(frozen=True, slots=True)
class Device:
    """A machine that models run on. GB/s are 10^9 bytes; a bandwidth of 0.0 is unknown."""

    name: str
    chip: str  # as the GPU calls itself, without the leading "Apple"
    memory_bytes: int
    working_set_bytes: int  # the most memory that its GPU may hold wired by default
    gb_per_second: float
    source: str


@cache
def table() -> dict[str, Any]:
    """The rows of `devices.toml`; the last cell of a row is its source."""
    import tomllib  # most commands need no row

    file = tomllib.loads(Path(__file__).with_name("devices.toml").read_text(encoding="utf-8"))
    sources = file.pop("sources")
    return {name: [[*row, source.format_map(sources)] for *row, source in rows] for name, rows in file.items()}


@cache
def devices() -> tuple[Device, ...]:
    """Every device of the table: Macs, phones, then NVIDIA's."""
    made = []
    for chip, speed, sizes, source in table()["macs"]:
        for gib in sizes:
            name = f"{chip.lower().replace(' ', '-')}-{gib}"
            made.append(Device(name, chip, gib * GIB, mac_working_set(gib * GIB), speed, source))
    for name, chip, gib, working_set_gib, speed, source in table()["phones"]:
        made.append(Device(name, chip, gib * GIB, working_set_gib * GIB, speed, source))
    for name, chip, gib, visible_mib, speed, source in table()["cuda"]:
        made.append(Device(name, chip, gib * GIB, int(visible_mib * 2**20 * CUDA_SHARE), speed, source))
    return tuple(made)


def mac_working_set(memory_bytes: int) -> int:
    """Bytes that the GPU of a Mac with this memory may hold wired by default, on macOS up to 15."""
    share = next(share for gib, share, _ in table()["working_sets"] if memory_bytes >= gib * GIB)
    return int(memory_bytes * Fraction(share))


def device(name: str) -> Device:
    """The device of this name, `this` being the machine at hand; `MintError` names the closest ones."""
    if name == THIS:
        return this_device()
    by_name = {device.name: device for device in devices()}
    if name not in by_name:
        raise _unknown(name)
    return by_name[name]


def devices_with(part: str) -> list[Device]:
    """The devices whose name contains `part`, for `this` the machine at hand; `MintError` names the closest ones."""
    if part.lower() == THIS:
        return [this_device()]
    matches = [device for device in devices() if part.lower() in device.name]
    if not matches:
        raise _unknown(part)
    return matches


def _unknown(name: str) -> MintError:
    close = get_close_matches(name.lower().replace(" ", "-"), [device.name for device in devices()], n=3, cutoff=0.5)
    near = ", ".join(close or ("m4-pro-24",))
    words = name.lower().replace("-", " ").split()
    chip = "; a Mac goes by its chip and memory in GB" if any(word in words for word in _MACS) else ""
    return MintError(f"{name!r} is not a known device; needed a name such as {near}{chip}; `mint devices` lists all")


def this_device() -> Device:
    """The machine at hand, as MLX reports its GPU; `MintError` without one."""
    import mlx.core as mx  # not above: the table must load without it

    gpu = mx.device_info(mx.gpu)
    chip = str(gpu.get("device_name", "")).removeprefix("Apple ")
    if "max_recommended_working_set_size" in gpu:
        memory, working_set = int(gpu["memory_size"]), int(gpu["max_recommended_working_set_size"])
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
    rows = [row for row in devices() if row.chip == chip]
    # of the bin with this memory, or else of the slowest
    bins = [row for row in rows if row.memory_bytes == memory] or rows
    speed = min((row.gb_per_second for row in bins), default=0.0)
    return Device(THIS, chip, memory, working_set, speed, source)
