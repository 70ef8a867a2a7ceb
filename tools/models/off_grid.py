"""Take a llama checkpoint off the 4-bit grid it was dequantized from.

Weights that once were `minimum + step * level` in groups of 32 still lie on that grid: min-max rounding to
4 bits finds it again with error 0, and every figure measured there is about the grid, not about the method.

- `dither` spreads every weight over its grid cell: natural marginals with outliers, a slightly worse model.
- `diag` rescales channels whose scales cancel: the same function; q, k, v and gate keep a trace of the grid.
- `rot` rotates the residual stream and every head's values (R1 and R2 of QuaRot, arXiv 2404.00456, and
  SpinQuant, 2405.16406): the same function; no grid left, but near-Gaussian weights without outliers.

Only the projections are on a 4-bit grid. The embedding has an 8-bit one, which `rot` alone removes.

All work is in float64. A matrix draws from its own seed, derived from its name, so that their order is free.
"""

# C hidden size, Q query heads, K key-value heads, D head size, N neurons of the MLP

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]

GROUP = 32  # weights that share a step in ggml's Q4_1
LEVELS = 15  # steps from the least to the greatest weight of a group
SPREAD = 0.3  # standard deviation of the logarithm of a channel's scale


@dataclass(frozen=True, slots=True)
class Heads:
    """Numbers of attention heads: `num_attention_heads` and `num_key_value_heads` of config.json."""

    queries: int
    keys: int


def on_grid(weights: Weights, heads: Heads, seed: int) -> Weights:
    """The weights as they are."""
    return dict(weights)


def dither(weights: Weights, heads: Heads, seed: int) -> Weights:
    """Every projection moved by uniform noise of at most half a step of its group."""
    return weights | {
        name: _dithered(weight, _generator(seed, name))
        for name, weight in weights.items()
        if name.endswith("_proj.weight")
    }


def diag(weights: Weights, heads: Heads, seed: int) -> Weights:
    """The same function with log-normal scales on the channels between v and o and between up and down."""
    result = _fold_norms(weights)
    for layer in _layers(weights):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        v, o = result[f"{attention}.v_proj.weight"], result[f"{attention}.o_proj.weight"]
        scale = _scales(seed, f"{attention}.v_proj", len(v))
        result[f"{attention}.v_proj.weight"] = v * scale[:, None]
        result[f"{attention}.o_proj.weight"] = o / _for_queries(scale.reshape(heads.keys, -1), heads).ravel()

        up, down = result[f"{mlp}.up_proj.weight"], result[f"{mlp}.down_proj.weight"]
        scale = _scales(seed, f"{mlp}.up_proj", len(up))
        result[f"{mlp}.up_proj.weight"] = up * scale[:, None]
        result[f"{mlp}.down_proj.weight"] = down / scale
    return result


def rot(weights: Weights, heads: Heads, seed: int) -> Weights:
    """The same function with the residual stream and the values of every key-value head randomly rotated."""
    result = _fold_norms(weights)
    hidden = result["model.embed_tokens.weight"].shape[1]
    rotation = _orthogonal(_generator(seed, "model"), hidden)
    for name, weight in result.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight", *_READERS)):
            result[name] = weight @ rotation
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            result[name] = rotation.T @ weight

    for layer in _layers(weights):
        v_name, o_name = f"{layer}.self_attn.v_proj.weight", f"{layer}.self_attn.o_proj.weight"
        v = result[v_name].reshape(heads.keys, -1, hidden)  # (K, D, C)
        o = result[o_name].reshape(hidden, heads.queries, -1).swapaxes(0, 1)  # (Q, C, D)
        generator = _generator(seed, v_name)
        turns = np.stack([_orthogonal(generator, v.shape[1]) for _ in range(heads.keys)])  # (K, D, D)
        result[v_name] = (turns.swapaxes(1, 2) @ v).reshape(-1, hidden)
        result[o_name] = (o @ _for_queries(turns, heads)).swapaxes(0, 1).reshape(hidden, -1)
    return result


VARIANTS: dict[str, Callable[[Weights, Heads, int], Weights]] = {
    "on-grid": on_grid,
    "dither": dither,
    "diag": diag,
    "rot": rot,
}

_NORMS = {  # the matrices that read what a norm writes
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_READERS = tuple(f"{reader}.weight" for readers in _NORMS.values() for reader in readers)


def _fold_norms(weights: Weights) -> Weights:
    """Every RMSNorm weight multiplied into its readers, with the output head untied from the embedding."""
    result = {"lm_head.weight": weights["model.embed_tokens.weight"]} | weights
    readers = {"model.norm": ["lm_head"]} | {
        f"{layer}.{norm}": [f"{layer}.{reader}" for reader in names]
        for layer in _layers(weights)
        for norm, names in _NORMS.items()
    }
    for norm, names in readers.items():
        for name in names:
            result[f"{name}.weight"] = result[f"{name}.weight"] * weights[f"{norm}.weight"]
        result[f"{norm}.weight"] = np.ones_like(weights[f"{norm}.weight"])
    return result


def _layers(weights: Weights) -> list[str]:
    suffix = ".input_layernorm.weight"
    return [name.removesuffix(suffix) for name in weights if name.endswith(suffix)]


def _for_queries(per_key_head: Array, heads: Heads) -> Array:
    """Each key-value head's entry repeated for the query heads that share it, (K, ...) -> (Q, ...)."""
    return np.repeat(per_key_head, heads.queries // heads.keys, axis=0)


def _dithered(weight: Array, generator: np.random.Generator) -> Array:
    groups = weight.reshape(-1, GROUP)
    step = np.ptp(groups, axis=1, keepdims=True) / LEVELS
    moved: Array = groups + generator.uniform(-0.5, 0.5, groups.shape) * step
    return moved.reshape(weight.shape)


def _scales(seed: int, name: str, channels: int) -> Array:
    return np.exp(SPREAD * _generator(seed, name).standard_normal(channels))


def _orthogonal(generator: np.random.Generator, size: int) -> Array:
    """A rotation or reflection uniform over the orthogonal group: QR with a positive diagonal of R."""
    q, r = np.linalg.qr(generator.standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, crc32(name.encode())])
