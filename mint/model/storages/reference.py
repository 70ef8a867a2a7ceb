"""The same decodings once more, in numpy alone: a check on the arrays that MLX computes.

`decode` takes the tensors as they lie on disk, bytes of 8-bit floats and bit patterns of 16-bit ones, and shares no
code with the storages. It is plain and slow.
"""

# R rows, C columns, G groups

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mint.formats.scheme import E4M3, E8M0
from mint.model.storages.storage import Encoded

Raw = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
_BYTES = {"F8_E4M3": E4M3, "F8_E8M0": E8M0, "U8": E8M0}


def decode(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    """The weight in float32 from the tensors by role as `StoredModel.raw` reads them."""
    return _DECODERS[encoded.storage](encoded, raw)


def as_floats(raw: Raw, dtype: str) -> Floats:
    """The values of a tensor of a safetensors dtype; those of `U8` are exponents of two."""
    if dtype in _BYTES:
        return np.array(_BYTES[dtype], np.float32)[raw]
    if dtype == "F8_E5M2":
        return (raw.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return (raw.view(np.float16) if dtype == "F16" else raw).astype(np.float32)


def _floats(encoded: Encoded, raw: Mapping[str, Raw], role: str) -> Floats:
    return as_floats(raw[role], encoded.parts[role].dtype)


def _scaled(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    values = _floats(encoded, raw, "codes")
    if "zeros" in raw:
        values = values - _index(raw["zeros"].astype(np.float32), encoded)
    return values * _index(_floats(encoded, raw, "scales"), encoded) if "scales" in raw else values


def _index(scales: Floats, encoded: Encoded) -> Floats:
    """The scale of every weight, each looked up at the block of its indices."""
    shape, sizes = encoded.shape, encoded.numbers["sizes"]
    scales = scales.reshape(*scales.shape, *(1,) * (len(shape) - scales.ndim))
    blocks = [np.arange(n) // size if size else np.zeros(n, int) for n, size in zip(shape, sizes, strict=True)]
    spread: Floats = scales[np.ix_(*blocks)]
    return spread


_DECODERS: dict[str, Callable[[Encoded, Mapping[str, Raw]], Floats]] = {
    "fp8": _scaled,
    "int8": _scaled,
}
