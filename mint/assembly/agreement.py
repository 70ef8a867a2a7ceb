"""Compares the function of the written model with that of its dequantized weights.

The stock model, quantized modules and all, and the same model with every weight dequantized run on the same tokens.
Both run in float32 (scales and biases widened, which changes no stored value), so only the order of additions differs:
a wrong format, group size or module shows as a difference of order one.

A model amplifies the rounding of its sums, on tokens that it never sees a hundred thousand times. So the tokens are
those that the model itself finds likely, and the distance is the median of theirs: an expert that a tie of its router
decides changes few of them. A distance above `NEGLIGIBLE` is compared with that of this model from itself when the
inputs of all its modules are rounded more coarsely than any float32 product rounds.

Some models compute another function of several tokens at once than of one after another (in mlx_vlm 0.7.10 the layers
of Gemma 3n that share keys turn their queries too far). A distance above `NEGLIGIBLE` is first taken one by one.

Weights are read when their module is called and dropped after it: the rows of tokens, the experts of a token, and
blocks of rows of a matrix, so the largest table takes no more memory than a small one.
The backend multiplies by the dequantized ones in blocks of rows: on a CPU many times faster than MLX's own BLAS.
"""

# R rows of a weight, C columns, B sequences, L tokens of each, V vocabulary

from collections.abc import Callable, Collection, Mapping
from functools import partial
from math import inf
from pathlib import Path
from typing import Any
from zlib import crc32

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear

from mint.assembly.distances import Rows
from mint.formats.format import KEEP, Format
from mint.formats.units import parts_of
from mint.kernels.backend import backend
from mint.kernels.storage import numpy_view
from mint.model.checkpoint.reader import ALL, StoredModel, open_stored
from mint.model.hooks import hook
from mint.model.loaders.vision import tower_parameters
from mint.model.module_tree import load_plain, make_cache, read_loaded_config
from mint.model.passes.logits import logits_of
from mint.model.passes.weight_uses import weight_uses
from mint.quality.forward import as_numpy, fusing_nothing

LENGTH = 3  # tokens; a CPU takes a nanosecond for a weight and a token
NEGLIGIBLE = 1e-4  # relative distance that needs no explanation; on a CPU it is 1e-6 to 1e-5
FACTOR = 4.0  # times the distance that coarse rounding causes
INCONCLUSIVE = 0.3  # a wrong format has a distance near 1, so an allowance beyond this tells nothing
_PARTS = ("weight", "scales", "biases")
_PLAIN = {Linear: ("__call__",), Embedding: ("as_linear",)}  # modules of MLX and their products
_BLOCK = 4 << 20  # stored words of a quantized matrix, read at once


def stock_logits(
    stock: Module, folder: Path, paths: Collection[str]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Tokens (1, L) that the model from `folder`, as its loader has it, finds likeliest, and its logits (1, L, V).

    The weights of the modules at `paths` are streamed. The model cannot be used afterwards.
    """
    stored = open_stored(folder)
    stock.load_weights(list(_wide_rest(stored, paths).items()), strict=False)
    for path, module in _modules(stock, paths):
        _hook(module, stored, path, KEEP if type(module) in _PLAIN else None)
    tokens, caches, logits = [_first_token(read_loaded_config(folder))], make_cache(stock), []
    for _ in range(LENGTH):
        logits.append(_step(stock, np.array([tokens[-1:]], np.int32), caches))
        tokens.append(int(logits[-1].argmax()))
    return np.array([tokens[:-1]], np.int32), np.concatenate(logits, 1)


def misread_tower(stock: Module, folder: Path) -> str:
    """The name of a parameter of a tower that the loaded model has not as it is stored in `folder`; empty if none.

    No pass over text uses a tower.
    """
    stored = open_stored(folder)
    for name, array in tower_parameters(stock).items():
        if name not in stored.tensors or not bool(mx.array_equal(array, stored.array(name), equal_nan=True)):
            return name
    return ""


def plain_logits(
    folder: Path,
    units: Mapping[str, tuple[tuple[int, ...], Format]],
    tokens: npt.NDArray[np.int32],
    *,
    rounding: float = 0.0,
    one_by_one: bool = False,
) -> npt.NDArray[np.float32]:
    """The logits (B, L, V) of the same model with every weight dequantized.

    `units` maps the path of every unit, kept ones too, to the shape of its weight and its format. Each float that
    enters a unit is changed by up to `rounding`, relative, at random. Tokens come at once, or `one_by_one` as in
    `stock_logits`.
    """
    stored = open_stored(folder)
    weights = _wide_rest(stored, units) | {f"{path}.weight": mx.zeros(shape) for path, (shape, _) in units.items()}
    read = weight_uses(load_plain(folder, weights), units).read  # of its own: a model may keep what it computes once
    weights |= {f"{path}.weight": stored.dequantized(path, units[path][1]) for path in read}
    plain = load_plain(folder, weights)
    for path, module in _modules(plain, units.keys() - read):
        _hook(module, stored, path, units[path][1])
        if rounding:
            hook(module, partial(_round_inputs, rounding, np.random.default_rng(crc32(path.encode()))))
    caches, size = make_cache(plain), 1 if one_by_one else tokens.shape[1]
    parts = [tokens[:, start : start + size] for start in range(0, tokens.shape[1], size)]
    return np.concatenate([_step(plain, part, caches) for part in parts], 1)


def coarse_rounding() -> float:
    """A relative change of inputs that moves products more than any float32 arithmetic of this device.

    Matrix units of GPUs may round inputs to 11 bits. Elsewhere a sum of N terms errs by about sqrt(N) * 2^-24.
    """
    return 2.0**-10 if backend().runs_stored_weights else 2.0**-18


def distance(logits: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Median over the tokens of the relative L2 distance of logits (..., V); infinite when some are not finite."""
    if not (np.isfinite(logits).all() and np.isfinite(expected).all()):
        return inf
    norms = np.linalg.norm(expected, axis=-1)
    return float(np.median(np.linalg.norm(logits - expected, axis=-1) / np.where(norms, norms, 1.0)))


def _wide_rest(stored: StoredModel, paths: Collection[str]) -> dict[str, mx.array]:
    """The tensors of no module at `paths`, floats in float32."""
    streamed = {f"{path}.{part}" for path in paths for part in _PARTS}
    return {name: stored.wide(name) for name in stored.tensors if name not in streamed}


def _first_token(config: Mapping[str, Any]) -> int:
    """The token that begins every text, by the config: 0 if it names none."""
    text = config.get("text_config") or {}
    token, size = (config.get(key) or text.get(key) or 0 for key in ("bos_token_id", "vocab_size"))
    return token if isinstance(token, int) and 0 <= token < size else 0


def _modules(model: Module, paths: Collection[str]) -> list[tuple[str, Module]]:
    chosen = set(paths)
    return [(path, module) for path, module in model.named_modules() if path in chosen]


def _hook(module: Module, stored: StoredModel, path: str, format: Format | None) -> None:
    """Answer calls of a module by its weight in `format`, dequantized, or by its stored tensors without one."""
    kind = type(module)
    stream = partial(_stream, stored, path, format, kind in (QuantizedEmbedding, QuantizedLinear))
    if format is None or kind not in _PLAIN:
        hook(module, stream)
        return
    hook(module, partial(_multiply, stored, path, format), _PLAIN[kind])
    if kind is Embedding:
        hook(module, stream, ("__call__",))


def _stream(
    stored: StoredModel,
    path: str,
    format: Format | None,
    by_rows: bool,
    method: Callable[..., mx.array],
    module: Module,
    x: mx.array,
    *arguments: Any,
    **options: Any,
) -> mx.array:
    """Call a module on its weight in `format`, dequantized, or on its stored tensors; they are dropped after it.

    Of an embedding or a stack only the rows or experts that the call names are read. `by_rows` says that a product
    may be computed for some rows of the weight at a time. MLX looks up rows of mxfp4 and nvfp4 in bfloat16, which holds
    them exactly; the answer is float32, so that no later step rounds to bfloat16.
    """
    batches = [[ALL]]
    if not mx.issubdtype(x.dtype, mx.floating):
        x, rows = _named(x)
        batches = [rows]
    elif module["weight"].ndim == 3 and arguments and isinstance(arguments[0], mx.array):
        indices, experts = _named(arguments[0])
        arguments, batches = (indices, *arguments[1:]), [experts]
    elif by_rows:
        batches = [[rows] for rows in parts_of(module["weight"].shape, _BLOCK)]
    read = _readers(stored, path, format, module)
    lazy = {part: module[part] for part in read}
    results = []
    for batch in batches:
        module.update({part: mx.concatenate([rows(piece) for piece in batch]) for part, rows in read.items()})
        answer = method(module, x, *arguments, **options)
        results.append(answer.astype(mx.float32) if isinstance(answer, mx.array) else answer)  # some modules split it
        mx.eval(results[-1])
    module.update(lazy)
    return results[0] if len(results) == 1 else mx.concatenate(results, axis=-1)


def _named(indices: mx.array) -> tuple[mx.array, list[slice]]:
    """The slices that `indices` name, each once, and the place of each index among them."""
    named, places = np.unique(numpy_view(indices), return_inverse=True)
    return mx.array(places.reshape(indices.shape).astype(np.uint32)), [slice(i, i + 1) for i in named.tolist()]


def _readers(stored: StoredModel, path: str, format: Format | None, module: Module) -> dict[str, Rows]:
    """Functions that give slices of the parameters of a module: of those on disk, and of its bias."""
    bias: dict[str, Rows] = {"bias": module["bias"].__getitem__} if "bias" in module else {}
    if format:
        return bias | {"weight": partial(stored.dequantized, path, format)}
    names = {part: f"{path}.{part}" for part in _PARTS}
    return bias | {part: partial(stored.wide, name) for part, name in names.items() if name in stored.tensors}


def _multiply(stored: StoredModel, path: str, format: Format, _: Any, module: Module, x: mx.array) -> mx.array:
    """(..., C) times the transpose of the (R, C) weight at `path`, plus the bias: (..., R), all in float32."""
    product = stored.product(x.reshape(-1, x.shape[-1]), path, format).reshape(*x.shape[:-1], -1)
    return product + module["bias"] if "bias" in module else product


def _round_inputs(
    rounding: float,
    generator: np.random.Generator,
    method: Callable[..., mx.array],
    module: Module,
    x: mx.array,
    *arguments: Any,
    **options: Any,
) -> mx.array:
    if mx.issubdtype(x.dtype, mx.floating):
        x = x * mx.array(generator.uniform(1 - rounding, 1 + rounding, x.shape).astype(np.float32))
    return method(module, x, *arguments, **options)


def _step(model: Module, tokens: npt.NDArray[np.int32], caches: list[Any]) -> npt.NDArray[np.float32]:
    """The logits (B, L, V) after each of more tokens (B, L), computed over caches as in generation."""
    with fusing_nothing():
        return as_numpy(logits_of(model, mx.array(tokens), caches))
