"""Traces the memory of a context and the share of experts that a token uses, from the shapes of lazy forward passes.

mlx_lm makes the caches and the model fills them, once with all tokens but one and once with the last, after which
sliding windows are trimmed to their steady size; then the bytes of the caches are known, though no weight was read
and nothing was computed. Bytes are piecewise linear in the tokens: windows fill up, states have one size, all else
grows. The kinks are found by bisection. Two rules keep it lazy and short:

* The passes run inside `mx.vmap`, where MLX refuses to evaluate: a model that looks at values fails at once
  instead of computing in silence. It also keeps `mx.compile` from fusing, so that no compiler is called.
* A recurrent layer walks over its tokens one by one where there is no GPU kernel for it: a graph of millions of
  nodes. Its cache has one size after any number of tokens, so it is traced on two short prompts, and for longer ones
  arrays of the shapes seen stand for its answers.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map

from mint.core.errors import MintError
from mint.model.hooks import hook, unhooked_after
from mint.model.kv_memory import KV_BITS, KV_GROUP_SIZE, ContextMemory, Point, find_points
from mint.model.module_tree import make_cache
from mint.model.roles import TOWER
from mint.model.source import Source

PROMPTS = (8, 16)  # tokens; longer than a short convolution's kernel, and two, to see what grows

_Key = tuple[int, tuple[int, ...]]  # a module and the positions of the caches that it was called with


def context_memory(source: Source) -> ContextMemory:
    """The bytes that a context needs in this model, traced up to 2^20 tokens, or to the longest that the model takes.

    Nothing of the weights is read. Raises `MintError` when the model's forward pass cannot be traced.
    """
    with tracing(source) as model:
        passes = Passes(model)
        passes.learn()
        obstacle = passes.obstacle()
        return ContextMemory(find_points(passes.measure), obstacle)


def active_experts(source: Source) -> dict[str, float]:
    """The share of its matrices that one token is multiplied with, for every unit that is a stack.

    A routed stack is called with the indices of the chosen ones, the only integers among its arguments: their number
    counts. A stack called without, such as the matrices per head of latent attention, is used whole: 1.
    Raises `MintError` when the forward pass cannot be traced, or goes around a stack: then there is no telling.
    """
    stacks = {unit.path: unit.shape[0] for unit in source.units if len(unit.shape) == 3 and unit.role != TOWER}
    if not stacks:
        return {}
    chosen = dict.fromkeys(stacks, 0)

    def count(path: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        arrays = [value for value in (*arguments, *options.values()) if isinstance(value, mx.array)]
        indices = [array.size for array in arrays if mx.issubdtype(array.dtype, mx.integer)]
        chosen[path] += sum(indices) if indices else stacks[path]
        return method(*arguments, **options)

    with tracing(source) as model:
        for path, module in model.named_modules():
            if path in stacks:
                hook(module, partial(count, path), ("__call__",))
        Passes(model).run(1)
    if path := next((path for path, matrices in chosen.items() if matrices == 0), ""):
        fault = f"one token's forward pass never calls {path}, a stack of {stacks[path]} matrices"
        remedy = "needed: a model that uses it, to know how much of it a token reads. Do without this estimate"
        raise MintError(f"{source.folder}: {fault}; {remedy}")
    return {path: min(1.0, chosen[path] / size) for path, size in stacks.items()}


@contextmanager
def tracing(source: Source) -> Iterator[Module]:
    """The modules of `source`, unhooked afterwards; an exception of the model's own code names the model."""
    try:
        model = source.opened.model
        with unhooked_after(module for _, module in model.named_modules()):
            yield model
    except MintError as error:
        raise MintError(f"{source.folder}: {error}") from error
    except Exception as error:  # a model may raise what it likes
        fault = f"mlx_lm's {source.config['model_type']} model does not run on shapes alone ({_summary(error)})"
        remedy = "needed: a forward pass that does not look at values. Set memory for the context aside by hand"
        raise MintError(f"{source.folder}: {fault}; {remedy}") from error


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@dataclass(frozen=True, slots=True)
class _Spec:
    """Shape and dtype of an array that is never computed."""

    shape: tuple[int, ...]
    dtype: mx.Dtype


class Passes:
    """Lazy forward passes of one model, over fresh caches each time."""

    def __init__(self, model: Module) -> None:
        self.model = model
        self._caches: list[Any] = []
        self._leaves: list[Any] = []  # the caches inside
        self._token = mx.zeros((), mx.int32)  # of the call under way
        self._length = 0  # tokens of the call under way
        self._answers: dict[_Key, Any] = {}  # specs of recurrent modules' answers and states in this pass
        self._known: dict[_Key, tuple[Any, Any]] = {}  # the same, for two prompts

    def run(self, *lengths: int, quantized: bool = False) -> None:
        """Call the model once for each of `lengths`, with so many tokens; the last time maybe with quantized caches."""
        self._caches = make_cache(self.model)
        self._leaves = list(_leaves(self._caches))
        self._answers = {}

        def calls(tokens: mx.array) -> mx.array:
            self._token = tokens[0, 0]
            for index, length in enumerate(lengths, start=1):
                self._length = length
                if quantized and index == len(lengths):
                    self._caches = list(map(_quantized, self._caches))
                self.model(tokens[:, :length], cache=self._caches)
            return tokens

        mx.vmap(calls)(mx.zeros((1, 1, max(lengths)), mx.int32))

    def measure(self, tokens: int) -> Point:
        """The caches after a prompt of `tokens - 1` tokens and one more."""
        self.run(tokens - 1, 1)
        quantizable = [cache for cache in self._caches if hasattr(cache, "to_quantized")]
        plain = sum(cache.nbytes for cache in quantizable)
        arrays = dict(tree_flatten([cache.state for cache in quantizable])).values()
        elements = sum(array.size for array in arrays if isinstance(array, mx.array))
        return tokens, sum(cache.nbytes for cache in self._caches if cache is not None) - plain, elements, plain

    def learn(self) -> None:
        """Learn the answers of the modules that are called with nothing but states, to answer for them from now on."""
        if not any(_is_state(leaf) for leaf in _leaves(make_cache(self.model))):
            return
        for _, module in self.model.named_modules():
            hook(module, self._answer, ("__call__",))
        answers = []
        for prompt in PROMPTS:
            self.run(prompt)
            answers.append(self._answers)
        short, long = answers
        keys = (key for key in short.keys() & long.keys() if short[key][1] == long[key][1])
        self._known = {key: (short[key], long[key]) for key in keys}

    def obstacle(self) -> str:
        """Why the model cannot run with its caches quantized as `mlx_lm.generate` does; empty when it can."""
        try:
            self.run(PROMPTS[0], 1, quantized=True)
        except Exception as error:  # it is the result
            return _summary(error)
        return ""

    def _answer(self, method: Callable[..., Any], module: Module, *arguments: Any, **options: Any) -> Any:
        """The module's own answer, or one of the same shapes if its states are known."""
        values = {id(value) for value in _leaves([*arguments, *options.values()])}
        positions = tuple(position for position, leaf in enumerate(self._leaves) if id(leaf) in values)
        leaves, key = [self._leaves[position] for position in positions], (id(module), positions)
        if key in self._known:
            answer, states = tree_map(self._stand_in, *self._known[key])
            for leaf, state in zip(leaves, states, strict=True):
                leaf.state = state
            return answer
        answer = method(module, *arguments, **options)
        if leaves and all(map(_is_state, leaves)):
            specs = tree_map(_spec, (answer, [leaf.state for leaf in leaves]))
            if all(isinstance(spec, _Spec | None) for spec in dict(tree_flatten(specs)).values()):
                self._answers[key] = specs
        return answer

    def _stand_in(self, short: _Spec | None, long: _Spec | None) -> mx.array | None:
        """An array of the shape that follows from those for the two prompts, for as many tokens as there are now."""
        if short is None or long is None:
            return None
        shape = [a + (b - a) * (self._length - PROMPTS[0]) // (PROMPTS[1] - PROMPTS[0])
                 for a, b in zip(short.shape, long.shape, strict=True)]  # fmt: skip
        return mx.broadcast_to(self._token.astype(short.dtype), shape)


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """The single caches among `values`, inside lists and mlx_lm's lists of caches; other values come through."""
    for value in values:
        inner = value if isinstance(value, list | tuple) else getattr(value, "caches", None)
        if inner is not None:
            yield from _leaves(inner)
        elif value is not None:
            yield value


def _is_state(cache: Any) -> bool:
    """True if the cache has no count of tokens: its size is the same after any number of them."""
    return not hasattr(cache, "offset")


def _quantized(cache: Any) -> Any:
    options = {"group_size": KV_GROUP_SIZE, "bits": max(KV_BITS)}
    return cache.to_quantized(**options) if hasattr(cache, "to_quantized") else cache


def _spec(value: Any) -> Any:
    return _Spec(value.shape, value.dtype) if isinstance(value, mx.array) else value
