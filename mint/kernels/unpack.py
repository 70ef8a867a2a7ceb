"""From stored tensors back to float32 weights, and products with them: the inverse that verification reads with.

Codes lie in one little-endian stream of bits, the first code lowest, so 8 codes of `bits` bits are `bits` bytes.
Affine weights are scale * code + bias; fp4 codes stand for a sign and one of eight magnitudes times the scale, which
is stored as a power of two (mxfp4) or as an 8-bit float (nvfp4). Agrees with `mx.dequantize` in float32.
"""

# R rows, C columns, B vectors, N weights of a row block, G groups, LANES partial sums

from collections.abc import Sequence
from math import prod

import mlx.core as mx
import numpy as np

from mint.formats.format import Format
from mint.formats.scheme import E2M1
from mint.kernels.compiled import CHUNK, LANES, Bytes, Floats, Raw, compiled, inner, scale_values, spread, widened
from mint.kernels.storage import numpy_view

FP4 = np.array(E2M1, np.float32)


def unpack(parts: Sequence[Raw], dtype: str, format: Format, *, threads: int | None = None) -> mx.array:
    """The (..., C) float32 weights of packed codes (..., C*bits/32), scales and, for affine formats, biases.

    `parts` are the stored arrays in their order; bf16 and f16 scales and biases as bit patterns of `dtype`.
    """
    stream, scales, biases = _opened(parts, dtype, format)
    shape = (*parts[0].shape[:-1], parts[0].shape[-1] * 32 // format.bits)
    weights = prod(shape)
    array = mx.zeros(weights, mx.float32, stream=mx.cpu)  # written through numpy's view: a copy would cost more
    mx.eval(array)
    output = numpy_view(array)

    def write(start: int) -> None:
        end = min(start + CHUNK, weights)
        groups = slice(start // format.group_size, end // format.group_size)
        codes = stream[start * format.bits // 8 : end * format.bits // 8]
        _write(codes, format.bits, format.group_size, scales[groups], biases[groups], output[start:end])

    spread(write, range(0, weights, CHUNK), threads)
    return array.reshape(shape)


def multiply(
    parts: Sequence[Raw], dtype: str, format: Format, vectors: Floats, *, threads: int | None = None
) -> Floats:
    """(B, R): (B, C) float32 `vectors` times the transpose of the (R, C) weights that `parts` store, in float32.

    A row is multiplied while it lies in the first-level cache, so the float32 weights are never in memory.
    """
    stream, scales, biases = _opened(parts, dtype, format)
    rows, columns = len(parts[0]), vectors.shape[1]
    row_bytes, row_groups = columns * format.bits // 8, columns // format.group_size
    output = np.empty((rows, len(vectors)), np.float32)
    step = max(1, CHUNK // columns)

    def work(start: int) -> None:
        end = min(start + step, rows)
        groups = slice(start * row_groups, end * row_groups)
        codes, out = stream[start * row_bytes : end * row_bytes], output[start:end]
        _multiply(codes, format.bits, format.group_size, scales[groups], biases[groups], vectors, out)

    spread(work, range(0, rows, step), threads)
    return output.T


def _opened(parts: Sequence[Raw], dtype: str, format: Format) -> tuple[Bytes, Floats, Floats]:
    """The stream of codes, and the scales and biases (G,) of all groups, without biases none."""
    packed, stored_scales, *stored_biases = (np.ascontiguousarray(part) for part in parts)
    scales = scale_values(stored_scales.reshape(-1), dtype, format.scheme)
    biases = widened(stored_biases[0].reshape(-1), dtype) if stored_biases else np.zeros(0, np.float32)
    return packed.reshape(-1).view(np.uint8), scales, biases


@compiled
def _write(codes: Bytes, bits: int, group_size: int, scales: Floats, biases: Floats, output: Floats) -> None:
    """Write (N,) weights: scale * code + bias, or without biases scale * magnitude, two codes a byte."""
    mask = np.uint64((1 << bits) - 1)
    for group in range(scales.size):
        scale = scales[group]
        if not biases.size:
            for pair in range(group * group_size // 2, (group + 1) * group_size // 2):
                output[2 * pair] = scale * FP4[codes[pair] & np.uint8(15)]
                output[2 * pair + 1] = scale * FP4[codes[pair] >> np.uint8(4)]
            continue
        bias = biases[group]
        for eight in range(group * group_size // 8, (group + 1) * group_size // 8):
            word = np.uint64(0)
            for byte in range(bits):
                word |= np.uint64(codes[eight * bits + byte]) << np.uint64(8 * byte)
            for k in range(8):
                code = np.float32(np.int32((word >> np.uint64(k * bits)) & mask))
                output[eight * 8 + k] = scale * code + bias


@compiled
def _multiply(
    codes: Bytes, bits: int, group_size: int, scales: Floats, biases: Floats, vectors: Floats, output: Floats
) -> None:
    """Write the products (R, B) of the rows of weights with (B, C) vectors."""
    columns = vectors.shape[1]
    groups, nbytes = columns // group_size, columns * bits // 8
    row, lanes = np.empty(columns, np.float32), np.empty(LANES, np.float32)
    for r in range(output.shape[0]):
        first, last = r * groups, (r + 1) * groups
        _write(codes[r * nbytes :], bits, group_size, scales[first:last], biases[first:last], row)
        _dots(row, vectors, lanes, output[r])


@inner
def _dots(row: Floats, vectors: Floats, lanes: Floats, output: Floats) -> None:
    """Write the product of a row (C,) with each vector (B, C), C a multiple of LANES."""
    for b in range(vectors.shape[0]):
        lanes[:] = 0.0
        for start in range(0, row.size, LANES):
            first, second = row[start : start + LANES], vectors[b, start : start + LANES]
            for lane in range(LANES):
                lanes[lane] += first[lane] * second[lane]
        total = np.float32(0.0)
        for lane in range(LANES):
            total += lanes[lane]
        output[b] = total
