"""The block types of GGUF as tensors of safetensors.

Types with an integer and a scale, or a scale and a bias, per 32 weights are MLX's affine formats in another order of
bits: they are kept bit by bit, with the float16 scales of the file. The K types are kept as they are, and decoded when
the folder is opened (`storages/super_blocks.py`). All other block types are decoded by the `gguf` package, ggml's own
reference, and rounded to float16; those of 4-bit floats have more magnitudes, all of which bfloat16 holds.

| type | weight | affine |
|---|---|---|
| Q4_0, Q5_0 | d * (q - 8), d * (q - 16) | scale d, bias -8 d or -16 d |
| Q4_1, Q5_1 | d * q + m | scale d, bias m |
| Q8_0 | d * q, q signed | scale d, bias -128 d, code q + 128 |
"""

# R rows, C columns, G groups of 32, B bytes of a row

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mint.formats.format import Format

Bytes = npt.NDArray[np.uint8]
Halves = npt.NDArray[np.float16]
Fields = tuple[Bytes, Halves, Halves]  # codes (N, 32), scales (N, 1), biases (N, 1) of N blocks
GROUP = 32


def _nibbles(packed: Bytes) -> Bytes:
    """(N, 16) -> (N, 32): the low nibbles are the first half."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """(N, 4) -> (N, 32)."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _halves(blocks: Bytes, start: int) -> Halves:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)


def _times(scales: Halves, power: int) -> Halves:
    product: Halves = scales * np.float16(power)
    return product


def _q4_0(blocks: Bytes) -> Fields:
    scales = _halves(blocks, 0)
    return _nibbles(blocks[:, 2:]), scales, _times(scales, -8)


def _q4_1(blocks: Bytes) -> Fields:
    return _nibbles(blocks[:, 4:]), _halves(blocks, 0), _halves(blocks, 2)


def _q5_0(blocks: Bytes) -> Fields:
    scales = _halves(blocks, 0)
    return _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6]), scales, _times(scales, -16)


def _q5_1(blocks: Bytes) -> Fields:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return codes, _halves(blocks, 0), _halves(blocks, 2)


def _q8_0(blocks: Bytes) -> Fields:
    scales = _halves(blocks, 0)
    return blocks[:, 2:] ^ np.uint8(128), scales, _times(scales, -128)


_AFFINE: dict[str, tuple[int, Callable[[Bytes], Fields]]] = {  # bits, and the fields of blocks
    "Q4_0": (4, _q4_0), "Q4_1": (4, _q4_1), "Q5_0": (5, _q5_0), "Q5_1": (5, _q5_1), "Q8_0": (8, _q8_0),
}  # fmt: skip
_FLOAT_BLOCKS = ("MXFP4", "NVFP4")
PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}  # types of one number each, by safetensors dtype


def affine_format(kind: str) -> Format | None:
    """The format of MLX that holds a block type bit by bit; None for others."""
    return Format("affine", _AFFINE[kind][0], GROUP) if kind in _AFFINE else None


def affine_parts(rows: Bytes, kind: str) -> tuple[Bytes, Bytes, Bytes]:
    """(R, B) bytes of an affine block type -> packed codes, scales and biases, (R, any) bytes each."""
    bits, fields_of = _AFFINE[kind]
    count = len(rows)
    codes, scales, biases = fields_of(rows.reshape(-1, rows.shape[1] * GROUP // _columns(rows.shape[1], kind)))
    stream = np.unpackbits(codes.reshape(count, -1, 1), axis=2, count=bits, bitorder="little").reshape(count, -1)
    packed = np.packbits(stream, axis=1, bitorder="little")
    return packed, scales.reshape(count, -1).view(np.uint8), biases.reshape(count, -1).view(np.uint8)


def _columns(nbytes: int, kind: str) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size, type_nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(nbytes // type_nbytes * size)


def decoded_dtype(kind: str) -> str:
    """The safetensors dtype of the decoded weights of a block type."""
    return "BF16" if kind in _FLOAT_BLOCKS else "F16"


def is_decodable(kind: str) -> bool:
    """True for plain numbers and the block types that can be decoded."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    if kind in PLAIN:
        return True
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]), np.uint8), GGMLQuantizationType[kind])
    except NotImplementedError:
        return False
    return True


def decoded(rows: npt.NDArray[Any], kind: str) -> Bytes:
    """(R, B) bytes of any block type -> (R, any) bytes of weights in its `decoded_dtype`."""
    from gguf import GGMLQuantizationType, dequantize

    values = dequantize(rows, GGMLQuantizationType[kind])
    if kind in _FLOAT_BLOCKS:
        upper: Bytes = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return upper
    halves: Bytes = values.astype(np.float16).view(np.uint8)
    return halves
