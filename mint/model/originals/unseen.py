"""Finds the keys of a config that carry meaning and that no class reads.

mlx_lm's classes ignore unknown keys in silence, so a model with a scaling, a window or an activation that its class
lacks is computed without them. A key is worth a notice if its name speaks of such a thing, its value is not the usual
one, and neither the fields nor the code of its class mention it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mint.model.opening.implied import PATTERNS, is_regular
from mint.model.opening.readers import Reader
from mint.model.opening.rope import NEW, OTHER_NAMES, old_words
from mint.model.originals.epsilons import CALLED

_MEANING = re.compile(
    r"rope|rotary|theta|eps|act(ivation)?(_fn|_function)?$|hidden_act|softcap|scal|sliding|window|multiplier"
    r"|swiglu|norm_topk|scoring|layer_types$"
)
_ASIDE = re.compile(
    r"^_|dropout|init|quant|token|image|vision|audio|project|loss|aux|router_|max_window_layers"
    "|no_rope_layer|mlp_layer_types|time_step_scale"
)
_MISTRALS = ("mistral", "ministral3")  # in transformers all their layers have the window
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_FULL = "full_attention"
_SCALING = "rope_scaling"
_YARNS = ("yarn", "deepseek_yarn", "telechat3-yarn")
_MLX_EPS = 1e-5  # of a norm whose code does not say it
_NEUTRAL = (None, False, 0, 1, "", "default", "none")
# flags by name, as classes compute that do not read them
_FLAGS = {
    "is_causal": True, "norm_topk_prob": False, "rope_interleave": True, "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True, "use_bidirectional_attention": False,
}  # fmt: skip
_ROTARY = re.compile(r"RoPE|initialize_rope|fast\.rope|apply_rotary|rotary_emb\(")  # in code that rotates
_MLX_THETA = 10000.0  # the base of a rotation whose code does not say it
_HALF = re.compile(r"RoPE\(\s*[\w.]+ // 2")  # rotates half of the dimensions
_NUMBERS = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}  # as MLX computes them for all models
_GATED = ("silu", "swiglu", "switchglu")
_ACTIVATIONS = {"silu": _GATED, "swish": _GATED, "gelu": ("gelu", "geglu"), "relu": ("relu",)}  # words of the code
_NUMBER = re.compile(r"(?<![\w.])\d+\.?\d*(?:e-?\d+)?")


def unseen_keys(readers: Iterable[Reader]) -> tuple[str, ...]:
    """A sentence for each class that cannot see keys of its part of the config."""
    notices = []
    for reader in readers:
        prefix = f"{reader.key}." if reader.key else ""
        values = reader.values
        if values.get(NEW) is not None and not reader.sees(NEW):
            values = {**old_words(reader), **values}
        keys = [f"{prefix}{name}" for name, value in values.items() if _is_lost(reader, name, value)]
        if keys := [*keys, *_lost_of_rope(reader, prefix)]:
            notices.append(f"config.json: {reader.title} does not read {', '.join(keys)}; it computes without")
        notices += [f"{reader.title} {fault}: it computes another function than the original" for fault in
                    _faults(reader)]  # fmt: skip
    return tuple(notices)


def _is_lost(reader: Reader, name: str, value: Any) -> bool:
    if name == "sliding_window" and _has_window_everywhere(reader):
        return True
    if isinstance(value, bool):
        is_of_experts = name != "norm_topk_prob" or any(map(reader.sees, _EXPERTS))
        return name in _FLAGS and value is not _FLAGS[name] and is_of_experts and not reader.sees(name)
    if name == "layer_types":
        return _has_odd_layers(reader)
    if not _MEANING.search(name) or _ASIDE.search(name) or reader.sees(name) or name == NEW or not _is_meant(value):
        return False
    given = reader.fields & reader.values.keys()
    if isinstance(value, str):
        words = [word for known, code in _ACTIVATIONS.items() if known in value for word in code]
        return not any(re.search(rf"{word}(?!\d)", reader.code.lower()) for word in (*words, value.lower()))
    if re.search("eps|softcap", name) and value in map(float, _NUMBER.findall(reader.code)):
        return False  # the class has the same number for all its models
    if "eps" in name and value == _MLX_EPS and re.search(r"nn\.(RMS|Layer)Norm\([^,()]*\)", reader.code):
        return False
    if "sliding" in name or "window" in name:
        layers = reader.values.get("layer_types")
        is_used = reader.values.get("use_sliding_window") is not False and "sliding" in str(layers or "sliding")
        return is_used and not any("window" in other for other in given) and not ("pattern" in name and layers)
    if "eps" in name:
        return reader.model not in CALLED and not any("eps" in other for other in given)
    if name in _NUMBERS:
        return bool(value != _NUMBERS[name])
    if re.search("rope|rotary|theta", name):
        if (name == "rope_theta" and value == _MLX_THETA and not re.search(r"\bbase=", reader.code)) or (
            name == "partial_rotary_factor" and value == 0.5 and _HALF.search(reader.code)
        ):
            return False
        return bool(_ROTARY.search(reader.code)) and not given & set(OTHER_NAMES)
    return True


def _has_odd_layers(reader: Reader) -> bool:
    """True for a class of a regular pattern, and layers that follow another one, or none."""
    layers, known = reader.values["layer_types"], [name for name in PATTERNS if name in reader.fields]
    if reader.sees("layer_types") or not isinstance(layers, list) or not known or len(set(map(str, layers))) < 2:
        return False
    pattern = reader.values.get(known[0]) or [*map(str, layers), _FULL].index(_FULL) + 1
    return isinstance(pattern, int) and not is_regular(layers, pattern)


def _lost_of_rope(reader: Reader, prefix: str) -> list[str]:
    """The keys of a scaling of positions that the rotary embeddings of the package do not read."""
    scaling = reader.values.get(_SCALING)
    if not isinstance(scaling, dict) or _kind(scaling) not in _YARNS:
        return []
    lost = {"truncate": scaling.get("truncate") is False,
            "attention_factor": scaling.get("attention_factor") is not None and "mscale" not in scaling}  # fmt: skip
    seen = f"{reader.code}{reader.rope_code}"
    return [f"{prefix}{_SCALING}.{name}" for name, is_meant in lost.items() if is_meant and f'"{name}"' not in seen]


def _kind(scaling: Mapping[str, Any]) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _faults(reader: Reader) -> list[str]:
    """The differences of a class from its original, whatever the config says."""
    return [fault.text for fault in _FAULTS if fault.model in ("", reader.model) and fault.applies(reader)]


@dataclass(frozen=True, slots=True)
class _Fault:
    """A difference between a class and the original, which its code shows, so that a mended class has none."""

    model: str  # the module of the class; empty for all
    applies: Callable[[Reader], bool]
    text: str


def _takes_long_factors(reader: Reader) -> bool:
    scaling = reader.values.get(_SCALING)
    if not isinstance(scaling, dict) or _kind(scaling) not in ("longrope", "su"):
        return False
    has_one = re.search(r"_freqs = mx\.array\(long_factor", reader.rope_code)
    return scaling.get("short_factor") != scaling.get("long_factor") and bool(has_one)


def _divides_untied_heads_alone(reader: Reader) -> bool:
    values = reader.values
    is_scaled = values.get("dim_model_base") not in (None, values.get("hidden_size"))
    return is_scaled and bool(values.get("tie_word_embeddings")) and "as_linear(out)" in reader.code


def _concatenates_heads(reader: Reader) -> bool:
    return reader.values.get("multi_query") is False and "mx.split(" in reader.code


_OFFSET_OF_FILLED_CACHE = re.compile(r"keys, values = state\[0\], state\[1\]\s+offset = cache\.offset")

_FAULTS = (
    _Fault("gemma3n", lambda reader: bool(_OFFSET_OF_FILLED_CACHE.search(reader.code)),
           "rotates queries of layers that share keys as if they came after all keys"),
    _Fault("gpt_bigcode", _concatenates_heads, "splits queries, keys and values as if they were not side by side"),
    _Fault("jamba", lambda reader: reader.values.get("num_experts", 0) > 1 and "mx.softmax(scores" in reader.code,
           "lets the weights of the chosen experts sum to one"),
    _Fault("minicpm3", _divides_untied_heads_alone, "does not scale the logits of a tied head"),
    _Fault("", _takes_long_factors, "rotates by the factors of long contexts (longrope) at every length"),
)  # fmt: skip


def _has_window_everywhere(reader: Reader) -> bool:
    """True for a Mistral whose class gives the window only to layers that `layer_types` names, which it lacks."""
    values, fields = reader.values, reader.fields
    window, positions = values.get("sliding_window"), values.get("max_position_embeddings")
    is_short = isinstance(window, int) and (not isinstance(positions, int) or window < positions)
    by_layer = {"sliding_window", "layer_types"} <= fields and not values.get("layer_types")
    return is_short and by_layer and values.get("model_type") in _MISTRALS


def _is_meant(value: Any) -> bool:
    """False for values that stand for nothing: none, off, a factor of one, a plain type of rotary embedding."""
    if isinstance(value, Mapping):
        return str(value.get("rope_type") or value.get("type") or "default") != "default"
    return bool(value not in _NEUTRAL if isinstance(value, str | int | float | None) else value)
