"""Reads off a lazy forward pass the norm that feeds each unit: by structure, not by a table of architectures.

A norm is a module without children whose weight is one vector, as long as the last axis of what it takes and returns.
It precedes a unit when the unit's input is the norm's output with nothing in between but operations that move values
and change none: reshapes, transposes, gathers, casts. MLX's own graph tells (see `trace.py`). What comes out of
attention, of an activation or of another product (o_proj, down_proj) has no norm before it.

The pass runs inside `mx.vmap`, where nothing can be evaluated, so it reads no weight and computes nothing.
"""

# C length of a norm

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module

from mint.model.hooks import hook
from mint.model.kv_trace import tracing
from mint.model.lineage import Graph, batches, read_graph
from mint.model.module_tree import make_cache
from mint.model.source import Source

TOKENS = 8
# the primitives (mlx 0.32) that move values and change none
_MOVES = {
    "AsType", "Broadcast", "BroadcastAxes", "Contiguous", "Copy", "ExpandDims", "Flatten", "Gather", "GatherAxis",
    "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unflatten", "View",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Call:
    """One use of a module: its first array, what it returned, and whether it was given no other array."""

    taken: mx.array
    given: mx.array
    alone: bool


def preceding_norms(source: Source) -> dict[str, str]:
    """The path of the norm that feeds a unit, by the unit's path; units that none feeds directly are left out.

    Of a unit that is used several times in a pass, the first use counts. Raises `MintError` when the forward pass
    cannot be traced.
    """
    return _traced(source)[0]


def norm_gains(source: Source) -> dict[str, npt.NDArray[np.float32]]:
    """The gain (C,) that the norm before a unit multiplies its normalized input with, by the unit's path.

    It is asked, not read: some norms multiply with 1 + weight. An input x of alternating 1 and -1 is normalized
    already, so the gain is x times half the difference of the answers to x and -x, whatever bias is added. A norm that
    takes more than one array (gates) says it with its weight. A norm of single heads counts once for every head.
    """
    norms, alone = _traced(source)
    modules = dict(source.opened.model.named_modules())
    arrays = source.arrays()
    gains = {norm: _gain(norm, modules[norm], arrays, alone=norm in alone) for norm in set(norms.values())}
    columns = {unit.path: unit.shape[-1] for unit in source.units}
    return {
        unit: np.tile(gains[norm], columns[unit] // gains[norm].size)
        for unit, norm in norms.items()
        if columns[unit] % gains[norm].size == 0
    }


def _gain(path: str, norm: Any, arrays: Mapping[str, mx.array], *, alone: bool) -> npt.NDArray[np.float32]:
    """The gain of one norm, which has its parameters from `arrays` only while it computes."""
    stand_ins = {name: value for name, value in norm.items() if f"{path}.{name}" in arrays}
    norm.update({name: arrays[f"{path}.{name}"] for name in stand_ins})
    try:
        return _answered_gain(norm, alone=alone)
    finally:
        norm.update(stand_ins)


def _answered_gain(norm: Any, *, alone: bool) -> npt.NDArray[np.float32]:
    weight = norm["weight"].astype(mx.float32)
    if alone:
        ends = mx.where(mx.arange(weight.size) % 2 == 0, 1.0, -1.0)
        weight = ends * (norm(ends[None]) - norm(-ends[None]))[0] / 2
    return np.array(weight.astype(mx.float32))


def _traced(source: Source) -> tuple[dict[str, str], set[str]]:
    """The norm of each unit, and the norms that take one array alone."""
    model = source.opened.model
    units = {unit.path for unit in source.units}
    norms = {path for path, module in model.named_modules() if _may_be_norm(module)}
    calls: dict[str, _Call] = {}
    preceding: dict[str, str] = {}

    def watch(tokens: mx.array) -> mx.array:
        model(tokens, cache=make_cache(model))
        entered = {path: call.taken for path, call in calls.items() if path in units}
        left = {
            path: call.given for path, call in calls.items() if path in norms and call.taken.shape == call.given.shape
        }
        preceding.update(_match(entered, left))
        return tokens

    with tracing(source):
        for path, module in model.named_modules():
            if path in units or path in norms:
                _watch(module, path, calls)
        mx.vmap(watch)(mx.zeros((1, 1, TOKENS), mx.int32))
    return preceding, {path for path, call in calls.items() if call.alone}


def _may_be_norm(module: Any) -> bool:
    weight = module.get("weight") if isinstance(module, dict) else None
    return isinstance(weight, mx.array) and weight.ndim == 1 and not module.children()


def _watch(module: Any, path: str, calls: dict[str, _Call]) -> None:
    """Let the module note its first call."""

    def call(method: Callable[..., Any], module: Module, *arguments: Any, **options: Any) -> Any:
        result = method(module, *arguments, **options)
        arrays = [value for value in (*arguments, *options.values()) if isinstance(value, mx.array)]
        floats = [array for array in arrays if mx.issubdtype(array.dtype, mx.floating)]
        if floats and isinstance(result, mx.array):
            calls.setdefault(path, _Call(floats[0], result, len(arrays) == 1))
        return result

    hook(module, call)


def _match(entered: Mapping[str, mx.array], left: Mapping[str, mx.array]) -> dict[str, str]:
    """The norm behind each array that entered a unit; every array gets a node of its own, so that no name is lost."""
    norm_of: dict[str, str] = {}
    for names in batches(left):
        graph = read_graph({f"norm:{path}": mx.expand_dims(array, 0) for path, array in names.items()})
        norm_of.update({_behind(graph, f"norm:{path}"): path for path in names})
    norms = {}
    for names in batches(entered):
        graph = read_graph({f"unit:{path}": mx.expand_dims(array, 0) for path, array in names.items()})
        for path in names:
            norm = _walk(graph, _behind(graph, f"unit:{path}"), norm_of)
            if norm:
                norms[path] = norm
    return norms


def _behind(graph: Graph, name: str) -> str:
    """The primitive of the array that the node of this name was made of; empty for an input of the model."""
    (origin,) = graph.inputs[graph.producers[name]]
    return graph.producers.get(origin, "")


def _walk(graph: Graph, primitive: str, norm_of: Mapping[str, str]) -> str:
    """The norm that the values out of a primitive come from unchanged, empty when there is none."""
    stack, seen = [primitive], {""}
    while stack:
        current = stack.pop()
        if current in norm_of:
            return norm_of[current]
        if current not in seen and graph.labels[current] in _MOVES:
            stack += [graph.producers[name] for name in graph.inputs.get(current, ()) if name in graph.producers]
        seen.add(current)
    return ""
