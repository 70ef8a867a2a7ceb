"""What the operating system knows of this process."""

import ctypes
import os
import resource
import sys
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


_MEMINFO = Path("/proc/meminfo")
_LEAST_SHARE = 0.05  # of Linux's memory that is available: below it is short
_NORMAL = 1  # macOS's pressure level; 2 is a warning, 4 critical


def peak_rss_bytes() -> int:
    """The largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_bytes() -> int:
    """The memory of this machine, or of the container that Linux holds this process in if that is less."""
    limits = [path.read_text().strip() for path in _LIMITS if path.exists()]
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *(int(text) for text in limits if text.isdigit())])


def memory_is_short() -> bool:
    """Whether the system is under memory pressure: by macOS's own level, or when little of Linux's is available."""
    if sys.platform == "darwin":
        level, size = ctypes.c_int(_NORMAL), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
        ctypes.CDLL(None).sysctlbyname(
            b"kern.memorystatus_vm_pressure_level", ctypes.byref(level), ctypes.byref(size), None, ctypes.c_size_t(0)
        )
        return level.value > _NORMAL
    return _MEMINFO.exists() and short_of(_MEMINFO.read_text())


def short_of(meminfo: str) -> bool:
    """Whether less than a twentieth of the memory is available, by what Linux says in /proc/meminfo."""
    total, available = (
        int(meminfo.partition(f"{name}:")[2].split(None, 1)[0]) for name in ("MemTotal", "MemAvailable")
    )
    return available < _LEAST_SHARE * total
