"""The K types of GGUF, whose blocks of 256 weights share a float16 scale and have 6-bit scales of their own parts.

A folder that was converted from GGUF has their bytes (R, B) in a tensor with the type behind the weight's name. A
block holds, in this order of bytes:

| type | bytes | weight |
|---|---|---|
| Q2_K | scales and minima 16, codes 64, d 2, dmin 2 | d * scale * code - dmin * minimum |
| Q3_K | high bits 32, codes 64, scales 12, d 2 | d * scale * (code - 4 where the high bit is 0) |
| Q4_K | d 2, dmin 2, scales and minima 12, codes 128 | d * scale * code - dmin * minimum |
| Q5_K | d 2, dmin 2, scales and minima 12, fifth bits 32, codes 128 | as Q4_K |
| Q6_K | low nibbles 128, high pairs 64, scales 16, d 2 | d * scale * (code - 32) |
"""

# N blocks, R rows, C columns, B bytes of a row

from collections.abc import Callable

import mlx.core as mx

from mint.model.checkpoint.shards import SourceTensor
from mint.model.storages.storage import Arrays, Checkpoint, Encoded, Storage, in_blocks

_BLOCK = 256
_PAIRS, _BITS = (0, 2, 4, 6), tuple(range(8))


def match(tensor: SourceTensor, _: Checkpoint) -> Encoded | None:
    """Bytes whose name ends in a type."""
    name, kind = tensor.name.rsplit(".", 1) if "." in tensor.name else ("", "")
    nbytes = K_TYPES[kind][0] if kind in K_TYPES else 0
    if tensor.dtype != "U8" or len(tensor.shape) != 2 or not nbytes or tensor.shape[1] % nbytes:
        return None
    shape = tensor.shape[0], tensor.shape[1] // nbytes * _BLOCK
    return Encoded("k types", name, shape, {"blocks": tensor}, {"kind": kind})


def _half(raw: mx.array, start: int) -> mx.array:
    """(N, 1) numbers of two bytes."""
    return raw[:, start : start + 2].view(mx.float16).astype(mx.float32)


def _fields(raw: mx.array, width: int, shifts: tuple[int, ...], mask: int, parts: int) -> mx.array:
    """(N, bytes) -> (N, parts, 256 / parts) codes: bytes in runs of `width`, each run once for every shift."""
    runs = raw.reshape(len(raw), -1, 1, width) >> mx.array(shifts, mx.uint8).reshape(-1, 1)
    return (runs & mask).reshape(len(raw), parts, -1).astype(mx.float32)


def _scales_and_minima(raw: mx.array) -> tuple[mx.array, mx.array]:
    """(N, 12) -> two times (N, 8, 1): 6 bits each, the upper 2 of the last four in the first bytes."""
    low, middle, high = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = mx.concatenate([low & 63, (high & 15) | ((low >> 2) & 48)], axis=1)
    minima = mx.concatenate([middle & 63, (high >> 4) | ((middle >> 2) & 48)], axis=1)
    return scales[..., None].astype(mx.float32), minima[..., None].astype(mx.float32)


def _q2(raw: mx.array) -> mx.array:
    scales, minima = (part[..., None].astype(mx.float32) for part in (raw[:, :16] & 15, raw[:, :16] >> 4))
    codes = _fields(raw[:, 16:80], 32, _PAIRS, 3, 16)
    return (_half(raw, 80)[..., None] * scales) * codes - _half(raw, 82)[..., None] * minima


def _q3(raw: mx.array) -> mx.array:
    low, high = raw[:, None, 96:104], raw[:, None, 104:108]
    low = (low >> mx.array([[0], [4]], mx.uint8)).reshape(-1, 16) & 15
    high = (high >> mx.array([[0], [2], [4], [6]], mx.uint8)).reshape(-1, 16) & 3
    scales = (low | (high << 4)).astype(mx.float32)[..., None] - 32
    codes = _fields(raw[:, 32:96], 32, _PAIRS, 3, 16) + 4 * _fields(raw[:, :32], 32, _BITS, 1, 16) - 4
    return (_half(raw, 108)[..., None] * scales) * codes


def _q4(raw: mx.array) -> mx.array:
    return _with_minima(raw, _fields(raw[:, 16:], 32, (0, 4), 15, 8))


def _q5(raw: mx.array) -> mx.array:
    codes = _fields(raw[:, 48:], 32, (0, 4), 15, 8) + 16 * _fields(raw[:, 16:48], 32, _BITS, 1, 8)
    return _with_minima(raw, codes)


def _with_minima(raw: mx.array, codes: mx.array) -> mx.array:
    scales, minima = _scales_and_minima(raw[:, 4:16])
    return (_half(raw, 0)[..., None] * scales) * codes - _half(raw, 2)[..., None] * minima


def _q6(raw: mx.array) -> mx.array:
    scales = raw[:, 192:208].view(mx.int8).astype(mx.float32)[..., None]
    codes = _fields(raw[:, :128], 64, (0, 4), 15, 16) + 16 * _fields(raw[:, 128:192], 32, _PAIRS, 3, 16) - 32
    return (_half(raw, 208)[..., None] * scales) * codes


K_TYPES: dict[str, tuple[int, Callable[[mx.array], mx.array]]] = {  # bytes of a block, and its decoding
    "q2_k": (84, _q2), "q3_k": (110, _q3), "q4_k": (144, _q4), "q5_k": (176, _q5), "q6_k": (210, _q6),
}  # fmt: skip


def _decode(encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    nbytes, decode = K_TYPES[encoded.numbers["kind"]]

    def block(rows: slice) -> mx.array:
        raw = parts["blocks"][rows]
        return decode(raw.reshape(-1, nbytes)).astype(dtype).reshape(len(raw), -1)

    return in_blocks(encoded.shape, dtype, block)


SUPER_BLOCKS = Storage("k types", "the K types of GGUF", match, _decode)
