"""Writes a folder with the config, names, shapes and headers of a large model, and sparse data.

    python -m tools.models.make_shape OUT --shape qwen3-30b-a3b

Every tensor is bf16. Matrices are holes, which read as zeros and take no disk space; vectors and routers are random.
With --random all tensors are random. Configurations and tensor names follow the public checkpoints Qwen/Qwen3-0.6B,
Qwen/Qwen3-30B-A3B and meta-llama/Llama-4-Scout-17B-16E, its vision tower included. Shards are filled in the order of
the layers.
"""

# E experts, H hidden size, N inner size, V hidden size of the vision tower

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mint.core.errors import MintError
from mint.model.checkpoint.shards import INDEX_NAME
from tools.models.make_smollm2 import new_folder, say

SHARD_BYTES = 5 * 10**9
ITEM_BYTES = 2

Tensor = tuple[str, tuple[int, ...]]

QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16", "attention_bias": False,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0, "tie_word_embeddings": True,
    "vocab_size": 151936,
}  # fmt: skip

QWEN3_30B_A3B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
    "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 6144, "max_position_embeddings": 40960, "mlp_only_layers": [], "moe_intermediate_size": 768,
    "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_scaling": None,
    "rope_theta": 1000000.0, "tie_word_embeddings": False, "vocab_size": 151936,
}  # fmt: skip

LLAMA4_SCOUT: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "llama4_text", "torch_dtype": "bfloat16", "attention_bias": False, "attention_chunk_size": 8192,
        "attn_scale": 0.1, "attn_temperature_tuning": 4, "floor_scale": 8192, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 5120, "interleave_moe_layer_step": 1, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
        "max_position_embeddings": 10485760, "num_attention_heads": 40, "num_experts_per_tok": 1,
        "num_hidden_layers": 48, "num_key_value_heads": 8, "num_local_experts": 16, "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": False, "use_qk_norm": True, "vocab_size": 202048,
    },
    "vision_config": {
        "model_type": "llama4_vision_model", "hidden_size": 1408, "image_size": 336, "intermediate_size": 5632,
        "num_attention_heads": 16, "num_hidden_layers": 34, "patch_size": 14, "projector_input_dim": 4096,
        "projector_output_dim": 4096, "vision_output_dim": 4096,
    },
}  # fmt: skip

TINY = QWEN3_06B | {
    "head_dim": 64, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 3,
    "num_key_value_heads": 1, "vocab_size": 512,
}  # fmt: skip


def qwen3(config: dict[str, Any]) -> Iterator[Tensor]:
    """Every tensor of a dense Qwen3; its head is its embedding."""
    H = config["hidden_size"]
    yield "model.embed_tokens.weight", (config["vocab_size"], H)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield from _attention(f"{prefix}.self_attn", config)
        for norm in ("q_norm", "k_norm"):
            yield f"{prefix}.self_attn.{norm}.weight", (config["head_dim"],)
        yield from _gated(f"{prefix}.mlp", H, config["intermediate_size"])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", (H,)
    yield "model.norm.weight", (H,)


def qwen3_moe(config: dict[str, Any]) -> Iterator[Tensor]:
    """Every tensor of a Qwen3 mixture: one matrix an expert."""
    H, N = config["hidden_size"], config["moe_intermediate_size"]
    yield "model.embed_tokens.weight", (config["vocab_size"], H)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield from _attention(f"{prefix}.self_attn", config)
        for norm in ("q_norm", "k_norm"):
            yield f"{prefix}.self_attn.{norm}.weight", (config["head_dim"],)
        yield f"{prefix}.mlp.gate.weight", (config["num_experts"], H)
        for expert in range(config["num_experts"]):
            yield from _gated(f"{prefix}.mlp.experts.{expert}", H, N)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", (H,)
    yield "model.norm.weight", (H,)
    yield "lm_head.weight", (config["vocab_size"], H)


def llama4(config: dict[str, Any]) -> Iterator[Tensor]:
    """Every tensor of a Llama 4 of mixtures only: stacks with inputs before outputs, and the vision tower."""
    text = config["text_config"]
    H, N, E = text["hidden_size"], text["intermediate_size"], text["num_local_experts"]
    yield from _vision(config["vision_config"], H)
    yield "language_model.model.embed_tokens.weight", (text["vocab_size"], H)
    for layer in range(text["num_hidden_layers"]):
        prefix = f"language_model.model.layers.{layer}"
        yield from _attention(f"{prefix}.self_attn", text)
        yield f"{prefix}.feed_forward.router.weight", (E, H)
        yield f"{prefix}.feed_forward.experts.gate_up_proj", (E, H, 2 * N)
        yield f"{prefix}.feed_forward.experts.down_proj", (E, N, H)
        yield from _gated(f"{prefix}.feed_forward.shared_expert", H, N)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", (H,)
    yield "language_model.model.norm.weight", (H,)
    yield "language_model.lm_head.weight", (text["vocab_size"], H)


def _attention(prefix: str, config: dict[str, Any]) -> Iterator[Tensor]:
    H, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield f"{prefix}.q_proj.weight", (queries, H)
    yield f"{prefix}.k_proj.weight", (keys, H)
    yield f"{prefix}.v_proj.weight", (keys, H)
    yield f"{prefix}.o_proj.weight", (H, queries)


def _gated(prefix: str, H: int, N: int) -> Iterator[Tensor]:
    yield f"{prefix}.gate_proj.weight", (N, H)
    yield f"{prefix}.up_proj.weight", (N, H)
    yield f"{prefix}.down_proj.weight", (H, N)


def _vision(config: dict[str, Any], H: int) -> Iterator[Tensor]:
    """The tensors that mlx_lm drops: vision tower, adapter and projector."""
    V, N, out = config["hidden_size"], config["intermediate_size"], config["vision_output_dim"]
    patches = (config["image_size"] // config["patch_size"]) ** 2
    yield "multi_modal_projector.linear_1.weight", (H, out)
    yield "vision_model.class_embedding", (V,)
    yield "vision_model.positional_embedding_vlm", (patches + 1, V)
    yield "vision_model.patch_embedding.linear.weight", (V, 3 * config["patch_size"] ** 2)
    for norm in ("layernorm_pre", "layernorm_post"):
        yield from _with_bias(f"vision_model.{norm}", (V,))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"vision_model.model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield from _with_bias(f"{prefix}.{norm}", (V,))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield from _with_bias(f"{prefix}.self_attn.{name}", (V, V))
        yield from _with_bias(f"{prefix}.mlp.fc1", (N, V))
        yield from _with_bias(f"{prefix}.mlp.fc2", (V, N))
    yield "vision_model.vision_adapter.mlp.fc1.weight", (config["projector_input_dim"], N)
    yield "vision_model.vision_adapter.mlp.fc2.weight", (config["projector_output_dim"], config["projector_input_dim"])


def _with_bias(prefix: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
    yield f"{prefix}.weight", shape
    yield f"{prefix}.bias", shape[:1]


@dataclass(frozen=True, slots=True)
class Shape:
    """The config of a model, and the function that lists its tensors."""

    config: dict[str, Any]
    tensors: Callable[[dict[str, Any]], Iterator[Tensor]]


SHAPES = {
    "qwen3-0.6b": Shape(QWEN3_06B, qwen3),
    "qwen3-30b-a3b": Shape(QWEN3_30B_A3B, qwen3_moe),
    "llama4-scout": Shape(LLAMA4_SCOUT, llama4),
}


def main() -> int:
    """Write the folder and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--random", action="store_true", help="random weights instead of holes")
    options = parser.parse_args()
    try:
        with new_folder(options.out) as folder:
            write_shape(folder, SHAPES[options.shape], layers=options.layers, random=options.random)
    except MintError as error:
        say(str(error))
        return 1
    files = [path.stat() for path in options.out.iterdir()]
    apparent, allocated = sum(file.st_size for file in files), sum(file.st_blocks * 512 for file in files)
    say(f"{len(files)} files, {apparent / 1e9:.1f} GB apparent, {allocated / 1e6:.1f} MB on the disk")
    return 0


def write_shape(
    folder: Path,
    shape: Shape,
    *,
    layers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    random: bool = False,
    seed: int = 0,
) -> None:
    """Fill the empty `folder` with config, shards (sparse, or of `random` weights of `seed`) and their index."""
    config = shape.config
    if layers:
        config = {**config, **_fewer(config, layers)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    free = shard_bytes
    for name, size in shape.tensors(config):
        nbytes = ITEM_BYTES * math.prod(size)
        if shards[-1] and nbytes > free:
            shards.append({})
            free = shard_bytes
        shards[-1][name] = size
        free -= nbytes
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / name, tensors, random=random, seed=seed)
        weight_map.update(dict.fromkeys(tensors, name))
    total = sum(ITEM_BYTES * math.prod(size) for tensors in shards for size in tensors.values())
    listing = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")


def _fewer(config: dict[str, Any], layers: int) -> dict[str, Any]:
    if "text_config" in config:
        return {"text_config": {**config["text_config"], "num_hidden_layers": layers}}
    return {"num_hidden_layers": layers}


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]], *, random: bool, seed: int) -> None:
    """One file: its header, real values for vectors and routers, holes for the rest or `random` values too."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensors.items():
        begin, end = end, end + ITEM_BYTES * math.prod(size)
        entries[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    generator = np.random.default_rng(len(header) + seed)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
        for name, size in tensors.items():
            if random or len(size) == 1 or name.endswith(("router.weight", "mlp.gate.weight")):
                values = generator.standard_normal(size, np.float32) * np.float32(0.02) + np.float32(len(size) == 1)
                file.seek(8 + len(header) + entries[name]["data_offsets"][0])
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


if __name__ == "__main__":
    sys.exit(main())
