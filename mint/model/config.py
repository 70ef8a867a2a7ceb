"""Checks a model's config.json, before any of its weights is there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mint.core.errors import MintError
from mint.core.files import parse_json, read_whole
from mint.model.checkpoint.shards import LFS_MARK

# names of the longest context in configs
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")


def check_config(folder: Path, *, requantize: bool = False) -> bytes:
    """The text of the config of the model in `folder`; `MintError` when it is missing, broken or not supported.

    A model that MLX has quantized is only accepted with `requantize`.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MintError(f"{folder}: no config.json found; needed: a Hugging Face model folder")
    text = read_whole(path)
    if text.startswith(LFS_MARK):
        remedy = "run git lfs pull in that folder, or download the model with hf download"
        raise MintError(f"{path}: a Git LFS pointer, the file itself is not there; {remedy}")
    config = parse_json(text, path, "download it again")
    if not isinstance(config, dict) or "model_type" not in config:
        raise MintError(f"{path}: no model_type found; needed: the config of a language model")
    if config.get("model_file") is not None:
        code = f"the model brings its own code ({config['model_file']}), which is never run"
        raise MintError(f"{path}: {code}; needed: an architecture that mlx_lm itself implements")
    _check_sections(path, config)
    stored = config.get("quantization") or {}
    if stored.get("bits") and not requantize:
        kind = f"{stored.get('mode', 'affine')}, {stored['bits']} bits, groups of {stored.get('group_size')}"
        remedy = "needed: the original model, or --requantize, which adds new errors to those that it has"
        raise MintError(f"{folder}: the model is already quantized by MLX ({kind}); {remedy}")
    return text


def context_limit(config: Mapping[str, Any]) -> int | None:
    """The most tokens of a context that a config allows, with the scaling of its rotary embedding; None if unknown."""
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, Mapping)]
    limits = [part[name] for part in parts for name in _POSITIONS if isinstance(part.get(name), int)]
    for part in parts:
        scaling = part.get("rope_scaling") or part.get("rope_parameters")
        if isinstance(scaling, Mapping) and isinstance(factor := scaling.get("factor"), int | float):
            original = scaling.get("original_max_position_embeddings")
            limits += [int(factor * original)] if isinstance(original, int) else []
    return max(limits, default=None)


def _check_sections(path: Path, config: dict[str, Any]) -> None:
    """Sections are objects; how weights are stored is read off the tensors."""
    text_config = config.get("text_config") or {}
    for name, section in (
        ("text_config", text_config),
        ("quantization", config.get("quantization") or {}),
        ("quantization_config", config.get("quantization_config") or {}),
        ("quantization_config", (isinstance(text_config, dict) and text_config.get("quantization_config")) or {}),
    ):
        if not isinstance(section, dict):
            raise MintError(f"{path}: {name} is no JSON object; download it again")
