"""Traces the norm before each unit in a lazy forward pass: by structure, not by a table of architectures.

A norm is a module without children whose weight is one vector, as long as the last axis of its input and output.
It precedes a unit if the unit's input is the norm's output, changed only by operations that move values: reshapes,
transposes, gathers, casts. MLX's own graph shows them (see `lineage.py`). Outputs of attention, of an activation or of
another product (o_proj, down_proj) have no norm before them.

The pass runs inside `mx.vmap`, where nothing can be evaluated, so it reads no weight and computes nothing.
"""

# C length of a norm

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mint.kernels.storage import numpy_view
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
    """The first call of a module: its first array, its result; `alone` if it had no other array."""

    input: mx.array
    output: mx.array
    alone: bool


def preceding_norms(source: Source) -> dict[str, str]:
    """The path of the norm before a unit, by the unit's path; units without one are left out.

    The first use of a unit in a pass counts. Raises `MintError` when the forward pass cannot be traced.
    """
    return _traced(source)[0]


def norm_gains(source: Source) -> dict[str, npt.NDArray[np.float32]]:
    """The factor (C,) on normalized inputs of the norm before a unit, by the unit's path.

    It is measured, since some norms multiply by 1 + weight. An input x of alternating 1 and -1 is normalized already,
    so the gain is x times half the difference of the outputs for x and -x, whatever bias is added. For a norm of
    several arrays (gates) it is the weight. A norm of single heads counts once for every head.
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
    """The gain of one norm, which holds its parameters from `arrays` only while it computes."""
    stand_ins = {name: value for name, value in norm.items() if f"{path}.{name}" in arrays}
    norm.update({name: arrays[f"{path}.{name}"] for name in stand_ins})
    try:
        gain = norm["weight"].astype(mx.float32)
        if alone:
            ends = mx.where(mx.arange(gain.size) % 2 == 0, 1.0, -1.0)
            gain = ends * (norm(ends[None]) - norm(-ends[None]))[0] / 2
        return numpy_view(gain.astype(mx.float32)).copy()
    finally:
        norm.update(stand_ins)


def _traced(source: Source) -> tuple[dict[str, str], set[str]]:
    """The norm of each unit, and the norms with one array as input."""
    units = {unit.path for unit in source.units}
    calls: dict[str, _Call] = {}
    preceding: dict[str, str] = {}
    with tracing(source) as model:
        norms = {path for path, module in model.named_modules() if _may_be_norm(module)}
        for path, module in model.named_modules():
            if path in units or path in norms:
                hook(module, partial(_note_call, calls, path))

        def trace(tokens: mx.array) -> mx.array:
            model(tokens, cache=make_cache(model))
            inputs = {path: call.input for path, call in calls.items() if path in units}
            outputs = {path: call.output for path, call in calls.items()
                       if path in norms and call.input.shape == call.output.shape}  # fmt: skip
            preceding.update(_match(inputs, outputs))
            return tokens

        mx.vmap(trace)(mx.zeros((1, 1, TOKENS), mx.int32))
    return preceding, {path for path, call in calls.items() if call.alone}


def _may_be_norm(module: Any) -> bool:
    weight = module.get("weight") if isinstance(module, dict) else None
    return isinstance(weight, mx.array) and weight.ndim == 1 and not module.children()


def _note_call(calls: dict[str, _Call], path: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    output = method(*arguments, **options)
    arrays = [value for value in (*arguments, *options.values()) if isinstance(value, mx.array)]
    floats = [array for array in arrays if mx.issubdtype(array.dtype, mx.floating)]
    if floats and isinstance(output, mx.array):
        calls.setdefault(path, _Call(floats[0], output, len(arrays) == 1))
    return output


def _match(inputs: Mapping[str, mx.array], outputs: Mapping[str, mx.array]) -> dict[str, str]:
    """The norm behind the input of each unit."""
    norm_of = {primitive: path for path, primitive, _ in _origins(outputs)}
    norms = {path: _norm_behind(graph, primitive, norm_of) for path, primitive, graph in _origins(inputs)}
    return {path: norm for path, norm in norms.items() if norm}


def _origins(arrays: Mapping[str, mx.array]) -> Iterator[tuple[str, str, Graph]]:
    """Each name, the primitive that makes its array (empty for an input of the model), and the graph."""
    for names in batches(arrays):
        # every array gets a node of its own, since two names of one array would be one
        graph = read_graph({f"array:{path}": mx.expand_dims(array, 0) for path, array in names.items()})
        for path in names:
            (origin,) = graph.inputs[graph.producers[f"array:{path}"]]
            yield path, graph.producers.get(origin, ""), graph


def _norm_behind(graph: Graph, primitive: str, norm_of: Mapping[str, str]) -> str:
    """The norm whose values come out of a primitive unchanged; empty if there is none."""
    stack, seen = [primitive], {""}
    while stack:
        current = stack.pop()
        if current in norm_of:
            return norm_of[current]
        if current not in seen and graph.labels[current] in _MOVES:
            stack += [graph.producers[name] for name in graph.inputs.get(current, ()) if name in graph.producers]
        seen.add(current)
    return ""
