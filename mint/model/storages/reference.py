"""The same decodings once more, in numpy alone: a check on the arrays that MLX computes.

`decode` takes the tensors as they lie on disk, bytes of 8-bit floats and bit patterns of 16-bit ones, and shares no
code with the storages. It is plain and slow.
"""

# R rows, C columns, G groups

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mint.formats.scheme import E2M1, E4M3, E8M0
from mint.model.storages.storage import Encoded

Raw = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
_BYTES = {"F8_E4M3": E4M3, "F8_E8M0": E8M0, "U8": E8M0}


def decode(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    """The weight in float32 from the tensors by role as `StoredModel.raw` reads them."""
    return DECODERS[encoded.storage](encoded, raw)


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


def _fp4(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    bytes_ = raw["codes"].view(np.uint8).reshape(*encoded.shape[:-1], -1)
    codes = np.stack([bytes_ & 15, bytes_ >> 4], axis=-1).reshape(encoded.shape)
    scales = _floats(encoded, raw, "scales")
    values: Floats = np.array(E2M1, np.float32)[codes]
    values *= np.repeat(scales, encoded.shape[-1] // scales.shape[-1], axis=-1)
    if "overall" not in raw:
        return values
    overall: Floats = raw["overall"].reshape(-1, *(1,) * (values.ndim - 1))
    return values / overall if encoded.numbers["divides"] else values * overall


def _packed(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    bits, (rows, columns) = encoded.numbers["bits"], encoded.shape
    codes_of = _codes if encoded.numbers["is_dense"] else _codes_of_words
    scales = _floats(encoded, raw, "scales").reshape(rows, -1)
    zeros = np.full(scales.shape, 2.0 ** (bits - 1), np.float32)
    if "zeros" in raw and encoded.parts["zeros"].dtype == "I8":
        zeros += raw["zeros"].reshape(rows, -1)
    elif "zeros" in raw:
        zeros = codes_of(raw["zeros"].T, bits)[:, :rows].T.astype(np.float32).reshape(rows, -1)
    groups = raw.get("groups")
    if groups is not None and groups.min() < 0:
        groups = None
    return _by_column(codes_of(raw["codes"], bits)[:, :columns], zeros, scales, groups)


def _gptq(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    bits, (rows, columns) = encoded.numbers["bits"], encoded.shape
    zeros = (_codes(raw["zeros"], bits)[:, :rows] + encoded.numbers["less"]) % 2**bits
    codes = _codes(raw["codes"].T, bits)[:, :columns]
    return _by_column(codes, zeros.T.astype(np.float32), _floats(encoded, raw, "scales").T, raw.get("groups"))


def _awq(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # the nibble of each row of a word

    def rows_of(words: Raw) -> Raw:
        return _codes(words, 4).reshape(len(words), -1, 8)[..., order].reshape(len(words), -1).T

    zeros = rows_of(raw["zeros"]).astype(np.float32)
    return _by_column(rows_of(raw["codes"]), zeros, _floats(encoded, raw, "scales").T, None)


def _codes_of_words(words: Raw, bits: int) -> Raw:
    """(R, W) words -> the unsigned codes of each row, none of which lies in two words."""
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    codes: Raw = np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts & np.uint32(2**bits - 1)
    return codes.reshape(len(words), -1)


def _codes(words: Raw, bits: int) -> Raw:
    """(R, W) words -> the unsigned codes of each row, as one stream of bits."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    stream = stream[:, : stream.shape[1] // bits * bits].reshape(len(words), -1, bits)
    codes: Raw = (stream.astype(np.int64) << np.arange(bits)).sum(-1)
    return codes


def _by_column(codes: Raw, zeros: Floats, scales: Floats, groups: Raw | None) -> Floats:
    columns = codes.shape[1]
    index = np.arange(columns) // (columns // scales.shape[1]) if groups is None else groups
    return (codes.astype(np.float32) - zeros[:, index]) * scales[:, index]


def _transposed(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    return _floats(encoded, raw, "weight").swapaxes(-1, -2)


def _bnb_4bit(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    scales = raw["absmax"].reshape(-1)
    if "nested_absmax" in raw:
        outer = np.repeat(raw["nested_absmax"].reshape(-1), encoded.numbers["nested_size"])[: scales.size]
        scales = raw["nested_quant_map"][scales] * outer + np.float32(encoded.numbers["offset"])
    codes = np.ascontiguousarray(raw["codes"]).reshape(-1).view(np.uint8)
    values = raw["quant_map"].astype(np.float32)[np.stack([codes >> 4, codes & 15], axis=-1).reshape(-1)]
    return (values * np.repeat(scales.astype(np.float32), encoded.numbers["size"])).reshape(encoded.shape)


def _bnb_int8(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    return raw["codes"].astype(np.float32) * _floats(encoded, raw, "scales")[:, None] / np.float32(127)


def _quantized(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    bits, size, mode = (encoded.numbers[name] for name in ("bits", "group_size", "mode"))
    codes = _codes(raw["codes"].reshape(-1, raw["codes"].shape[-1]), bits).reshape(encoded.shape)
    if mode == "affine":
        values, scales = codes.astype(np.float32), _floats(encoded, raw, "scales")
    else:
        values = np.array(E2M1 if bits == 4 else E4M3, np.float32)[codes]
        scales = np.array(E4M3 if mode == "nvfp4" else E8M0, np.float32)[raw["scales"]]
    values *= np.repeat(scales, size, axis=-1)
    return values + np.repeat(_floats(encoded, raw, "biases"), size, axis=-1) if "biases" in raw else values


def _k_types(encoded: Encoded, raw: Mapping[str, Raw]) -> Floats:
    from gguf import GGMLQuantizationType, dequantize

    values: Floats = dequantize(raw["blocks"], GGMLQuantizationType[encoded.numbers["kind"].upper()])
    return values


DECODERS: dict[str, Callable[[Encoded, Mapping[str, Raw]], Floats]] = {
    "fp8": _scaled,
    "int8": _scaled,
    "mxfp4": _fp4,
    "nvfp4": _fp4,
    "packed": _packed,
    "awq": _awq,
    "gptq": _gptq,
    "bitsandbytes 4-bit": _bnb_4bit,
    "bitsandbytes int8": _bnb_int8,
    "transposed": _transposed,
    "mlx": _quantized,
    "k types": _k_types,
}
