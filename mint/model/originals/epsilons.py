"""Epsilons of norms, compared with those of the original classes.

Classes give some norms a constant where the original reads the config, or the config's number where the original has a
constant. The outputs differ where the inputs of such a norm are small. No config mends it: the loader's class decides.
"""

import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from mlx.nn.layers.base import Module

from mint.model.opening.readers import Reader

Original = float | tuple[str, ...]  # a constant, or the keys of the config whose product it is
_RMS: Original = ("rms_norm_eps",)
_LAYER: Original = ("layer_norm_epsilon",)
_LATENTS: dict[str, Original] = {"q_a_layernorm": 1e-6, "kv_a_layernorm": 1e-6}  # the default of the original's norm
_SPARSE: dict[str, Original] = {**_LATENTS, "indexer.k_norm": 1e-6}
# by model: norms by the ends of their paths, and the epsilons of the originals
ORIGINALS: dict[str, dict[str, Original]] = {
    "bailing_hybrid": _LATENTS,
    "dbrx": dict.fromkeys(("norm_1", "norm_2", "norm_f"), 1e-5),
    "deepseek_v2": _LATENTS,
    "deepseek_v3": _LATENTS,
    "deepseek_v32": _SPARSE,
    "glm4_moe_lite": _LATENTS,
    "glm_moe_dsa": _SPARSE,
    "kimi_linear": _LATENTS,
    "longcat_flash": _LATENTS,
    "longcat_flash_ngram": _LATENTS,
    "mamba": {"norm": _LAYER, "norm_f": _LAYER},
    "mamba2": {"norm": _LAYER, "norm_f": _LAYER},
    "minicpm3": _LATENTS,
    "mistral4": _LATENTS,
    "olmo_hybrid": {"o_norm": 1e-5},
    "phixtral": {"ln": _LAYER},
    "recurrent_gemma": {"temporal_pre_norm": _RMS, "channel_pre_norm": _RMS},
    "rwkv7": {"g_norm": ("head_dim", "norm_eps")},
    "youtu_llm": _LATENTS,
}
# by model: the epsilon that the original has where the class calls `mx.fast.rms_norm` with a constant
CALLED: dict[str, Original] = {"llama4": _RMS, "llama4_text": _RMS, "nanochat": _RMS, "plamo2": 1e-6}
_CALL = re.compile(r"fast\.rms_norm\([^()]*?\b(\d+(?:\.\d+)?e-\d+)\)")


def other_epsilons(readers: Iterable[Reader], model: Module) -> tuple[str, ...]:
    """A sentence for each class some of whose norms in `model` have another epsilon than those of the original."""
    modules = model.named_modules()
    notices = []
    for reader in readers:
        pairs: dict[tuple[float, float], set[str]] = {}
        for name, eps, original in (*_of_modules(reader, modules), *_of_calls(reader)):
            if eps != original:
                pairs.setdefault((eps, original), set()).add(name)
        texts = [f"{eps:g} instead of {original:g} in {', '.join(sorted(names))}" for (eps, original), names in
                 sorted(pairs.items())]  # fmt: skip
        if texts:
            notices.append(
                f"{reader.title} adds {' and '.join(texts)}: outputs of these norms differ from the original's "
                "where their inputs are small"
            )
    return tuple(notices)


def _of_modules(reader: Reader, modules: Iterable[tuple[str, Module]]) -> Iterable[tuple[str, float, float]]:
    originals = ORIGINALS.get(reader.model, {})
    for path, module in modules:
        for end, original in originals.items():
            eps, value = getattr(module, "eps", None), _value(original, reader.values)
            if f".{path}".endswith(f".{end}") and isinstance(eps, float) and value is not None:
                yield end.rpartition(".")[2], eps, value


def _of_calls(reader: Reader) -> Iterable[tuple[str, float, float]]:
    value = _value(CALLED.get(reader.model, ()), reader.values)
    if value is not None:
        yield from (("calls of rms_norm", float(eps), value) for eps in _CALL.findall(reader.code))


def _value(original: Original, values: Mapping[str, Any]) -> float | None:
    """The epsilon of an original; None where the config does not tell it."""
    if isinstance(original, float):
        return original
    factors = [values.get(key) for key in original]
    numbers = [factor for factor in factors if isinstance(factor, int | float)]
    return float(f"{prod(numbers):g}") if numbers and len(numbers) == len(factors) else None
