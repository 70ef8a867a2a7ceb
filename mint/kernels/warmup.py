"""Compiles the kernels once, in a process of its own.

The compiler takes a few hundred megabytes that it never frees. They end with its process, and the memory of the work
itself stays bounded by the weights. One process compiles at a time, the others wait for it. This file imports no
compiler: kernels that are ready cost nothing.
"""

import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from mint.kernels.code_cache import code_folder, may_cache

try:
    import fcntl
except ImportError:  # no advisory locks on this platform
    fcntl = None  # type: ignore[assignment]


_PROCESSOR_LINES = ("model name", "flags", "CPU part", "Features")  # of Linux's /proc/cpuinfo
FEATURES = "features"  # the name that their kernels go by beside those of the roundings


def marker(kind: str, processor: str | None = None) -> Path:
    """The file that says that the kernels of `kind` are compiled for a processor, by default this one."""
    made_by = f"{version('numba')}-{platform.python_version()}-{platform.machine()}-{processor or _processor()}"
    return code_folder() / f"ready-{kind}-{made_by}"


@cache
def _processor() -> str:
    """A digest of the processor and its features: code for another one is compiled anew, and cached beside it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = sorted({line for line in lines if line.partition(":")[0].strip() in _PROCESSOR_LINES})
    return sha256("\n".join(names or [platform.processor()]).encode()).hexdigest()[:8]


def is_ready(kind: str, processor: str | None = None) -> bool:
    """True where the kernels of a rounding or of features are compiled, or no folder can keep them."""
    return not may_cache() or marker(kind, processor).exists()


def make_ready(kind: str) -> None:
    """Compile every kernel that a rounding needs, or `FEATURES`: some ten seconds, once for each version of mint.

    A failure is no error: kernels are then compiled when they are called.
    """
    begin_to_make_ready(kind).wait()


def begin_to_make_ready(kind: str) -> "subprocess.Popen[bytes]":
    """Start the process of `make_ready` without waiting for it."""
    command = [sys.executable, "-P", "-c", f"from mint.kernels.warmup import compile_once; compile_once({kind!r})"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def compile_once(kind: str) -> None:
    """Compile what a rounding needs, or `FEATURES`, unless another process has just done so."""
    with (code_folder() / "lock").open("w") as lock:
        if fcntl:
            with suppress(OSError):  # a disk without locks: to compile twice does no harm
                fcntl.flock(lock, fcntl.LOCK_EX)
        if not marker(kind).exists():
            compile_all(kind)
            marker(kind).touch()


def compile_all(kind: str) -> None:
    """Call every kernel that a rounding needs, or `FEATURES`, once for every dtype and mode, on tiny weights."""
    import numpy as np

    from mint.formats.format import AFFINE, MXFP4, NVFP4
    from mint.formats.rounding import ROUNDINGS
    from mint.kernels.compensate import pack_compensated
    from mint.kernels.cpu import errors, pack
    from mint.kernels.group_features import kurtoses, rounding_errors
    from mint.kernels.unpack import multiply, unpack

    for dtype, storage in (("BF16", np.uint16), ("F16", np.uint16), ("F32", np.float32)):
        weight = np.zeros((1, 1, 128), storage)
        if kind == FEATURES:
            kurtoses(weight, dtype, 128)
            rounding_errors(weight[0], dtype, 128)
            continue
        rounding = ROUNDINGS[kind]
        errors(weight, dtype, (*AFFINE, MXFP4, NVFP4), search=rounding.searches)
        for format in (AFFINE[0], MXFP4, NVFP4):
            parts = pack(weight, dtype, format, search=rounding.searches)
            unpack(parts, dtype, format)
            multiply([part[0] for part in parts], dtype, format, np.zeros((1, 128), np.float32))
            if rounding.sequential:
                pack_compensated(weight[0], dtype, format, np.eye(128, dtype=np.float32))
