"""The logits of a model, computed as generation computes them: over caches.

Some models compute another function without caches: in Gemma 3n the last layers take the keys and values of earlier
ones from the caches, and use weights of their own, which were never trained, where there are none.
"""

# B sequences, L tokens, V vocabulary

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mint.core.errors import MintError
from mint.model.module_tree import make_cache


class NeedsMetalError(MintError):
    """The forward pass of a model runs on a Metal GPU only."""


def logits_of(model: Module, tokens: mx.array, caches: list[Any] | None = None) -> mx.array:
    """The logits (B, L, V) after each of the tokens (B, L), which follow those in `caches` (none by default).

    Raises `NeedsMetalError` where the model calls a kernel that this machine cannot run.
    """
    try:
        output = model(tokens, cache=make_cache(model) if caches is None else caches)
    except RuntimeError as error:
        if "No Metal back-end" not in str(error):
            raise
        raise NeedsMetalError("the forward pass of this model calls Metal kernels; needed: a Mac with a GPU") from error
    logits: mx.array = output if isinstance(output, mx.array) else output.logits
    return logits
