"""4-bit floats (E2M1), two to a byte with the low nibble first, and a scale per group.

MXFP4: 32 weights share a power of two, a byte of E8M0. gpt-oss stores `X_blocks` (E, R, G, 16) and `X_scales`
(E, R, G); compressed-tensors and ModelOpt store `weight_packed` or `weight` (R, C/2) and `weight_scale` (R, C/32);
DeepSeek V4 stores `weight` as int8 and `scale`.
NVFP4: 16 weights share an FP8 scale, and a float scales the tensor: ModelOpt's `weight_scale_2` multiplies,
compressed-tensors' `weight_global_scale` divides.
"""

from math import prod

import mlx.core as mx

from mint.model.checkpoint.shards import SourceTensor
from mint.model.storages.storage import Arrays, Checkpoint, Encoded, Storage, in_blocks

_BYTES = ("U8", "I8")
_EXPONENTS = ("U8", "F8_E8M0")


def match_mxfp4(tensor: SourceTensor, checkpoint: Checkpoint) -> Encoded | None:
    """Bytes with an exponent per 16 of them."""
    if tensor.dtype not in _BYTES:
        return None
    if tensor.name.endswith("_blocks"):
        module = tensor.name.removesuffix("_blocks")
        scales = checkpoint.first(f"{module}_scales")
        fits = scales and tensor.shape == (*scales.shape, 16)
    else:
        module = _module(tensor.name)
        scales = checkpoint.first(f"{module}.weight_scale", f"{module}.scale")
        fits = scales and _groups(tensor, 32) == scales.shape and (tensor.dtype == "U8" or scales.dtype == "F8_E8M0")
    if not (scales and fits and scales.dtype in _EXPONENTS):
        return None
    shape = (*scales.shape[:-1], 32 * scales.shape[-1])
    return Encoded("mxfp4", f"{module}.weight", shape, {"codes": tensor, "scales": scales})


def match_nvfp4(tensor: SourceTensor, checkpoint: Checkpoint) -> Encoded | None:
    """Bytes with an FP8 scale per 8 of them, and the scale of the tensor or of each matrix of a stack."""
    module = _module(tensor.name)
    scales = checkpoint.first(f"{module}.weight_scale")
    overall = checkpoint.first(f"{module}.weight_scale_2", f"{module}.weight_global_scale")
    if tensor.dtype != "U8" or not (scales and overall) or scales.dtype != "F8_E4M3":
        return None
    if _groups(tensor, 16) != scales.shape or prod(overall.shape) not in (1, prod(tensor.shape[:-2])):
        return None
    shape = (*tensor.shape[:-1], 2 * tensor.shape[-1])
    divides = overall.name.endswith("_global_scale")
    parts = {"codes": tensor, "scales": scales, "overall": overall}
    return Encoded("nvfp4", f"{module}.weight", shape, parts, {"divides": divides})


def _module(name: str) -> str:
    """The path of the module of packed weights; a name that no weight has for other tensors."""
    return name.removesuffix(".weight_packed").removesuffix(".weight")


def _groups(tensor: SourceTensor, group_size: int) -> tuple[int, ...]:
    """The shape of the scales of packed weights."""
    return (*tensor.shape[:-1], tensor.shape[-1] * 2 // group_size)


def _decode_mxfp4(encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    """The values are powers of two times eight magnitudes, so bf16 holds them exactly."""
    wide = mx.float32 if dtype == mx.float32 else mx.bfloat16
    codes = parts["codes"].view(mx.uint8).reshape(*encoded.shape[:-1], -1).view(mx.uint32)
    weight = mx.dequantize(codes, parts["scales"], group_size=32, bits=4, mode="mxfp4", dtype=wide)
    return weight.astype(dtype)


def _decode_nvfp4(encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    overall = parts["overall"].astype(mx.float32)
    overall = overall.reshape(-1, 1, 1) if overall.size > 1 else overall.reshape(())

    def block(rows: slice) -> mx.array:
        codes = parts["codes"][rows].view(mx.uint32)
        scales = parts["scales"][rows]
        weight = mx.dequantize(codes, scales, group_size=16, bits=4, mode="nvfp4", dtype=mx.float32)
        factor = overall[rows] if overall.ndim else overall
        return (weight / factor if encoded.numbers["divides"] else weight * factor).astype(dtype)

    return in_blocks(encoded.shape, dtype, block)


MXFP4 = Storage("mxfp4", "MXFP4", match_mxfp4, _decode_mxfp4, stacks=True)
NVFP4 = Storage("nvfp4", "NVFP4", match_nvfp4, _decode_nvfp4, stacks=True)
