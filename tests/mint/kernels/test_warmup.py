"""Kernels are compiled once, even for two processes that start together."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mint.formats.rounding import ROUNDINGS
from mint.kernels import warmup
from mint.kernels.warmup import FEATURES, MEASURE, WRITE, KernelSet, kernel_sets

PLAIN = KernelSet(MEASURE, "nearest", "uint16")
_COMPILE = """import sys
from mint.kernels import warmup
from mint.kernels.code_cache import code_folder
print(code_folder(), flush=True)
sys.stdin.readline()
kernels = warmup.KernelSet("measure", "nearest", "uint16")
warmup.compile_once(kernels)
print(warmup.is_ready(kernels), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's list of locks")
def test_a_process_that_waited_for_the_compiler_of_another_does_not_compile_again(tmp_path: Path) -> None:
    environment = {**os.environ, "MINT_KERNELS": str(tmp_path)}
    command = [sys.executable, "-c", _COMPILE]
    waiting = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert waiting.stdin and waiting.stdout
    folder = Path(waiting.stdout.readline().strip())
    assert folder.parent == tmp_path
    folder.mkdir(exist_ok=True)
    with (folder / f"lock-{PLAIN}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting.stdin.write("go\n")
        waiting.stdin.flush()
        while str(waiting.pid) not in Path("/proc/locks").read_text():
            assert waiting.poll() is None, "it did not wait"
        (folder / warmup.marker(PLAIN).name).touch()
    assert waiting.communicate()[0] == "True\n"
    assert waiting.returncode == 0
    assert not list(folder.glob("*.nbc"))


def test_kernels_that_another_processor_compiled_are_not_ready_here() -> None:
    warmup.begin(PLAIN).wait()
    assert warmup.is_ready(PLAIN)
    assert not warmup.is_ready(PLAIN, "another")


def test_a_set_is_compiled_for_the_dtypes_at_hand_and_measuring_needs_no_kernel_that_writes() -> None:
    nearest, compensate = ROUNDINGS["nearest"], ROUNDINGS["compensate"]
    assert kernel_sets(MEASURE, nearest, ["BF16", "F16", "U8"]) == [PLAIN]
    assert [kernels.storage for kernels in kernel_sets(WRITE, nearest)] == ["uint16", "float32"]
    assert kernel_sets(MEASURE, compensate, ["BF16"]) == kernel_sets(MEASURE, nearest, ["BF16"])
    assert kernel_sets(WRITE, compensate, ["BF16"]) != kernel_sets(WRITE, ROUNDINGS["search"], ["BF16"])
    assert list(map(str, kernel_sets(FEATURES, None, ["F32"]))) == ["features-float32"]


@pytest.mark.parametrize("work", [MEASURE, WRITE])
def test_a_set_holds_all_that_its_work_compiles(work: str, tmp_path: Path) -> None:
    """Nothing is compiled in the process of the work, whose memory is bounded by its weights."""
    environment = {**os.environ, "MINT_KERNELS": str(tmp_path)}
    command = [sys.executable, "-c", _WORK, work]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


_WORK = """
import sys
import numpy as np
from numba.core import event
from mint.formats.format import AFFINE, MXFP4, NVFP4
from mint.kernels.cpu import errors, pack
from mint.kernels.warmup import KernelSet, compile_all

compile_all(KernelSet(sys.argv[1], "nearest", "uint16"))
names = []

class Listener(event.Listener):
    def on_start(self, event): names.append(event.data["dispatcher"].py_func.__name__)
    def on_end(self, event): ...

event.register("numba:compile", Listener())
weight = np.ones((2, 3, 256), np.uint16)
for dtype in ("BF16", "F16"):
    if sys.argv[1] == "measure":
        errors(weight, dtype, (*AFFINE, MXFP4, NVFP4))
    else:
        for format in (*AFFINE, MXFP4, NVFP4):
            pack(weight, dtype, format)
print(names)
"""
