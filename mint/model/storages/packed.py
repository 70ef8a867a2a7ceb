"""Integers of few bits packed into 32-bit words, with scales and zero points per group: (code - zero point) * scale.

compressed-tensors (`pack-quantized`, Kimi K2): `weight_packed` (R, C * bits/32), `weight_scale` (R, G), and where it is
not symmetric `weight_zero_point` (R * bits/32, G), or in older ones int8 (R, G), less half the range; a missing zero
point is half the range. Older ones let no code lie in two words. A row ends with unused codes where `weight_shape` has
fewer columns. A `weight_g_idx` with -1 says nothing.
AWQ: `qweight` (C, R/8), `qzeros` (G, R/8), `scales` (G, R); the codes of a word are rows 0 2 4 6 1 3 5 7.
GPTQ: `qweight` (C * bits/32, R), `qzeros` (G, R * bits/32), `scales` (G, R), and `g_idx` (C,), the group of each
column; its first version stores zero points less one.
"""

# R rows, C columns, G groups, W words

from collections.abc import Mapping
from dataclasses import replace
from math import ceil

import mlx.core as mx

from mint.core.errors import MintError
from mint.model.checkpoint.shards import SourceTensor
from mint.model.storages.storage import Arrays, Checkpoint, Encoded, Storage, in_blocks

_WORDS = ("I32", "U32")
_AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)  # of rows 0 to 7 in a word


def match_packed(tensor: SourceTensor, checkpoint: Checkpoint) -> Encoded | None:
    """Packed words (R, W) with scales (R, G) or (R,)."""
    module = tensor.name.removesuffix(".weight_packed")
    scales = checkpoint.first(f"{module}.weight_scale")
    if module == tensor.name or tensor.dtype not in _WORDS or len(tensor.shape) != 2 or not scales:
        return None
    optional = {
        "zeros": checkpoint.first(f"{module}.weight_zero_point"),
        "groups": checkpoint.first(f"{module}.weight_g_idx"),
        "shape": checkpoint.first(f"{module}.weight_shape"),
    }
    rows, width = tensor.shape
    groups = scales.shape[-1] if len(scales.shape) == 2 else 1
    columns, bits, is_dense = _columns(width, groups, optional["shape"], checkpoint)
    zeros = optional["zeros"]
    if not columns or scales.shape[0] != rows or columns % groups:
        return None
    if zeros and (zeros.shape[0] != (rows if zeros.dtype == "I8" else _words(rows, bits, is_dense=is_dense))):
        return None
    parts = {"codes": tensor, "scales": scales} | {role: part for role, part in optional.items() if part}
    return Encoded("packed", f"{module}.weight", (rows, columns), parts, {"bits": bits, "is_dense": is_dense})


def match_awq(tensor: SourceTensor, checkpoint: Checkpoint) -> Encoded | None:
    """`qweight` with eight rows a word."""
    module, parts = _gptq_parts(tensor, checkpoint)
    if not parts or "zeros" not in parts or tensor.shape[1] * 8 != parts["scales"].shape[1]:
        return None
    (columns, _), (groups, rows) = tensor.shape, parts["scales"].shape
    if columns % groups or parts["zeros"].shape != (groups, tensor.shape[1]):
        return None
    return Encoded("awq", f"{module}.weight", (rows, columns), parts)


def match_gptq(tensor: SourceTensor, checkpoint: Checkpoint) -> Encoded | None:
    """`qweight` with several columns a word."""
    module, parts = _gptq_parts(tensor, checkpoint)
    if not parts or "zeros" not in parts or tensor.shape[1] != parts["scales"].shape[1]:
        return None
    groups, rows = parts["scales"].shape
    bits = 32 * parts["zeros"].shape[1] // rows
    columns = 32 * tensor.shape[0] // bits if bits else 0
    order = checkpoint.first(f"{module}.g_idx")
    if not columns or (order.shape != (columns,) if order else columns % groups):
        return None
    numbers = {"bits": bits, "less": 0 if checkpoint.settings.exact_zeros else 1}
    return Encoded("gptq", f"{module}.weight", (rows, columns), parts | ({"groups": order} if order else {}), numbers)


def with_zero_points(encoded: Mapping[str, Encoded], checkpoint: Checkpoint) -> dict[str, Encoded]:
    """The weights with the version of GPTQ that a symmetric model tells by its zero points, which are half the range.

    Configs of the second version do not all say so. Raises `MintError` for zero points of neither.
    """
    first = next((weight for weight in encoded.values() if weight.storage == "gptq"), None)
    if not first or not checkpoint.settings.is_symmetric:
        return dict(encoded)
    bits = first.numbers["bits"]
    point = int.from_bytes(checkpoint.read(first.parts["zeros"])[:4], "little") & (2**bits - 1)
    less = 2 ** (bits - 1) - point
    if less not in (0, 1):
        fault = f"config.json says that weights are symmetric, but {first.parts['zeros'].name} has zero points {point}"
        raise MintError(f"{fault}; needed: the config.json of this model. Download it again")
    return {
        name: replace(weight, numbers={**weight.numbers, "less": less}) if weight.storage == "gptq" else weight
        for name, weight in encoded.items()
    }


def _columns(width: int, groups: int, shape: SourceTensor | None, checkpoint: Checkpoint) -> tuple[int, int, bool]:
    """Columns and bits of rows of `width` words, and true if codes may lie in two words; zeros where they do not fit.

    The tensor with the shape of the weight is read where the words leave a choice.
    """
    bits = checkpoint.settings.bits
    if bits and 32 % bits == 0 and groups > 1 and (32 * width // bits) % groups == 0:
        return 32 * width // bits, bits, True  # no unused codes: groups have a multiple of 8 columns
    if not shape:
        return (32 * width // bits if bits else 0), bits, True
    data = checkpoint.read(shape)
    columns = int.from_bytes(data[len(data) // 2 :], "little")
    kinds = ((kind, is_dense) for is_dense in (True, False) for kind in ([bits] if bits else range(1, 9)))
    fitting = ((kind, dense) for kind, dense in kinds if _words(columns, kind, is_dense=dense) == width)
    return (columns, *next(fitting, (0, True))) if columns else (0, 0, True)


def _words(count: int, bits: int, *, is_dense: bool) -> int:
    """The words of a number of codes."""
    return ceil(count * bits / 32) if is_dense else ceil(count / (32 // bits))


def _gptq_parts(tensor: SourceTensor, checkpoint: Checkpoint) -> tuple[str, dict[str, SourceTensor]]:
    module = tensor.name.removesuffix(".qweight")
    names = {"codes": f"{module}.qweight", "zeros": f"{module}.qzeros", "scales": f"{module}.scales"}
    parts = {role: part for role, name in names.items() if (part := checkpoint.first(name))}
    is_packed = tensor.name == names["codes"] and tensor.dtype in _WORDS and "scales" in parts
    return module, parts if is_packed and all(len(part.shape) == 2 for part in parts.values()) else {}


def unpack(words: mx.array, bits: int, count: int, *, is_dense: bool = True) -> mx.array:
    """(..., W) words -> (..., count) codes, the lowest bits first; dense codes may lie in two words."""
    words = words.view(mx.uint32)
    if 32 % bits == 0 or not is_dense:
        codes = mx.right_shift(words[..., None], mx.arange(0, 32 - bits + 1, bits, dtype=mx.uint32))
        return mx.bitwise_and(codes, 2**bits - 1).flatten(-2)[..., :count]
    starts = mx.arange(count) * bits
    low = mx.take(words, starts // 32, axis=-1).astype(mx.uint64)
    high = mx.take(words, mx.minimum((starts + bits - 1) // 32, words.shape[-1] - 1), axis=-1).astype(mx.uint64)
    pair = mx.right_shift(low | (high << 32), (starts % 32).astype(mx.uint64))
    return mx.bitwise_and(pair, 2**bits - 1).astype(mx.uint32)


def _decode_packed(encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    bits, is_dense, (rows, columns) = encoded.numbers["bits"], encoded.numbers["is_dense"], encoded.shape
    scales = parts["scales"].astype(mx.float32).reshape(rows, -1)
    zeros = mx.broadcast_to(mx.array(2.0 ** (bits - 1)), scales.shape)
    if "zeros" in parts and encoded.parts["zeros"].dtype == "I8":
        zeros = zeros + parts["zeros"].astype(mx.float32).reshape(rows, -1)
    elif "zeros" in parts:
        zeros = unpack(parts["zeros"].T, bits, rows, is_dense=is_dense).T.astype(mx.float32).reshape(rows, -1)
    groups = parts.get("groups")
    if groups is not None:
        runs = mx.arange(columns) // (columns // scales.shape[1])
        groups = mx.where((groups < 0).any(), runs, groups)

    def block(part: slice) -> mx.array:
        codes = unpack(parts["codes"][part], bits, columns, is_dense=is_dense)
        return _scaled(codes, zeros[part], scales[part], groups).astype(dtype)

    return in_blocks(encoded.shape, dtype, block)


def _decode_awq(encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    def unpacked(words: mx.array, part: slice) -> mx.array:
        """(N, R/8) words -> the codes (rows, N) of some rows."""
        words = words[:, part.start // 8 : part.stop // 8].view(mx.uint32)
        return ((words[..., None] >> mx.array(_AWQ_SHIFTS, mx.uint32)) & 15).flatten(-2).T

    def block(part: slice) -> mx.array:
        scales = parts["scales"][:, part].T.astype(mx.float32)
        zeros = unpacked(parts["zeros"], part).astype(mx.float32)
        return _scaled(unpacked(parts["codes"], part), zeros, scales, None).astype(dtype)

    return in_blocks(encoded.shape, dtype, block, rows=8)


def _decode_gptq(encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    bits, (rows, columns) = encoded.numbers["bits"], encoded.shape
    zeros = (unpack(parts["zeros"], bits, rows) + encoded.numbers["less"]) & (2**bits - 1)
    zeros = zeros.T.astype(mx.float32)

    def block(part: slice) -> mx.array:
        codes = unpack(parts["codes"][:, part].T, bits, columns)
        scales = parts["scales"][:, part].T.astype(mx.float32)
        return _scaled(codes, zeros[part], scales, parts.get("groups")).astype(dtype)

    return in_blocks(encoded.shape, dtype, block)


def _scaled(codes: mx.array, zeros: mx.array, scales: mx.array, groups: mx.array | None) -> mx.array:
    """(R, C) codes less zero points, times scales (R, G), in float32; `groups` (C,) are equal runs by default."""
    values = codes.astype(mx.float32)
    if groups is not None:
        return (values - mx.take(zeros, groups, axis=1)) * mx.take(scales, groups, axis=1)
    values = values.reshape(*scales.shape, -1)
    return ((values - zeros[..., None]) * scales[..., None]).flatten(-2)


PACKED = Storage("packed", "packed integers (compressed-tensors)", match_packed, _decode_packed)
AWQ = Storage("awq", "AWQ", match_awq, _decode_awq)
GPTQ = Storage("gptq", "GPTQ", match_gptq, _decode_gptq)
