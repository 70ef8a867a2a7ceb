"""The architectures of GGUF that mlx_lm computes: the config and the names of tensors, in the words of transformers.

A row of `ARCHITECTURES` is one of llama.cpp's architectures. Only those stand here whose config follows exactly from
the settings of the file.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log, sqrt
from typing import Any

import numpy as np

from mint.core.errors import MintError
from mint.core.records import reading
from mint.model.gguf.metadata import GgufModel

Config = dict[str, Any]
_DENSE = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.*.gate_proj", "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}  # fmt: skip
_SHARED = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}  # fmt: skip
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
    "ffn_up_exps": "block_sparse_moe.experts.*.w3", "ffn_down_exps": "block_sparse_moe.experts.*.w2",
}  # fmt: skip
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture: its model type and class in transformers, and how its tensors and settings differ."""

    model_type: str
    class_name: str
    names: Mapping[str, str] = field(default_factory=dict)  # of modules of a layer, beside those of dense models
    config: Callable[[GgufModel], Config] = lambda model: {}
    is_permuted: bool = False  # rows of queries and keys are in pairs for ggml's rope, not in halves
    norm_offset: float = 0.0  # added to the weights of norms by llama.cpp
    dtype: str = "bfloat16"  # float16 keeps the scales of blocks exactly, where activations are known to fit it

    def name(self, tensor: str) -> str:
        """The name in transformers of ggml's tensor, `*` for the number of an expert; empty for an unknown one."""
        if match := _LAYER.fullmatch(tensor):
            layer, module, kind = match.groups()
            path = {**_DENSE, **self.names}.get(module)
            return f"model.layers.{layer}.{path}.{kind}" if path else ""
        module, _, kind = tensor.partition(".")
        return f"{_ENDS[module]}.{kind}" if module in _ENDS else ""


def _architecture_of(model: GgufModel) -> Architecture:
    """The row of a model; `MintError` for one that is not in the table."""
    architecture = ARCHITECTURES.get(model.architecture)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        fault = f"a GGUF model of the architecture {model.architecture!r}, of which mint knows {known}"
        raise MintError(f"{model.path}: {fault}; needed: the original model in safetensors format")
    if model.architecture == "llama" and model.get("expert_count", 0):
        return Architecture("mixtral", "MixtralForCausalLM", _MIXTRAL, _mixtral, is_permuted=True, dtype="float16")
    return architecture


def config_in(model: GgufModel) -> tuple[Architecture, Config]:
    """The row and the config.json of a model; `MintError` for settings that are unknown or malformed."""
    with reading(f"{model.path}: its settings cannot be read", "download it again"):
        architecture = _architecture_of(model)
        return architecture, _config_of(model, architecture)


def _config_of(model: GgufModel, architecture: Architecture) -> Config:
    """The config.json of a model. Raises `MintError` for a setting that has no place in it."""
    hidden, heads = model.get("embedding_length"), model.get("attention.head_count")
    head_dim = model.get("attention.key_length", hidden // heads)
    config = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "torch_dtype": architecture.dtype,
        "hidden_size": hidden,
        "num_hidden_layers": model.get("block_count"),
        "intermediate_size": model.get("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": model.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": model.get("attention.layer_norm_rms_epsilon"),
        "rope_theta": model.get("rope.freq_base", 10000.0),
        "max_position_embeddings": model.get("context_length"),
        "vocab_size": model.shape("token_embd.weight")[0],
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "attention_bias": "blk.0.attn_q.bias" in model.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in model.tensors,
        "hidden_act": "silu",
    }
    for key, name in (("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")):
        config |= {name: model.values[f"tokenizer.ggml.{key}"]} if f"tokenizer.ggml.{key}" in model.values else {}
    scaling = _rope_scaling(model, config)
    config |= {"rope_scaling": scaling} if scaling else {}
    config |= architecture.config(model)
    rotated = model.get("rope.dimension_count", head_dim)
    if model.get("attention.value_length", head_dim) != head_dim or rotated != head_dim * config.get(_PARTIAL, 1):
        raise MintError(f"{model.path}: heads of {head_dim} with {rotated} rotated; needed: the original model")
    lists = [name for name, value in config.items() if isinstance(value, list) and value[1:]]
    if lists:
        raise MintError(f"{model.path}: {', '.join(lists)} differ by layer; needed: the original model")
    model.check_read()
    return config


_PARTIAL = "partial_rotary_factor"


def _rope_scaling(model: GgufModel, config: Config) -> Config | None:
    kind = model.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in model.tensors:
        return _llama3(model, config)
    if kind == "longrope" or "rope_factors_long.weight" in model.tensors:
        return _longrope(model, config)
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "type": kind, "factor": model.get("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = model.get("rope.scaling.original_context_length")
    if kind not in ("linear", "yarn"):
        raise MintError(f"{model.path}: rope.scaling.type is {kind!r}; needed: the original model")
    return scaling


def _llama3(model: GgufModel, config: Config) -> Config:
    """The settings behind the factors of frequencies, which the file has in their place; they have to give these."""
    factors = np.array(model.numbers("rope_freqs.weight"))
    lengths = 2 * np.pi * config["rope_theta"] ** (np.arange(0, config["head_dim"], 2) / config["head_dim"])
    original, low, high = (_LLAMA3[name] for name in ("original_max_position_embeddings", *list(_LLAMA3)[:2]))
    factor = float(factors.max())
    smooth = np.clip((original / lengths - low) / (high - low), 0, 1)
    if factors.shape != lengths.shape or not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        fault = "the factors rope_freqs are not those of Llama 3"
        raise MintError(f"{model.path}: {fault}; needed: the original model in safetensors format")
    return {"rope_type": "llama3", "type": "llama3", "factor": factor, **_LLAMA3}


def _longrope(model: GgufModel, config: Config) -> Config:
    original = model.get("rope.scaling.original_context_length")
    longer = config["max_position_embeddings"] / original
    usual = sqrt(1 + log(longer) / log(original)) if longer > 1 else 1.0
    if abs(model.get("rope.scaling.attn_factor", usual) - usual) > 1e-3:
        raise MintError(f"{model.path}: an unusual rope.scaling.attn_factor; needed: the original model")
    factors = {f"{kind}_factor": model.numbers(f"rope_factors_{kind}.weight") for kind in ("long", "short")}
    return {"rope_type": "longrope", "type": "longrope", **factors, "original_max_position_embeddings": original}


def _experts(model: GgufModel) -> Config:
    return {
        "num_experts": model.get("expert_count"),
        "num_experts_per_tok": model.get("expert_used_count"),
        "moe_intermediate_size": model.get("expert_feed_forward_length"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": model.architecture == "qwen3moe",  # as llama.cpp computes it
    }


def _qwen2_moe(model: GgufModel) -> Config:
    return {**_experts(model), "shared_expert_intermediate_size": model.get("expert_shared_feed_forward_length")}


def _mixtral(model: GgufModel) -> Config:
    return {"num_local_experts": model.get("expert_count"), "num_experts_per_tok": model.get("expert_used_count")}


def _gemma(model: GgufModel) -> Config:
    return {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def _query_scalar(model: GgufModel, layers: int) -> float:
    """The largest Gemma divides by its mean width of a head, others by the real one; llama.cpp tells it by layers."""
    hidden, heads = model.get("embedding_length"), model.get("attention.head_count")
    return float(hidden // heads if model.get("block_count") == layers else model.get("attention.key_length"))


def _gemma2(model: GgufModel) -> Config:
    return {
        **_gemma(model),
        "attn_logit_softcapping": model.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": model.get("final_logit_softcapping", 30.0),
        "sliding_window": model.get("attention.sliding_window", 4096),
        "query_pre_attn_scalar": _query_scalar(model, layers=46),
    }


def _gemma3(model: GgufModel) -> Config:
    return {
        **_gemma(model),
        "sliding_window": model.get("attention.sliding_window"),
        "sliding_window_pattern": model.get("attention.sliding_window_pattern", 6),
        "rope_local_base_freq": model.get("rope.freq_base_swa", 10000.0),
        "query_pre_attn_scalar": _query_scalar(model, layers=62),
    }


def _phi3(model: GgufModel) -> Config:
    heads = model.get("embedding_length") // model.get("attention.head_count")
    config = {
        _PARTIAL: model.get("rope.dimension_count", heads) / heads,
        "original_max_position_embeddings": model.get(
            "rope.scaling.original_context_length", model.get("context_length")
        ),
    }
    window = model.get("attention.sliding_window", 0)
    return config | ({"sliding_window": window} if window else {})


def _granite(model: GgufModel) -> Config:
    return {
        "attention_multiplier": model.get("attention.scale"),
        "embedding_multiplier": model.get("embedding_scale"),
        "residual_multiplier": model.get("residual_scale"),
        "logits_scaling": model.get("logit_scale"),
    }


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", is_permuted=True, dtype="float16"),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen2moe": Architecture("qwen2_moe", "Qwen2MoeForCausalLM", {**_EXPERTS, **_SHARED}, _qwen2_moe),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _QK_NORMS),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", {**_QK_NORMS, **_EXPERTS}, _experts),
    "gemma": Architecture("gemma", "GemmaForCausalLM", config=_gemma, norm_offset=1.0),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _SANDWICH, _gemma2, norm_offset=1.0),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", {**_SANDWICH, **_QK_NORMS}, _gemma3, norm_offset=1.0),
    "phi3": Architecture(
        "phi3", "Phi3ForCausalLM", {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}, _phi3
    ),
    "granite": Architecture("granite", "GraniteForCausalLM", config=_granite, is_permuted=True),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM", {**_QK_NORMS, **_AFTER}),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", is_permuted=True),
}
