"""Do the stored weights mean what the loader takes them for?

The stock model, quantized modules and all, and the same model with every weight dequantized see the same tokens.
Both run in float32 (scales and biases widened, which changes no stored value), so nothing but the order of
additions may differ: a wrong format, group size or module would show as a difference of order one.
Weights are read when their module is called and dropped after it; memory is bounded by the largest unit.
The backend multiplies by the dequantized ones in blocks of rows: on a CPU many times faster than MLX's own BLAS.
"""

# R rows of a weight, C columns

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear

from mint.formats.format import KEEP, Format
from mint.model.checkpoint.reader import StoredModel, open_stored
from mint.model.hooks import hook
from mint.model.module_tree import load_plain
from mint.quality.forward import as_numpy, fusing_nothing, logits_of

TOKENS = 2  # the second one attends to the first
_PARTS = ("weight", "scales", "biases")


def stock_logits(stock: Module, folder: Path, paths: Sequence[str]) -> npt.NDArray[np.float32]:
    """The logits (1, TOKENS, vocabulary) of the model that mlx_lm loaded from `folder`, quantized modules and all.

    `paths` are those of the modules whose weights are streamed. The model is used up.
    """
    stored = open_stored(folder)
    stock.load_weights(list(_wide_rest(stored, paths).items()), strict=False)
    for path, module in _modules(stock, paths):
        parts = [part for part in _PARTS if f"{path}.{part}" in stored.tensors]
        _stream(module, partial(_stored_parts, stored, path, parts))
    return _logits(stock)


def plain_logits(folder: Path, units: Mapping[str, tuple[tuple[int, ...], Format]]) -> npt.NDArray[np.float32]:
    """The logits of the same model with every weight dequantized.

    `units` maps the path of every unit, kept ones too, to the shape of its weight and its format.
    """
    stored = open_stored(folder)
    lazy = {f"{path}.weight": mx.zeros(shape) for path, (shape, _) in units.items()}
    plain = load_plain(folder, {**_wide_rest(stored, units), **lazy})
    for path, module in _modules(plain, units):
        format = units[path][1]
        if type(module) is Embedding and format != KEEP:
            _stream_embedding(module, stored, path, format)
        elif type(module) is Linear and format != KEEP:
            _stream_linear(module, stored, path, format)
        else:
            _stream(module, partial(_dequantized_weight, stored, path, format))
    return _logits(plain)


def difference(logits: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Relative L2 difference of logits; infinite when some are not finite."""
    if not (np.isfinite(logits).all() and np.isfinite(expected).all()):
        return inf
    return float(np.linalg.norm(logits - expected)) / (float(np.linalg.norm(expected)) or 1.0)


def _wide_rest(stored: StoredModel, paths: Iterable[str]) -> dict[str, mx.array]:
    """The tensors of no module at `paths`, floats in float32."""
    streamed = {f"{path}.{part}" for path in paths for part in _PARTS}
    return {name: stored.wide(name) for name in stored.tensors if name not in streamed}


def _modules(model: Module, paths: Iterable[str]) -> list[tuple[str, Module]]:
    chosen = set(paths)
    return [(path, module) for path, module in model.named_modules() if path in chosen]


def _stored_parts(stored: StoredModel, path: str, parts: list[str]) -> dict[str, mx.array]:
    return {part: stored.wide(f"{path}.{part}") for part in parts}


def _dequantized_weight(stored: StoredModel, path: str, format: Format) -> dict[str, mx.array]:
    return {"weight": stored.dequantized(path, format)}


def _stream(module: Module, read: Callable[[], dict[str, mx.array]]) -> None:
    """Let `module` take its weights from `read` at every call and give them back after it."""

    def call(method: Callable[..., mx.array], module: Module, *arguments: Any, **options: Any) -> mx.array:
        parts = read()
        lazy = {part: module[part] for part in parts}
        module.update(parts)
        result = method(module, *arguments, **options)
        mx.eval(result)
        module.update(lazy)
        return result

    hook(module, call)


def _stream_embedding(module: Module, stored: StoredModel, path: str, format: Format) -> None:
    """Let an embedding read only the rows that it looks up, and multiply by the whole table in blocks of rows."""

    def look_up(_: Any, __: Module, tokens: mx.array) -> mx.array:
        rows = [stored.dequantized(path, format, slice(row, row + 1)) for row in np.asarray(tokens).ravel().tolist()]
        return mx.concatenate(rows).reshape(*tokens.shape, -1)

    def multiply(_: Any, __: Module, x: mx.array) -> mx.array:
        return _product(x, stored, path, format)

    hook(module, look_up, ("__call__",))
    hook(module, multiply, ("as_linear",))


def _stream_linear(module: Module, stored: StoredModel, path: str, format: Format) -> None:
    """Let a linear layer read its weight in blocks of rows."""

    def multiply(_: Any, module: Module, x: mx.array) -> mx.array:
        product = _product(x, stored, path, format)
        return product + module["bias"] if "bias" in module else product

    hook(module, multiply)


def _product(x: mx.array, stored: StoredModel, path: str, format: Format) -> mx.array:
    """(..., C) times the transpose of the dequantized (R, C) weight at `path`: (..., R), all in float32."""
    product = stored.product(x.reshape(-1, x.shape[-1]), path, format)
    return product.reshape(*x.shape[:-1], -1)


def _logits(model: Module) -> npt.NDArray[np.float32]:
    with fusing_nothing():
        return as_numpy(logits_of(model, mx.arange(1, TOKENS + 1)[None]))
