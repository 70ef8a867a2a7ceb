"""FP8 and int8 weights with scales: one for the tensor, for each row, for each expert, or for each block.

A weight is code * scale, or (code - zero point) * scale. FP8 is E4M3 (DeepSeek, Qwen, compressed-tensors, ModelOpt) or
E5M2. Scales are floats, or exponents: a byte b of E8M0, also stored as U8 ("ue8m0"), is 2^(b - 127).
The names of scales differ: `weight_scale_inv` (which multiplies too), `weight_scale`, `scale`.
torchao stores its plain tensors (Float8Tensor, Int8Tensor, IntxUnpackedToInt8Tensor) as `_weight_qdata`,
`_weight_scale` and `_weight_zero_point`. With `_weight_act_pre_scale` the inputs are scaled too: that is not decoded.
"""

from collections.abc import Callable
from functools import partial

import mlx.core as mx

from mint.model.checkpoint.shards import SourceTensor
from mint.model.storages.storage import (
    Arrays,
    Checkpoint,
    Encoded,
    Storage,
    block_sizes,
    in_tiles,
    module_of,
    of_rows,
    spread,
)

FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
_SCALES = ("_scale_inv", "_scale", ".scale")  # behind the name of the weight
_MODULE_SCALES = (".scale", ".scale_inv", ".scales")  # behind that of its module
_TORCHAO = "._weight_qdata"


def match_fp8(tensor: SourceTensor, checkpoint: Checkpoint) -> Encoded | None:
    """An FP8 tensor with its scales, or without any: whether that may be depends on the other ones."""
    if tensor.dtype not in FP8_DTYPES or tensor.name.endswith(_SCALES):
        return None
    scales = _scales_of(tensor.name, checkpoint)
    if not scales:
        return Encoded("fp8", _weight_of(tensor.name), tensor.shape, {"codes": tensor})
    return _encoded("fp8", {"codes": tensor, "scales": scales}, checkpoint)


def match_int8(tensor: SourceTensor, checkpoint: Checkpoint) -> Encoded | None:
    """An int8 matrix with its scales, and its zero points if there are any."""
    scales = _scales_of(tensor.name, checkpoint)
    if tensor.dtype != "I8" or len(tensor.shape) < 2 or not scales:
        return None
    zeros = checkpoint.first(f"{tensor.name.removesuffix('_qdata')}_zero_point")
    if zeros and zeros.shape != scales.shape:
        return None
    parts = {"codes": tensor, "scales": scales}
    return _encoded("int8", parts | ({"zeros": zeros} if zeros else {}), checkpoint)


def _weight_of(name: str) -> str:
    """The name of the weight whose codes have this name."""
    return f"{name.removesuffix(_TORCHAO)}.weight" if name.endswith(_TORCHAO) else name


def _scales_of(name: str, checkpoint: Checkpoint) -> SourceTensor | None:
    name, module = name.removesuffix("_qdata"), module_of(name)
    if checkpoint.first(f"{name}_act_pre_scale"):
        return None
    names = (*(name + suffix for suffix in _SCALES), *(module + suffix for suffix in _MODULE_SCALES))
    scales = checkpoint.first(*names)
    return scales if scales and scales.dtype in SCALE_DTYPES else None


def _encoded(storage: str, parts: dict[str, SourceTensor], checkpoint: Checkpoint) -> Encoded | None:
    codes = parts["codes"]
    sizes = block_sizes(codes.shape, parts["scales"].shape, checkpoint.settings)
    return Encoded(storage, _weight_of(codes.name), codes.shape, parts, {"sizes": sizes}) if sizes else None


def _decode(widen: Callable[[mx.array, str], mx.array], encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    """The weight; `widen` gives codes of a safetensors dtype as floats."""
    sizes = encoded.numbers.get("sizes", (0,) * len(encoded.shape))
    last = len(sizes) - 1

    def block(rows: slice, columns: slice) -> mx.array:
        values = widen(parts["codes"][rows][..., columns], encoded.parts["codes"].dtype)
        for role, apply in (("zeros", mx.subtract), ("scales", mx.multiply)):
            if role in parts:
                scales = of_rows(parts[role], rows, sizes[0])
                if scales.ndim == last + 1:
                    scales = of_rows(scales.swapaxes(0, last), columns, sizes[last]).swapaxes(0, last)
                if role == "scales":
                    scales = widened_scales(scales, encoded.parts[role].dtype)
                values = spread(apply, values, scales, sizes)
        return values.astype(dtype)

    return in_tiles(encoded.shape, dtype, block, rows=max(1, sizes[0]), columns=max(1, sizes[last]))


def widened_scales(scales: mx.array, dtype: str) -> mx.array:
    """Scales of a safetensors dtype in float32; bytes are exponents of two."""
    if dtype in ("U8", "F8_E8M0"):
        return mx.power(2.0, scales.astype(mx.float32) - 127)
    return mx.from_fp8(scales, dtype=mx.float32) if dtype == "F8_E4M3" else scales.astype(mx.float32)


def _from_fp8(codes: mx.array, dtype: str) -> mx.array:
    """E4M3 is an operation of MLX; E5M2 is the upper byte of a float16."""
    if dtype == "F8_E5M2":
        return (codes.astype(mx.uint16) << 8).view(mx.float16).astype(mx.float32)
    return mx.from_fp8(codes, dtype=mx.float32)


def _from_int8(codes: mx.array, _: str) -> mx.array:
    return codes.astype(mx.float32)


FP8 = Storage("fp8", "8-bit floats with scales", match_fp8, partial(_decode, _from_fp8), stacks=True)
INT8 = Storage("int8", "8-bit integers with scales", match_int8, partial(_decode, _from_int8), stacks=True)
