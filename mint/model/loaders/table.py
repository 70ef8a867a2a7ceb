"""The table of packages that make module trees, and the choice of one for a checkpoint."""

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mint.core.errors import MintError
from mint.core.version import install_command
from mint.model.loaders.loader import MLX_LM, TreeLoader
from mint.model.loaders.vision import MLX_VLM, is_installed
from mint.model.opening.renamed import TIED, is_tied
from mint.model.opening.towers import towers_in

TREE_LOADERS = [MLX_LM, MLX_VLM]
_TEXT = "_text"  # behind the type of a multimodal model: the type of its text model
# types of transformers: mlx_lm's word for the same architecture, and what its class insists on
_OTHER_TYPES: dict[str, dict[str, Any]] = {
    "glm4v_text": {"attention_bias": True, "model_type": "glm4"},
    "glm_ocr_text": {"attention_bias": False, "model_type": "glm4"},
    "ministral": {"model_type": "mistral"},
    "youtu": {"model_type": "youtu_llm"},
}
_SHARED = ("architectures", "bos_token_id", "dtype", "eos_token_id", "quantization_config", "torch_dtype")
_MIXTURES = ("llama4_text",)  # mlx_lm has these types for other, dense models


def tree_loader(folder: Path, config: dict[str, Any], tensors: Iterable[str], name: str = "") -> TreeLoader:
    """The loader of this name for a checkpoint with these tensors; by default the first that takes its config.

    A loader that holds towers is for checkpoints that have some, and comes first for them. Raises `MintError` for an
    unknown name, and for a model type that the loader does not know.
    """
    has_towers = bool(towers_in(tensors))
    loaders = [_named(name)] if name else sorted(TREE_LOADERS, key=lambda loader: not loader.language)
    loaders = [loader for loader in loaders if has_towers or not loader.language]
    if not loaders:
        raise MintError(f"{folder}: no vision or audio tower found; needed a multimodal model, or no --vision")
    loader = next((loader for loader in loaders if loader.takes(config)), None)
    if loader is None:
        raise MintError(f"{folder}: {_unknown(config, loaders, name)}")
    return loader


def in_known_type(config: dict[str, Any], loader: str = "", *, has_head: bool = False) -> dict[str, Any]:
    """The config; that of a text model alone by the type of its multimodal model where mlx_lm knows only this one.

    Some types have another word in mlx_lm. A multimodal model that the packages of this `loader` do not know has the
    config of its text model, if mlx_lm knows that one.
    """
    kind = str(config["model_type"])
    if kind in _OTHER_TYPES:
        other = _OTHER_TYPES[kind]
        return {**other, **config, "model_type": other["model_type"]}
    if loader != MLX_VLM.name and (alone := _text_alone(config, loader, has_head=has_head)):
        return alone
    whole = kind.removesuffix(_TEXT)
    if kind in _MIXTURES and config.get("num_local_experts"):
        shared = {key: value for key, value in config.items() if key in _SHARED}
        return {**shared, "model_type": whole, "text_config": config}
    if whole == config["model_type"] or MLX_LM.takes(config) or not MLX_LM.takes({**config, "model_type": whole}):
        return config
    return {**config, "model_type": whole, "text_config": config}


def _text_alone(config: dict[str, Any], loader: str, *, has_head: bool) -> dict[str, Any]:
    """The config of the text model of a multimodal one that no package of this `loader` knows; empty for others."""
    text = config.get("text_config")
    packages = (MLX_LM,) if loader == MLX_LM.name else (MLX_LM, MLX_VLM)
    if not isinstance(text, dict) or "model_type" not in text or any(package.takes(config) for package in packages):
        return {}
    shared = {key: value for key, value in config.items() if key in _SHARED and key != "architectures"}
    tie = {TIED: is_tied((text.get(TIED), config.get(TIED)), has_head=has_head)} if TIED in {*text, *config} else {}
    alone = in_known_type({**shared, **text, **tie})
    return alone if MLX_LM.takes(alone) else {}


def tower_advice(loader: TreeLoader, config: dict[str, Any], name: str) -> str:
    """The way to keep the towers that a loader drops, for the end of a sentence; `name` is that of the request."""
    if loader.language or name:
        return ""
    if not is_installed():
        return f"; {install_command('vision')} keeps such towers"
    return "" if MLX_VLM.takes(config) else f"; mlx_vlm does not know model_type {config['model_type']!r}"


def _named(name: str) -> TreeLoader:
    loader = next((loader for loader in TREE_LOADERS if loader.name == name), None)
    if loader is None:
        names = ", ".join(loader.name for loader in TREE_LOADERS)
        raise MintError(f"{name!r} is not a package of model classes; needed one of: {names}")
    if loader is MLX_VLM and not is_installed():
        raise MintError(
            f"vision and audio towers need mlx_vlm, which is not installed; needed: {install_command('vision')}"
        )
    return loader


def _unknown(config: dict[str, Any], loaders: list[TreeLoader], name: str) -> str:
    names = " and ".join(loader.name for loader in loaders)
    fault = f"{names} {'does' if len(loaders) == 1 else 'do'} not know model_type {config['model_type']!r}"
    if other := next((loader.name for loader in TREE_LOADERS if name and loader.takes(config)), ""):
        return f"{fault}, {other} does"
    package = "mlx-vlm" if name == MLX_VLM.name else "mlx-lm"
    advice = f"This is {package} {version(package)}; a newer one may know it: pip install --upgrade {package}"
    return f"{fault}; {advice}"
