"""The logits of a model, computed as generation computes them: over caches.

Some models compute another function without caches: in Gemma 3n the last layers take the keys and values of earlier
ones from the caches, and use weights of their own, which were never trained, where there are none.
"""

# B sequences, L tokens, V vocabulary

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mint.model.module_tree import make_cache


def logits_of(model: Module, tokens: mx.array, caches: list[Any] | None = None) -> mx.array:
    """The logits (B, L, V) after each of the tokens (B, L), which follow those in `caches` (none by default)."""
    output = model(tokens, cache=make_cache(model) if caches is None else caches)
    logits: mx.array = output if isinstance(output, mx.array) else output.logits
    return logits
