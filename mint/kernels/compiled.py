"""The compiler and the threads of the CPU kernels, and the parts that affine and fp4 kernels share.

Rules of the compiled code:
- No fast math. Every operation rounds as IEEE 754 says, in the order written, so that x86 and ARM agree to the bit.
- Sums run in `LANES` explicit float32 lanes over `SEGMENT` weights, then in float64, always in the same order:
  neither the vector width nor the number of threads can change them.
- Loops without branches over contiguous arrays, so that LLVM makes vectors of them.
"""

# N weights of a piece of a slice, G groups

import os
import pickle
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar, cast
from zlib import crc32

import numpy as np
from numba import config, njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.serialize import dumps
from numpy.typing import NDArray

from mint.formats.format import Format
from mint.formats.scheme import AFFINE_SCHEME, MXFP4_SCHEME, NVFP4_SCHEME, Scheme
from mint.kernels.code_cache import code_folder, may_cache

LANES = 16
SEGMENT = 2048  # weights held in cache at once (8 KiB as float32); a multiple of every group size
CHUNK = 64 * SEGMENT  # weights of one piece of parallel work
STORAGES = {"BF16": 0, "F16": 1, "F32": 2}  # safetensors dtype -> number in compiled code
BF16, F16, F32 = 0, 1, 2
AFFINE, MXFP4, NVFP4 = AFFINE_SCHEME.kernel, MXFP4_SCHEME.kernel, NVFP4_SCHEME.kernel  # likewise

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_WITHOUT_PYTHON: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Words = NDArray[np.uint32]
Bytes = NDArray[np.uint8]
Raw = NDArray[Any]  # uint16 patterns of BF16 or F16, or float32
Numbers = tuple[int, int, int]  # mode, bits and group size of a format

Function = TypeVar("Function", bound=Callable[..., Any])
Item = TypeVar("Item")
Result = TypeVar("Result")


def _load_array_functions() -> None:
    """Load numba's functions of arrays without scipy, 0.4 s: it serves products of matrices, which no kernel makes."""
    if "scipy.linalg" not in sys.modules:
        sys.modules["scipy.linalg"] = None  # type: ignore[assignment]  # an import of it fails
        try:
            import numba.np.arraymath  # noqa: F401
        finally:
            del sys.modules["scipy.linalg"]


_load_array_functions()


def compiled(function: Function) -> Function:
    """Compile at first use, cache on disk, release the GIL; division by zero gives infinity as in C."""
    kernel = njit(**_OPTIONS)(function)
    if may_cache():
        before, config.CACHE_DIR = config.CACHE_DIR, str(code_folder())
        try:
            kernel._cache = _CodeCache(function)
        finally:
            config.CACHE_DIR = before
    return cast(Function, kernel)


class _CheckedFile(IndexDataCacheFile):  # type: ignore[misc]
    """Numba's files of a kernel, with a checksum: damaged machine code would be run."""

    def save(self, key: object, data: object) -> None:
        """Keep the compiled code of a key."""
        payload = dumps(data)
        super().save(key, (_checksum(key, payload), payload))

    def load(self, key: object) -> object:
        """The compiled code of a key, None if there is none; raises `ValueError` for damaged or other code."""
        record = super().load(key)
        if record is None:
            return None
        checksum, payload = record
        if checksum != _checksum(key, payload):
            raise ValueError("damaged code")
        return pickle.loads(payload)


def _checksum(key: object, payload: bytes) -> int:
    return crc32(payload, crc32(repr(key).encode()))


class _CodeCache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of a kernel; numba 0.68 does not start with files that a loss of power left empty."""

    def __init__(self, function: Function) -> None:
        super().__init__(function)
        kind = self._impl
        self._cache_file = _CheckedFile(self.cache_path, kind.filename_base, kind.locator.get_source_stamp())

    def load_overload(self, sig: object, target_context: object) -> object:
        """The compiled code for a signature; None where it is to be compiled again."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # unpickling damaged bytes raises any kind
            self.flush()
            return None


def inner(function: Function) -> Function:
    """As `compiled`, for kernels alone: Python cannot call it, which saves an eighth of the compiler's time."""
    return cast(Function, njit(**_OPTIONS, **_WITHOUT_PYTHON)(function))


def inlined(function: Function) -> Function:
    """As `inner`, and part of every kernel that calls it: loops become vectors only without calls."""
    return cast(Function, njit(**_OPTIONS, **_WITHOUT_PYTHON, forceinline=True)(function))


@compiled
def widen(raw: Raw, storage: int, values: Floats) -> None:
    """Write the (N,) weights as float32, exactly.

    A float16's bits, shifted to the position of a float32's, read 2^112 too small, subnormals included.
    """
    if storage == F32:
        for i in range(raw.size):
            values[i] = raw[i]
    elif storage == BF16:
        for i in range(raw.size):
            values[i] = np.uint32(np.uint32(raw[i]) << np.uint32(16)).view(np.float32)
    else:
        for i in range(raw.size):
            word = np.uint32(raw[i])
            sign = (word & np.uint32(0x8000)) << np.uint32(16)
            small = np.uint32(sign | ((word & np.uint32(0x7FFF)) << np.uint32(13))).view(np.float32)
            values[i] = small * np.float32(2.0**112)


@inlined
def rounded(value: np.float32, storage: int) -> np.float32:
    """The nearest value that `storage` holds, ties to even; infinite beyond the greatest of F16.

    For F16, adding and subtracting a number 2^13 times the value's power of two rounds at F16's last bit; F16 has no
    power below 2^-14, so subnormals keep that one's last bit.
    """
    word = np.float32(value).view(np.uint32)
    if storage == BF16:
        odd = (word >> np.uint32(16)) & np.uint32(1)
        return np.uint32((word + (np.uint32(0x7FFF) + odd)) & np.uint32(0xFFFF0000)).view(np.float32)
    if storage == F16:
        power = np.uint32(word & np.uint32(0x7F800000))
        power = power if power > np.uint32(0x38800000) else np.uint32(0x38800000)
        rounder = np.uint32((word & np.uint32(0x80000000)) | (power + np.uint32(13 << 23))).view(np.float32)
        return (value + rounder) - rounder if abs(value) < np.float32(65520.0) else np.float32(np.inf)
    return value


@compiled
def write_raw(values: Floats, storage: int, raw: Raw) -> None:
    """Write (G,) float32, `rounded`, in the bits of `storage`: the inverse of `widen`."""
    if storage == F32:
        for i in range(values.size):
            raw[i] = values[i]
    elif storage == BF16:
        for i in range(values.size):
            raw[i] = np.float32(rounded(values[i], storage)).view(np.uint32) >> np.uint32(16)
    else:
        for i in range(values.size):
            word = np.float32(rounded(values[i], storage) * np.float32(2.0**-112)).view(np.uint32)
            sign = (word >> np.uint32(16)) & np.uint32(0x8000)
            raw[i] = sign | ((word >> np.uint32(13)) & np.uint32(0x7FFF))


@compiled
def pack_codes(codes: Words, bits: int, packed: Bytes) -> None:
    """Write (N,) codes as MLX does: one little-endian stream of bits, the first code lowest; N is a multiple of 8.

    Neighbours merge in pairs: 2, 4, then 8 codes become one integer of `8 * bits` bits, that is, `bits` whole bytes.
    """
    eights = np.empty(codes.size // 8, np.uint64)
    once, twice, thrice = np.uint32(bits), np.uint32(2 * bits), np.uint32(3 * bits)
    for i in range(eights.size):
        eight = codes[8 * i : 8 * i + 8]
        low = (eight[0] | (eight[1] << once)) | ((eight[2] << twice) | (eight[3] << thrice))
        high = (eight[4] | (eight[5] << once)) | ((eight[6] << twice) | (eight[7] << thrice))
        eights[i] = np.uint64(np.uint32(low)) | (np.uint64(np.uint32(high)) << np.uint64(4 * bits))
    for i in range(eights.size):
        for byte in range(bits):
            packed[i * bits + byte] = (eights[i] >> np.uint64(8 * byte)) & np.uint64(0xFF)


def numbers(format: Format) -> Numbers:
    """The format as compiled code knows it."""
    return format.scheme.kernel, format.bits, format.group_size


def widened(stored: Raw, dtype: str) -> Floats:
    """Raw storage (G,) of a safetensors `dtype` as float32."""
    values = np.empty(stored.size, np.float32)
    widen(stored, STORAGES[dtype], values)
    return values


def values_of(weight: Raw, dtype: str) -> Floats:
    """Raw weights of a safetensors `dtype`, or float32 values, as new float32 of the same shape."""
    if weight.dtype == np.float32:
        return weight.copy()
    return widened(weight.reshape(-1), dtype).reshape(weight.shape)


def scale_values(stored: Raw, dtype: str, scheme: Scheme) -> Floats:
    """Stored scales (G,) as the float32 they stand for."""
    return _scale_table(scheme)[stored] if scheme.scale_values else widened(stored, dtype)


@cache
def _scale_table(scheme: Scheme) -> Floats:
    return np.array(scheme.scale_values, np.float32)


def spread(work: Callable[[Item], Result], items: Sequence[Item], threads: int | None) -> list[Result]:
    """The results of `work` for all items, in their order; on `threads` threads, by default one for every core."""
    threads = threads or os.cpu_count() or 1
    if min(threads, len(items)) <= 1:
        return [work(item) for item in items]
    return list(_pool(threads).map(work, items))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """One pool for the life of the process: to start threads costs more than to measure a small matrix."""
    return ThreadPoolExecutor(threads, thread_name_prefix="mint-kernel")
