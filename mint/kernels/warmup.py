"""Compiles sets of kernels once, each in a process of its own.

The compiler takes a few hundred megabytes that it never frees. They end with its process, and the memory of the work
itself stays bounded by the weights. A set holds what one kind of work needs for one storage of weights, so a run
compiles no more than it calls, and two cores compile two sets. One process compiles a set, the others wait for it.
This file imports no compiler: kernels that are ready cost nothing.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint.formats.format import AFFINE, MXFP4, NVFP4, QUANTIZABLE
from mint.formats.rounding import ROUNDINGS, Rounding
from mint.kernels.code_cache import code_folder, may_cache

if TYPE_CHECKING:
    from numpy.typing import NDArray

try:
    import fcntl
except ImportError:  # no advisory locks on this platform
    fcntl = None  # type: ignore[assignment]


MEASURE, WRITE, FEATURES = "measure", "write", "features"  # the kinds of work
_PROCESSOR_LINES = ("model name", "flags", "CPU part", "Features")  # of Linux's /proc/cpuinfo
_PROCESSOR_SETTINGS = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")  # numba compiles for that processor instead


@dataclass(frozen=True, slots=True)
class KernelSet:
    """The kernels of some work on weights in one numpy dtype; a compiled kernel takes BF16 and F16 alike."""

    work: str
    rounding: str  # empty for features
    storage: str

    def __str__(self) -> str:
        return "-".join(part for part in astuple(self) if part)


def kernel_sets(work: str, rounding: Rounding | None, dtypes: Iterable[str] = QUANTIZABLE) -> list[KernelSet]:
    """The sets for weights of these safetensors dtypes; others are not quantized."""
    name = "" if rounding is None else rounding.measured_as if work == MEASURE else rounding.name
    storages = {"float32" if dtype == "F32" else "uint16" for dtype in dtypes if dtype in QUANTIZABLE}
    return [KernelSet(work, name, storage) for storage in sorted(storages, reverse=True)]


def marker(kernels: KernelSet, name: str | None = None) -> Path:
    """The file that says that a set is compiled for a processor, by default this one."""
    compilers = f"{version('numba')}-{version('llvmlite')}-{platform.python_version()}-{platform.machine()}"
    return code_folder() / f"ready-{kernels}-{compilers}-{name or processor()}"


@cache
def processor() -> str:
    """A digest of the processor and its features: code for another one is compiled anew, and cached beside it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = sorted({line for line in lines if line.partition(":")[0].strip() in _PROCESSOR_LINES})
    settings = [os.environ.get(name, "") for name in _PROCESSOR_SETTINGS]
    return sha256("\n".join([*(names or [platform.processor()]), *settings]).encode()).hexdigest()[:8]


def is_ready(kernels: KernelSet, name: str | None = None) -> bool:
    """True where a set is compiled, or no folder can keep it."""
    return not may_cache() or marker(kernels, name).exists()


@cache
def begin(kernels: KernelSet) -> "subprocess.Popen[bytes]":
    """Start the process that compiles a set, once; it takes some seconds, once for each version of mint.

    A failure is no error: kernels are then compiled when they are called. Its process group is its own: Ctrl-C in a
    terminal reaches the parent alone, and the process finishes for the next run.
    """
    call = f"from mint.kernels.warmup import KernelSet, compile_once; compile_once(KernelSet{astuple(kernels)})"
    command = [sys.executable, "-P", "-c", f"import gc; gc.disable(); {call}"]  # the compiler frees little
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0)


def compile_once(kernels: KernelSet) -> None:
    """Compile a set unless another process has just done so, or no folder can keep it."""
    if not may_cache():
        return
    with (code_folder() / f"lock-{kernels}").open("w") as lock:
        if fcntl:
            with suppress(OSError):  # a disk without locks: to compile twice does no harm
                fcntl.flock(lock, fcntl.LOCK_EX)
        if not marker(kernels).exists():
            compile_all(kernels)
            marker(kernels).touch()


def compile_all(kernels: KernelSet) -> None:
    """Call every kernel of a set once for every mode, on tiny weights."""
    import numpy as np

    dtype, weight = "F32" if kernels.storage == "float32" else "BF16", np.zeros((1, 1, 128), kernels.storage)
    works = {MEASURE: _measure, WRITE: _write, FEATURES: _describe}
    works[kernels.work](weight, dtype, kernels.rounding)


def _measure(weight: "NDArray[Any]", dtype: str, rounding: str) -> None:
    from mint.kernels.cpu import errors

    errors(weight, dtype, (*AFFINE, MXFP4, NVFP4), search=ROUNDINGS[rounding].searches)


def _write(weight: "NDArray[Any]", dtype: str, rounding: str) -> None:
    import numpy as np

    from mint.kernels.cpu import pack
    from mint.kernels.unpack import multiply, unpack

    for format in (AFFINE[0], MXFP4, NVFP4):
        parts = pack(weight, dtype, format, search=ROUNDINGS[rounding].searches)
        unpack(parts, dtype, format)
        multiply([part[0] for part in parts], dtype, format, np.zeros((1, 128), np.float32))
        if ROUNDINGS[rounding].sequential:
            from mint.kernels.compensate import Curvature, pack_compensated

            curvature = Curvature(np.eye(128, dtype=np.float32), np.eye(128, dtype=np.float32))
            pack_compensated(weight[0], dtype, format, curvature)


def _describe(weight: "NDArray[Any]", dtype: str, _: str) -> None:
    from mint.kernels.group_features import kurtoses, rounding_errors

    kurtoses(weight, dtype, 128)
    rounding_errors(weight[0], dtype, 128)
