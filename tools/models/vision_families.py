"""Writes a tiny random checkpoint of a multimodal family of mlx_vlm, for those named in `FAMILIES`.

    python -m tools.models.vision_families NAME OUT

As `tools/models/families.py`: a small value for every field of the family's own config classes that sizes a model, and
the settings of `FAMILIES`. Tensors have the names of the class's own parameters, which its `sanitize` passes through.
"""

import importlib
import json
import sys
from dataclasses import MISSING, fields
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mint.model.loaders.vision import MLX_VLM
from tools.models.family_configs import OVERRIDES, SMALL

Config = dict[str, Any]
_MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
_LFM2 = {"layer_types": ["conv", "full_attention"] * 2, "block_dim": 128, "conv_dim": 128, "conv_dim_out": 128}
_TOWER: Config = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
    "image_size": 16, "depth": 2, "num_heads": 2, "out_hidden_size": 128, "embed_dim": 64, "window_size": 16,
    "fullatt_block_indexes": [1], "spatial_patch_size": 4, "num_position_embeddings": 64, "num_channels": 3,
    "in_channels": 3, "projection_dim": 64, "position_embedding_size": 64,
}  # fmt: skip
_LARGE = 500_000  # weights of an array; only those of towers have as many
_MOBILENET = {"hidden_size": 2048, "vocab_offset": 256, "vocab_size": 128}  # no setting makes its 0.6 GB smaller
# the model types of the text and of the tower, settings of the text, and settings of the tower
FAMILIES: dict[str, tuple[str, str, Config, Config]] = {
    "aya_vision": ("cohere2", "siglip_vision_model", {}, {}),
    "deepseek_vl_v2": ("deepseek_v2", "vision", {"topk_method": "greedy"}, {"layers": 2, "width": 64}),
    "gemma3": ("gemma3_text", "siglip_vision_model", {"mm_tokens_per_image": 4}, {}),
    "gemma3n": ("gemma3n_text", "gemma3n_vision", {"intermediate_size": [256] * 8}, _MOBILENET),
    "gemma4": ("gemma4_text", "gemma4_vision", {}, {}),
    "glm4v": ("glm4v_text", "glm4v", _MROPE, {}),
    "idefics3": ("llama", "idefics3", {}, {}),
    "internvl": ("qwen2", "internvl_vision", {}, {}),
    "internvl_chat": ("qwen2", "intern_vit_6b", {}, {}),
    "kimi_vl": ("deepseek_v3", "moonvit", {}, {}),
    "lfm2_vl": ("lfm2", "lfm2_vl", _LFM2, {"num_patches": 16}),
    "llama4": ("llama4_text", "llama4_vision_model", {}, {}),
    "llava": ("llama", "clip_vision_model", {}, {}),
    "llava_next": ("mistral", "clip_vision_model", {}, {}),
    "mistral3": ("mistral", "pixtral", {}, {}),
    "mllama": ("mllama_text_model", "mllama", {}, {}),
    "moondream2": ("phi", "moondream2", {}, {}),
    "moondream3": ("moondream3", "moondream3", {"num_key_value_heads": 4}, {}),
    "paligemma": ("gemma", "siglip_vision_model", {}, {}),
    "pixtral": ("mistral", "pixtral", {}, {}),
    "qwen2_5_vl": ("qwen2_5_vl", "qwen2_5_vl", _MROPE, {}),
    "qwen2_vl": ("qwen2_vl", "qwen2_vl", _MROPE, {}),
    "qwen3_5": ("qwen3_5_text", "qwen3_5", _MROPE, {}),
    "qwen3_5_moe": ("qwen3_5_moe_text", "qwen3_5_moe", _MROPE, {}),
    "qwen3_vl": ("qwen3_vl_text", "qwen3_vl", _MROPE, {"deepstack_visual_indexes": [0]}),
    "qwen3_vl_moe": ("qwen3_vl_moe_text", "qwen3_vl_moe", _MROPE, {"deepstack_visual_indexes": [0]}),
    "smolvlm": ("llama", "idefics3", {}, {}),
}
# settings of other sections
_MORE: dict[str, Config] = {
    "deepseek_vl_v2": {"projector_config": {"input_dim": 64, "n_embed": 128, "depth": 2, "mlp_ratio": 1}},
    "gemma3n": {
        "audio_config": {
            "hidden_size": 64,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 2,
            "vocab_offset": 384,
            "sscp_conv_channel_size": [8, 4],
            "input_feat_size": 16,
            "conf_attention_chunk_size": 4,
            "conf_attention_context_left": 5,
        },
        "image_token_id": 500,
        "audio_token_id": 501,
    },
    "gemma4": {  # without a section, its tower of sound has 300 M weights
        "audio_config": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "subsampling_conv_channels": [8, 4],
            "output_proj_dims": 64,
        },
    },
    "lfm2_vl": {"projector_hidden_size": 64},
}


def vision_config_of(family: str) -> Config:
    """A small config of a multimodal family."""
    package = importlib.import_module(f"mlx_vlm.models.{family}")
    text_type, tower_type, text, tower = FAMILIES[family]
    other = _MORE.get(family, {}) | OVERRIDES.get(family, {})  # the latter of mlx_lm's class with the same name
    text = _fields(package, "TextConfig", SMALL | {"tie_word_embeddings": False} | text) | other.pop("text_config", {})
    text["model_type"] = text_type
    sections = {
        "text_config": text,
        "vision_config": _fields(package, "VisionConfig", SMALL | _TOWER | tower) | {"model_type": tower_type},
    }
    flat = text if family in ("qwen2_vl", "qwen2_5_vl") else {}  # older configs have no section for the text
    sizes = {"vocab_size": text["vocab_size"], "hidden_size": text["hidden_size"], "eos_token_id": 1}
    return {**flat, **sizes, **other, **sections, "model_type": family, "torch_dtype": "bfloat16"}


def _fields(package: Any, name: str, values: Config) -> Config:
    """Values for the fields of a config class: those given, and 2 for other required ones."""
    declared = fields(getattr(package, name))
    required = {field.name for field in declared if field.default is MISSING and field.default_factory is MISSING}
    return {field.name: values.get(field.name, 2) for field in declared if field.name in required | values.keys()}


def write_vision_family(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny checkpoint of `family` to the new `folder`."""
    config = vision_config_of(family)
    mx.random.seed(seed)
    parameters: Any = tree_flatten(MLX_VLM.module(config).parameters())
    weights = {name: _random(array.shape) if array.ndim > 1 else array for name, array in parameters}
    folder.mkdir(parents=True)
    mx.save_safetensors(
        str(folder / "model.safetensors"), {name: array.astype(mx.bfloat16) for name, array in weights.items()}
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _random(shape: tuple[int, ...]) -> mx.array:
    """Normal weights; the first axis of a large array repeats one slice, which takes no time to draw."""
    drawn = shape if prod(shape) < _LARGE else (1, *shape[1:])
    return mx.broadcast_to(mx.random.normal(drawn, scale=shape[-1] ** -0.5), shape)


if __name__ == "__main__":
    print(write_vision_family(sys.argv[1], Path(sys.argv[2])))
