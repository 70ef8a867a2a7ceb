"""Decodes a checkpoint: `STORAGES` is the table of all storages, and the first that matches a tensor decodes it.

A storage that stands earlier may use a tensor as a scale which a later one would take for a weight.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mint.core.errors import MintError
from mint.core.records import reading
from mint.kernels.storage import MLX_DTYPES
from mint.model.checkpoint.shards import Shard, SourceTensor, tensors_of
from mint.model.storages.bitsandbytes import BNB_4BIT, BNB_INT8
from mint.model.storages.fp4 import MXFP4, NVFP4
from mint.model.storages.packed import AWQ, GPTQ, PACKED, with_zero_points
from mint.model.storages.quantized import QUANTIZED, check_entries
from mint.model.storages.scaled import FP8, INT8
from mint.model.storages.storage import GGUF, Checkpoint, Encoded, Leaf, Settings
from mint.model.storages.super_blocks import SUPER_BLOCKS
from mint.model.storages.transposed import TRANSPOSED

STORAGES = {
    storage.name: storage
    for storage in (QUANTIZED, SUPER_BLOCKS, MXFP4, NVFP4, PACKED, AWQ, GPTQ, BNB_4BIT, BNB_INT8, TRANSPOSED, FP8, INT8)
}
_KEY = "quantization_config"
_KEYS = (_KEY, "quantization")
_FUSED = ("weight_input", "weight_output")  # transforms of compressed-tensors that are in the weights
# of inputs and caches at run time: MLX quantizes neither
_RUNTIME = (
    "input_scale", "input_scale_inv", "activation_scale", "act_scale", "output_scale", "input_global_scale",
    "act_quant_scale", "act_quant_zero_point",
    "input_zero_point", "k_zero_point", "v_zero_point", "q_zero_point",
    "k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """The encoded weights of a checkpoint by name, the tensors that only a runtime uses, and the config's settings."""

    settings: Settings
    encoded: Mapping[str, Encoded]
    runtime: frozenset[str]

    @property
    def parts(self) -> dict[str, Encoded]:
        """The encoded weight that each of its tensors belongs to, by the tensor's name."""
        return {part.name: encoded for encoded in self.encoded.values() for part in encoded.parts.values()}


def find_stored(folder: Path, config: Mapping[str, Any], shards: tuple[Shard, ...]) -> Stored:
    """The encoded weights of a checkpoint, told by its tensors; `MintError` for FP8 weights that lack their scales."""
    tensors = tensors_of(shards)
    settings = settings_of(config)
    checkpoint = Checkpoint(tensors, settings, lambda tensor: _read(folder, tensor))
    encoded: dict[str, Encoded] = {}
    used: set[str] = set()
    for storage in STORAGES.values():
        for tensor in tensors.values():
            if tensor.name in used or not (match := storage.match(tensor, checkpoint)):
                continue
            encoded[match.name] = match
            used |= {part.name for part in match.parts.values()}
    encoded = with_zero_points(encoded, checkpoint)
    _check_scales(folder, encoded, checkpoint)
    check_entries(folder, settings.modules, encoded)
    is_encoded = bool(encoded or settings.method)
    runtime = {tensor.name for tensor in tensors.values() if is_encoded and _is_runtime(tensor)} - used
    return Stored(settings, encoded, frozenset(runtime))


def decoded(stored: Stored, leaves: Mapping[str, mx.array], dtype: mx.Dtype) -> dict[str, mx.array]:
    """The lazy tensors of a checkpoint with every encoded weight decoded to `dtype`, in the order of `leaves`."""
    first_parts = {next(iter(encoded.parts.values())).name: encoded for encoded in stored.encoded.values()}
    consumed = stored.parts.keys() | stored.runtime
    weights: dict[str, mx.array] = {}
    for name, leaf in leaves.items():
        if encoded := first_parts.get(name):
            parts = {role: leaves[part.name] for role, part in encoded.parts.items()}
            weights[encoded.name] = STORAGES[encoded.storage].decode(encoded, parts, dtype)
        elif name not in consumed:
            weights[name] = leaf
    return weights


def decoded_zeros(stored: Stored, tensors: Mapping[str, SourceTensor], dtype: mx.Dtype) -> dict[str, mx.array]:
    """Lazy zeros in place of all tensors of `decoded`."""
    apart = stored.parts.keys() | stored.runtime
    plain = {name: tensor for name, tensor in tensors.items() if name not in apart}
    zeros = {name: mx.zeros(tensor.shape, MLX_DTYPES[tensor.dtype]) for name, tensor in plain.items()}
    return zeros | {name: mx.zeros(encoded.shape, dtype) for name, encoded in stored.encoded.items()}


def stacks_of(
    stored: Stored,
    tensors: Mapping[str, SourceTensor],
    slices: Mapping[str, Iterable[str]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[Leaf, ...]]:
    """The leaves that hold the slices of stacks, one for each or one for all, by the paths of units with these shapes.

    `slices` are the names of leaves as the graph tells them. Of a matrix it is the plain tensor that holds its rows.
    Other units are left out, and stacks of which no slice can be decoded without the rest.
    """
    stacks = {path: _slices(stored, tensors, names, shapes[path]) for path, names in slices.items()}
    return {path: leaves for path, leaves in stacks.items() if leaves}


def _slices(
    stored: Stored, tensors: Mapping[str, SourceTensor], names: Iterable[str], shape: tuple[int, ...]
) -> tuple[Leaf, ...]:
    leaves = tuple(stored.encoded.get(name) or tensors[name] for name in names)
    if len(shape) == 2:
        return leaves if [leaf.shape for leaf in leaves if isinstance(leaf, SourceTensor)] == [shape] else ()
    if len(shape) != 3 or not leaves:
        return ()
    if len(leaves) == shape[0] and all(leaf.shape == shape[1:] for leaf in leaves):
        return leaves
    holds_all = len(leaves) == 1 and len(leaves[0].shape) == 3 and leaves[0].shape[0] == shape[0]
    return leaves if holds_all and _has_slices(leaves[0]) else ()


def _has_slices(leaf: Leaf) -> bool:
    """True if every slice of a stack can be decoded alone."""
    if isinstance(leaf, SourceTensor):
        return True
    return STORAGES[leaf.storage].stacks and leaf.numbers.get("sizes", (1,))[0] <= 1


def without_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the decoded model: no class of a model sees how the checkpoint was stored."""
    plain = {name: value for name, value in config.items() if name not in _KEYS}
    if isinstance(text := plain.get("text_config"), dict):
        plain["text_config"] = without_settings(text)
    return plain


def settings_of(config: Mapping[str, Any]) -> Settings:
    """The settings under `quantization_config`, of the model or of its text model; `MintError` for malformed ones."""
    with reading(f"config.json: {_KEY} cannot be read", "download config.json again, or mend that entry"):
        fields = config.get(_KEY) or (config.get("text_config") or {}).get(_KEY) or {}
        groups = [group.get("weights") or {} for group in (fields.get("config_groups") or {}).values()]
        bits = {int(group["num_bits"]) for group in groups if "num_bits" in group} or {int(fields.get("bits") or 0)}
        blocks = {tuple(group["block_structure"]) for group in groups if group.get("block_structure")}
        block = tuple(fields.get("weight_block_size") or ()) or (blocks.pop() if len(blocks) == 1 else ())
        _check_transforms(fields.get("transform_config") or {})
        return Settings(
            method=str(fields.get("quant_method") or fields.get("quant_algo") or "unknown") if fields else "",
            bits=bits.pop() if len(bits) == 1 else 0,
            block=tuple(map(int, block)),
            is_symmetric=fields.get("sym") is True,
            exact_zeros=fields.get("checkpoint_format") == "gptq_v2",
            modules=quantization_of(config),
        )


def _check_transforms(config: Mapping[str, Any]) -> None:
    """Raise `MintError` for rotations of activations at run time (SpinQuant, QuIP), which no class computes."""
    groups = (config.get("config_groups") or {}).values()
    places = {str(step.get("location")) for group in groups for step in group.get("apply") or ()}
    if at_run_time := sorted(places - set(_FUSED)):
        fault = f"config.json: transform_config rotates activations at run time ({', '.join(at_run_time)})"
        raise MintError(f"{fault}, and no class of mlx_lm does; needed: the original model")


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of modules in MLX's formats, the one for all and those by path: of MLX itself, or of a GGUF."""
    own, other = config.get("quantization") or {}, config.get(_KEY) or {}
    return own if own.get("bits") else other if other.get("quant_method") == GGUF and other.get("bits") else {}


def _read(folder: Path, tensor: SourceTensor) -> bytes:
    with (folder / tensor.shard).open("rb") as file:
        file.seek(tensor.offset)
        return file.read(tensor.nbytes)


def _is_runtime(tensor: SourceTensor) -> bool:
    return len(tensor.shape) < 2 and tensor.name.endswith(_RUNTIME)


def _check_scales(folder: Path, encoded: Mapping[str, Encoded], checkpoint: Checkpoint) -> None:
    """FP8 weights without scales are plain numbers only in a checkpoint that has no scales and no settings at all.

    A tensor whose name begins with that of such a weight may be its scale under a name that is not known.
    """
    bare = [weight for weight in encoded.values() if weight.is_bare]
    if not bare:
        return
    names = sorted(checkpoint.tensors)
    following = (names[bisect_right(names, weight.name) :][:1] for weight in bare)
    accompanied = any(
        name.startswith(weight.name) for weight, rest in zip(bare, following, strict=True) for name in rest
    )
    if len(bare) < len(encoded) or checkpoint.settings.method or accompanied:
        codes = bare[0].parts["codes"]
        fault = f"{len(bare)} FP8 weights have no scale that fits them, first {codes.name} {list(codes.shape)}"
        raise MintError(f"{folder}: {fault}; needed: {codes.name}_scale_inv, or a name of that kind. Download it again")
