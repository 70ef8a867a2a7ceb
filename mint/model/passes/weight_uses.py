"""Traces how a model uses the weights of its modules; nothing is computed.

mlx_lm calls a module that has a weight, and quantizing replaces the call. A model that reads the weight itself
(`h @ embed_tokens.weight.T`) would read packed codes: MLX's own tools break it, so such a module has to stay as it is.
In a lazy pass every call gets a stand-in for the weight; where the graph of the logits reaches the weight all the
same, it was read directly.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mint.model.hooks import hook, unhooked_after
from mint.model.lineage import batches, names_behind, read_graph
from mint.model.passes.logits import logits_of

_TOKENS = 2


@dataclass(frozen=True, slots=True)
class WeightUses:
    """Paths of modules by the use of their weights."""

    read: frozenset[str]  # by the model itself, without a call of the module
    multiplied: frozenset[str]  # with activations, or read; an embedding can be looked up only


def weight_uses(model: Module, paths: Collection[str]) -> WeightUses:
    """The uses of the modules at `paths` in a forward pass.

    Of a model that does not run on shapes alone, calls that multiply are assumed; verify looks at the written one.
    """
    try:
        return _traced(model, paths)
    except Exception:  # a model may raise what it likes
        return WeightUses(frozenset(), frozenset(paths))


def _traced(model: Module, paths: Collection[str]) -> WeightUses:
    modules = {path: module for path, module in model.named_modules() if path in paths}
    weights = {path: module["weight"] for path, module in modules.items()}
    read: set[str] = set()
    multiplied: set[str] = set()

    def call(path: str, method: Callable[..., Any], module: Module, *arguments: Any, **options: Any) -> Any:
        current = module["weight"]
        if current is not weights[path]:  # the model has put another array there
            read.add(path)
        if arguments and mx.issubdtype(arguments[0].dtype, mx.floating):
            multiplied.add(path)
        module["weight"] = mx.zeros(current.shape, current.dtype)
        try:
            return method(module, *arguments, **options)
        finally:
            module["weight"] = current

    def trace(tokens: mx.array) -> mx.array:
        logits = mx.expand_dims(logits_of(model, tokens), 0)  # a node of its own
        for names in batches(weights, beside=1):
            read.update(names_behind(["logits"], read_graph({"logits": logits, **names})) & names.keys())
        return tokens

    with unhooked_after(modules.values()):
        for path, module in modules.items():
            hook(module, partial(call, path))
        mx.vmap(trace)(mx.zeros((1, 1, _TOKENS), mx.int32))  # in it MLX refuses to evaluate
    return WeightUses(frozenset(read), frozenset(read | multiplied))
