"""Encoded twins of plain checkpoints: each encoding draws codes and scales, and knows in numpy what they stand for.

An encoding takes a generator, a weight's name and shape, and gives the tensors that a checkpoint of that kind has and
the float32 values that its published definition gives. It packs, and never unpacks: nothing is shared with mint.
"""

# R rows, C columns, E experts, G groups

import json
import re
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = dict[str, tuple[str, Array]]  # safetensors dtype and the array, by name
Encoding = Callable[[np.random.Generator, str, tuple[int, ...]], tuple[Tensors, Array]]

NUMPY = {
    "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": np.uint8, "U8": np.uint8, "I8": np.int8, "I32": np.int32,
    "I64": np.int64, "U32": np.uint32,
}  # fmt: skip
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def write_encoded(folder: Path, pattern: str, encoding: Encoding, config: dict[str, Any] | None = None) -> Path:
    """Write `folder`-twin, with plain bf16 values, and encode the weights of `folder` whose names match `pattern`."""
    shard = folder / "model.safetensors"
    plain = read_tensors(shard)
    encoded, twin = dict(plain), dict(plain)
    for name in [name for name in plain if re.search(pattern, name)]:
        rng = np.random.default_rng(crc32(name.encode()))
        tensors, values = encoding(rng, name, plain[name][1].shape)
        del encoded[name]
        encoded |= tensors
        twin[name] = "BF16", values.astype(ml_dtypes.bfloat16)
    twin_folder = folder.with_name(f"{folder.name}-twin")
    twin_folder.mkdir()
    for file in folder.iterdir():
        (twin_folder / file.name).write_bytes(file.read_bytes())
    write_tensors(shard, encoded)
    write_tensors(twin_folder / shard.name, twin)
    edit_config(folder, config or {})
    return twin_folder


def edit_config(folder: Path, changes: dict[str, Any]) -> None:
    """Set these keys of the config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read_tensors(path: Path) -> Tensors:
    """All tensors of a safetensors file."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], _array(data, end, entry)) for name, entry in header.items()}


def _array(data: bytes, start: int, entry: dict[str, Any]) -> Array:
    begin, end = entry["data_offsets"]
    return np.frombuffer(data[start + begin : start + end], NUMPY[entry["dtype"]]).reshape(entry["shape"])


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file of these tensors."""
    header, data = {}, bytearray()
    for name, (dtype, array) in tensors.items():
        piece = np.ascontiguousarray(array.astype(NUMPY[dtype], copy=False)).tobytes()
        offsets = [len(data), len(data) + len(piece)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += piece
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def fp8(dtype: str = "F8_E4M3", scale: str = "_scale_inv", kind: str = "block", scale_dtype: str = "F32") -> Encoding:
    """FP8 with scales of a `kind`: scalar, row, column, group64 (of a row), block (128 x 128), block32 (32 x 32).

    For stacks: expert (E, 1, 1) and stack (E,).
    """

    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        codes = rng.normal(0, 8, shape).astype(NUMPY[dtype])
        scales, stored = _scales(rng, _counts(kind, shape), shape[-1] ** -0.5 / 8, scale_dtype)
        module = name.removesuffix(".weight")
        scale_name = name + scale if scale.startswith("_") else module + scale
        values = codes.astype(np.float32) * _at_blocks(scales, shape, kind)
        return {name: (dtype, codes), scale_name: (scale_dtype, stored)}, values

    return encode


def int8(kind: str = "row", zeros: bool = False) -> Encoding:
    """int8 of compressed-tensors, `int-quantized`."""

    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        codes = rng.integers(-128, 128, shape, dtype=np.int8)
        scales, stored = _scales(rng, _counts(kind, shape), shape[-1] ** -0.5 / 64, "BF16")
        points = rng.integers(-20, 20, scales.shape, dtype=np.int8) * zeros
        values = codes.astype(np.float32) - _at_blocks(points.astype(np.float32), shape, kind)
        tensors: Tensors = {name: ("I8", codes), f"{name}_scale": ("BF16", stored)}
        if zeros:
            tensors[f"{name}_zero_point"] = "I8", points
        return tensors, values * _at_blocks(scales, shape, kind)

    return encode


def torchao(encoding: Encoding) -> Encoding:
    """The plain tensors of torchao: `_weight_qdata`, `_weight_scale`, `_weight_zero_point`."""

    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        tensors, values = encoding(rng, name, shape)
        stem = f"{name.removesuffix('.weight')}._weight"
        renamed = {stem + (key.removeprefix(name) or "_qdata"): tensor for key, tensor in tensors.items()}
        return renamed, values

    return encode


def _counts(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    *experts, rows, columns = shape
    size = 32 if kind == "block32" else 128
    return {
        "column": (*experts, 1, columns),
        "stack": tuple(experts),
        "group32": (*experts, rows, columns // 32),
        "group64": (*experts, rows, columns // 64),
        "scalar": (),
        "row": (*experts, rows, 1),
        "expert": (*experts, 1, 1),
        "block": (*experts, ceil(rows / size), ceil(columns / size)),
        "block32": (*experts, ceil(rows / size), ceil(columns / size)),
    }[kind]


def _at_blocks(scales: Array, shape: tuple[int, ...], kind: str) -> Array:
    """The scale of every weight."""
    if kind.startswith("group"):
        return np.repeat(scales, shape[-1] // scales.shape[-1], axis=-1)
    if kind == "stack":
        scales = scales.reshape(*scales.shape, 1, 1)
    if not kind.startswith("block"):
        return np.broadcast_to(scales, shape)
    size = 32 if kind == "block32" else 128
    rows, columns = np.arange(shape[-2]) // size, np.arange(shape[-1]) // size
    spread: Array = scales[..., rows, :][..., columns]
    return spread


def _scales(rng: np.random.Generator, shape: tuple[int, ...], size: float, dtype: str) -> tuple[Array, Array]:
    """Random scales near `size`, as float32 and as stored in `dtype`; bytes are exponents of two."""
    if dtype in ("U8", "F8_E8M0"):
        exponents = rng.integers(round(np.log2(size)) + 125, round(np.log2(size)) + 129, shape, dtype=np.uint8)
        return np.exp2(exponents.astype(np.float32) - 127), exponents
    stored = np.asarray(rng.uniform(size / 2, size, shape)).astype(NUMPY[dtype])
    return stored.astype(np.float32), stored


def nibbles(codes: Array) -> Array:
    """(..., C) codes of 4 bits -> (..., C/2) bytes, the low nibble first."""
    pairs: Array = codes[..., 0::2] | codes[..., 1::2] << 4
    return pairs.astype(np.uint8)


def words(codes: Array, bits: int, axis: int = -1, order: tuple[int, ...] = ()) -> Array:
    """Codes packed along an axis into int32 words, the lowest bits first; `order` permutes the codes of a word."""
    codes = np.moveaxis(codes, axis, -1).astype(np.uint64)
    if order:
        codes = codes.reshape(*codes.shape[:-1], -1, len(order))[..., order].reshape(codes.shape)
    bit_planes = codes[..., None] >> np.arange(bits, dtype=np.uint64) & 1
    bit_planes = bit_planes.reshape(*codes.shape[:-1], -1)
    bit_planes = np.pad(bit_planes, [(0, 0)] * (codes.ndim - 1) + [(0, -bit_planes.shape[-1] % 32)])
    flat = bit_planes.reshape(*codes.shape[:-1], -1, 32).astype(np.uint64)
    packed = (flat << np.arange(32, dtype=np.uint64)).sum(-1).astype(np.uint32).view(np.int32)
    return np.moveaxis(packed, -1, axis)


def mxfp4(name_of: str = "weight_packed", bottom: int = 118) -> Encoding:
    """MXFP4 as compressed-tensors, ModelOpt (`weight`), gpt-oss (`_blocks`) or DeepSeek V4 (`scale`) store it."""

    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        codes = rng.integers(0, 16, shape, dtype=np.uint8)
        exponents = rng.integers(bottom, bottom + 4, (*shape[:-1], shape[-1] // 32), dtype=np.uint8)
        values = E2M1[codes] * np.repeat(np.exp2(exponents.astype(np.float32) - 127), 32, axis=-1)
        module = name.removesuffix(".weight")
        if name_of == "_blocks":
            blocks = nibbles(codes).reshape(*exponents.shape, 16)
            return {f"{module}_blocks": ("U8", blocks), f"{module}_scales": ("U8", exponents)}, values
        if name_of == "scale":
            return {name: ("I8", nibbles(codes).view(np.int8)), f"{module}.scale": ("F8_E8M0", exponents)}, values
        return {f"{module}.{name_of}": ("U8", nibbles(codes)), f"{module}.weight_scale": ("U8", exponents)}, values

    return encode


def nvfp4(compressed_tensors: bool = False) -> Encoding:
    """NVFP4 of ModelOpt, or of compressed-tensors, whose overall scale divides."""

    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        codes = rng.integers(0, 16, shape, dtype=np.uint8)
        scales = rng.uniform(16, 448, (*shape[:-1], shape[-1] // 16)).astype(ml_dtypes.float8_e4m3fn)
        values = E2M1[codes] * np.repeat(scales.astype(np.float32), 16, axis=-1)
        module = name.removesuffix(".weight")
        tensors: Tensors = {f"{module}.weight_scale": ("F8_E4M3", scales)}
        if compressed_tensors:
            overall = np.array([3456.7], np.float32)
            tensors |= {f"{module}.weight_packed": ("U8", nibbles(codes))}
            return tensors | {f"{module}.weight_global_scale": ("F32", overall)}, values / overall
        overall = np.array(0.00031, np.float32)
        tensors |= {name: ("U8", nibbles(codes)), f"{module}.input_scale": ("F32", overall)}
        return tensors | {f"{module}.weight_scale_2": ("F32", overall)}, values * overall

    return encode


def whole_words(codes: Array, bits: int, axis: int = -1) -> Array:
    """Codes packed along an axis into int32 words, 32 // bits in each, the lowest bits first."""
    codes = np.moveaxis(codes, axis, -1).astype(np.uint64)
    count = 32 // bits
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % count)])
    places = np.arange(count, dtype=np.uint64) * np.uint64(bits)
    packed = (codes.reshape(*codes.shape[:-1], -1, count) << places).sum(-1).astype(np.uint32).view(np.int32)
    return np.moveaxis(packed, -1, axis)


def packed(
    bits: int = 4, group: int = 32, zeros: bool = False, ordered: bool = False, unset: bool = False, old: bool = False
) -> Encoding:
    """`pack-quantized` of compressed-tensors; a group of 0 is a whole row; `ordered` has a group for each column.

    `unset`: the groups of columns are all -1. `old`: no code lies in two words, and zero points are int8.
    """

    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        columns = shape[1]
        codes, points, scales, stored = _integers(rng, shape, bits, group, "BF16")
        points = points if zeros else np.full_like(points, 2 ** (bits - 1))
        index = np.arange(columns) // (group or columns)
        module = name.removesuffix(".weight")
        tensors: Tensors = {
            f"{module}.weight_packed": ("I32", whole_words(codes, bits) if old else words(codes, bits)),
            f"{module}.weight_scale": ("BF16", stored),
            f"{module}.weight_shape": ("I64", np.array(shape)),
        }
        if zeros:
            tensors[f"{module}.weight_zero_point"] = "I32", words(points, bits, axis=0)
        if zeros and old:
            tensors[f"{module}.weight_zero_point"] = "I8", points - 2 ** (bits - 1)
        if unset:
            tensors[f"{module}.weight_g_idx"] = "I32", np.full(columns, -1)
        if ordered:
            index = rng.permutation(index)
            tensors[f"{module}.weight_g_idx"] = "I32", index
        return tensors, (codes - points[:, index].astype(np.float32)) * scales[:, index]

    return encode


def quantized(mode: str = "affine", bits: int = 4, group: int = 64) -> Encoding:
    """A module as MLX quantizes it."""

    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        codes, module = rng.integers(0, 2**bits, shape), name.removesuffix(".weight")
        groups = (*shape[:-1], shape[-1] // group)
        tensors: Tensors = {name: ("U32", words(codes, bits).view(np.uint32))}
        if mode == "affine":
            scales, stored = _scales(rng, groups, shape[-1] ** -0.5 / 2 ** (bits - 2), "BF16")
            biases = (-scales * rng.uniform(1, 2**bits, groups)).astype(NUMPY["BF16"])
            tensors |= {f"{module}.scales": ("BF16", stored), f"{module}.biases": ("BF16", biases)}
            values = codes * np.repeat(scales, group, axis=-1)
            return tensors, (values + np.repeat(biases.astype(np.float32), group, axis=-1)).astype(np.float32)
        finite = codes & 0x7F == 0x7F if bits == 8 else np.zeros(shape, bool)
        codes = np.where(finite, 0, codes)
        tensors = {name: ("U32", words(codes, bits).view(np.uint32))}
        if mode == "nvfp4":
            scales = rng.uniform(0.01, 0.2, groups).astype(ml_dtypes.float8_e4m3fn)
            stored, scales = scales.view(np.uint8), scales.astype(np.float32)
        else:
            scales, stored = _scales(rng, groups, 2.0**-8, "U8")
        values = E2M1[codes] if bits == 4 else codes.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        tensors[f"{module}.scales"] = "U8", stored
        return tensors, values * np.repeat(scales, group, axis=-1)

    return encode


def awq(group: int = 64) -> Encoding:
    """AWQ, as AutoAWQ's `gemm` stores it."""

    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        codes, points, scales, stored = _integers(rng, shape, 4, group, "F16")
        index, module = np.arange(shape[1]) // (group or shape[1]), name.removesuffix(".weight")
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        tensors: Tensors = {
            f"{module}.qweight": ("I32", words(codes.T, 4, order=order)),
            f"{module}.qzeros": ("I32", words(points.T, 4, order=order)),
            f"{module}.scales": ("F16", stored.T),
        }
        return tensors, (codes - points[:, index].astype(np.float32)) * scales[:, index]

    return encode


def gptq(
    bits: int = 4, group: int = 64, act_order: bool = False, v2: bool = False, symmetric: bool = False
) -> Encoding:
    """GPTQ, as AutoGPTQ stores it: zero points less one, unless it is the second version; a group of 0 is a row."""

    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        codes, points, scales, stored = _integers(rng, shape, bits, group, "F16")
        index, module = np.arange(shape[1]) // (group or shape[1]), name.removesuffix(".weight")
        points = np.full_like(points, 2 ** (bits - 1)) if symmetric else points
        if act_order:
            index = rng.permutation(index)
        points = points if v2 else np.maximum(points, 1)
        tensors: Tensors = {
            f"{module}.qweight": ("I32", words(codes, bits).T),
            f"{module}.qzeros": ("I32", words((points if v2 else points - 1).T, bits)),
            f"{module}.scales": ("F16", stored.T),
            f"{module}.g_idx": ("I32", index),
        }
        return tensors, (codes - points[:, index].astype(np.float32)) * scales[:, index]

    return encode


def _integers(
    rng: np.random.Generator, shape: tuple[int, ...], bits: int, group: int, dtype: str
) -> tuple[Array, Array, Array, Array]:
    """Random codes (R, C), zero points (R, G), scales (R, G) as float32 and as stored."""
    groups = (shape[0], shape[1] // group if group else 1)
    scales, stored = _scales(rng, groups, shape[1] ** -0.5 / 2 ** (bits - 2), dtype)
    middle = 2 ** (bits - 1)
    points = rng.integers(max(0, middle - 5), min(2**bits, middle + 5), groups)
    return rng.integers(0, 2**bits, shape), points, scales, stored


def transposed(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
    """The experts of gpt-oss in bf16 on the hub: inputs before outputs, no `.weight`."""
    values = rng.normal(0, shape[-1] ** -0.5, shape).astype(ml_dtypes.bfloat16)
    return {name.removesuffix(".weight"): ("BF16", values.swapaxes(-1, -2))}, values


def bnb_4bit(kind: str = "nf4", double: bool = False, storage: str = "U8") -> Encoding:
    """NF4 or FP4 of bitsandbytes, as transformers serializes it; `double`: its scales are quantized too.

    `storage` is the dtype that the bytes of codes are stored as.
    """

    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        codes, size = rng.integers(0, 16, int(np.prod(shape)), dtype=np.uint8), 64
        table = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": size, "dtype": "bfloat16", "shape": list(shape)}
        scales: Array = rng.uniform(0.01, 0.1, codes.size // size).astype(np.float32)
        tensors: Tensors = {f"{name}.quant_map": ("F32", table), f"{name}.absmax": ("F32", scales)}
        if double:
            bytes_, inner = rng.integers(0, 256, scales.size, dtype=np.uint8), rng.uniform(0, 1, 256).astype(np.float32)
            outer = rng.uniform(0.01, 0.02, ceil(scales.size / 256)).astype(np.float32)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05}
            scales = inner[bytes_] * outer[np.arange(scales.size) // 256] + np.float32(0.05)
            tensors |= {f"{name}.absmax": ("U8", bytes_), f"{name}.nested_absmax": ("F32", outer)}
            tensors |= {f"{name}.nested_quant_map": ("F32", inner)}
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        tensors |= {f"{name}.quant_state.bitsandbytes__{kind}": ("U8", text)}
        values = table[codes] * scales[np.arange(codes.size) // size]
        packed_codes = (codes[0::2] << 4 | codes[1::2]).reshape(-1, 1)
        return {name: (storage, packed_codes.reshape(-1).view(NUMPY[storage])[:, None])} | tensors, values.reshape(
            shape
        )

    return encode


def bnb_int8(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
    """LLM.int8() of bitsandbytes."""
    codes, scales = rng.integers(-127, 128, shape, dtype=np.int8), rng.uniform(0.1, 0.3, shape[0]).astype(np.float32)
    module = name.removesuffix(".weight")
    tensors: Tensors = {name: ("I8", codes), f"{module}.SCB": ("F32", scales)}
    tensors[f"{module}.weight_format"] = "U8", np.array(0, np.uint8)
    return tensors, codes.astype(np.float32) * scales[:, None] / np.float32(127)
