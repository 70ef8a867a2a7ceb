"""bitsandbytes as it is serialized: NF4, FP4 and LLM.int8().

4 bits: `weight` U8 (N/2, 1), all weights in one row, the high nibble first, also as words of another dtype
(`bnb_4bit_quant_storage`); `weight.quant_map`, the 16 values of codes;
`weight.absmax`, the scale of each block of weights; and `weight.quant_state.bitsandbytes__nf4` (or fp4), JSON with the
shape and the size of a block. Scales may be quantized once more ("double"): bytes into `weight.nested_quant_map`, times
`weight.nested_absmax` of each block of scales, plus an offset.
8 bits: `weight` int8 (R, C) and `SCB` (R,): code * SCB / 127.
"""

import json
from math import prod

import mlx.core as mx

from mint.core.records import MALFORMED
from mint.model.checkpoint.shards import SourceTensor
from mint.model.storages.storage import Arrays, Checkpoint, Encoded, Storage, in_blocks, module_of

_STATES = ("bitsandbytes__nf4", "bitsandbytes__fp4")
_INT8_MAX = 127.0


def match_4bit(tensor: SourceTensor, checkpoint: Checkpoint) -> Encoded | None:
    """Bytes, or words of another dtype, with their state."""
    state = checkpoint.first(*(f"{tensor.name}.quant_state.{name}" for name in _STATES))
    if not state:
        return None
    names = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    found = {name: part for name in names if (part := checkpoint.first(f"{tensor.name}.{name}"))}
    try:
        fields = json.loads(checkpoint.read(state))
        shape, size = tuple(map(int, fields["shape"])), int(fields["blocksize"])
        nested_size, offset = int(fields.get("nested_blocksize", 1)), float(fields.get("nested_offset", 0.0))
        blocks = prod(shape) // size
    except MALFORMED:
        return None
    needed = names if found.get("absmax") and found["absmax"].dtype == "U8" else names[:2]
    if not found.keys() >= set(needed) or prod(shape) % size or prod(found["absmax"].shape) != blocks:
        return None
    if 2 * tensor.nbytes != prod(shape):
        return None
    numbers = {"size": size, "nested_size": nested_size, "offset": offset}
    return Encoded("bitsandbytes 4-bit", tensor.name, shape, {"codes": tensor, "state": state} | found, numbers)


def match_int8(tensor: SourceTensor, checkpoint: Checkpoint) -> Encoded | None:
    """An int8 matrix with the largest magnitude of each row."""
    module = module_of(tensor.name)
    scales, layout = checkpoint.first(f"{module}.SCB"), checkpoint.first(f"{module}.weight_format")
    if tensor.dtype != "I8" or not scales or scales.shape != tensor.shape[:1]:
        return None
    if layout and any(checkpoint.read(layout)):
        return None  # the tiles of a GPU, not rows
    parts = {"codes": tensor, "scales": scales} | ({"layout": layout} if layout else {})
    return Encoded("bitsandbytes int8", tensor.name, tensor.shape, parts)


def _decode_4bit(encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    size = encoded.numbers["size"]
    scales = parts["absmax"].flatten()
    if "nested_absmax" in parts:
        outer = mx.repeat(parts["nested_absmax"], encoded.numbers["nested_size"])[: scales.size]
        scales = mx.take(parts["nested_quant_map"], scales) * outer + encoded.numbers["offset"]
    codes, values = parts["codes"].view(mx.uint8).reshape(-1, size // 2), parts["quant_map"].astype(mx.float32)

    def block(rows: slice) -> mx.array:
        pairs = mx.stack([mx.right_shift(codes[rows], 4), mx.bitwise_and(codes[rows], 15)], axis=-1).flatten(-2)
        return (mx.take(values, pairs) * scales[rows, None].astype(mx.float32)).astype(dtype)

    return in_blocks((prod(encoded.shape) // size, size), dtype, block).reshape(encoded.shape)


def _decode_int8(encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    scales = parts["scales"].astype(mx.float32)[:, None]

    def block(rows: slice) -> mx.array:
        return (parts["codes"][rows].astype(mx.float32) * scales[rows] / _INT8_MAX).astype(dtype)

    return in_blocks(encoded.shape, dtype, block)


BNB_4BIT = Storage("bitsandbytes 4-bit", "bitsandbytes NF4 and FP4", match_4bit, _decode_4bit)
BNB_INT8 = Storage("bitsandbytes int8", "bitsandbytes int8", match_int8, _decode_int8)
