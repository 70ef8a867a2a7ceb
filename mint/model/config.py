"""Checks a model's config.json, before any of its weights is there."""

import json
from pathlib import Path
from typing import Any

from mint.core.errors import MintError
from mint.model.checkpoint.shards import LFS_MARK


def check_config(folder: Path) -> bytes:
    """The text of the config of the model in `folder`; `MintError` when it is missing, broken or not supported."""
    path = folder / "config.json"
    if not path.is_file():
        raise MintError(f"{folder}: no config.json found; needed: a Hugging Face model folder")
    text = path.read_bytes()
    if text.startswith(LFS_MARK):
        remedy = "run git lfs pull in that folder, or download the model with hf download"
        raise MintError(f"{path}: a Git LFS pointer, the file itself is not there; {remedy}")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MintError(f"{path}: not valid JSON ({error}); download it again") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise MintError(f"{path}: no model_type found; needed: the config of a language model")
    if config.get("model_file") is not None:
        code = f"the model brings its own code ({config['model_file']}), which is never run"
        raise MintError(f"{path}: {code}; needed: an architecture that mlx_lm itself implements")
    _refuse_quantized(folder, config)
    return text


def _refuse_quantized(folder: Path, config: dict[str, Any]) -> None:
    def section(parent: dict[str, Any], name: str) -> dict[str, Any]:
        fields = parent.get(name) or {}
        if not isinstance(fields, dict):
            raise MintError(f"{folder / 'config.json'}: {name} is no JSON object; download it again")
        return fields

    text_config = section(config, "text_config")
    settings = section(config, "quantization_config") or section(text_config, "quantization_config")
    method = settings.get("quant_method", "unknown")
    if "quantization" in config:
        raise MintError(f"{folder}: the model is already quantized by MLX; needed: the original model")
    if (folder / "hf_quant_config.json").exists():
        method = "modelopt"
    # mlx_lm's sanitize turns plain fp8 into bf16; blocks of 32 x 32 with power-of-two scales stay packed as mxfp8
    stays_packed = (settings.get("scale_fmt"), settings.get("weight_block_size")) == ("ue8m0", [32, 32])
    if (settings or method == "modelopt") and (method != "fp8" or stays_packed):
        fault = f"the model is already quantized ({method}); needed: bf16, f16, f32 or fp8 weights"
        raise MintError(f"{folder}: {fault}. Start from the original model, or dequantize this one first")
