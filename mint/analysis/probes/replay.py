"""Replays the first layers of a model, so that a pass after a change in layer k starts at layer k.

The first pass records the output of every layer, in the order of the calls. In later passes the layers before a given
one return that output and compute nothing. It works for every architecture whose layers are called once each. Whether
replaying changes a result is checked on the model itself; if it does, every pass computes everything: slower, never
wrong.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mint.model.hooks import hooked


class Replay:
    """Layers by path, their outputs, and the order of their calls."""

    def __init__(self, model: Module, paths: Collection[str]) -> None:
        self._layers = {path: module for path, module in model.named_modules() if path in paths}
        self._outputs: dict[str, Any] = {}
        self._order: list[str] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the outputs of the layers while this lasts."""
        self._order.clear()
        with hooked(self._layers, {path: partial(self._record, path) for path in self._layers}):
            yield

    def _record(self, path: str, method: Any, *arguments: Any, **options: Any) -> Any:
        self._order.append(path)
        self._outputs[path] = method(*arguments, **options)
        mx.eval(self._outputs[path])
        return self._outputs[path]

    @property
    def possible(self) -> bool:
        """True if every layer was called exactly once."""
        return sorted(self._order) == sorted(self._layers)

    @contextmanager
    def before(self, path: str | None) -> Iterator[None]:
        """Replay the layers called before the one at `path`; all layers for None."""

        def recall(path: str, *_: Any, **__: Any) -> Any:
            return self._outputs[path]

        with hooked(self._layers, {earlier: partial(recall, earlier) for earlier in self._order[: self._end(path)]}):
            yield

    def share_before(self, path: str | None) -> float:
        """The share of the layers that `before` replays."""
        return self._end(path) / len(self._layers) if self._layers else 0.0

    def forget(self) -> None:
        """Compute everything from now on."""
        self._order.clear()
        self._outputs.clear()

    def _end(self, path: str | None) -> int:
        """The number of calls before the one of the layer at `path`."""
        if path is None:
            return len(self._order)
        return self._order.index(path) if path in self._order else 0
