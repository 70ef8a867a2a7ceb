"""A model whose first layers answer from memory, so that what lies behind a change in layer k starts at layer k.

The first pass notes what every layer returns, in the order of the calls. Later passes let the layers that were
called before a given one return that again and compute nothing. It works for every architecture whose layers are
called once each; whether replaying changes nothing is checked on the model itself, and where it does, every pass
computes everything: slower, never wrong.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

Answer = Callable[[Callable[[], Any], tuple[Any, ...]], Any]  # to a call: what would compute it, its arguments


class Replay:
    """Layers by path, what they returned, and the order in which they were called."""

    def __init__(self, model: Module, paths: Iterable[str]) -> None:
        wanted = set(paths)
        self._layers = {path: module for path, module in model.named_modules() if path in wanted}
        self._answers: dict[str, Any] = {}
        self._order: list[str] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what the layers return while this lasts."""
        self._order.clear()

        def recorded(path: str) -> Answer:
            def record(call: Callable[[], Any], _: tuple[Any, ...]) -> Any:
                answer = call()
                mx.eval(answer)
                self._order.append(path)
                self._answers[path] = answer
                return answer

            return record

        with answered(self._layers, {path: recorded(path) for path in self._layers}):
            yield

    @property
    def possible(self) -> bool:
        """Whether every layer was called exactly once."""
        return sorted(self._order) == sorted(self._layers)

    @contextmanager
    def before(self, path: str | None) -> Iterator[None]:
        """Let the layers called before the one at `path` answer from memory; all of them for None."""

        def recalled(path: str) -> Answer:
            return lambda _, __: self._answers[path]

        with answered(self._layers, {known: recalled(known) for known in self._order[: self._end(path)]}):
            yield

    def share_before(self, path: str | None) -> float:
        """The share of the layers that answer from memory then."""
        return self._end(path) / len(self._layers) if self._layers else 0.0

    def forget(self) -> None:
        """Compute everything from now on."""
        self._order.clear()
        self._answers.clear()

    def _end(self, path: str | None) -> int:
        """How many of the calls come before the layer at `path`."""
        if path is None:
            return len(self._order)
        return self._order.index(path) if path in self._order else 0


@contextmanager
def reclassed(modules: Mapping[str, Module], kinds: Mapping[str, type[Module]]) -> Iterator[None]:
    """While this lasts, let modules be of other classes."""
    before = {path: type(modules[path]) for path in kinds}
    for path, kind in kinds.items():
        modules[path].__class__ = kind
    try:
        yield
    finally:
        for path, kind in before.items():
            modules[path].__class__ = kind


def answered(modules: Mapping[str, Module], answers: Mapping[str, Answer]) -> AbstractContextManager[None]:
    """While this lasts, let calls of modules be answered."""
    return reclassed(modules, {path: _answering(type(modules[path]), answer) for path, answer in answers.items()})


def _answering(kind: type[Module], answer: Answer) -> type[Module]:
    def call(self: Module, *arguments: Any, **options: Any) -> Any:
        return answer(lambda: kind.__call__(self, *arguments, **options), arguments)

    return type(kind.__name__, (kind,), {"__call__": call})
