"""The unit whose output a layer adds to its own, as it is or after a norm: what it has more, the layer has more."""

# L tokens, D channels

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.base import Module

from mint.model.hooks import hooked

_TOLERANCE = 1e-3  # of the change, in norms
_ROUNDED = 1e-2  # of a norm's output: its epsilon, and dtypes
_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class AddedOutput:
    """A unit's output z is added to that of its layer, as gain * z or gain * z / rms(z)."""

    path: str
    gain: mx.array  # (D,), float32
    is_normalized: bool = False


def added_output(modules: Mapping[str, Module], paths: Sequence[str], answer: Callable[[], Any]) -> AddedOutput | None:
    """The first of the units at `paths` whose output is added; `answer` computes that of the layer, (1, L, D).

    `modules` are those of the layer. Each unit is tried: its output is changed, and the rest has to change alike.
    """
    before = answer()
    if not isinstance(before, mx.array) or not mx.issubdtype(before.dtype, mx.floating):
        return None
    trial = _Trial(modules, answer, before)
    for path in paths:
        if factor := trial.factor(path):
            return AddedOutput(path, mx.full(before.shape[-1], factor))
    for path in paths:
        if (norm := trial.norm_after(path)) and (factor := trial.factor(norm[0])):
            return AddedOutput(path, factor * norm[1], is_normalized=True)
    return None


class _Trial:
    """Passes of one layer with one module's output changed."""

    def __init__(self, modules: Mapping[str, Module], answer: Callable[[], Any], before: mx.array) -> None:
        self._modules = modules
        self._answer = answer
        self._before = before
        size = mx.sqrt(mx.square(before.astype(mx.float32)).mean())
        self._change = mx.random.normal(before.shape, key=mx.random.key(_SEED)) * size

    def factor(self, path: str) -> float:
        """The factor before the output of this module in that of the layer; 0 if it is not added."""
        change = self._change

        def changed(method: Any, module: Module, *arguments: Any, **options: Any) -> Any:
            output = method(module, *arguments, **options)
            return output + change if getattr(output, "shape", None) == change.shape else output

        with hooked(self._modules, {path: changed}):
            difference = (self._answer() - self._before).astype(mx.float32)
        factor = (difference * change).sum() / mx.square(change).sum()
        rest = mx.sqrt(mx.square(difference - factor * change).sum() / mx.square(change).sum())
        scale = cast(float, factor.item())
        return scale if abs(cast(float, rest.item())) <= _TOLERANCE * abs(scale) else 0.0

    def norm_after(self, path: str) -> tuple[str, mx.array] | None:
        """The path and the gain (D,) of the root-mean-square norm that is given the output of this module."""
        outputs: list[Any] = []
        given: dict[str, mx.array] = {}

        def note_output(method: Any, module: Module, *arguments: Any, **options: Any) -> Any:
            outputs.append(method(module, *arguments, **options))
            return outputs[-1]

        def note_given(other: str, method: Any, module: Module, *arguments: Any, **options: Any) -> Any:
            if arguments and any(arguments[0] is output for output in outputs):
                given[other] = arguments[0]
            return method(module, *arguments, **options)

        hooks = {other: partial(note_given, other) for other in self._modules if other != path}
        with hooked(self._modules, hooks | {path: note_output}):
            self._answer()
        for other, rows in given.items():
            if (gain := _gain(self._modules[other], rows)) is not None:
                return other, gain
        return None


def _gain(module: Module, rows: mx.array) -> mx.array | None:
    """The gain (D,) of a root-mean-square norm that answers gain * row / rms(row); None for any other module."""
    if not isinstance(module.get("weight"), mx.array) or module["weight"].ndim != 1:
        return None
    wide = rows.astype(mx.float32)
    gain = cast(Any, module)(mx.ones_like(wide))[0, 0].astype(mx.float32)
    expected = gain * wide / sizes_of(wide)
    error = mx.square(cast(Any, module)(wide) - expected).sum() / mx.square(expected).sum()
    return gain if cast(float, error.item()) <= _ROUNDED**2 else None


def sizes_of(rows: mx.array) -> mx.array:
    """The root mean squares (..., 1) of rows (..., D), in float32."""
    return mx.sqrt(mx.square(rows.astype(mx.float32)).mean(axis=-1, keepdims=True))
