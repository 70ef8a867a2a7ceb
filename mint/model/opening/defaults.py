"""The values of keys that a config leaves out, where mlx_lm's class has another default than the original.

A model whose config lacks such a key would be computed as another function. Values are those of transformers 5.24; a
test compares them with the installed version. Keys that shapes of tensors tell are left out.
"""

from math import inf
from typing import Any

_ROUTES = {"n_group": 8, "num_experts_per_tok": 8, "routed_scaling_factor": 2.5, "topk_group": 4}

# by model type
DEFAULTS: dict[str, dict[str, Any]] = {
    "afmoe": {"mup_enabled": False, "num_experts_per_tok": 6, "route_scale": 1.0, "sliding_window": 1024},
    "deepseek_v3": _ROUTES,
    "deepseek_v32": _ROUTES,
    "ernie4_5_moe": {"moe_k": 6},
    "falcon_h1": {
        "attention_out_multiplier": 1.0, "embedding_multiplier": 1.0, "key_multiplier": 1.0,
        "lm_head_multiplier": 1.0, "mamba_norm_before_gate": True, "ssm_in_multiplier": 1.0, "ssm_out_multiplier": 1.0,
    },
    "gemma2": {"query_pre_attn_scalar": 256},
    "gemma3_text": {"sliding_window": 4096},
    "gemma4_text": {"final_logit_softcapping": None},
    "granitemoehybrid": {"num_experts_per_tok": 2, "time_step_limit": [0.0, inf]},
    "kimi_linear": {"num_experts_per_token": 8, "routed_scaling_factor": 2.446},
    "llama4_text": {"attn_temperature_tuning": True},
    "mimo_v2_flash": {"attention_value_scale": 0.707},
    "minimax_m3_vl_text": {"index_topk_blocks": 16},
    "mistral4": {"rope_interleave": True},
    "nemotron_h": {
        "n_group": 1, "norm_topk_prob": True, "num_experts_per_tok": 2, "routed_scaling_factor": 1.0, "topk_group": 1,
    },
    "phimoe": {"rms_norm_eps": 1e-05},
    "qwen3_next": {"norm_topk_prob": True},
    "step3p5": {"moe_router_scaling_factor": 1.0, "sliding_window": None},
}  # fmt: skip
