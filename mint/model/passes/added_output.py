"""The unit whose output a layer adds to its own: what it puts out more, the layer puts out more."""

# L tokens, D channels

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.base import Module

from mint.model.hooks import hooked

_TOLERANCE = 1e-3  # of the change, in norms
_SEED = 0


def added_output(modules: Mapping[str, Module], paths: Iterable[str], answer: Callable[[], Any]) -> tuple[str, float]:
    """The first of the modules at `paths` whose output is added to `answer` (1, L, D), and the factor before it.

    An empty path if there is none. Each module is tried: its output is changed, and the answer has to change alike.
    """
    before = answer()
    if not isinstance(before, mx.array) or not mx.issubdtype(before.dtype, mx.floating):
        return "", 0.0
    size = mx.sqrt(mx.square(before.astype(mx.float32)).mean())
    change = mx.random.normal(before.shape, key=mx.random.key(_SEED)) * size

    def changed(method: Any, module: Module, *arguments: Any, **options: Any) -> Any:
        output = method(module, *arguments, **options)
        return output + change if getattr(output, "shape", None) == change.shape else output

    for path in paths:
        with hooked(modules, {path: changed}):
            difference = (answer() - before).astype(mx.float32)
        factor = (difference * change).sum() / mx.square(change).sum()
        rest = mx.sqrt(mx.square(difference - factor * change).sum() / mx.square(change).sum())
        if abs(cast(float, rest.item())) <= _TOLERANCE * abs(scale := cast(float, factor.item())) and scale:
            return path, scale
    return "", 0.0
