"""The memory of MLX arrays as numpy sees it."""

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

DTYPES = {  # of a safetensors file, by those of arrays
    mx.bool_: "BOOL", mx.uint8: "U8", mx.int8: "I8", mx.uint16: "U16", mx.int16: "I16", mx.float16: "F16",
    mx.bfloat16: "BF16", mx.uint32: "U32", mx.int32: "I32", mx.float32: "F32", mx.uint64: "U64", mx.int64: "I64",
    mx.complex64: "C64",
}  # fmt: skip
MLX_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
DTYPE_NAMES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32"}  # of weights, as safetensors calls them
NUMPY_DTYPES = {  # of a safetensors file; 16-bit and 8-bit floats as bit patterns
    "BF16": np.uint16, "F16": np.uint16, "F32": np.float32, "U8": np.uint8, "U16": np.uint16, "U32": np.uint32,
    "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64, "U64": np.uint64, "BOOL": np.bool_,
    "C64": np.complex64, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "F8_E8M0": np.uint8,
}  # fmt: skip
_HALF = {"BF16": mx.bfloat16, "F16": mx.float16}


def numpy_view(array: mx.array) -> NDArray[Any]:
    """The memory of an array, computed; not of bfloat16.

    `np.asarray(array)` swallows an error of MLX, such as a read of a weight that fails meanwhile (mlx 0.32.4), and that
    weight is then garbage without a word. A memoryview raises it.
    """
    return np.asarray(memoryview(array))  # type: ignore[arg-type]


def raw(array: mx.array) -> NDArray[Any]:
    """The array's memory, without a copy where it is contiguous; 16-bit floats as uint16 bit patterns."""
    contiguous = mx.contiguous(array, stream=mx.cpu)
    return numpy_view(contiguous.view(mx.uint16, stream=mx.cpu) if array.dtype in _HALF.values() else contiguous)


def raw_bytes(array: mx.array) -> memoryview:
    """The bytes of an array of any dtype, row-major."""
    return raw(array).reshape(-1).data.cast("B")


def from_raw(stored: NDArray[Any], dtype: str) -> mx.array:
    """The MLX array of a safetensors `dtype` whose memory numpy sees as `stored`: the inverse of `raw`."""
    array = mx.array(stored)
    return array.view(_HALF[dtype]) if dtype in _HALF else array
