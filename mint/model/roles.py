"""The role of a module, read off its path: the one table of names in the project.

Roles serve the prior sensitivities, the floors and the reports; they never decide what exists. A module whose name no
rule knows has the role `unknown`: it is kept at full precision and listed in the plan, never quantized by default.
Names: the module names of mlx_lm 0.32's model classes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Role:
    """A role, the pattern of its names, and the fewest bits that it may have until a probe measures the unit.

    The pattern matches the last part of a path, or as many as it has dots. A floor comes with its source.
    """

    name: str
    pattern: str
    floor_bits: int = 0
    source: str = ""


_PER_LAYER = "per-layer embeddings are reported as garbage at 4 bits: Rapid-MLX#1114, llama.cpp#22243"
_ROUTERS = "mlx_lm's own predicates ask for 8 bits in most families of experts"
_LATENTS = "all heads see one latent, and at low bits it alone gives garbage: imp#1159"
_INDEX = "an index chooses what attention sees; short probes do not reach it"
_UNMEASURED = "small, all layers or experts depend on it, and nobody has measured it"

_PICTURES = "stored as they are by mlx_vlm's own tools; pictures and sound are not measured"

UNKNOWN = "unknown"
TOWER = "tower"  # every unit of a multimodal model that is not in its language model
UNTIED = "input_embedding"  # an embedding that is looked up only, in a model whose head is no module
ROLES: tuple[Role, ...] = (  # the first match wins
    Role(
        "router",
        r"gate|router|router\.\w+|wg|modality_router|shared_expert_gate|(router|gate)\.(layer|gate|proj|gate_proj)|"
        r"mlp\.coefficient",
        6, _ROUTERS,
    ),
    Role("head", r"lm_head|lm_head\.linear|embed_out|output|ff_out|classifier"),
    Role("embedding", r"embed_tokens|wte|word_embeddings|tok_embeddings|token_embeddings|embeddings?|embed_in|embed"),
    Role("layer_embedding", r"embed_tokens_per_layer", 6, _PER_LAYER),
    Role("ngram_embedding", r"ngram_embeddings\.embedders\.\d+", 4, "tables of hashes, as those per layer"),
    Role("ngram_projection", r"ngram_embeddings\.post_projs\.\d+", 6, _UNMEASURED),
    Role("layer_input", r"per_layer_(model_projection|input_gate|projection)", 6, _UNMEASURED),
    Role("residual", r"laurel\.linear_(left|right)|altup_(unembed_)?projections\.\d+|\w*_res_proj", 6, _UNMEASURED),
    Role("position", r"wpe|position_embedding_table|position_embeddings?|embed_positions"),
    Role("expert_gate", r"(switch_mlp|switch_glu|experts|shared_experts?)\.(gate_proj|w1|gate_up_proj)"),
    Role("expert_up", r"(switch_mlp|switch_glu|experts|shared_experts?)\.(up_proj|w3|fc1)"),
    Role("expert_down", r"(switch_mlp|switch_glu|experts|shared_experts?)\.(down_proj|w2|fc2)"),
    Role(
        "expert_latent", r"fc[12]_latent_proj|routed_expert_(up|down)_proj|(pre|post)_expert_proj", 4,
        "all experts of a layer see it",
    ),
    Role("index", r"weights_proj|index_[qk]_proj|indexer\.\w+", 6, _INDEX),
    Role("q_latent", r"q_a_proj|wq_a", 6, _LATENTS),
    Role("q", r"q_proj|c_q|wq|attn_query|q_b_proj|wq_b|embed_q|index_q_proj"),
    Role("k", r"k_proj|c_k|wk|attn_key|key_proj"),
    Role("v", r"v_proj|c_v|wv|attn_value|unembed_out"),
    Role("kv_latent", r"kv_a_proj_with_mqa|kv_a_proj", 6, _LATENTS),
    Role("kv", r"kv_proj|kv_b_proj|w?kv"),
    Role("qkv", r"qkv_proj|query_key_value|c_attn|Wqkv|wqkv|W_pack|q_k_v_proj|qkvg_proj|att_proj|attn\.qkv"),
    Role("o", r"o_proj|wo|attn_out|attn_resid|o_[ab]_proj|(self_)?att(entio)?n\.(dense|c_proj|out_proj|proj)"),
    Role("gate", r"gate_proj|w1|v1|mlp_gate|c_fc_0|linear_y"),
    Role("gate_up", r"gate_up_proj|input_linear|ff_proj|ffn\.proj_1"),
    Role("up", r"up_proj|w3|fc1|fc_in|c_fc|dense_h_to_4h|mlp_linear|c_fc_1|linear_x|ffn\.key"),
    Role(
        "down",
        r"down_proj|w2|fc2|fc_out|dense_4h_to_h|mlp_resid|mlp\.c_proj|output_linear|linear_out|ffn\.(value|proj_2)",
    ),
    Role("linear_block", r"(mlp|self_attn)\.linear"),  # stands for a whole block
    Role("state_gate", r"[avgw]_lora\.lora\.\d+", 6, _UNMEASURED),
    Role("mixer_in", r"in_proj|in_proj_(qkvz?|z|b|a|ba)|x_proj|dt_proj|bcdt_proj|[fgabr]_proj|[fgab]_[ab]_proj"),
    Role("mixer_out", r"out_proj"),
    Role("prediction", r"eh_proj|mtp\.fc"),  # of more than one token
    Role(TOWER, r"(?!)", 8, _PICTURES),  # by its place in the tree, not by its name
)  # fmt: skip
_COMPILED = tuple((role.name, re.compile(rf"(?:^|\.)(?:{role.pattern})$")) for role in ROLES)
_FLOORS = {role.name: role.floor_bits for role in ROLES}
_LAYER = re.compile(r"(?:^|\.)((?:\w+_)?layers|h|blocks)\.(\d+)(?:\.|$)")


@cache
def role_of(path: str) -> str:
    """The role of the module at `path`, `unknown` when no rule knows it."""
    return next((role for role, pattern in _COMPILED if pattern.search(path)), UNKNOWN)


def role_floor(role: str) -> int:
    """The fewest bits of a unit of this role that no probe has measured."""
    return _FLOORS.get(role, 0)


def layer_path(path: str) -> str:
    """The path of the layer that the module at `path` lies in, empty outside of the layers."""
    match = _LAYER.search(path)
    return path[: match.end(2)] if match else ""


def layer_numbers(paths: Iterable[str]) -> dict[str, int]:
    """The number of the layer of every module, -1 outside; those of a second list follow those of the first."""
    lengths: dict[str, int] = {}  # of the lists, in their order
    layers = {path: layer_path(path).rpartition(".") for path in paths}
    for name, _, index in layers.values():
        if name:
            lengths[name] = max(lengths.get(name, 0), int(index) + 1)
    starts = dict(zip(lengths, accumulate(lengths.values(), initial=0), strict=False))
    return {path: starts[name] + int(index) if name else -1 for path, (name, _, index) in layers.items()}
