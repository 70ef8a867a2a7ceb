"""The zoo's table: per architecture a small config, and the steps from MLX's tensors back to the checkpoint's.

A step takes the shapes of tensors by name and returns them renamed, split or joined: the inverse of one thing that
the model's `sanitize` does, or a tensor that `sanitize` drops. Names and layouts are those of checkpoints on the hub.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# E experts, O outputs, I inputs of a matrix, C channels, K taps of a convolution

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Step = Callable[[Shapes], Shapes]

FP8_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Recipe:
    """Instructions for a tiny checkpoint of one architecture."""

    config: dict[str, Any]
    steps: tuple[Step, ...] = ()
    tied: tuple[bool, ...] = (False,)  # allowed values of tie_word_embeddings, the usual one first
    float32: tuple[str, ...] = ()  # endings of tensors stored as F32 whatever the dtype of the rest
    zero_centered: tuple[str, ...] = ()  # endings of norm weights that the model adds to one
    fp8: str = ""  # pattern of weights stored as F8_E4M3 with a scale per 128x128 block
    repeats_lm_head: bool = False  # a tied checkpoint holds `lm_head.weight` all the same


def rename(pattern: str, to: str) -> Step:
    """Substitute `pattern` in every name."""
    return lambda shapes: {re.sub(pattern, to, name): shape for name, shape in shapes.items()}


def unstack(stack: str, experts: str) -> Step:
    """Split each stack (E, O, I) whose path ends in `stack` into E matrices (O, I) under `experts`.0, 1, ..."""
    found = re.compile(rf"\.{re.escape(stack)}\.(\w+)\.weight$")

    def step(shapes: Shapes) -> Shapes:
        written: Shapes = {}
        for name, shape in shapes.items():
            if found.search(name):
                written |= {found.sub(rf".{experts}.{e}.\1.weight", name): shape[1:] for e in range(shape[0])}
            else:
                written[name] = shape
        return written

    return step


def fuse(first: str, second: str, fused: str, *, axis: int) -> Step:
    """Join the tensors that end in `first` and `second` along `axis` under the name that ends in `fused`."""

    def step(shapes: Shapes) -> Shapes:
        written: Shapes = {}
        for name, shape in shapes.items():
            if name.endswith(first):
                joined = list(shape)
                joined[axis] += shapes[name.removesuffix(first) + second][axis]
                written[name.removesuffix(first) + fused] = tuple(joined)
            elif not name.endswith(second):
                written[name] = shape
        return written

    return step


def permute(pattern: str, *axes: int) -> Step:
    """Reorder the axes of the tensors whose name matches `pattern`."""
    return lambda shapes: {
        name: tuple(shape[axis] for axis in axes) if re.search(pattern, name) else shape
        for name, shape in shapes.items()
    }


def add(*extra: tuple[str, Shape]) -> Step:
    """Add tensors that `sanitize` drops."""
    return lambda shapes: shapes | dict(extra)


def repeat_layer(layer: str, to: str, *extra: tuple[str, Shape]) -> Step:
    """Add a multi-token prediction layer: a copy of all tensors of `layer` under `to`, and `extra` beside them."""

    def step(shapes: Shapes) -> Shapes:
        copies = {to + name.removeprefix(layer): shape for name, shape in shapes.items() if name.startswith(layer)}
        return shapes | copies | {to + name: shape for name, shape in extra}

    return step


def join_kv_b(shapes: Shapes) -> Shapes:
    """Undo MLX's absorbed attention: embed_q (H, R, N) and unembed_out (H, V, R) are kv_b_proj (H * (N + V), R)."""
    written: Shapes = {}
    for name, shape in shapes.items():
        if name.endswith("embed_q.weight"):
            heads, rank, nope = shape
            values = shapes[name.replace("embed_q", "unembed_out")][1]
            written[name.replace("embed_q", "kv_b_proj")] = (heads * (nope + values), rank)
        elif not name.endswith("unembed_out.weight"):
            written[name] = shape
    return written


def to_mxfp4(shapes: Shapes) -> Shapes:
    """Stacks (E, O, I) become `_blocks` (E, O, I/32, 16), two nibbles a byte, and `_scales` (E, O, I/32)."""
    written: Shapes = {}
    for name, shape in shapes.items():
        if re.search(r"experts\.\w+\.weight$", name):
            *rows, inputs = shape
            base = name.removesuffix(".weight")
            written |= {f"{base}_blocks": (*rows, inputs // 32, 16), f"{base}_scales": (*rows, inputs // 32)}
        else:
            written[name] = shape
    return written


def _config(model_type: str, architecture: str, **more: Any) -> dict[str, Any]:
    """The keys that nearly all configs share, and `more` of this one's own; None drops a key."""
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 256,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "transformers_version": "4.57.0",
        "use_cache": True,
        "vocab_size": 512,
    }
    dropped = {key for key, value in more.items() if value is None}
    return {key: value for key, value in (config | more).items() if key not in dropped}


def _fp8(config: dict[str, Any]) -> dict[str, Any]:
    block = [FP8_BLOCK, FP8_BLOCK]
    quantization = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": block}
    return config | {"quantization_config": quantization}


# A short convolution is (C, 1, K) on the hub and (C, K, 1) in MLX.
CONV = permute(r"conv1d\.weight$|conv\.conv\.weight$", 0, 2, 1)

QWEN3_MOE = {
    "decoder_sparse_step": 1,
    "head_dim": 32,
    "mlp_only_layers": [],
    "moe_intermediate_size": 128,
    "norm_topk_prob": True,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}

LINEAR_ATTENTION = {
    "full_attention_interval": 4,
    "head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 32,
    "num_hidden_layers": 4,
}

# The delta net's own gated norm, linear_attn.norm, is not centered on zero.
QWEN_NEXT_NORMS = (
    "layernorm.weight",
    "q_norm.weight",
    "k_norm.weight",
    "model.norm.weight",
    "model.language_model.norm.weight",
)

NEXT_TOKEN = (
    ("mtp.fc.weight", (128, 256)),
    ("mtp.norm.weight", (128,)),
    ("mtp.pre_fc_norm_embedding.weight", (128,)),
    ("mtp.pre_fc_norm_hidden.weight", (128,)),
)

# Tensors of DeepSeek's multi-token prediction layer beside those of a usual layer.
MTP = (
    ("embed_tokens.weight", (512, 128)),
    ("enorm.weight", (128,)),
    ("hnorm.weight", (128,)),
    ("eh_proj.weight", (128, 256)),
    ("shared_head.norm.weight", (128,)),
    ("shared_head.head.weight", (512, 128)),
)

DEEPSEEK_V3 = _config(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    first_k_dense_replace=1,
    kv_lora_rank=128,
    moe_intermediate_size=128,
    moe_layer_freq=1,
    n_group=2,
    n_routed_experts=4,
    n_shared_experts=1,
    norm_topk_prob=True,
    num_experts_per_tok=2,
    num_hidden_layers=3,
    num_key_value_heads=4,
    num_nextn_predict_layers=1,
    q_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    routed_scaling_factor=2.5,
    scoring_func="sigmoid",
    topk_group=1,
    topk_method="noaux_tc",
    v_head_dim=64,
)

# sanitize drops the prediction layer by its number in the full-size model, 61.
DEEPSEEK_V3_STEPS = (
    unstack("switch_mlp", "experts"),
    join_kv_b,
    repeat_layer("model.layers.2.", "model.layers.61.", *MTP),
)

GPT_OSS = _config(
    "gpt_oss",
    "GptOssForCausalLM",
    attention_bias=True,
    head_dim=32,
    layer_types=["sliding_attention", "full_attention"],
    num_experts_per_tok=2,
    num_local_experts=4,
    rms_norm_eps=1e-5,
    rope_theta=150000,
    sliding_window=128,
    swiglu_limit=7.0,
)

# Rows of gate and up alternate.
GPT_OSS_EXPERTS = (
    fuse("experts.gate_proj.weight", "experts.up_proj.weight", "experts.gate_up_proj.weight", axis=1),
    fuse("experts.gate_proj.bias", "experts.up_proj.bias", "experts.gate_up_proj_bias", axis=1),
    rename(r"experts\.down_proj\.bias$", "experts.down_proj_bias"),
)

MIXTRAL_EXPERTS = (
    unstack("switch_mlp", "experts"),
    rename(r"(experts\.\d+)\.gate_proj", r"\1.w1"),
    rename(r"(experts\.\d+)\.down_proj", r"\1.w2"),
    rename(r"(experts\.\d+)\.up_proj", r"\1.w3"),
)

QWEN3_5 = LINEAR_ATTENTION | {
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "rope_scaling": None,
    "rope_theta": None,
}

QWEN3_5_STEPS = (
    CONV,
    rename(r"^language_model\.model\.", "model.language_model."),
    rename(r"^language_model\.lm_head", "lm_head"),
    repeat_layer("model.language_model.layers.3.", "mtp.layers.0."),
    add(
        *NEXT_TOKEN,
        ("model.visual.blocks.0.attn.qkv.bias", (192,)),
        ("model.visual.blocks.0.attn.qkv.weight", (192, 64)),
        ("model.visual.patch_embed.proj.weight", (64, 3, 2, 4, 4)),
    ),
)

QWEN3_5_FLOAT32 = ("A_log", "linear_attn.norm.weight")

ARCHITECTURES: dict[str, Recipe] = {
    "llama": Recipe(
        _config("llama", "LlamaForCausalLM", attention_bias=False, mlp_bias=False, num_hidden_layers=3),
        # Llama 2 stored its rotary frequencies.
        (add(*((f"model.layers.{layer}.self_attn.rotary_emb.inv_freq", (16,)) for layer in range(3))),),
        tied=(False, True),
        float32=("inv_freq",),
    ),
    "qwen2": Recipe(_config("qwen2", "Qwen2ForCausalLM", use_sliding_window=False), tied=(True, False)),
    "qwen3": Recipe(
        _config("qwen3", "Qwen3ForCausalLM", attention_bias=False, head_dim=64),
        tied=(True, False),
        repeats_lm_head=True,
    ),
    "gemma2": Recipe(
        _config(
            "gemma2",
            "Gemma2ForCausalLM",
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            head_dim=32,
            hidden_activation="gelu_pytorch_tanh",
            query_pre_attn_scalar=32,
            sliding_window=128,
        ),
        tied=(True,),
        zero_centered=("norm.weight",),
    ),
    # Last axes 96 and 160: neither 64 nor 128 divides them, 32 does.
    "gemma3_text": Recipe(
        _config(
            "gemma3_text",
            "Gemma3ForCausalLM",
            head_dim=32,
            hidden_activation="gelu_pytorch_tanh",
            hidden_size=96,
            intermediate_size=160,
            num_attention_heads=3,
            num_hidden_layers=3,
            num_key_value_heads=1,
            query_pre_attn_scalar=32,
            rope_local_base_freq=10000.0,
            sliding_window=128,
            sliding_window_pattern=3,
        ),
        tied=(True, False),
        zero_centered=("norm.weight",),
    ),
    # qkv_proj and gate_up_proj are fused in MLX too.
    "phi3": Recipe(
        _config(
            "phi3",
            "Phi3ForCausalLM",
            original_max_position_embeddings=512,
            partial_rotary_factor=1.0,
            sliding_window=256,
        ),
        tied=(False, True),
    ),
    "gpt2": Recipe(
        {
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "bos_token_id": 0,
            "eos_token_id": 1,
            "layer_norm_epsilon": 1e-5,
            "model_type": "gpt2",
            "n_ctx": 64,
            "n_embd": 128,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 64,
            "vocab_size": 512,
        },
        (
            rename(r"^model\.", ""),
            permute(r"c_(attn|proj|fc)\.weight$", 1, 0),
            add(*((f"h.{layer}.attn.bias", (1, 1, 64, 64)) for layer in range(2))),
        ),
        tied=(True,),
    ),
    "olmo2": Recipe(_config("olmo2", "Olmo2ForCausalLM", attention_bias=False), tied=(False, True)),
    "mamba": Recipe(
        _config(
            "mamba",
            "MambaForCausalLM",
            conv_kernel=4,
            state_size=16,
            time_step_rank=32,
            use_bias=False,
            use_conv_bias=True,
        ),
        (CONV,),
        tied=(True, False),
    ),
    "mamba2": Recipe(
        _config(
            "mamba2",
            "Mamba2ForCausalLM",
            conv_kernel=4,
            head_dim=64,
            layer_norm_epsilon=1e-5,
            n_groups=1,
            num_heads=4,
            state_size=32,
            time_step_limit=[0.0, 1e9],
            time_step_rank=8,
            use_bias=False,
            use_conv_bias=True,
        ),
        (CONV,),
        tied=(True, False),
    ),
    "lfm2": Recipe(
        _config(
            "lfm2",
            "Lfm2ForCausalLM",
            block_auto_adjust_ff_dim=False,
            block_dim=128,
            block_ff_dim=256,
            block_ffn_dim_multiplier=1.0,
            block_multiple_of=64,
            conv_L_cache=3,
            conv_bias=False,
            full_attn_idxs=[1],
            norm_eps=1e-5,
            num_hidden_layers=3,
        ),
        (CONV,),
        tied=(True,),
    ),
    "falcon_h1": Recipe(
        _config(
            "falcon_h1",
            "FalconH1ForCausalLM",
            head_dim=32,
            mamba_d_conv=4,
            mamba_d_head=32,
            mamba_d_ssm=128,
            mamba_d_state=32,
            mamba_n_groups=1,
            mamba_n_heads=4,
        ),
        (CONV,),
        tied=(False, True),
    ),
    "jamba": Recipe(
        _config(
            "jamba",
            "JambaForCausalLM",
            attn_layer_offset=1,
            attn_layer_period=2,
            expert_layer_offset=1,
            expert_layer_period=2,
            mamba_d_conv=4,
            mamba_d_state=16,
            mamba_dt_rank=32,
            mamba_expand=2,
            num_experts=4,
            num_experts_per_tok=2,
        ),
        (CONV, unstack("switch_mlp", "experts")),
        tied=(False, True),
    ),
    "qwen3_moe": Recipe(
        _config("qwen3_moe", "Qwen3MoeForCausalLM", **QWEN3_MOE | {"num_experts": 8, "mlp_only_layers": [1]})
        | {"num_hidden_layers": 3},
        (unstack("switch_mlp", "experts"),),
        tied=(False, True),
    ),
    "olmoe": Recipe(
        _config("olmoe", "OlmoeForCausalLM", intermediate_size=128, num_experts=8, num_experts_per_tok=2),
        (unstack("switch_mlp", "experts"),),
        tied=(False, True),
    ),
    "mixtral": Recipe(
        _config("mixtral", "MixtralForCausalLM", num_experts_per_tok=2, num_local_experts=4),
        MIXTRAL_EXPERTS,
        tied=(False, True),
    ),
    "granitemoe": Recipe(
        _config(
            "granitemoe",
            "GraniteMoeForCausalLM",
            attention_bias=False,
            attention_multiplier=0.125,
            embedding_multiplier=12.0,
            logits_scaling=6.0,
            num_experts_per_tok=2,
            num_local_experts=4,
            residual_multiplier=0.22,
        ),
        (
            fuse("switch_mlp.gate_proj.weight", "switch_mlp.up_proj.weight", "input_linear.weight", axis=1),
            rename(r"switch_mlp\.down_proj", "output_linear"),
        ),
        tied=(True, False),
    ),
    "glm4_moe": Recipe(
        _config(
            "glm4_moe",
            "Glm4MoeForCausalLM",
            attention_bias=True,
            first_k_dense_replace=1,
            head_dim=32,
            moe_intermediate_size=128,
            n_group=1,
            n_routed_experts=4,
            n_shared_experts=1,
            norm_topk_prob=True,
            num_experts_per_tok=2,
            num_nextn_predict_layers=1,
            partial_rotary_factor=0.5,
            routed_scaling_factor=1.0,
            topk_group=1,
            use_qk_norm=True,
        ),
        (
            unstack("switch_mlp", "experts"),
            repeat_layer("model.layers.1.", "model.layers.2.", *MTP),
        ),
        float32=("e_score_correction_bias",),
    ),
    # The Scout's layout: a nested text config and a vision tower; its attention needs the fourth layer.
    "llama4": Recipe(
        {
            "architectures": ["Llama4ForConditionalGeneration"],
            "model_type": "llama4",
            "text_config": _config(
                "llama4_text",
                "Llama4ForCausalLM",
                attention_bias=False,
                attention_chunk_size=128,
                head_dim=32,
                interleave_moe_layer_step=2,
                intermediate_size=128,
                intermediate_size_mlp=256,
                num_experts_per_tok=1,
                num_hidden_layers=4,
                num_local_experts=4,
                use_qk_norm=True,
            ),
            "vision_config": {"hidden_size": 64, "model_type": "llama4_vision_model", "num_hidden_layers": 1},
        },
        (
            fuse("experts.gate_proj.weight", "experts.up_proj.weight", "experts.gate_up_proj", axis=1),
            rename(r"experts\.down_proj\.weight$", "experts.down_proj"),
            permute(r"experts\.(gate_up|down)_proj$", 0, 2, 1),
            add(
                ("multi_modal_projector.linear_1.weight", (128, 64)),
                ("vision_model.class_embedding", (64,)),
                ("vision_model.model.layers.0.self_attn.q_proj.bias", (64,)),
                ("vision_model.model.layers.0.self_attn.q_proj.weight", (64, 64)),
            ),
        ),
    ),
    "deepseek_v3": Recipe(DEEPSEEK_V3, DEEPSEEK_V3_STEPS, float32=("e_score_correction_bias",)),
    "deepseek_v3_fp8": Recipe(
        _fp8(DEEPSEEK_V3),
        DEEPSEEK_V3_STEPS,
        float32=("e_score_correction_bias",),
        fp8=r"(?<!eh)_proj(_with_mqa)?\.weight$",
    ),
    "minimax": Recipe(
        _fp8(
            _config(
                "minimax_m2",
                "MiniMaxM2ForCausalLM",
                head_dim=32,
                intermediate_size=128,
                num_experts_per_tok=2,
                num_local_experts=4,
                rotary_dim=16,
                scoring_func="sigmoid",
                shared_intermediate_size=0,
                use_qk_norm=True,
            )
        ),
        MIXTRAL_EXPERTS,
        float32=("e_score_correction_bias",),
        fp8=r"(_proj|\.w[123])\.weight$",
    ),
    # MLX opens bf16 experts only in rows (E, 2I, H) and with `.weight`, not as transformers writes them.
    "gpt_oss": Recipe(GPT_OSS, GPT_OSS_EXPERTS),
    "gpt_oss_mxfp4": Recipe(
        GPT_OSS
        | {
            "quantization_config": {
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
                "quant_method": "mxfp4",
            }
        },
        (*GPT_OSS_EXPERTS, to_mxfp4),
    ),
    "qwen3_next": Recipe(
        _config(
            "qwen3_next",
            "Qwen3NextForCausalLM",
            **QWEN3_MOE | LINEAR_ATTENTION,
            partial_rotary_factor=0.25,
            shared_expert_intermediate_size=128,
        ),
        (
            CONV,
            unstack("switch_mlp", "experts"),
            repeat_layer("model.layers.3.", "mtp.layers.0."),
            add(*NEXT_TOKEN),
        ),
        tied=(False, True),
        zero_centered=QWEN_NEXT_NORMS,
    ),
    "qwen3_5": Recipe(
        {
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "model_type": "qwen3_5",
            "text_config": _config("qwen3_5_text", "Qwen3_5ForCausalLM", **QWEN3_5),
            "vision_config": {"depth": 1, "hidden_size": 64, "model_type": "qwen3_5"},
        },
        QWEN3_5_STEPS,
        tied=(True, False),
        float32=QWEN3_5_FLOAT32,
        zero_centered=QWEN_NEXT_NORMS,
    ),
    "qwen3_5_moe": Recipe(
        {
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "model_type": "qwen3_5_moe",
            "text_config": _config(
                "qwen3_5_moe_text",
                "Qwen3_5MoeForCausalLM",
                **QWEN3_MOE | QWEN3_5,
                shared_expert_intermediate_size=128,
            ),
            "vision_config": {"depth": 1, "hidden_size": 64, "model_type": "qwen3_5_moe"},
        },
        (
            fuse("switch_mlp.gate_proj.weight", "switch_mlp.up_proj.weight", "experts.gate_up_proj", axis=1),
            rename(r"switch_mlp\.down_proj\.weight$", "experts.down_proj"),
            *QWEN3_5_STEPS,
        ),
        tied=(False, True),
        float32=QWEN3_5_FLOAT32,
        zero_centered=QWEN_NEXT_NORMS,
    ),
}
