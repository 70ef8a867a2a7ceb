"""The memory of MLX arrays as numpy sees it."""

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

DTYPE_NAMES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32"}  # of weights, as safetensors calls them
_HALF = (mx.bfloat16, mx.float16)


def raw(array: mx.array) -> NDArray[Any]:
    """The array's memory, without a copy where it is contiguous; 16-bit floats as uint16 bit patterns."""
    contiguous = mx.contiguous(array, stream=mx.cpu)
    return np.asarray(contiguous.view(mx.uint16, stream=mx.cpu) if array.dtype in _HALF else contiguous)


def raw_bytes(array: mx.array) -> memoryview:
    """The bytes of an array of any dtype, row-major."""
    return raw(array).reshape(-1).data.cast("B")
