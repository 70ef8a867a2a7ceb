"""Compares the function of the written model with that of its dequantized weights.

The stock model, quantized modules and all, and the same model with every weight dequantized run on the same tokens.
Both run in float32 (scales and biases widened, which changes no stored value), so only the order of additions differs:
a wrong format, group size or module shows as a difference of order one.
Weights are read when their module is called and dropped after it; memory is bounded by the largest unit.
The backend multiplies by the dequantized ones in blocks of rows: on a CPU many times faster than MLX's own BLAS.
"""

# R rows of a weight, C columns

from collections.abc import Callable, Collection, Mapping
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
from mint.model.loaders.vision import tower_parameters
from mint.model.module_tree import load_plain
from mint.model.passes.logits import logits_of
from mint.model.passes.weight_uses import weight_uses
from mint.quality.forward import as_numpy, fusing_nothing

TOKENS = 2  # the second one attends to the first
_PARTS = ("weight", "scales", "biases")


def stock_logits(stock: Module, folder: Path, paths: Collection[str]) -> npt.NDArray[np.float32]:
    """The logits (1, TOKENS, vocabulary) of the model that was loaded from `folder`, quantized modules and all.

    The weights of the modules at `paths` are streamed. The model cannot be used afterwards.
    """
    stored = open_stored(folder)
    stock.load_weights(list(_wide_rest(stored, paths).items()), strict=False)
    for path, module in _modules(stock, paths):
        hook(module, partial(_stream, stored, path, None))
    return _logits(stock)


def misread_tower(stock: Module, folder: Path) -> str:
    """The name of a parameter of a tower that the loaded model has not as it is stored in `folder`; empty if none.

    No pass over text uses a tower.
    """
    stored = open_stored(folder)
    for name, array in tower_parameters(stock).items():
        if name not in stored.tensors or not bool(mx.array_equal(array, stored.array(name), equal_nan=True)):
            return name
    return ""


def plain_logits(folder: Path, units: Mapping[str, tuple[tuple[int, ...], Format]]) -> npt.NDArray[np.float32]:
    """The logits of the same model with every weight dequantized.

    `units` maps the path of every unit, kept ones too, to the shape of its weight and its format.
    """
    stored = open_stored(folder)
    weights = _wide_rest(stored, units) | {f"{path}.weight": mx.zeros(shape) for path, (shape, _) in units.items()}
    read = weight_uses(load_plain(folder, weights), units).read  # of its own: a model may keep what it computes once
    weights |= {f"{path}.weight": stored.dequantized(path, units[path][1]) for path in read}
    plain = load_plain(folder, weights)
    for path, module in _modules(plain, units.keys() - read):
        format, kind = units[path][1], type(module)
        if format == KEEP or kind not in (Embedding, Linear):
            hook(module, partial(_stream, stored, path, format))
            continue
        hook(module, partial(_multiply, stored, path, format))
        if kind is Embedding:
            hook(module, partial(_look_up, stored, path, format), ("__call__",))
    return _logits(plain)


def difference(logits: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Relative L2 difference of logits; infinite when some are not finite."""
    if not (np.isfinite(logits).all() and np.isfinite(expected).all()):
        return inf
    return float(np.linalg.norm(logits - expected)) / (float(np.linalg.norm(expected)) or 1.0)


def _wide_rest(stored: StoredModel, paths: Collection[str]) -> dict[str, mx.array]:
    """The tensors of no module at `paths`, floats in float32."""
    streamed = {f"{path}.{part}" for path in paths for part in _PARTS}
    return {name: stored.wide(name) for name in stored.tensors if name not in streamed}


def _modules(model: Module, paths: Collection[str]) -> list[tuple[str, Module]]:
    chosen = set(paths)
    return [(path, module) for path, module in model.named_modules() if path in chosen]


def _stream(
    stored: StoredModel,
    path: str,
    format: Format | None,
    method: Callable[..., mx.array],
    module: Module,
    *arguments: Any,
    **options: Any,
) -> mx.array:
    """Call a module on its weight in `format`, dequantized, or on its stored tensors; they are dropped after it."""
    if format:
        parts = {"weight": stored.dequantized(path, format)}
    else:
        parts = {part: stored.wide(name) for part in _PARTS if (name := f"{path}.{part}") in stored.tensors}
    lazy = {part: module[part] for part in parts}
    module.update(parts)
    result = method(module, *arguments, **options)
    mx.eval(result)
    module.update(lazy)
    return result


def _look_up(stored: StoredModel, path: str, format: Format, _: Any, __: Module, tokens: mx.array) -> mx.array:
    """The rows of an embedding that the tokens name; no others are read."""
    rows = [stored.dequantized(path, format, slice(row, row + 1)) for row in np.asarray(tokens).ravel().tolist()]
    return mx.concatenate(rows).reshape(*tokens.shape, -1)


def _multiply(stored: StoredModel, path: str, format: Format, _: Any, module: Module, x: mx.array) -> mx.array:
    """(..., C) times the transpose of the (R, C) weight at `path`, plus the bias: (..., R), all in float32."""
    product = stored.product(x.reshape(-1, x.shape[-1]), path, format).reshape(*x.shape[:-1], -1)
    return product + module["bias"] if "bias" in module else product


def _logits(model: Module) -> npt.NDArray[np.float32]:
    with fusing_nothing():
        return as_numpy(logits_of(model, mx.arange(1, TOKENS + 1)[None]))
