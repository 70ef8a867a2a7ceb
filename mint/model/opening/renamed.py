"""Keys that a class insists on, and that newer configs have under another name or leave to be derived.

A wrong value cannot go unnoticed: the shapes of the weights have to fit.
"""

from collections.abc import Iterable

from mint.model.opening.readers import Reader

_RENAMED = {"num_experts": "num_local_experts", "n_ctx": "n_positions", "block_dim": "hidden_size"}


def lift_renamed(readers: Iterable[Reader]) -> None:
    """Add what classes insist on to the parts of a config that lack it."""
    for reader in readers:
        values = reader.values
        for name in reader.required:
            if values.get(name) is not None:
                continue
            hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
            if (value := values.get(_RENAMED.get(name, ""))) is not None:
                values[name] = value
            elif name == "head_dim" and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
                values[name] = hidden // heads
