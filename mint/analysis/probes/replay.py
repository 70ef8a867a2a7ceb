"""Replays the first calls of a model's layers, so that a pass after a change in layer k starts at layer k.

A pass records what each call of a layer answers, and the caches that it leaves where a later call uses them. In later
passes the calls before a given one return that and compute nothing. A lazy pass tells beforehand in which order the
layers are called and what is used later, so it works for every architecture, and can hold no more than it needs.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map

from mint.model.hooks import hooked
from mint.model.passes.layer_calls import copied, read_state, states_in, trace_layer_calls, write_state


@dataclass(slots=True)
class _Record:
    """The answer of a call, and the states among its arguments if a later call uses them."""

    answer: Any
    states: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Argument:
    """Stands in an answer for an object that the call was given: a later pass gives another."""

    index: int


class Replay:
    """The layers of `model` at `paths`, and what their calls left in passes on sequences as long as `tokens` (B, L)."""

    def __init__(self, model: Module, paths: Collection[str], tokens: mx.array) -> None:
        self._layers = {path: module for path, module in model.named_modules() if path in paths}
        self._calls = trace_layer_calls(model, self._layers, tokens[:1])
        self._records: list[_Record] = []

    @property
    def order(self) -> list[str]:
        """The paths of the layers in the order of their calls."""
        return [call.path for call in self._calls]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what all calls leave while this lasts: one pass."""
        self._records.clear()
        with self._answering(0, record=True):
            yield

    @contextmanager
    def before(self, path: str | None) -> Iterator[None]:
        """Replay the calls before the first of the layer at `path`; all calls for None."""
        with self._answering(self._end(path)):
            yield

    @contextmanager
    def up_to(self, path: str, *, record: bool = False) -> Iterator[list[Any]]:
        """Replay all recorded calls and end the pass after the next, that of the layer at `path`; maybe record it.

        The list gets the answer of that call. Recording drops what no later call uses.
        """
        assert self.order[len(self._records)] == path, "layers are recorded in their order"
        answers: list[Any] = []
        try:
            with self._answering(len(self._records), record=record, last=answers):
                yield answers
        except _PassedError:
            if record:
                self._drop_unused()

    def share_before(self, path: str | None) -> float:
        """The share of the calls that `before` replays."""
        return self._end(path) / len(self._calls) if self._calls else 0.0

    @property
    def last(self) -> Any:
        """The answer of the last recorded call."""
        return self._records[-1].answer

    @property
    def largest(self) -> float:
        """The largest magnitude in the answer of the last recorded call."""
        flat: Any = tree_flatten(self.last)
        sizes = [mx.abs(value).max() for _, value in flat if isinstance(value, mx.array)]
        return max((cast(float, size.item()) for size in sizes), default=0.0)

    def another(self) -> "Replay":
        """A replay of the same calls that has recorded nothing, for other sequences as long."""
        other = copy(self)
        other._records = []
        return other

    def forget(self) -> None:
        """Compute everything from now on."""
        self._records.clear()

    def _end(self, path: str | None) -> int:
        """The number of recorded calls before the first of the layer at `path`."""
        if path is None:
            return len(self._records)
        return min(self.order.index(path), len(self._records)) if path in self.order else 0

    @contextmanager
    def _answering(self, end: int, *, record: bool = False, last: list[Any] | None = None) -> Iterator[None]:
        """Replay the calls before number `end`; maybe record the others, or end the pass after one, the `last`."""
        numbers = count()

        def answer(method: Any, layer: Module, *arguments: Any, **options: Any) -> Any:
            number = next(numbers)
            if number < end:
                return self._recall(number, list(states_in(*arguments, *options.values())))
            result = method(layer, *arguments, **options)
            if record:
                self._record(number, result, list(states_in(*arguments, *options.values())))
            if last is not None:
                last.append(result)
                raise _PassedError
            return result

        with hooked(self._layers, dict.fromkeys(self._layers, answer)):
            yield

    def _record(self, number: int, answer: Any, states: list[Any]) -> None:
        def own(value: Any) -> Any:
            index = next((index for index, state in enumerate(states) if state is value), None)
            return value if index is None else _Argument(index)

        used = number < len(self._calls) and self._calls[number].states_until > number
        record = _Record(copied(tree_map(own, answer)), [read_state(state) for state in states] if used else [])
        flat: Any = tree_flatten([record.answer, record.states])
        mx.eval([value for _, value in flat if isinstance(value, mx.array)])
        self._records.append(record)

    def _recall(self, number: int, states: list[Any]) -> Any:
        record = self._records[number]
        for state, fields in zip(states, record.states, strict=False):  # no fields are kept where none are used
            write_state(state, fields)

        def given(value: Any) -> Any:
            return states[value.index] if isinstance(value, _Argument) else value

        return tree_map(given, copied(record.answer))

    def _drop_unused(self) -> None:
        """Drop what the calls from the next on do not use; lazy zeros stand for it."""
        following = len(self._records)
        for call, record in zip(self._calls, self._records, strict=False):
            if call.answer_until < following:
                record.answer = tree_map(_zeros, record.answer)
            if call.states_until < following:
                record.states = tree_map(_zeros, record.states)


class _PassedError(Exception):
    """The last layer of a pass has answered."""


def _zeros(value: Any) -> Any:
    return mx.broadcast_to(mx.zeros((), value.dtype), value.shape) if isinstance(value, mx.array) else value
