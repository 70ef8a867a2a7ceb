"""Tiny random multimodal checkpoints of mlx_vlm's families, with the names and layouts of the hub."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, models, pre_tokenizers

from mint.model.loaders.vision import MLX_VLM

Config = dict[str, Any]
IMAGE = 5  # the token that stands for a piece of a picture
_TEXT: Config = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
_TOWER: Config = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
    "image_size": 8,
}  # fmt: skip
_QWEN_TOWER: Config = {
    "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "patch_size": 4, "spatial_patch_size": 4,
    "window_size": 16, "fullatt_block_indexes": [1], "in_channels": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A config, the names of the hub by prefixes of the class's own, and the inputs of a picture."""

    config: Config
    renamed: dict[str, str] = field(default_factory=dict)
    pixels: tuple[int, ...] = (1, 3, 8, 8)
    pieces: int = 4  # tokens of a picture
    inputs: Callable[[], Config] = dict


FAMILIES = {
    "qwen2_5_vl": Family(
        {
            **_TEXT, "model_type": "qwen2_5_vl", "image_token_id": IMAGE, "vision_start_token_id": 6,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            "vision_config": {**_QWEN_TOWER, "out_hidden_size": 128, "model_type": "qwen2_5_vl"},
        },
        {"vision_tower.": "visual.", "language_model.model.": "model.", "language_model.lm_head": "lm_head"},
        pixels=(16, 3 * 2 * 4 * 4),
        inputs=lambda: {"image_grid_thw": mx.array([[1, 4, 4]])},
    ),
    "qwen3_vl": Family(
        {
            "model_type": "qwen3_vl", "image_token_id": IMAGE, "vision_start_token_id": 6,
            "text_config": {**_TEXT, "model_type": "qwen3_vl_text", "head_dim": 32, "rope_theta": 1e6,
                            "max_position_embeddings": 4096,
                            "rope_scaling": {"rope_type": "default", "mrope_section": [4, 6, 6]}},
            "vision_config": {**_QWEN_TOWER, "out_hidden_size": 128, "model_type": "qwen3_vl",
                              "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        },
        {"vision_tower.": "model.visual.", "language_model.model.": "model.language_model.",
         "language_model.lm_head": "lm_head"},
        pixels=(16, 3 * 2 * 4 * 4),
        inputs=lambda: {"image_grid_thw": mx.array([[1, 4, 4]])},
    ),
    "llava": Family(
        {
            "model_type": "llava", "image_token_index": IMAGE, "vision_feature_layer": -2,
            "text_config": {**_TEXT, "model_type": "llama"},
            "vision_config": {**_TOWER, "model_type": "clip_vision_model"},
        },
    ),
    "gemma3": Family(
        {
            "model_type": "gemma3", "image_token_index": IMAGE, "vocab_size": 256, "hidden_size": 128,
            "pad_token_id": 0,
            "text_config": {**_TEXT, "model_type": "gemma3_text", "head_dim": 32, "query_pre_attn_scalar": 32,
                            "mm_tokens_per_image": 4, "sliding_window": 16, "sliding_window_pattern": 2},
            "vision_config": {**_TOWER, "model_type": "siglip_vision_model"},
        },
    ),
}  # fmt: skip


def write_multimodal(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a random checkpoint of `family` in bf16 to the new `folder`."""
    world = FAMILIES[family]
    mx.random.seed(seed)
    weights = {}
    parameters: Any = tree_flatten(MLX_VLM.module(world.config).parameters())
    for name, array in parameters:
        if family == "gemma3" and "lm_head" in name:
            continue  # tied
        values = array if array.ndim == 1 else mx.random.normal(array.shape, scale=array.shape[-1] ** -0.5)
        if array.ndim > 3:  # convolutions have their input channels second
            values = mx.moveaxis(values, -1, 1)
        weights[_hub_name(name, world.renamed)] = values.astype(mx.bfloat16)
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps({**world.config, "torch_dtype": "bfloat16"}))
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


def _hub_name(name: str, renamed: dict[str, str]) -> str:
    prefix = next((prefix for prefix in renamed if name.startswith(prefix)), "")
    return renamed.get(prefix, "") + name.removeprefix(prefix)


def picture_inputs(family: str, seed: int = 1) -> Config:
    """The arguments of a call of `family` on a prompt with a picture."""
    world = FAMILIES[family]
    mx.random.seed(seed)
    tokens = mx.array([[7, 6, *[IMAGE] * world.pieces, 9, 11]])
    return {
        "input_ids": tokens, "pixel_values": mx.random.normal(world.pixels), "mask": mx.ones_like(tokens),
        **world.inputs(),
    }  # fmt: skip


def write_processor(folder: Path) -> None:
    """Write a tokenizer of whole words and the processor of pictures for a `llava` in `folder`."""
    words = {name: index for index, name in enumerate(["<unk>", "<s>", "</s>", "what", "is", "<image>"])}
    words |= {f"w{index}": index for index in range(len(words), 256)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    pictures = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    files: dict[str, Config] = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **specials},
        "preprocessor_config.json": {"image_processor_type": "CLIPImageProcessor", **pictures},
        "processor_config.json": {"processor_class": "LlavaProcessor", "patch_size": 4, "image_token": "<image>"},
    }
    for name, record in files.items():
        (folder / name).write_text(json.dumps(record))
