"""Hooks calls of MLX modules: a hooked module gets a subclass of its own class, so all else about it stays the same."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

from mlx.nn.layers.base import Module

CALLS = ("__call__", "as_linear")  # the ways mlx_lm uses a module that has a weight

Hook = Callable[..., Any]  # of the class's own method, the module, and the arguments of the call


def hook(module: Module, call: Hook, methods: Sequence[str] = CALLS) -> None:
    """From now on, answer calls of `module` by `call(method, module, *arguments, **options)`.

    `method` is the one that the module's class has. Methods that it lacks are left out.
    """
    kind = type(module)
    own = [name for name in methods if callable(getattr(module, name, None))]  # a class itself always has `__call__`
    answers = {name: partialmethod(_answer, call, getattr(kind, name)) for name in own}
    module.__class__ = type(kind.__name__, (kind,), answers)


def _answer(self: Module, call: Hook, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return call(method, self, *arguments, **options)


@contextmanager
def hooked(modules: Mapping[str, Module], calls: Mapping[str, Hook], methods: Sequence[str] = CALLS) -> Iterator[None]:
    """While this lasts, hook the modules at the paths of `calls`."""
    with unhooked_after(modules[path] for path in calls):
        for path, call in calls.items():
            hook(modules[path], call, methods)
        yield


@contextmanager
def unhooked_after(modules: Iterable[Module]) -> Iterator[None]:
    """Remove, in the end, the hooks that these modules get while this lasts."""
    kinds = [(module, type(module)) for module in modules]
    try:
        yield
    finally:
        for module, kind in kinds:
            hooks, module.__class__ = type(module), kind
            _release(hooks)


def _release(kind: type) -> None:
    """Take the calls out of a hooked module's class: it is a cycle, and would hold their arrays for some time."""
    for name in [name for name, value in vars(kind).items() if isinstance(value, partialmethod)]:
        delattr(kind, name)
