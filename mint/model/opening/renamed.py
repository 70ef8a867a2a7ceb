"""Keys and words that a class insists on, and that newer configs have under another name or leave to be derived.

A wrong value cannot go unnoticed: the shapes of the weights have to fit.
"""

from collections.abc import Iterable
from typing import Any

from mint.model.opening.implied import implied, without_only_windows
from mint.model.opening.readers import Reader
from mint.model.opening.rope import NEW

_RENAMED = {
    "num_experts": "num_local_experts", "n_ctx": "n_positions", "block_dim": "hidden_size",
    "num_layers": "num_hidden_layers", "shared_intermediate_size": "intermediate_size",  # read by no code of minimax
    "layer_norm_epsilon": "rms_norm_eps", "layernorm_epsilon": "rms_norm_eps", "sliding_window_size": "sliding_window",
    "num_experts_per_tok": "num_experts_per_token", "n_group": "num_expert_group",
    "max_position_embeddings": "model_max_length",
}  # fmt: skip
# the kinds of layers that transformers 5.2 renamed
_LAYERS = {"linear_attention": "mamba", "full_attention": "attention", "indexed_attention": "deepseek_sparse_attention"}
_LISTS = ("layer_types", "layers_block_type")
TIED = "tie_word_embeddings"


def lift_renamed(readers: Iterable[Reader]) -> None:
    """Add what classes insist on to the parts of a config that lack it, and put layers in the words of the class."""
    for reader in readers:
        values = reader.values
        values |= implied(reader)
        without_only_windows(reader)
        for name in reader.required:
            if values.get(name) is None and (value := _value(name, values)) is not None:
                values[name] = value
        for name in _LISTS:
            if isinstance(layers := values.get(name), list):
                values[name] = [_known_layer(layer, reader) for layer in layers]


def lift_tied(config: dict[str, Any], readers: Iterable[Reader], *, has_head: bool) -> None:
    """Put the tie of head and embedding, which a newer config has at its top, where the text model looks for it.

    A checkpoint with a head is tied if the config says so and no part denies it, one without if any part says so.
    """
    for reader in readers:
        answers = reader.values.get(TIED), config.get(TIED)
        if TIED in reader.fields and (has_head or any(answers)):
            reader.values[TIED] = is_tied(answers, has_head=has_head)


def is_tied(answers: Iterable[Any], *, has_head: bool) -> bool:
    """True if the parts of a config with these ties, some of which may be None, mean a tied head."""
    answers = list(answers)
    return any(answers) and not (has_head and False in answers)


def _value(name: str, values: dict[str, Any]) -> Any:
    """The value of a key by another one; None where no other tells it."""
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    if (value := values.get(_RENAMED.get(name, ""))) is not None:
        return value
    if name == "head_dim" and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        return hidden // heads
    if name == "intermediate_size" and isinstance(hidden, int) and isinstance(expand := values.get("expand"), int):
        return expand * hidden
    if name == "rotary_dim" and isinstance(width := values.get("head_dim"), int):
        rope = values.get(NEW) or values
        return int(width * float(rope.get("partial_rotary_factor") or 1.0))
    if name == "is_moe_layer" and isinstance(layers := values.get("mlp_layer_types"), list):
        return [layer == "sparse" for layer in layers]
    return None


def _known_layer(layer: Any, reader: Reader) -> Any:
    older = _LAYERS.get(layer) if isinstance(layer, str) else None
    knows_older = older and f'"{layer}"' not in reader.code and f'"{older}"' in reader.code
    return older if knows_older else layer
