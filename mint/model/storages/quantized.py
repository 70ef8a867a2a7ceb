"""Modules that MLX has quantized: `weight` U32 (..., W), `scales` (..., G) and, of affine ones, `biases` (..., G).

Tensors do not tell bits from group size: W / G = bits * group size / 32 has several solutions. `quantization` in
config.json says them: an entry for all modules, and one for each module that differs.
"""

# W words of a row, G groups of a row

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mint.core.errors import MintError
from mint.formats.format import Format
from mint.formats.units import Unit
from mint.model.checkpoint.shards import SourceTensor
from mint.model.storages.storage import Arrays, Checkpoint, Encoded, Storage, in_blocks

_FIXED = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}  # bits and group size of a mode that has no others
_AFFINE = "affine"


def match(tensor: SourceTensor, checkpoint: Checkpoint) -> Encoded | None:
    """Words whose scales, and biases, have the shapes that the module's entry gives."""
    module = tensor.name.removesuffix(".weight")
    scales, biases = checkpoint.first(f"{module}.scales"), checkpoint.first(f"{module}.biases")
    if module == tensor.name or tensor.dtype != "U32" or not scales or not checkpoint.settings.modules:
        return None
    mode, bits, group_size = mode_of(module, checkpoint.settings.modules)
    if mode not in (_AFFINE, *_FIXED):
        return None
    columns = 32 * tensor.shape[-1] // bits
    if scales.shape != (*tensor.shape[:-1], columns // group_size) or (mode == _AFFINE) != (biases is not None):
        return None
    if biases and biases.shape != scales.shape:
        return None
    parts = {"codes": tensor, "scales": scales} | ({"biases": biases} if biases else {})
    numbers = {"mode": mode, "bits": bits, "group_size": group_size}
    return Encoded("mlx", tensor.name, (*tensor.shape[:-1], columns), parts, numbers)


def mode_of(module: str, modules: Mapping[str, Any]) -> tuple[str, int, int]:
    """Mode, bits and group size of a module, by its own entry or that of all modules, as mlx_lm reads them."""
    entry = modules.get(module)
    entry = entry if isinstance(entry, dict) else modules
    mode = str(entry.get("mode") or _AFFINE)
    bits, group_size = _FIXED.get(mode, (4, 64))
    return mode, int(entry.get("bits") or bits), int(entry.get("group_size") or group_size)


def carried_formats(
    units: Iterable[Unit], tensors: Mapping[str, SourceTensor], modules: Mapping[str, Any]
) -> dict[str, Format]:
    """The units by path that are stored as a format plans them, tensor by tensor: they can be copied as they are."""
    carried: dict[str, Format] = {}
    for unit in units if modules else ():
        format = Format(*mode_of(unit.path, modules))
        if format in unit.formats:
            planned = {t.name: (t.dtype, t.shape) for t in format.tensors(unit.path, unit.shape, unit.dtype)}
            stored = {name: (tensors[name].dtype, tensors[name].shape) for name in unit.sources}
            carried |= {unit.path: format} if planned == stored else {}
    return carried


def check_entries(folder: Path, modules: Mapping[str, Any], encoded: Mapping[str, Encoded]) -> None:
    """Raise `MintError` for an entry of a module without packed weights: the names of tensors differ from its path."""
    for path, entry in modules.items():
        if isinstance(entry, dict) and f"{path}.weight" not in encoded:
            fault = f"config.json: quantization has an entry for {path}, and no packed weight has that name and shape"
            raise MintError(f"{folder}: {fault}; needed: the config.json of this model. Download it again")


def _decode(encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    """Scales and biases are widened first: a product in float16 would be rounded twice."""

    is_affine = encoded.numbers["mode"] == _AFFINE

    def block(rows: slice) -> mx.array:
        scales = parts["scales"][rows].astype(mx.float32) if is_affine else parts["scales"][rows]
        biases = parts["biases"][rows].astype(mx.float32) if is_affine else None
        weight = mx.dequantize(parts["codes"][rows], scales, biases, **encoded.numbers, dtype=mx.float32)
        return weight.astype(dtype)

    return in_blocks(encoded.shape, dtype, block)


QUANTIZED = Storage("mlx", "MLX's formats", match, _decode, stacks=True)
