"""The role of a module, read off its path: the one table of names in the project.

Roles serve the prior sensitivities and the reports; they never decide what exists. A module whose name no rule
knows has the role `unknown`: it is kept at full precision and listed in the plan, never quantized by default.
Names: the module names of mlx_lm 0.32's model classes.
"""

import re
from functools import cache

# the last part of the path (or the last two, with a dot), first match wins
_RULES: tuple[tuple[str, str], ...] = (
    ("head", r"lm_head|embed_out|output|ff_out|classifier"),
    ("embedding", r"embed_tokens|wte|word_embeddings|tok_embeddings|token_embeddings|embeddings?|embed_in|embed"),
    ("layer_embedding", r"embed_tokens_per_layer"),
    ("position", r"wpe|position_embedding_table|position_embeddings?|embed_positions"),
    ("expert_gate", r"(switch_mlp|switch_glu|experts|shared_experts?)\.(gate_proj|w1|gate_up_proj)"),
    ("expert_up", r"(switch_mlp|switch_glu|experts|shared_experts?)\.(up_proj|w3|fc1)"),
    ("expert_down", r"(switch_mlp|switch_glu|experts|shared_experts?)\.(down_proj|w2|fc2)"),
    ("router", r"gate|router|router\.\w+|wg|modality_router|shared_expert_gate|(router|gate)\.layer"),
    ("index", r"weights_proj|index_[qk]_proj|indexer\.\w+"),
    ("q", r"q_proj|c_q|wq|attn_query|q_[ab]_proj|wq_[ab]|embed_q|index_q_proj"),
    ("k", r"k_proj|c_k|wk|attn_key|key_proj"),
    ("v", r"v_proj|c_v|wv|attn_value|unembed_out"),
    ("kv", r"kv_proj|kv_a_proj_with_mqa|kv_b_proj|kv_a_proj|w?kv"),
    ("qkv", r"qkv_proj|query_key_value|c_attn|Wqkv|wqkv|W_pack|q_k_v_proj|qkvg_proj|att_proj"),
    ("o", r"o_proj|wo|attn_out|attn_resid|o_[ab]_proj|(self_)?att(entio)?n\.(dense|c_proj|out_proj)"),
    ("gate", r"gate_proj|w1|v1|mlp_gate|c_fc_0|linear_y"),
    ("gate_up", r"gate_up_proj|input_linear|ff_proj"),
    ("up", r"up_proj|w3|fc1|fc_in|c_fc|dense_h_to_4h|mlp_linear|c_fc_1|linear_x"),
    ("down", r"down_proj|w2|fc2|fc_out|dense_4h_to_h|mlp_resid|mlp\.c_proj|output_linear|linear_out"),
    ("mixer_in", r"in_proj|in_proj_(qkvz?|z|b|a|ba)|x_proj|dt_proj|bcdt_proj|[fgabr]_proj|[fgab]_[ab]_proj"),
    ("mixer_out", r"out_proj"),
)  # fmt: skip
_COMPILED = tuple((role, re.compile(rf"(?:^|\.)(?:{pattern})$")) for role, pattern in _RULES)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.|$)")

UNKNOWN = "unknown"


@cache
def role_of(path: str) -> str:
    """The role of the module at `path`, `unknown` when no rule knows it."""
    return next((role for role, pattern in _COMPILED if pattern.search(path)), UNKNOWN)


def layer_path(path: str) -> str:
    """The path of the layer that the module at `path` lies in, empty outside of the layers."""
    match = _LAYER.search(path)
    return path[: match.end(1)] if match else ""


def layer_of(path: str) -> int:
    """The index of the layer that the module at `path` lies in, -1 outside of the layers."""
    match = _LAYER.search(path)
    return int(match[1]) if match else -1
