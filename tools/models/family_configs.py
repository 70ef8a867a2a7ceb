"""The settings of `tools/models/families.py`, as data.

`SMALL` has a value for every argument that sizes a model, and `OVERRIDES` what one family needs beside these; for a
family with a `text_config` that begins with all of `SMALL`. `MISSING` names the families that cannot be made, and why.
"""

from typing import Any

SMALL: dict[str, Any] = {
    # width and depth
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
    "rope_theta": 10000.0, "rope_scaling": None, "n_embd": 128, "n_head": 4, "n_layer": 4, "n_positions": 512,
    "n_ctx": 512, "n_inner": 256, "layer_norm_eps": 1e-5, "layer_norm_epsilon": 1e-5, "norm_eps": 1e-5,
    "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "hidden_dim": 128, "d_model": 128, "n_layers": 4, "n_heads": 4,
    "n_kv_heads": 2, "block_size": 512, "model_dim": 128, "num_vocab": 512,
    # experts
    "num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4, "n_routed_experts": 4, "n_shared_experts": 1,
    "moe_intermediate_size": 128, "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
    "n_group": 1, "topk_group": 1, "num_shared_experts": 1, "moe_topk": 2, "num_expert_group": 1, "moe_num_experts": 4,
    "moe_top_k": 2, "moe_k": 2, "moe_layer_freq": 1, "decoder_sparse_step": 1, "shared_expert_intermediate_size": 128,
    "moe_shared_expert_intermediate_size": 128, "num_experts_per_token": 2, "moe_capacity": [4] * 4,
    "topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_nextn_predict_layers": 0,
    # latent and sparse attention
    "kv_lora_rank": 64, "q_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32,
    "index_head_dim": 32, "index_n_heads": 2, "index_topk": 32, "sliding_window": 32, "attention_window_size": 32,
    "window_size": 32,
    # states
    "conv_kernel": 4, "state_size": 16, "n_groups": 1, "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_expand": 2,
    "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_chunk_size": 32, "mamba_num_heads": 4,
    "mamba_head_dim": 32, "ssm_state_size": 16, "time_step_limit": [0.0, 1e9], "time_step_rank": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4, "conv_L_cache": 3,
}  # fmt: skip

_SLIDING, _FULL = "sliding_attention", "full_attention"
_TYPES = [_SLIDING, _FULL, _SLIDING, _FULL]
_YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256, "mscale_all_dim": 1.0}
_LONG = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 256,
         "llama_4_scaling_beta": 0.1, "mscale_all_dim": 1.0}  # fmt: skip
_ROPES = {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in (_SLIDING, _FULL)}
_KDA = {"kda_layers": [1, 3], "full_attn_layers": [2, 4], "num_heads": 4, "head_dim": 32, "short_conv_kernel_size": 4}
_LFM2 = {"full_attn_idxs": [1, 3], "conv_bias": False, "block_dim": 128, "block_ff_dim": 256, "block_multiple_of": 64,
         "block_auto_adjust_ff_dim": False, "block_ffn_dim_multiplier": 1.0}  # fmt: skip
_LONGCAT = {"attention_method": "MLA", "zero_expert_type": "identity", "zero_expert_num": 2, "ffn_hidden_size": 256,
            "expert_ffn_hidden_size": 128, "mla_scale_q_lora": True, "mla_scale_kv_lora": True}  # fmt: skip
_GEMMA3N = {
    "model_type": "gemma3n_text", "layer_types": _TYPES * 2, "num_hidden_layers": 8, "num_kv_shared_layers": 4,
    "vocab_size_per_layer_input": 512, "rope_local_base_freq": 10000.0, "final_logit_softcapping": 30.0,
    "activation_sparsity_pattern": [0.95] * 4 + [0.0] * 4, "hidden_size_per_layer_input": 32, "altup_num_inputs": 4,
    "altup_coef_clip": 120.0, "altup_correct_scale": True, "altup_active_idx": 0, "laurel_rank": 32,
}  # fmt: skip
_GEMMA4 = {
    "model_type": "gemma4_text", "layer_types": _TYPES * 2, "num_hidden_layers": 8, "num_kv_shared_layers": 4,
    "vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 32, "global_head_dim": 64, "head_dim": 32,
    "tie_word_embeddings": True,
}  # fmt: skip
_QWEN3_NEXT = {"layer_types": ["linear_attention"] * 3 + [_FULL], "full_attention_interval": 4,
               "partial_rotary_factor": 0.25, "mlp_only_layers": [],
               "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
                                   "mrope_section": [2, 1, 1]}}  # fmt: skip
_GEMMA3 = {"model_type": "gemma3_text", "sliding_window_pattern": 2, "query_pre_attn_scalar": 32}

OVERRIDES: dict[str, dict[str, Any]] = {
    "Klear": {"mlp_only_layers": []},
    "afmoe": {"layer_types": _TYPES, "num_dense_layers": 1},
    "afm7": {"num_kv_reuse_layers": 2, "hidden_dim_scale_factor": 2.0},
    "baichuan_m1": {"sliding_window_layers": [1], "conv_window": 2},
    "dbrx": {"ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2},
             "attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10000.0}},
    "deepseek_v2": {"rope_scaling": _YARN, "topk_method": "greedy"},
    "deepseek_v41": {"o_groups": 2, "o_lora_rank": 64, "compress_ratios": [0, 4, 4, 4], "kv_source_layer_ids": [1],
                     "index_source_layer_ids": [1], "scoring_func": "sqrtsoftplus"},
    "step3p5": {"share_expert_dim": 128},
    "exaone_moe": {"layer_types": _TYPES, "is_moe_layer": [False, True, True, True]},
    "falcon_h1": {"mamba_d_ssm": 256},
    "gear": {"layer_types": [_SLIDING, "conv_mixer", _FULL, "conv_mixer"]},
    "gemma3": {"text_config": _GEMMA3},
    "gemma3_text": _GEMMA3,
    "gemma3n": {"text_config": _GEMMA3N},
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "glm_moe_dsa": {"rope_parameters": {"rope_theta": 10000.0}},
    "gptj": {"rotary_dim": 16},
    "hunyuan": {"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}, "use_cla": True,
                "cla_share_factor": 2, "use_mixed_mlp_moe": True, "num_shared_expert": 1},
    "hunyuan_v1_dense": {"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2},
    "kimi_k25": {"text_config": {"model_type": "kimi_k2"}},
    "kimi_k3": {"text_config": {"model_type": "kimi_linear", "linear_attn_config": _KDA, "hidden_act": "situ",
                                "activation_situ_beta": 1.0, "attn_res_block_size": 2, "mla_use_output_gate": True,
                                "routed_expert_hidden_size": 64, "num_key_value_heads": 4}},
    "kimi_linear": {"linear_attn_config": _KDA, "num_key_value_heads": 4},
    "kimi_vl": {"text_config": {"model_type": "deepseek_v3"}},
    "lfm2": _LFM2,
    "lfm2-vl": {"text_config": {"model_type": "lfm2", **_LFM2}},
    "lfm2_moe": _LFM2 | {"num_dense_layers": 1, "use_expert_bias": True},
    "llama4": {"text_config": {"model_type": "llama4_text", "attention_bias": False, "attention_chunk_size": 32,
                               "interleave_moe_layer_step": 2, "intermediate_size_mlp": 256, "use_qk_norm": True,
                               "num_experts_per_tok": 1}},
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0], "intermediate_size_mlp": 256, "tie_word_embeddings": True},
    "longcat_flash": _LONGCAT,
    "longcat_flash_ngram": _LONGCAT | {"ngram_vocab_size_ratio": 4, "emb_neighbor_num": 3, "emb_split_num": 2},
    "mellum": {"layer_types": _TYPES, "rope_parameters": _ROPES},
    "mimo_v2_flash": {"hybrid_layer_pattern": [1, 0, 1, 0], "moe_layer_freq": [0, 1, 1, 1], "sliding_window_size": 32,
                      "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 32,
                      "swa_v_head_dim": 32, "partial_rotary_factor": 0.5},
    "minicpm3": {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 256,
                                  "long_factor": [1.0] * 16, "short_factor": [1.0] * 16}},
    "minimax_m3_vl": {"text_config": {
        "dense_intermediate_size": 256, "shared_intermediate_size": 128, "mlp_layer_types": ["dense"] + ["sparse"] * 3,
        "layer_types": [_FULL, "sparse", "sparse", "sparse"], "index_block_size": 8, "index_topk_blocks": 2}},
    "ministral3": {"rope_parameters": _LONG, "layer_types": [_SLIDING, _FULL] * 2},
    "mistral3": {"text_config": {"model_type": "ministral3", "rope_parameters": _LONG}},
    "mistral4": {"rope_parameters": _LONG},
    "muse_spark": {"text_config": {
        "layer_types": _TYPES, "layer_rope_theta": [10000.0, 0.0] * 2, "moe_hidden_size": 64, "post_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0}, "final_logit_softcapping": 30.0, "output_multiplier": 1.0,
        "num_shared_experts": 0}},
    "nemotron-nas": {"block_configs": [
        {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.0}},
        {"attention": {"no_op": True}, "ffn": {"ffn_mult": 2.0}},
        {"attention": {"replace_with_linear": True}, "ffn": {"replace_with_linear": True}},
        {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.0}}]},
    "nemotron_h": {"hybrid_override_pattern": ["M", "*", "E", "-"], "moe_latent_size": 64},
    "openelm": {"num_transformer_layers": 4, "ffn_dim_divisor": 64, "num_query_heads": [4] * 4, "num_kv_heads": [2] * 4,
                "ffn_multipliers": [2.0] * 4},
    "pixtral": {"text_config": {"model_type": "llama"}},
    "plamo": {"n_shared_head": 2},
    "qwen": {"kv_channels": 32, "intermediate_size": 512},
    "qwen2_vl": {"text_config": {"model_type": "qwen2_vl"}},
    "qwen3_5": {"text_config": {"model_type": "qwen3_5_text", **_QWEN3_NEXT, "num_experts": 0}},
    "qwen3_5_moe": {"text_config": {"model_type": "qwen3_5_moe_text", **_QWEN3_NEXT}},
    "qwen3_next": {"full_attention_interval": 4, "mlp_only_layers": [], "partial_rotary_factor": 0.25},
    "qwen3_vl": {"text_config": {"model_type": "qwen3_vl_text", "tie_word_embeddings": True}},
    "qwen3_vl_moe": {"text_config": {"model_type": "qwen3_vl_moe_text", "tie_word_embeddings": False,
                                     "mlp_only_layers": []}},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "conv1d_width": 4, "num_key_value_heads": 1,
                        "logits_soft_cap": 30.0},
    "spark2_5": {"layer_types": _TYPES, "rope_parameters": _ROPES},
}  # fmt: skip

MISSING = {"prism_hadamard_qwen35": "its checkpoints are quantized in 2 bits already, with a manifest of their own"}
