"""The rows of `tools/lab/record.py`, as data.

`TEXT` and `VISION` have small values for the keys of configs. A row of `ROWS` has the `type` of its config and changes
of these values. `told` is a part of the sentence that tells a difference between mlx_lm's class and the original, and
`loader` the package whose class is compared, by default mlx_lm.
"""

from typing import Any

Row = dict[str, Any]
LAYERS = 4
TEXT: Row = {
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
    "n_embd": 128, "n_head": 4, "n_layer": LAYERS, "n_positions": 512, "n_inner": 512, "num_layers": LAYERS,
    "num_heads": 4, "d_model": 128, "n_layers": LAYERS, "n_heads": 4, "rotary_dim": 16,
    "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "num_expert_group": 1, "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32,
    "v_head_dim": 32, "qk_head_dim": 48, "index_head_dim": 32, "index_n_heads": 16, "index_topk": 16,
    "sliding_window": 16, "attention_window_size": 16, "shared_expert_intermediate_size": 64, "moe_num_experts": 8,
    "moe_k": 2, "moe_topk": 2, "shared_intermediate_size": 64, "decoder_sparse_step": 1, "state_size": 16,
    "mamba_d_state": 16, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_num_heads": 4,
    "mamba_head_dim": 32, "ssm_state_size": 16, "mamba_d_conv": 4, "mamba_chunk_size": 64, "chunk_size": 64,
    "mamba_dt_rank": 8, "time_step_rank": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4, "lru_width": 128,
    "linear_num_heads": 4, "linear_head_dim": 32, "ffn_hidden_size": 128, "expert_ffn_hidden_size": 64,
    "zero_expert_num": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "query_pre_attn_scalar": 32,
    "image_token_id": 250, "video_token_id": 251, "image_token_index": 250, "vision_start_token_id": 253,
    "vision_end_token_id": 254,
}  # fmt: skip
VISION: Row = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "depth": 2,
    "num_heads": 4, "embed_dim": 64, "image_size": 32, "patch_size": 8, "out_hidden_size": 128, "num_channels": 3,
    "num_position_embeddings": 16, "projection_dim": 64, "deepstack_visual_indexes": [0], "fullatt_block_indexes": [1],
}  # fmt: skip

_F, _C = "full_attention", "conv"
_MLA: Row = {"num_key_value_heads": 4, "head_dim": 16}
_NO_WINDOW: Row = {"sliding_window": None}
_YARN: Row = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_SHORT, _LONG = [1 + 0.05 * index for index in range(16)], [1.5 + 0.3 * index for index in range(16)]
_UNREAD = "does not read "
_WINDOW = f"{_UNREAD}sliding_window"


def _mrope(*sections: int) -> Row:
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}
    return {"rope_parameters": parameters}


def _rotated(part: float, *sections: int) -> Row:
    return {"rope_parameters": {**_mrope(*sections)["rope_parameters"], "partial_rotary_factor": part}}


_PLAIN = (
    "afmoe apertus cohere cohere2 dots1 ernie4_5 exaone exaone4 exaone_moe gemma3_text gemma4_text glm4 glm4_moe gpt2 "
    "gpt_bigcode granite granitemoe helium hunyuan_v1_dense laguna llama mellum minimax_m2 nanochat nemotron olmo2 "
    "olmo3 olmoe phi qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_5_moe_text qwen3_moe qwen3_next seed_oss smollm3 "
    "solar_open stablelm"
)
ROWS: dict[str, Row] = {name: {"type": name} for name in _PLAIN.split()} | {
    name: {"type": name, **_MLA}
    for name in ["deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"]
}
ROWS |= {
    "falcon_mamba": {"type": "falcon_mamba"},
    "falcon_h1": {"type": "falcon_h1", "mamba_d_ssm": 128},
    "gemma3": {"type": "gemma3", "mm_tokens_per_image": 4},
    "gpt_neox": {"type": "gpt_neox", "intermediate_size": 512},
    "gpt_oss": {"type": "gpt_oss", "rope_parameters": _YARN},
    "gptj": {"type": "gptj"},
    "granitemoehybrid": {"type": "granitemoehybrid", "mamba_n_heads": 8},
    "glm4v, text": {"type": "glm4v", "text_config": _rotated(0.5, 2, 3, 3), "loader": "mlx_lm"},
    "glm_ocr, text": {"type": "glm_ocr", "text_config": _rotated(1.0, 4, 6, 6), "loader": "mlx_lm"},
    "internvl": {"type": "internvl", "text_config": {"model_type": "qwen3"}, "loader": "mlx_vlm"},
    "internvl with llama, text": {"type": "internvl", "text_config": {"model_type": "llama"}, "loader": "mlx_lm"},
    "internvl with qwen2, text": {"type": "internvl", "text_config": {"model_type": "qwen2"}, "loader": "mlx_lm"},
    "kimi_k25, text": {"type": "kimi_k25", "text_config": _MLA, "tie_word_embeddings": False, "loader": "mlx_lm"},
    "kimi_linear": {"type": "kimi_linear", **_MLA, "q_lora_rank": None},
    "lfm2": {"type": "lfm2", "layer_types": [_C, _F, _C, _F]},
    "lfm2_moe": {"type": "lfm2_moe", "layer_types": [_C, _F, _C, _F], "num_dense_layers": 1},
    "lfm2_vl": {"type": "lfm2_vl", "text_config": {"layer_types": [_C, _F, _C, _F]}, "loader": "mlx_vlm"},
    "llama4_text": {"type": "llama4_text", "num_experts_per_tok": 1},
    "mamba2": {"type": "mamba2", "num_heads": 8, "head_dim": 32, "n_groups": 1},
    "mimo_v2_flash": {"type": "mimo_v2_flash"},
    "ministral3": {"type": "ministral3", **_NO_WINDOW},
    "mistral": {"type": "mistral", **_NO_WINDOW},
    "mixtral": {"type": "mixtral", **_NO_WINDOW},
    "olmo_hybrid": {"type": "olmo_hybrid", "linear_num_key_heads": 4},
    "paligemma": {"type": "paligemma", "loader": "mlx_vlm"},
    "paligemma2": {"type": "paligemma", "text_config": {"model_type": "gemma2"}, "loader": "mlx_vlm"},
    "phi3": {"type": "phi3", **_NO_WINDOW},
    "qwen2_vl": {"type": "qwen2_vl", "text_config": _mrope(4, 6, 6), "loader": "mlx_vlm"},
    "qwen3_vl": {"type": "qwen3_vl", "loader": "mlx_vlm"},
    "qwen3_vl_moe": {"type": "qwen3_vl_moe", "text_config": _NO_WINDOW},
    "qwen3_vl_moe with its tower": {"type": "qwen3_vl_moe", "text_config": _NO_WINDOW, "loader": "mlx_vlm"},
    "recurrent_gemma": {"type": "recurrent_gemma", "num_key_value_heads": 1},
    "llama with yarn": {"type": "llama", "rope_parameters": _YARN},
    "llama with a factor of attention": {"type": "llama", "rope_parameters": {**_YARN, "attention_factor": 1.5}},
    "starcoder2": {"type": "starcoder2", **_NO_WINDOW},
    "youtu": {"type": "youtu", **_MLA, "pad_token_id": None},  # transformers clears the row of the padding
}
_DIFFERENT: dict[str, Row] = {
    "deepseek_v3 with halves": {"type": "deepseek_v3", **_MLA, "rope_interleave": False,
                                "told": f"{_UNREAD}rope_interleave"},
    "glm": {"type": "glm", "told": f"{_UNREAD}partial_rotary_factor"},
    "gpt2 without scale": {"type": "gpt2", "scale_attn_weights": False, "told": f"{_UNREAD}scale_attn_weights"},
    "gpt2 with relu": {"type": "gpt2", "activation_function": "relu", "told": f"{_UNREAD}activation_function"},
    "gpt_bigcode of heads": {"type": "gpt_bigcode", "multi_query": False, "told": "splits queries"},
    "gpt_oss with another gate": {"type": "gpt_oss", "rope_parameters": _YARN, "swiglu_alpha": 2.9,
                                  "told": f"{_UNREAD}swiglu_alpha"},
    "jamba": {"type": "jamba", "attn_layer_period": 2, "attn_layer_offset": 1, "told": "sum to one"},
    "llama without truncation": {"type": "llama", "rope_parameters": {**_YARN, "truncate": False},
                                 "told": f"{_UNREAD}rope_scaling.truncate"},
    "minicpm3": {"type": "minicpm3", **_MLA, "told": "logits of a tied head"},
    "ministral of windows": {"type": "ministral", "layer_types": ["sliding_attention"] * LAYERS, "told": _WINDOW},
    "ministral3 of windows": {"type": "ministral3", "told": _WINDOW},
    "mistral with a window": {"type": "mistral", "told": _WINDOW},
    "phi3 in short texts": {"type": "phi3", **_NO_WINDOW, "original_max_position_embeddings": 128,
                            "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": _SHORT,
                                                "long_factor": _LONG, "original_max_position_embeddings": 128},
                            "told": "factors of long contexts"},
    "qwen2_moe with sums of one": {"type": "qwen2_moe", "norm_topk_prob": True, "told": f"{_UNREAD}norm_topk_prob"},
    "qwen3_moe with yarn": {"type": "qwen3_moe", "rope_parameters": _YARN, "told": f"{_UNREAD}rope_scaling"},
    "starcoder2 with a window": {"type": "starcoder2", "told": _WINDOW},
}  # fmt: skip
ROWS |= _DIFFERENT
