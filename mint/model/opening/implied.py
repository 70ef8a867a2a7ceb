"""Keys that a class insists on and that newer configs leave out, since the architecture or other keys imply them.

transformers 5 writes no key that its class never varies, and lists of kinds of layers in place of patterns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mint.model.opening.defaults import DEFAULTS
from mint.model.opening.readers import Reader

Values = Mapping[str, Any]

# by model type: the values that its checkpoints always have
_ALWAYS: dict[str, dict[str, Any]] = {
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
    "gemma4_unified_text": {"hidden_size_per_layer_input": 0},
    "glm4v_moe_text": {"use_qk_norm": False},
    "glm_moe_dsa": {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1},
    "kimi_linear": {"rope_theta": 10000.0, "mla_use_nope": True},  # no layer of it rotates
    "longcat_flash": {
        "attention_method": "MLA", "zero_expert_type": "identity", "mla_scale_q_lora": True, "mla_scale_kv_lora": True,
    },
    "mimo_v2_flash": {
        "topk_method": "noaux_tc", "scoring_func": "sigmoid", "n_shared_experts": None,
        "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False,
    },
    "qwen3_vl_moe_text": {"norm_topk_prob": True},
    "solar_open": {"first_k_dense_replace": 0, "intermediate_size": 0, "partial_rotary_factor": 1.0},
}  # fmt: skip
PATTERNS = ("sliding_window_pattern", "full_attention_interval")  # every such layer attends to everything
_LETTERS = ("exaone4",)  # classes whose pattern is a word of L (with a window) and G
_INSISTING = ("mlx_lm deepseek_v2", "mlx_lm minicpm3")  # classes whose code fails without a scaling of the positions
_OF_WHOLE_LAYERS = ("llama", "ministral3")  # classes whose layers have no window where nothing lists them
_OF_WINDOWS = "swa_"  # before a key: the same of layers with a window


def without_only_windows(reader: Reader) -> None:
    """Remove a list of layers that all have a window, for a class that looks for one without: its layers have none.

    The window that no layer has then is told as one that the class does not read.
    """
    layers = reader.values.get("layer_types")
    has_only_windows = isinstance(layers, list) and set(map(str, layers)) == {"sliding_attention"}
    if has_only_windows and reader.model in _OF_WHOLE_LAYERS:
        reader.values["layer_types"] = None


def implied(reader: Reader) -> dict[str, Any]:
    """The values of keys that the class of a part of a config reads and that the part lacks."""
    values = reader.values
    found = {**_ALWAYS.get(str(values.get("model_type")), {}), **_followed(reader)}
    found = {name: value for name, value in found.items() if name in reader.fields and values.get(name) is None}
    defaults = DEFAULTS.get(str(values.get("model_type")), {})
    return {name: value for name, value in defaults.items() if _is_left_out(name, reader)} | found | _pattern(reader)


def _is_left_out(name: str, reader: Reader) -> bool:
    return name in reader.fields and name not in reader.values


def is_regular(layers: Sequence[Any], pattern: object) -> bool:
    """True if of these kinds of layers exactly every one after `pattern` layers attends to everything."""
    return isinstance(pattern, int) and pattern > 0 and _is_full(layers) == [
        (index + 1) % pattern == 0 for index in range(len(layers))
    ]  # fmt: skip


def _followed(reader: Reader) -> dict[str, Any]:
    values = reader.values
    windowed = [name for name in reader.required if name.startswith(_OF_WINDOWS)]
    follows = {name: values.get(name.removeprefix(_OF_WINDOWS)) for name in windowed}
    follows |= {name: follow(values) for name, follow in _FOLLOWS.items()}
    follows |= {"rope_scaling": _no_scaling(values)} if f"{reader.package} {reader.model}" in _INSISTING else {}
    return {name: value for name, value in follows.items() if value is not None}


def _pattern(reader: Reader) -> dict[str, Any]:
    """The pattern of layers for a class that does not see their list."""
    layers = reader.values.get("layer_types")
    if not isinstance(layers, list) or "layer_types" in reader.fields or not any(_is_full(layers)):
        return {}
    names = [name for name in PATTERNS if name in reader.fields]
    if reader.model in _LETTERS:
        return {name: "".join("G" if full else "L" for full in _is_full(layers)) for name in names}
    every = _is_full(layers).index(True) + 1
    return {name: every for name in names if reader.values.get(name) is None and is_regular(layers, every)}


def _is_full(layers: Sequence[Any]) -> list[bool]:
    return [layer == "full_attention" for layer in layers]


def _head_dim(values: Values) -> Any:
    """The width of a head where the original class derives it and that of MLX has a default."""
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    is_derived = values.get("model_type") == "falcon_h1" and isinstance(hidden, int) and isinstance(heads, int)
    return hidden // heads if is_derived and heads else None


def _no_scaling(values: Values) -> dict[str, Any]:
    """A scaling of the positions that changes nothing."""
    positions = values.get("max_position_embeddings")
    return {"type": "default", "factor": 1.0, "original_max_position_embeddings": positions}


def _dense_layers(values: Values) -> Any:
    """The number of dense layers, if all of them come first."""
    layers = values.get("mlp_layer_types")
    if not isinstance(layers, list) or layers != sorted(layers, key=str):
        return None
    return layers.count("dense")


def _linear_attention(values: Values) -> Any:
    """The dictionary of Kimi Linear, whose layers have numbers from 1."""
    layers = values.get("layer_types")
    if not isinstance(layers, list) or values.get("linear_num_heads") is None:
        return None
    numbered = list(enumerate(_is_full(layers), 1))
    return {
        "kda_layers": [number for number, full in numbered if not full],
        "full_attn_layers": [number for number, full in numbered if full],
        "num_heads": values["linear_num_heads"],
        "head_dim": values.get("linear_head_dim"),
        "short_conv_kernel_size": values.get("linear_conv_kernel_dim"),
    }


def _mimo_heads(values: Values) -> Any:
    """The heads of keys and values in layers with a window of MiMo V2 Flash: twice those of others."""
    heads = values.get("num_key_value_heads")
    return 2 * heads if isinstance(heads, int) and values.get("model_type") == "mimo_v2_flash" else None


def _flags(key: str, kind: str) -> Callable[[Values], Any]:
    """The function that marks layers of a kind in a list by 1."""

    def flags(values: Values) -> Any:
        layers = values.get(key)
        return [int(layer == kind) for layer in layers] if isinstance(layers, list) else None

    return flags


_FOLLOWS: dict[str, Callable[[Values], Any]] = {
    "block_dim": lambda values: values.get("hidden_size"),  # of LFM2
    "head_dim": _head_dim,
    "swa_num_key_value_heads": _mimo_heads,
    "first_k_dense_replace": _dense_layers,
    "linear_attn_config": _linear_attention,
    "hybrid_layer_pattern": _flags("layer_types", "sliding_attention"),
    "moe_layer_freq": lambda values: (
        _flags("mlp_layer_types", "sparse")(values) if values.get("model_type") == "mimo_v2_flash" else None
    ),
}
