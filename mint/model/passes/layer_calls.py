"""Traces the calls of a model's layers, and what each of them uses of earlier ones; nothing is computed.

A call may use more than the answer of the call before it: keys and values that an earlier layer cached, answers of
earlier layers, a dictionary that all layers write to. In a lazy pass every answer and every state that a call leaves
is replaced by an evaluated stand-in; MLX's own graph then tells which stand-ins feed the arguments of a later call.
"""

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map

from mint.model.hooks import hooked
from mint.model.lineage import batches, names_behind, read_graph
from mint.model.passes.logits import logits_of


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a layer in a pass: the last calls that use its answer and the states it leaves.

    Calls are counted from 0; the model's own output counts as one more. A state is a cache, another object
    or a dictionary among the arguments. -1: no call uses it.
    """

    path: str
    answer_until: int
    states_until: int


def trace_layer_calls(model: Module, layers: Mapping[str, Module], tokens: mx.array) -> tuple[LayerCall, ...]:
    """The calls of `layers` in a pass on `tokens` (B, L), in their order. Exceptions of the model come through."""
    trace = _Trace()
    with hooked(layers, {path: partial(trace.call, path) for path in layers}):
        logits = logits_of(model, tokens)
    trace.use([logits])
    return tuple(
        LayerCall(path, max(trace.answer_uses[index]), max(trace.state_uses[index]))
        for index, path in enumerate(trace.paths)
    )


class _Trace:
    """The calls so far; index i of `answer_uses` and `state_uses` lists the calls that use those of call i."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.answer_uses: list[list[int]] = []
        self.state_uses: list[list[int]] = []
        self._stand_ins: dict[str, mx.array] = {}  # `number kind` of an answer or a state, by a unique name
        self._writers: dict[int, tuple[Any, int]] = {}  # of a state: the last call that it was given to

    def call(self, path: str, method: Any, layer: Module, *arguments: Any, **options: Any) -> Any:
        states = list(states_in(*arguments, *options.values()))
        self.use([arguments, options])
        index = len(self.paths)
        for state in states:
            if id(state) in self._writers:
                self.state_uses[self._writers[id(state)][1]].append(index)
            self._writers[id(state)] = state, index
        self.paths.append(path)
        self.answer_uses.append([-1])
        self.state_uses.append([-1])
        answer = method(layer, *arguments, **options)
        for state in states:
            write_state(state, self._replaced(read_state(state), f"{index} state"))
        return self._replaced(answer, f"{index} answer")

    def use(self, values: Any) -> None:
        """Note which answers and states the arrays among `values` are computed from, as used by the next call."""
        named = {id(stand_in): name for name, stand_in in self._stand_ins.items()}
        flat: Any = tree_flatten(values)
        arrays = [array for _, array in flat if isinstance(array, mx.array)]
        names = {named[id(array)] for array in arrays if id(array) in named}
        computed = {f"value {number}": array for number, array in enumerate(arrays) if id(array) not in named}
        for stand_ins in batches(self._stand_ins, beside=len(computed)):
            names |= names_behind(computed, read_graph(computed | stand_ins)) & stand_ins.keys()
        for name in names:
            index, kind = name.split()[:2]
            uses = self.answer_uses if kind == "answer" else self.state_uses
            uses[int(index)].append(len(self.paths))

    def _replaced(self, tree: Any, kind: str) -> Any:
        """The same tree over evaluated stand-ins."""

        def stand_in(value: Any) -> Any:
            if not isinstance(value, mx.array):
                return value
            array = mx.zeros(value.shape, value.dtype)
            mx.eval(array)
            self._stand_ins[f"{kind} {len(self._stand_ins)}"] = array
            return array

        return tree_map(stand_in, tree)


def states_in(*values: Any) -> Iterator[Any]:
    """The caches, other objects and dictionaries among the arguments of a call, which it can write to."""
    for value in values:
        inner = value if isinstance(value, list | tuple) else getattr(value, "caches", None)
        if inner is not None:
            yield from states_in(*inner)
        elif (isinstance(value, dict) or hasattr(value, "__dict__")) and not isinstance(value, Module):
            yield value


def read_state(state: Any) -> dict[str, Any]:
    """The fields of a cache, or the entries of a dictionary, in handles of their own: a later write changes no copy."""
    fields: dict[str, Any] = copied(state if isinstance(state, dict) else vars(state))
    return fields


def write_state(state: Any, fields: dict[str, Any]) -> None:
    """Put fields that `read_state` read into the same state, or into one of the same kind."""
    (state if isinstance(state, dict) else vars(state)).update(copied(fields))


def copied(tree: Any) -> Any:
    """The same tree over new handles of the same arrays: MLX writes in place by changing the handle."""
    return tree_map(lambda value: copy(value) if isinstance(value, mx.array) else value, tree)
