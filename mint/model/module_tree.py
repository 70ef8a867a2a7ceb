"""The lazy MLX module tree of a model folder, built with mlx_lm's own classes.

Names come from MLX, never from guessing: whatever the loader would build from these files is what is built here,
with experts stacked, fused tensors split and dropped heads gone. Nothing is read: weights are lazy arrays.
The whole graph lives on the CPU stream, so that evaluating a weight never pages from disk inside a GPU command
buffer (a lazy graph that does trips Metal's watchdog, ml-explore/mlx#3803).
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.convert import MODEL_CONVERSION_DTYPES
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes, load, load_config, load_model, load_tokenizer, save_config

from mint.core.errors import MintError
from mint.model.checkpoint.shards import Shard
from mint.model.config import check_config

DTYPES = {
    mx.bool_: "BOOL", mx.uint8: "U8", mx.int8: "I8", mx.uint16: "U16", mx.int16: "I16", mx.float16: "F16",
    mx.bfloat16: "BF16", mx.uint32: "U32", mx.int32: "I32", mx.float32: "F32", mx.uint64: "U64", mx.int64: "I64",
    mx.complex64: "C64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tree:
    """A model whose parameters are lazy, and the lazy source tensors that they are made of."""

    model: Module
    leaves: Mapping[str, mx.array]

    def parameters(self) -> dict[str, mx.array]:
        """Every parameter by its name, in the order of the module tree."""
        return dict(tree_flatten(self.model.parameters()))


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config as mlx_lm reads it; `MintError` if it is missing, broken or of a model that is not for us."""
    check_config(folder)
    config: dict[str, Any] = load_config(folder)
    return config


def build_tree(folder: Path, config: dict[str, Any], shards: tuple[Shard, ...], dtype: str = "") -> Tree:
    """The module tree of the model in `folder` over lazy weights, cast as `mlx_lm.convert` casts them.

    `dtype` (float16, bfloat16, float32) overrides the config's own, empty leaves it. Raises `MintError` when mlx_lm
    does not know the model type or when weights and modules do not fit together.
    """
    with mx.stream(mx.cpu):
        leaves = {
            tensor.name: array
            for shard in shards
            for tensor, array in _load(folder, shard)
        }  # fmt: skip
        try:
            model_class, args_class = _get_classes(config)
        except ValueError as error:
            raise MintError(
                f"{folder}: mlx_lm does not know model_type {config['model_type']!r}; {_update_advice()}"
            ) from error
        model = model_class(args_class.from_dict(config))
        weights = dict(leaves)
        try:
            if hasattr(model, "sanitize"):
                weights = model.sanitize(weights)
            model.eval()
            model.load_weights(list(weights.items()), strict=True)
        except (ValueError, KeyError) as error:
            summary = " ".join(str(error).split())[:300]
            raise MintError(
                f"{folder}: the weights do not fit mlx_lm's {config['model_type']} model: {summary}; "
                f"needed: a complete model of that type. {_update_advice()}"
            ) from error
        _cast(model, config, dtype)
    return Tree(model, leaves)


def _load(folder: Path, shard: Shard) -> list[tuple[Any, mx.array]]:
    arrays = mx.load(str(folder / shard.name))
    assert isinstance(arrays, dict)
    return [(tensor, arrays[tensor.name]) for tensor in shard.tensors]


def _cast(model: Module, config: dict[str, Any], dtype: str) -> None:
    """The rule of `mlx_lm.convert` 0.32: the config's torch_dtype, else the text config's dtype, else no cast."""
    name = dtype or config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype")
    if name not in MODEL_CONVERSION_DTYPES:
        return
    target = getattr(mx, str(name))
    may_cast = getattr(model, "cast_predicate", lambda _: True)

    def cast(path: str, array: mx.array) -> mx.array:
        return array.astype(target) if may_cast(path) and mx.issubdtype(array.dtype, mx.floating) else array

    model.update(tree_map_with_path(cast, model.parameters()))


def _update_advice() -> str:
    version = importlib.metadata.version("mlx-lm")
    return f"This is mlx_lm {version}; a newer one may know it: pip install --upgrade mlx-lm"


def write_config(config: dict[str, Any], folder: Path, *, keep_vision_config: bool) -> None:
    """Write config.json as mlx_lm writes it, without the keys of the source's own quantization."""
    kept = {name: value for name, value in config.items() if name != "quantization_config" or "quantization" in config}
    save_config(kept, folder / "config.json", keep_vision_config=keep_vision_config)


def load_as_users_do(folder: Path) -> Module:
    """The model in `folder` by `mlx_lm.load`, its tokenizer too if it has one. Nothing of the weights is read.

    Any exception of mlx_lm comes through: it is the finding.
    """
    model: Module = load(str(folder), lazy=True)[0] if has_tokenizer(folder) else load_stock(folder)
    return model


def load_stock(folder: Path) -> Module:
    """The model in `folder` as mlx_lm builds it, quantized modules and all, over lazy weights."""
    model: Module = load_model(folder, lazy=True)[0]
    return model


def load_plain(folder: Path, weights: dict[str, mx.array]) -> Module:
    """The same model with none of its modules quantized, over `weights` by parameter name."""
    config = load_config(folder)
    model_class, args_class = _get_classes(config)
    model: Module = model_class(args_class.from_dict(config))
    if hasattr(model, "sanitize"):  # some models change their tree there
        weights = model.sanitize(weights)
    model.eval()
    model.load_weights(list(weights.items()), strict=True)
    return model


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer in `folder` for mlx_lm to load."""
    return (folder / "tokenizer_config.json").exists() or (folder / "tokenizer.json").exists()


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder` as mlx_lm loads it; any exception of mlx_lm comes through."""
    return load_tokenizer(folder)


def read_written_config(folder: Path) -> dict[str, Any]:
    """The config of a folder that mint wrote."""
    config: dict[str, Any] = load_config(folder)
    return config


def make_cache(model: Module) -> list[Any]:
    """The empty caches that mlx_lm makes for one conversation with `model`."""
    caches: list[Any] = make_prompt_cache(model)
    return caches
