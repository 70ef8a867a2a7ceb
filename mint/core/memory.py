"""The memory of this machine and of this process, as the operating system counts it."""

import ctypes
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_LEAST_SHARE = 0.05  # of Linux's memory that is available
PROCESSES_BYTES = 768 << 20  # of this process and the one that loads the result, before any weight
_NORMAL = 1  # macOS's pressure level; 2 is a warning, 4 critical


def peak_rss_bytes() -> int:
    """The largest resident memory of this process so far.

    Linux counts the memory of the process that started this one in `ru_maxrss`, and not in `VmHWM`.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_bytes(limits: Iterable[Path] = _LIMITS) -> int:
    """The memory of this machine, or of the container that Linux holds this process in if that is less."""
    texts = [path.read_text().strip() for path in limits if path.exists()]
    machine: int = psutil.virtual_memory().total
    return min([machine, *(int(text) for text in texts if text.isdecimal())])


def memory_is_short() -> bool:
    """True under memory pressure: by macOS's own level, or when little of Linux's is available."""
    if sys.platform == "darwin":
        level, size = ctypes.c_int(_NORMAL), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
        ctypes.CDLL(None).sysctlbyname(
            b"kern.memorystatus_vm_pressure_level", ctypes.byref(level), ctypes.byref(size), None, ctypes.c_size_t(0)
        )
        return level.value > _NORMAL
    memory = psutil.virtual_memory()
    return is_short(memory.total, memory.available)


def is_short(total: int, available: int) -> bool:
    """True if less than a twentieth of the memory is available."""
    return available < _LEAST_SHARE * total
