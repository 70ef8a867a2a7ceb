"""GGUF twins of checkpoints, as llama.cpp's converter writes them: its names, its order of rows, its shift of norms.

Names come from the tables of the `gguf` package; nothing is shared with mint.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from tests.worlds.encodings import Array, read_tensors

BLOCKED = r"(proj|embed_tokens|lm_head|w[123])\.weight$"  # names of matrices that may be stored in blocks
ARCHITECTURES = {
    "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3",
}  # fmt: skip
_IN_PAIRS = ("llama", "granite", "smollm3")
_SHIFTED = ("gemma", "gemma2", "gemma3")
_SETTINGS: Mapping[str, str] = {  # of the config, by their keys in the file
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "rope.freq_base": "rope_theta", "vocab_size": "vocab_size",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern", "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping", "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok", "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size", "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier", "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling", "rope.scaling.original_context_length": "original_max_position_embeddings",
    "attention.key_length": "head_dim", "attention.value_length": "head_dim",
}  # fmt: skip


WHOLE = "unreachable"  # a token that no merges give
Encoding = Callable[[str, Array], tuple[Type, Array]]  # a matrix by its name and values -> block type and bytes


def blocks_of(kind: Type) -> Encoding:
    """Blocks of the package's own quantizer."""
    return lambda name, values: (kind, gguf.quantize(values, kind))


IN_BF16 = blocks_of(Type.BF16)


def write_gguf(
    folder: Path,
    file: Path,
    encode: Encoding = IN_BF16,
    *,
    settings: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Array] | None = None,
    tokens: str = "qwen2",
) -> dict[str, Array]:
    """Write the checkpoint in `folder` as a GGUF file; returns the float32 values of every matrix by its name there.

    `encode` gives the blocks of a matrix. `settings` and `tensors` are further ones of the file.
    `tokens` is the rule that splits text for its tokenizer; empty for none.
    """
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(file, architecture)
    _write_settings(writer, architecture, config, settings or {})
    if tokens:
        _write_tokens(writer, config["vocab_size"], tokens)
    kind = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    values = {}
    for name, array in _stacked({name: array for name, (_, array) in read_tensors(_shard(folder)).items()}).items():
        if name.endswith("inv_freq") or (name == "lm_head.weight" and config.get("tie_word_embeddings")):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target, name
        wide = _as_ggml(name, array.astype(np.float32), architecture, config)
        is_blocked = wide.ndim > 1 and re.search(BLOCKED, name)
        stored, data = encode(name, wide) if is_blocked else (Type.F32, wide)
        writer.add_tensor(target, data, raw_dtype=stored)
        values[name] = gguf.dequantize(data, stored)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def split_gguf(file: Path, parts: list[Path]) -> None:
    """Write the tensors of a file to several, as llama.cpp's splitter does: the settings are in the first one."""
    reader = gguf.GGUFReader(file)
    half = -(-len(reader.tensors) // len(parts))
    for index, part in enumerate(parts):
        writer = gguf.GGUFWriter(part, reader.fields["general.architecture"].contents())
        for name, field in reader.fields.items() if index == 0 else ():
            if not name.startswith(("GGUF.", "general.architecture")):
                kind, *element = field.types
                writer.add_key_value(name, field.contents(), kind, element[0] if element else None)
        writer.add_key_value("split.tensors.count", len(reader.tensors), gguf.GGUFValueType.INT32)
        for tensor in reader.tensors[index * half : (index + 1) * half]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def rewrite_gguf(
    file: Path,
    target: Path,
    *,
    kind: str = "",
    alignment: int = 0,
    is_big_endian: bool = False,
    retyped: Mapping[str, Type] | None = None,
    without: str = "",
) -> Path:
    """Write a file with other facts: its `general.type`, alignment and byte order, and zeros of other types.

    `retyped` are types by tensors; those whose name has `without` are left out.
    """
    reader = gguf.GGUFReader(file)
    order = gguf.GGUFEndian.BIG if is_big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents(), endianess=order)
    if alignment:
        writer.add_custom_alignment(alignment)
    if kind:
        writer.add_type(kind)
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            form, *element = field.types
            writer.add_key_value(name, field.contents(), form, element[0] if element else None)
    for tensor in reader.tensors:
        data, stored = tensor.data, tensor.tensor_type
        if without and without in tensor.name:
            continue
        if other := (retyped or {}).get(tensor.name):
            size, nbytes = gguf.GGML_QUANT_SIZES[other]
            stored, data = other, np.zeros((*data.shape[:-1], int(tensor.shape[0]) // size * nbytes), np.uint8)
        writer.add_tensor(tensor.name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _shard(folder: Path) -> Path:
    (shard,) = folder.glob("*.safetensors")
    return shard


def _stacked(tensors: dict[str, Array]) -> dict[str, Array]:
    """The tensors with the experts of a layer as one stack, under the name that ggml's table has."""
    stacks: dict[str, list[Array]] = {}
    for name, array in tensors.items():
        stack = re.sub(r"experts\.\d+\.", "experts.", name).replace("switch_mlp", "experts")
        stacks.setdefault(stack, []).append(array)
    return {name: arrays[0] if len(arrays) == 1 else np.stack(arrays) for name, arrays in stacks.items()}


def _as_ggml(name: str, array: Array, architecture: str, config: dict[str, Any]) -> Array:
    if architecture in _SHIFTED and name.endswith("norm.weight"):
        return array + np.float32(1)
    match = re.search(r"\.([qk])_proj\.", name)
    if architecture in _IN_PAIRS and match:
        heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
        halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
    return array[0] if name.endswith("shared_expert_gate.weight") else array


def _write_settings(writer: Any, architecture: str, config: dict[str, Any], settings: Mapping[str, Any]) -> None:
    config = {"num_experts": config.get("num_local_experts")} | config
    values = {key: config[name] for key, name in _SETTINGS.items() if config.get(name) is not None}
    values["rope.dimension_count"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    for key, value in {**values, **settings}.items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(f"{architecture}.{key}", value)


def _write_tokens(writer: Any, count: int, rule: str) -> None:
    """A byte-level vocabulary: the alphabet, two control tokens, and fillers."""
    alphabet = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    alphabet += [chr(256 + index) for index in range(256 - len(alphabet))]
    tokens = [
        "<s>",
        "</s>",
        *alphabet,
        *(f"{first}{second}" for first in "abcdefghijklmnop" for second in alphabet[64:90]),
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    tokens = [*tokens[: count - 1], WHOLE]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (count - 2)])
    writer.add_token_merges([f"{token[0]} {token[1]}" for token in tokens[258:-1]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def random_blocks(kind: Type, shape: tuple[int, ...]) -> Array:
    """Bytes of a block type for which the package has no quantizer, with float16 scales of 1e-3."""
    (rows, columns), (size, nbytes) = shape, gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(7).integers(0, 256, (rows, columns // size, nbytes), dtype=np.uint8)
    for start in SCALE_BYTES[kind]:
        blocks[..., start : start + 2] = np.array([1e-3], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


SCALE_BYTES: dict[Type, tuple[int, ...]] = {
    Type.Q2_K: (80, 82), Type.Q3_K: (108,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,), Type.IQ4_NL: (0,),
    Type.IQ4_XS: (0,), Type.IQ2_XXS: (0,), Type.IQ2_XS: (0,), Type.IQ2_S: (0,), Type.IQ3_XXS: (0,), Type.IQ3_S: (0,),
    Type.IQ1_S: (0,),
}  # fmt: skip
