"""Running a whole model over sequences of tokens, at the precision that a comparison needs.

On a CPU a model is plain float32, quantized or not: every quantized module is dequantized, exactly as it is stored. A
CPU multiplies float32 matrices fast, those of bf16 or of packed weights 10-20 times slower. On a GPU the model runs as
mlx_lm loads it, as it will be used.

`wide` is the model in float32: its function, free of the noise of 16-bit arithmetic. `narrow` is the same model
in bf16, every product rounded to bf16 after sums in float32, as matrix units do it. Both are exact to one rounding per
module.
"""

# B sequences of a block, L tokens, V vocabulary

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map_with_path

from mint.core.errors import MintError
from mint.formats.format import Format, known_formats
from mint.kernels.backend import backend
from mint.kernels.storage import numpy_view
from mint.model.checkpoint.shards import read_shards
from mint.model.hooks import hook
from mint.model.loaders.vision import release_towers
from mint.model.module_tree import is_quantized, load_plain, load_source, load_stock
from mint.model.passes.logits import logits_of
from mint.quality.divergence import Logits, Tokens

BLOCK = 1 << 25  # logits at once
_PACKED = ("weight", "scales", "biases", "global_scale")


def open_wide(folder: Path, loader: str = "", *, on_gpu: bool | None = None) -> Module:
    """The model in `folder` computing in float32, by default in the way of this machine.

    `loader` names the package whose classes an original model gets, as in `open_source`.
    """
    on_gpu = backend().runs_stored_weights if on_gpu is None else on_gpu
    return _widened(_load(folder, loader) if on_gpu else _dequantized(folder, loader), on_gpu=on_gpu)


def open_without(folder: Path, paths: Collection[str], loader: str = "") -> Module:
    """The model in `folder` computing in float32; the modules at `paths` have no weight, and theirs is never read."""
    model = _load(folder, loader)
    for path, module in model.named_modules():
        if path in paths:
            module.pop("weight")
    return _widened(model, on_gpu=backend().runs_stored_weights)


def _widened(model: Module, *, on_gpu: bool) -> Module:
    """The model in float32; on a GPU its matrices stay as they are stored, widened while they are used."""
    release_towers(model)
    model = _cast(model, mx.float32, but_matrices=on_gpu)
    return _computing_wide(model, mx.float32) if on_gpu else model


def open_narrow(folder: Path) -> Module:
    """The model in `folder` computing in bf16."""
    if backend().runs_stored_weights:
        return _cast(_load(folder), mx.bfloat16)
    return _computing_wide(_cast(_dequantized(folder), mx.bfloat16), mx.bfloat16)


def open_used(folder: Path) -> Module:
    """The model in `folder` as this machine compares it: as mlx_lm runs it on a GPU, in float32 on a CPU."""
    return _load(folder) if backend().runs_stored_weights else open_wide(folder)


def vocabulary_size(folder: Path, loader: str = "") -> int:
    """The number of tokens in the vocabulary of the model in `folder`, by its logits; nothing is computed.

    A few models compute their states in every pass; a CPU multiplies gathered matrices in float32 only.
    """
    return int(logits_of(_cast(_load(folder, loader), mx.float32), mx.array([[0, 0]])).shape[-1])


def all_logits(model: Module, tokens: Tokens, vocabulary: int, block: int = BLOCK) -> Iterator[tuple[slice, Logits]]:
    """The logits (B, L - 1, V) that predict all but the first of the tokens (S, L), in blocks of `block` logits."""
    for rows in sequence_blocks(tokens, vocabulary, block):
        yield rows, as_numpy(logits_of(model, mx.array(tokens[rows, :-1])))


def sequence_blocks(tokens: Tokens, vocabulary: int, block: int = BLOCK) -> Iterator[slice]:
    """The sequences (S, L) in blocks of `block` logits at most, or one sequence."""
    sequences, length = tokens.shape
    step = max(1, block // (vocabulary * length))
    for start in range(0, sequences, step):
        yield slice(start, min(start + step, sequences))


def as_numpy(array: mx.array) -> npt.NDArray[np.float32]:
    """The array in float32, computed."""
    return numpy_view(array.astype(mx.float32))


@contextmanager
def fusing_nothing() -> Iterator[None]:
    """Compute without fused functions where each one costs seconds of compiling."""
    if backend().fuses_functions:
        yield
        return
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


def _load(folder: Path, loader: str = "") -> Module:
    if not (folder / "config.json").is_file():
        raise MintError(f"{folder}: no config.json found; needed: a model folder")
    read_shards(folder)  # a damaged file is an error that names it
    try:
        return load_stock(folder) if is_quantized(folder) else load_source(folder, loader)
    except Exception as error:  # mlx_lm raises many kinds
        raise MintError(f"{folder}: mlx_lm does not load it ({error!r}); needed: a model that mlx_lm loads") from error


def _dequantized(folder: Path, loader: str = "") -> Module:
    """The model with none of its modules quantized, over lazy weights of the values that are stored."""
    stock = _load(folder, loader)
    quantized = {path: module for path, module in stock.named_modules() if "scales" in module}
    if not quantized:
        return stock
    weights = dict(tree_flatten(stock.parameters()))
    for path, module in quantized.items():
        kind = type(module).__name__
        if not kind.startswith("Quantized"):
            raise MintError(f"{folder}: {path} is a {kind}, more than a quantized weight; needed: a GPU to evaluate it")
        for part in _PACKED:
            weights.pop(f"{path}.{part}", None)
        weights[f"{path}.weight"] = dequantized(module)
    return load_plain(folder, weights)


def dequantized(module: Module) -> mx.array:
    """The weight of a quantized module in float32, by the module's own format."""
    parts = {part: module[part] for part in _PACKED if isinstance(module.get(part), mx.array)}
    format = Format(module.mode, module.bits, module.group_size)
    if format in known_formats() and "global_scale" not in parts:
        return backend().unpack(list(parts.values()), format)
    dequantize: Any = mx.dequantize  # its stub knows no unpacked arguments
    weight: mx.array = dequantize(parts.pop("weight"), **parts, **format.parameters(), dtype=mx.float32)
    return weight


def _cast(model: Module, dtype: mx.Dtype, *, but_matrices: bool = False) -> Module:
    """The model with its floats cast; `but_matrices` leaves the unquantized weights of modules as they are."""

    def cast(path: str, array: mx.array) -> mx.array:
        stays = but_matrices and array.ndim > 1 and path.endswith(".weight")
        return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) and not stays else array

    model.update(tree_map_with_path(cast, model.parameters()))
    return model


def _computing_wide(model: Module, dtype: mx.Dtype) -> Module:
    """The model, its quantized and quantizable matrices multiplied in float32 and the products rounded to `dtype`."""

    def call(method: Callable[..., mx.array], module: Module, *arguments: Any, **options: Any) -> mx.array:
        if not any(map(_is_float, arguments)):  # a look-up multiplies nothing
            return method(module, *arguments, **options).astype(dtype)
        stored = {name: value for name, value in module.items() if _is_float(value)}
        module.update({name: value.astype(mx.float32) for name, value in stored.items()})
        wide = [value.astype(mx.float32) if _is_float(value) else value for value in arguments]
        result = method(module, *wide, **options)
        module.update(stored)
        return result.astype(dtype)

    for _, module in model.named_modules():
        if "weight" in module and (hasattr(module, "to_quantized") or "scales" in module):
            hook(module, call)
    return model


def _is_float(value: Any) -> bool:
    return isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating)
