"""The compiler of the CPU kernels, and the element types and lanes that affine and fp4 kernels share.

Rules of the compiled code:
- No fast math. Every operation rounds as IEEE 754 says, in the order written, so that x86 and ARM agree to the bit.
- Sums run in `LANES` explicit float32 lanes over `SEGMENT` weights, then in float64, always in the same order:
  neither the vector width nor the number of threads can change them.
- Loops without branches over contiguous arrays, so that LLVM makes vectors of them.
"""

# N weights of a piece of a slice, G groups

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

from mint.formats.scheme import AFFINE_SCHEME, MXFP4_SCHEME, NVFP4_SCHEME, Scheme
from mint.kernels.code_cache import code_folder, may_cache

LANES = 16
SEGMENT = 2048  # weights held in cache at once (8 KiB as float32); a multiple of every group size
CHUNK = 64 * SEGMENT  # weights of one piece of parallel work
STORAGES = {"BF16": 0, "F16": 1, "F32": 2}  # safetensors dtype -> number in compiled code
BF16, F16, F32 = 0, 1, 2
AFFINE, MXFP4, NVFP4 = AFFINE_SCHEME.kernel, MXFP4_SCHEME.kernel, NVFP4_SCHEME.kernel  # likewise

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Words = NDArray[np.uint32]
Bytes = NDArray[np.uint8]
Raw = NDArray[Any]  # uint16 patterns of BF16 or F16, or float32

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile at first use, cache on disk, release the GIL; division by zero gives infinity as in C."""
    before, config.CACHE_DIR = config.CACHE_DIR, str(code_folder())
    try:
        return cast(Function, njit(nogil=True, cache=may_cache(), error_model="numpy")(function))
    finally:
        config.CACHE_DIR = before


@compiled
def widen(raw: Raw, storage: int, values: Floats) -> None:
    """Write the (N,) weights as float32, exactly.

    A float16's bits, shifted to the position of a float32's, read 2^112 too small, subnormals included.
    """
    words = values.view(np.uint32)
    if storage == BF16:
        for i in range(raw.size):
            words[i] = np.uint32(raw[i]) << np.uint32(16)
    elif storage == F16:
        for i in range(raw.size):
            word = np.uint32(raw[i])
            sign = (word & np.uint32(0x8000)) << np.uint32(16)
            words[i] = sign | ((word & np.uint32(0x7FFF)) << np.uint32(13))
        for i in range(raw.size):
            values[i] *= np.float32(2.0**112)
    else:
        for i in range(raw.size):
            values[i] = raw[i]


@compiled
def narrow(values: Floats, storage: int, scratch: Floats) -> None:
    """Round (G,) float32 to the nearest value that `storage` holds, ties to even, in place; |values| < 65520 for F16.

    For F16, adding and subtracting a number 2^13 times the value's power of two rounds at F16's last bit; F16 has no
    power below 2^-14, so subnormals keep that one's last bit.
    """
    words = values.view(np.uint32)
    if storage == BF16:
        for i in range(values.size):
            word = words[i]
            odd = (word >> np.uint32(16)) & np.uint32(1)
            words[i] = (word + (np.uint32(0x7FFF) + odd)) & np.uint32(0xFFFF0000)
    elif storage == F16:
        rounder = scratch.view(np.uint32)
        for i in range(values.size):
            word = words[i]
            power = max(word & np.uint32(0x7F800000), np.uint32(0x38800000))
            rounder[i] = (word & np.uint32(0x80000000)) | (power + np.uint32(13 << 23))
        for i in range(values.size):
            values[i] = (values[i] + scratch[i]) - scratch[i]


@compiled
def write_raw(values: Floats, storage: int, scratch: Floats, raw: Raw) -> None:
    """Write (G,) float32, already rounded by `narrow`, in the bits of `storage`: the inverse of `widen`."""
    if storage == BF16:
        words = values.view(np.uint32)
        for i in range(values.size):
            raw[i] = words[i] >> np.uint32(16)
    elif storage == F16:
        for i in range(values.size):
            scratch[i] = values[i] * np.float32(2.0**-112)
        words = scratch.view(np.uint32)
        for i in range(values.size):
            sign = (words[i] >> np.uint32(16)) & np.uint32(0x8000)
            raw[i] = sign | ((words[i] >> np.uint32(13)) & np.uint32(0x7FFF))
    else:
        for i in range(values.size):
            raw[i] = values[i]


@compiled
def pack_codes(codes: Words, bits: int, packed: Bytes) -> None:
    """Write (N,) codes as MLX does: one little-endian stream of bits, the first code lowest; N is a multiple of 8.

    Neighbours merge in pairs: 2, 4, then 8 codes become one integer of `8 * bits` bits, that is, `bits` whole bytes.
    """
    eights = np.empty(codes.size // 8, np.uint64)
    fours = np.empty(codes.size // 4, np.uint32)
    once, twice, thrice = np.uint32(bits), np.uint32(2 * bits), np.uint32(3 * bits)
    for i in range(fours.size):
        quad = codes[4 * i : 4 * i + 4]
        fours[i] = (quad[0] | (quad[1] << once)) | ((quad[2] << twice) | (quad[3] << thrice))
    for i in range(eights.size):
        eights[i] = np.uint64(fours[2 * i]) | (np.uint64(fours[2 * i + 1]) << np.uint64(4 * bits))
    for i in range(eights.size):
        for byte in range(bits):
            packed[i * bits + byte] = (eights[i] >> np.uint64(8 * byte)) & np.uint64(0xFF)


def widened(stored: Raw, dtype: str) -> Floats:
    """Raw storage (G,) of a safetensors `dtype` as float32."""
    values = np.empty(stored.size, np.float32)
    widen(stored, STORAGES[dtype], values)
    return values


def scale_values(stored: Raw, dtype: str, scheme: Scheme) -> Floats:
    """Stored scales (G,) as the float32 they stand for."""
    return _scale_table(scheme)[stored] if scheme.scale_values else widened(stored, dtype)


@cache
def _scale_table(scheme: Scheme) -> Floats:
    return np.array(scheme.scale_values, np.float32)
