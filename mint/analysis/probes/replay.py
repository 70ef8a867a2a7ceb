"""A model whose first layers answer from memory, so that what lies behind a change in layer k starts at layer k.

The first pass notes what every layer returns, in the order of the calls. Later passes let the layers that were
called before a given one return that again and compute nothing. It works for every architecture whose layers are
called once each; whether replaying changes nothing is checked on the model itself, and where it does, every pass
computes everything: slower, never wrong.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mint.model.hooks import Hook, hooked


class Replay:
    """Layers by path, what they returned, and the order in which they were called."""

    def __init__(self, model: Module, paths: Iterable[str]) -> None:
        chosen = set(paths)
        self._layers = {path: module for path, module in model.named_modules() if path in chosen}
        self._answers: dict[str, Any] = {}
        self._order: list[str] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what the layers return while this lasts."""
        self._order.clear()

        def recorded(path: str) -> Hook:
            def record(method: Any, layer: Module, *arguments: Any, **options: Any) -> Any:
                answer = method(layer, *arguments, **options)
                mx.eval(answer)
                self._order.append(path)
                self._answers[path] = answer
                return answer

            return record

        with hooked(self._layers, {path: recorded(path) for path in self._layers}):
            yield

    @property
    def possible(self) -> bool:
        """True if every layer was called exactly once."""
        return sorted(self._order) == sorted(self._layers)

    @contextmanager
    def before(self, path: str | None) -> Iterator[None]:
        """Let the layers called before the one at `path` answer from memory; all of them for None."""

        def recalled(path: str) -> Hook:
            return lambda *_, **__: self._answers[path]

        with hooked(self._layers, {known: recalled(known) for known in self._order[: self._end(path)]}):
            yield

    def share_before(self, path: str | None) -> float:
        """The share of the layers that answer from memory then."""
        return self._end(path) / len(self._layers) if self._layers else 0.0

    def forget(self) -> None:
        """Compute everything from now on."""
        self._order.clear()
        self._answers.clear()

    def _end(self, path: str | None) -> int:
        """The number of calls before the one of the layer at `path`."""
        if path is None:
            return len(self._order)
        return self._order.index(path) if path in self._order else 0
