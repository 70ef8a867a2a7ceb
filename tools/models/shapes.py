"""The configs and tensors of public checkpoints, as `tools.models.make_shape` writes them.

Qwen/Qwen3-0.6B, Qwen/Qwen3-30B-A3B and its -FP8, meta-llama/Llama-4-Scout-17B-16E with its vision tower,
deepseek-ai/DeepSeek-V3 with its prediction layer, moonshotai/Kimi-K2.5 without its vision tower, openai/gpt-oss-20b.
DeepSeek-V3 and gpt-oss as published and in bf16.
"""

# E experts, H hidden size, N inner size, V hidden size of the vision tower

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mint.formats.format import TensorSpec

Tensor = tuple[str, tuple[int, ...]]
_LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")

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
        "model_type": "llama4_vision_model", "hidden_size": 1408, "image_size": 336, "initializer_range": 0.02,
        "intermediate_size": 5632, "norm_eps": 1e-5, "num_attention_heads": 16, "num_channels": 3,
        "num_hidden_layers": 34, "patch_size": 14, "pixel_shuffle_ratio": 0.5, "projector_dropout": 0.0,
        "projector_input_dim": 4096, "projector_output_dim": 4096, "rope_theta": 10000, "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default", "vision_output_dim": 4096,
    },
}  # fmt: skip

DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
    "attention_bias": False, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip

KIMI_K25: dict[str, Any] = {
    "architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25", "torch_dtype": "bfloat16",
    "text_config": DEEPSEEK_V3 | {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2", "first_k_dense_replace": 1, "n_group": 1,
        "n_routed_experts": 384, "num_attention_heads": 64, "num_key_value_heads": 64, "num_nextn_predict_layers": 0,
        "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "routed_scaling_factor": 2.827, "topk_group": 1,
        "max_position_embeddings": 262144, "vocab_size": 163840,
        "quantization_config": {
            "config_groups": {"group_0": {
                "input_activations": None, "output_activations": None, "targets": ["Linear"],
                "weights": {
                    "actorder": None, "block_structure": None, "dynamic": False, "group_size": 32, "num_bits": 4,
                    "observer": "minmax", "strategy": "group", "symmetric": True, "type": "int",
                },
            }},
            "format": "pack-quantized",
            "ignore": [
                "lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
            ],
            "quant_method": "compressed-tensors", "quantization_status": "compressed",
        },
    },
}  # fmt: skip

GPT_OSS_20B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "torch_dtype": "bfloat16", "attention_bias": True,
    "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
    "initial_context_length": 4096, "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 131072,
    "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
    "num_local_experts": 32, "rms_norm_eps": 1e-5, "rope_theta": 150000, "sliding_window": 128, "swiglu_limit": 7.0,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
        "rope_type": "yarn", "truncate": False,
    },
    "tie_word_embeddings": False, "vocab_size": 201088,
}  # fmt: skip
_MXFP4 = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
    ],
    "quant_method": "mxfp4",
}  # fmt: skip
_FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}

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
        yield from _norms(f"{prefix}.self_attn", config["head_dim"], ("q_norm", "k_norm"))
        yield from _gated(f"{prefix}.mlp", H, config["intermediate_size"])
        yield from _norms(prefix, H)
    yield "model.norm.weight", (H,)


def qwen3_moe(config: dict[str, Any]) -> Iterator[Tensor]:
    """Every tensor of a Qwen3 mixture: one matrix an expert."""
    H, N = config["hidden_size"], config["moe_intermediate_size"]
    yield "model.embed_tokens.weight", (config["vocab_size"], H)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield from _attention(f"{prefix}.self_attn", config)
        yield from _norms(f"{prefix}.self_attn", config["head_dim"], ("q_norm", "k_norm"))
        yield f"{prefix}.mlp.gate.weight", (config["num_experts"], H)
        for expert in range(config["num_experts"]):
            yield from _gated(f"{prefix}.mlp.experts.{expert}", H, N)
        yield from _norms(prefix, H)
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
        yield from _norms(prefix, H)
    yield "language_model.model.norm.weight", (H,)
    yield "language_model.lm_head.weight", (text["vocab_size"], H)


def deepseek_v3(config: dict[str, Any]) -> Iterator[Tensor]:
    """Every tensor of a DeepSeek V3 with its layers of multi-token prediction."""
    H, vocabulary = config["hidden_size"], (config["vocab_size"], config["hidden_size"])
    yield "model.embed_tokens.weight", vocabulary
    layers = config["num_hidden_layers"]
    for layer in range(layers + config["num_nextn_predict_layers"]):
        prefix = f"model.layers.{layer}"
        yield from _latent_attention(f"{prefix}.self_attn", config)
        if layer < config["first_k_dense_replace"]:
            yield from _gated(f"{prefix}.mlp", H, config["intermediate_size"])
        else:
            N, E = config["moe_intermediate_size"], config["n_routed_experts"]
            yield f"{prefix}.mlp.gate.weight", (E, H)
            yield f"{prefix}.mlp.gate.e_score_correction_bias", (E,)
            for expert in range(E):
                yield from _gated(f"{prefix}.mlp.experts.{expert}", H, N)
            yield from _gated(f"{prefix}.mlp.shared_experts", H, N * config["n_shared_experts"])
        yield from _norms(prefix, H)
        if layer >= layers:
            yield from _norms(prefix, H, ("enorm", "hnorm", "shared_head.norm"))
            yield f"{prefix}.eh_proj.weight", (H, 2 * H)
            for name in ("embed_tokens", "shared_head.head"):
                yield f"{prefix}.{name}.weight", vocabulary
    yield "model.norm.weight", (H,)
    yield "lm_head.weight", vocabulary


def kimi_k25(config: dict[str, Any]) -> Iterator[Tensor]:
    """Every tensor of the language model of Kimi K2.5."""
    for name, shape in deepseek_v3(config["text_config"]):
        yield f"language_model.{name}", shape


def gpt_oss(config: dict[str, Any]) -> Iterator[Tensor]:
    """Every tensor of a gpt-oss; stacks have inputs before outputs, gate and up interleaved."""
    H, N, E = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    yield "model.embed_tokens.weight", (config["vocab_size"], H)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, shape in _attention(f"{prefix}.self_attn", config):
            yield from _with_bias(name.removesuffix(".weight"), shape)
        yield f"{prefix}.self_attn.sinks", (config["num_attention_heads"],)
        yield from _with_bias(f"{prefix}.mlp.router", (E, H))
        yield f"{prefix}.mlp.experts.gate_up_proj", (E, H, 2 * N)
        yield f"{prefix}.mlp.experts.gate_up_proj_bias", (E, 2 * N)
        yield f"{prefix}.mlp.experts.down_proj", (E, N, H)
        yield f"{prefix}.mlp.experts.down_proj_bias", (E, H)
        yield from _norms(prefix, H)
    yield "model.norm.weight", (H,)
    yield "lm_head.weight", (config["vocab_size"], H)


def _latent_attention(prefix: str, config: dict[str, Any]) -> Iterator[Tensor]:
    H, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, values = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    yield f"{prefix}.q_a_proj.weight", (config["q_lora_rank"], H)
    yield f"{prefix}.q_a_layernorm.weight", (config["q_lora_rank"],)
    yield f"{prefix}.q_b_proj.weight", (heads * (nope + rope), config["q_lora_rank"])
    yield f"{prefix}.kv_a_proj_with_mqa.weight", (config["kv_lora_rank"] + rope, H)
    yield f"{prefix}.kv_a_layernorm.weight", (config["kv_lora_rank"],)
    yield f"{prefix}.kv_b_proj.weight", (heads * (nope + values), config["kv_lora_rank"])
    yield f"{prefix}.o_proj.weight", (H, heads * values)


def _attention(prefix: str, config: dict[str, Any]) -> Iterator[Tensor]:
    H, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield f"{prefix}.q_proj.weight", (queries, H)
    yield f"{prefix}.k_proj.weight", (keys, H)
    yield f"{prefix}.v_proj.weight", (keys, H)
    yield f"{prefix}.o_proj.weight", (H, queries)


def _norms(prefix: str, size: int, names: Sequence[str] = _LAYER_NORMS) -> Iterator[Tensor]:
    for name in names:
        yield f"{prefix}.{name}.weight", (size,)


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


def as_bf16(name: str, shape: tuple[int, ...]) -> Iterator[TensorSpec]:
    """The tensor itself in bf16; the biases that correct a router's scores in float32."""
    yield TensorSpec(name, "F32" if name.endswith("e_score_correction_bias") else "BF16", shape)


def as_fp8(name: str, shape: tuple[int, ...], *, scales: str) -> Iterator[TensorSpec]:
    """A projection as F8_E4M3 and a scale per block of 128 x 128, stored in the dtype `scales`."""
    if not re.search(r"_proj(_with_mqa)?\.weight$", name) or "eh_proj" in name:
        yield from as_bf16(name, shape)
        return
    yield TensorSpec(name, "F8_E4M3", shape)
    yield TensorSpec(f"{name}_scale_inv", scales, (-(-shape[0] // 128), -(-shape[1] // 128)))


def as_int4(name: str, shape: tuple[int, ...]) -> Iterator[TensorSpec]:
    """An expert's projection as compressed-tensors packs it: eight codes a word, a scale per 32 weights."""
    if ".mlp.experts." not in name:
        yield from as_bf16(name, shape)
        return
    yield TensorSpec(f"{name}_packed", "I32", (shape[0], shape[1] // 8))
    yield TensorSpec(f"{name}_scale", "BF16", (shape[0], shape[1] // 32))
    yield TensorSpec(f"{name}_shape", "I32", (2,))


def as_mxfp4(name: str, shape: tuple[int, ...]) -> Iterator[TensorSpec]:
    """A stack of experts with outputs first, as blocks of 32 weights in 16 bytes and a scale per block."""
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        yield from as_bf16(name, shape)
        return
    experts, inputs, outputs = shape
    yield TensorSpec(f"{name}_blocks", "U8", (experts, outputs, inputs // 32, 16))
    yield TensorSpec(f"{name}_scales", "U8", (experts, outputs, inputs // 32))


@dataclass(frozen=True, slots=True)
class Shape:
    """The config of a model, the function that lists its tensors, and the way in which each is stored."""

    config: dict[str, Any]
    tensors: Callable[[dict[str, Any]], Iterator[Tensor]]
    stored: Callable[[str, tuple[int, ...]], Iterator[TensorSpec]] = as_bf16

    def specs(self, config: dict[str, Any]) -> Iterator[TensorSpec]:
        """Every tensor on the disk, for this config or one with fewer layers."""
        for name, shape in self.tensors(config):
            yield from self.stored(name, shape)


SHAPES = {
    "qwen3-0.6b": Shape(QWEN3_06B, qwen3),
    "qwen3-30b-a3b": Shape(QWEN3_30B_A3B, qwen3_moe),
    "qwen3-30b-a3b-fp8": Shape(
        QWEN3_30B_A3B | {"quantization_config": _FP8}, qwen3_moe, partial(as_fp8, scales="BF16")
    ),
    "llama4-scout": Shape(LLAMA4_SCOUT, llama4),
    "deepseek-v3": Shape(DEEPSEEK_V3 | {"quantization_config": _FP8}, deepseek_v3, partial(as_fp8, scales="F32")),
    "deepseek-v3-bf16": Shape(DEEPSEEK_V3, deepseek_v3),
    "kimi-k2.5": Shape(KIMI_K25, kimi_k25, as_int4),
    "gpt-oss-20b": Shape(GPT_OSS_20B | {"quantization_config": _MXFP4}, gpt_oss, as_mxfp4),
    "gpt-oss-20b-bf16": Shape(GPT_OSS_20B, gpt_oss),
}
