"""The fused GPU kernels as C++: a compiler in place of a GPU, and loops in place of its threads."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mint.kernels.fused import FusedKernels
from mint.kernels.fused_source import Dialect, Kernel
from mint.kernels.storage import DTYPES, NUMPY_DTYPES, from_raw, raw

CPP = Dialect(
    function="static inline",
    shared="",
    math="std::",
    product="a * b",
    memory="const",
    thread="thread",
    group="group",
    each="for (unsigned thread = 0; thread < threads; thread++)",
)
_PRELUDE = """
#include <cmath>
#include <cstdint>
#include <cstring>

struct bfloat16 {
    uint16_t bits;
    explicit bfloat16(float value) {
        uint32_t word;
        std::memcpy(&word, &value, 4);
        bits = (word + 0x7FFF + (word >> 16 & 1)) >> 16;
    }
    explicit operator float() const {
        const uint32_t word = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &word, 4);
        return value;
    }
};
"""
_TYPES = {
    mx.bfloat16: "bfloat16",
    mx.float16: "_Float16",
    mx.float32: "float",
    mx.uint32: "unsigned",
    mx.uint8: "uint8_t",
}


def compiler() -> str | None:
    """A C++ compiler of this machine."""
    return shutil.which("g++") or shutil.which("clang++")


def kernels(folder: Path) -> FusedKernels:
    """The kernels in C++; compiled code stays in the folder."""
    return FusedKernels(CPP, lambda kernel: _program(kernel, folder))


def _program(kernel: Kernel, folder: Path) -> Callable[..., list[mx.array]]:
    libraries: dict[mx.Dtype, Any] = {}

    def run(
        *,
        inputs: Sequence[mx.array],
        template: Sequence[tuple[str, mx.Dtype]],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        ((_, dtype),) = template
        if dtype not in libraries:
            libraries[dtype] = _compiled(kernel, dtype, [array.dtype for array in inputs], output_dtypes, folder)
        names = [DTYPES[dtype] for dtype in output_dtypes]
        outputs: list[NDArray[Any]] = [
            np.full(shape, 77, NUMPY_DTYPES[name]) for shape, name in zip(output_shapes, names, strict=True)
        ]
        arrays = [*map(raw, inputs), *outputs]
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
        assert grid[0] % threadgroup[0] == 0
        libraries[dtype].run(*pointers, grid[0] // threadgroup[0], threadgroup[0])
        return [from_raw(output, name) for output, name in zip(outputs, names, strict=True)]

    return run


def _compiled(
    kernel: Kernel, dtype: mx.Dtype, input_dtypes: Sequence[mx.Dtype], output_dtypes: Sequence[mx.Dtype], folder: Path
) -> ctypes.CDLL:
    outputs = [f"{_TYPES[type]}* {name}" for type, name in zip(output_dtypes, kernel.outputs, strict=True)]
    inputs = [f"const {_TYPES[type]}* {name}" for type, name in zip(input_dtypes, kernel.inputs, strict=True)]
    arguments = [*inputs, *outputs, "unsigned groups", "unsigned threads"]
    source = "\n".join(
        [
            f"{_PRELUDE}using T = {_TYPES[dtype]};{kernel.header}",
            f'extern "C" void run({", ".join(arguments)}) {{',
            f"for (unsigned group = 0; group < groups; group++) {{ {kernel.body} }} }}",
        ]
    )
    path = folder / f"{kernel.name}_{_TYPES[dtype]}"
    path.with_suffix(".cpp").write_text(source)
    command = [str(compiler()), "-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", f"{path}.so", f"{path}.cpp"], check=True)
    return ctypes.CDLL(f"{path}.so")
