"""A weight in packed parts, which its module is called with: it is unpacked to float32 during the call, and dropped.

A stack of experts in blocks is unpacked block by block, each for the inputs of its experts.
"""

# N calls of an expert, S experts of a block

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding

from mint.formats.units import Unit
from mint.kernels.backend import backend
from mint.kernels.storage import numpy_view
from mint.model.source import Source
from mint.run.stacks import BLOCK, comes_in_blocks

Parts = tuple[mx.array, ...]


def unpacked_size(source: Source, unit: Unit) -> int:
    """The most weights of a packed unit that are unpacked at once."""
    return max(BLOCK, unit.size // unit.shape[0]) if comes_in_blocks(source, unit) else unit.size


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The packed parts of a weight, in blocks along its first axis, and the function that unpacks them to float32."""

    blocks: tuple[Parts, ...]
    unpack: Callable[[Parts], mx.array]

    def call(self, method: Callable[..., mx.array], module: Module, *arguments: Any, **options: Any) -> mx.array:
        """The hook of a module that is called with this weight in place of its own."""
        if method is Embedding.__call__:
            return self.unpack(tuple(part[arguments[0]] for part in self._whole()))
        if len(self.blocks) > 1 and len(arguments) > 1 and isinstance(arguments[1], mx.array):
            return self._call_by_blocks(method, module, *arguments, **options)
        with _holding(module, weight=self.unpack(self._whole())):
            return _computed(method(module, *arguments, **options))

    def _whole(self) -> Parts:
        if len(self.blocks) == 1:
            return self.blocks[0]
        return tuple(mx.concatenate(list(parts)) for parts in zip(*self.blocks, strict=True))

    def _call_by_blocks(
        self,
        method: Callable[..., mx.array],
        module: Module,
        x: mx.array,
        indices: mx.array,
        *rest: Any,
        **options: Any,
    ) -> mx.array:
        """Call a stack on the inputs `x` (..., M, C) of the experts that `indices` (...) name, block by block."""
        inputs = x.reshape(-1, *x.shape[-2:])
        numbers = np.arange(len(inputs)).reshape(x.shape[:-2])  # of the input of every call
        numbers, named = np.broadcast_arrays(numbers, numpy_view(indices))
        shape, numbers, experts = named.shape, numbers.reshape(-1), named.reshape(-1)
        answers, order, start = [], [], 0
        for parts in self.blocks:
            stop = start + len(parts[0])
            calls = np.flatnonzero((start <= experts) & (experts < stop))
            if calls.size:
                held = {"weight": self.unpack(parts)}
                if "bias" in module:
                    held["bias"] = module["bias"][start:stop]
                with _holding(module, **held):
                    chosen = mx.array((experts[calls] - start).astype(np.uint32))
                    answers.append(
                        _computed(method(module, inputs[mx.array(numbers[calls])], chosen, *rest, **options))
                    )
                order.append(calls)
            start = stop
        answer = mx.concatenate(answers)[mx.array(np.argsort(np.concatenate(order)))]
        return answer.reshape(*shape, *answer.shape[1:])


@contextmanager
def _holding(module: Module, **arrays: mx.array) -> Iterator[None]:
    """While this lasts, a module has these parameters; then those of before."""
    before = {name: module.pop(name, None) for name in arrays}
    for name, array in arrays.items():
        module[name] = array
    try:
        yield
    finally:
        for name, array in before.items():
            module.pop(name)
            if array is not None:
                module[name] = array


def _computed(answer: mx.array) -> mx.array:
    """The answer of a module, computed unless weights are unpacked lazily: its weight is dropped after it."""
    if not backend().unpacks_lazily:
        mx.eval(answer)
    return answer
