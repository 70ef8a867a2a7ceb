"""Finds the keys of a config that carry meaning and that no class reads.

mlx_lm's classes ignore unknown keys in silence, so a model with a scaling, a window or an activation that its class
lacks is computed without them. A key is worth a notice if its name speaks of such a thing, its value is not the usual
one, and neither the fields nor the code of its class mention it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mint.model.opening.readers import Reader
from mint.model.opening.rope import NEW, OTHER_NAMES, old_words

_MEANING = re.compile(r"rope|rotary|theta|eps|act(ivation)?(_fn)?$|hidden_act|softcap|scal|sliding|window|multiplier")
_ASIDE = re.compile(
    r"^_|dropout|init|quant|token|image|vision|audio|project|loss|aux|router_|max_window_layers|^rope_interleave"
    "|no_rope_layer"
)
_MISTRALS = ("mistral", "ministral3")  # in transformers all their layers have the window
_MLX_EPS = 1e-5  # of a norm whose code does not say it
_NEUTRAL = (None, False, 0, 1, "", "default", "none")
_ROTARY = re.compile(r"\brope|RoPE|rotary")  # in code that knows positions of this kind
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
        if keys := [f"{prefix}{name}" for name, value in values.items() if _is_lost(reader, name, value)]:
            notices.append(f"config.json: {reader.title} does not read {', '.join(keys)}; it computes without")
    return tuple(notices)


def _is_lost(reader: Reader, name: str, value: Any) -> bool:
    if name == "sliding_window" and _has_window_everywhere(reader):
        return True
    if not _MEANING.search(name) or _ASIDE.search(name) or reader.sees(name) or name == NEW or not _is_meant(value):
        return False
    given = reader.fields & reader.values.keys()
    if isinstance(value, str):
        words = [word for known, code in _ACTIVATIONS.items() if known in value for word in code]
        return not any(word in reader.code.lower() for word in (*words, value.lower()))
    if re.search("eps|softcap", name) and value in map(float, _NUMBER.findall(reader.code)):
        return False  # the class has the same number for all its models
    if "eps" in name and value == _MLX_EPS and re.search(r"nn\.(RMS|Layer)Norm\([^,()]*\)", reader.code):
        return False
    if "sliding" in name or "window" in name:
        layers = reader.values.get("layer_types")
        is_used = reader.values.get("use_sliding_window") is not False and "sliding" in str(layers or "sliding")
        return is_used and not any("window" in other for other in given) and not ("pattern" in name and layers)
    if "eps" in name:
        return not any("eps" in other for other in given)
    if re.search("rope|rotary|theta", name):
        return bool(_ROTARY.search(reader.code)) and not given & set(OTHER_NAMES)
    return True


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
