"""Reads off MLX's own graph the source tensors that feed each parameter.

`mx.export_to_dot` prints the graph of unevaluated arrays with a stable id for every primitive. The primitives of
the source tensors are learnt first, in calls of their own; then the graph of the parameters is printed once and
walked backwards. (mlx 0.32: one call takes at most 1,024 named arrays; an array that is already evaluated has no
primitive and therefore no sources.)
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import mlx.core as mx

_BATCH = 1000
_LABEL = re.compile(r'^\{ (?P<primitive>\d+) \[label ="(?P<label>\w+)"')
_INTO = re.compile(r'^"(?P<name>.*)" -> (?P<primitive>\d+)$')
_OUT_OF = re.compile(r'^(?P<primitive>\d+) -> "(?P<name>.*)"$')


# operations on one array that keep each index of the first axis apart, where the length of that axis stays
_COPYING = {"AsType", "Contiguous", "Copy"}
_KEEPING = _COPYING | {"Slice", "Split", "Transpose"}


@dataclass(frozen=True, slots=True)
class Lineage:
    """The leaves that a parameter is computed from, and those whose parts are the slices of a stack.

    `slices` are leaves in the order of the slices, or the one leaf that has them along its first axis; empty where the
    graph shows neither. `is_plain` where the parameter is its one leaf, but for the dtype.
    """

    leaves: tuple[str, ...]
    slices: tuple[str, ...]
    is_plain: bool


def trace_sources(parameters: Mapping[str, mx.array], leaves: Mapping[str, mx.array]) -> dict[str, Lineage]:
    """The lineage of every parameter, its leaves in the order of `leaves`."""
    leaf_of: dict[str, str] = {}
    for names in batches(leaves):
        producers = read_graph({f"leaf:{name}": array for name, array in names.items()}).producers
        leaf_of.update({producers[f"leaf:{name}"]: name for name in names if f"leaf:{name}" in producers})
    rank = {name: index for index, name in enumerate(leaves)}
    lineages: dict[str, Lineage] = {}
    for names in batches(parameters):
        graph = read_graph({f"parameter:{name}": array for name, array in names.items()})
        for name in names:
            producer = graph.producers.get(f"parameter:{name}", "")
            behind = sorted(_leaves_behind(producer, graph, leaf_of), key=rank.__getitem__)
            is_plain = _behind_casts(producer, graph) in leaf_of
            lineages[name] = Lineage(tuple(behind), _slices_behind(producer, graph, leaf_of), is_plain)
    return lineages


@dataclass(frozen=True, slots=True)
class Graph:
    """The graph that `mx.export_to_dot` prints: arrays by name, and the primitives between them by stable ids."""

    inputs: dict[str, list[str]]  # names of the arrays that go into each primitive
    producers: dict[str, str]  # the primitive that each array comes out of
    labels: dict[str, str]  # the operation of each primitive: Multiply, Reshape


def batches(arrays: Mapping[str, mx.array], beside: int = 0) -> Iterator[dict[str, mx.array]]:
    """The arrays in portions that one `read_graph` takes, `beside` so many others."""
    items = list(arrays.items())
    step = _BATCH - beside
    for start in range(0, len(items), step):
        yield dict(items[start : start + step])


def read_graph(arrays: Mapping[str, mx.array]) -> Graph:
    """The graph behind up to 1,000 unevaluated arrays; where two names are of one array, one of them is lost."""
    buffer = io.StringIO()
    mx.export_to_dot(buffer, **arrays)
    graph = Graph({}, {}, {})
    for line in buffer.getvalue().splitlines():
        if match := _INTO.match(line):
            graph.inputs.setdefault(match["primitive"], []).append(match["name"])
        elif match := _OUT_OF.match(line):
            graph.producers[match["name"]] = match["primitive"]
        elif match := _LABEL.match(line):
            graph.labels[match["primitive"]] = match["label"]
    return graph


def names_behind(names: Iterable[str], graph: Graph) -> set[str]:
    """The names of all arrays in the graph that those of these `names` are computed from, and these."""
    behind, stack = set[str](), list(names)
    while stack:
        if (name := stack.pop()) not in behind:
            behind.add(name)
            stack.extend(graph.inputs.get(graph.producers.get(name, ""), ()))
    return behind


def _leaves_behind(primitive: str, graph: Graph, leaf_of: Mapping[str, str]) -> set[str]:
    seen, stack = set[str](), [primitive]
    while stack:
        if (current := stack.pop()) not in seen:
            seen.add(current)
            inputs = () if current in leaf_of else graph.inputs.get(current, ())
            stack.extend(graph.producers[name] for name in inputs if name in graph.producers)
    return {leaf_of[current] for current in seen & leaf_of.keys()}


def _slices_behind(primitive: str, graph: Graph, leaf_of: Mapping[str, str]) -> tuple[str, ...]:
    labels: set[str] = set()
    while primitive not in leaf_of:
        label, inputs = graph.labels.get(primitive, ""), graph.inputs.get(primitive, [])
        if label == "Concatenate" and labels <= {"AsType"}:  # `mx.stack` expands each array and concatenates them
            stacked = [graph.producers.get(name, "") for name in inputs]
            expanded = [_only_input(other, graph) for other in stacked if graph.labels.get(other) == "ExpandDims"]
            is_stack = len(expanded) == len(inputs) and leaf_of.keys() >= set(expanded)
            return tuple(leaf_of[other] for other in expanded) if is_stack else ()
        if label not in _KEEPING or len(inputs) != 1:
            return ()
        labels.add(label)
        primitive = _only_input(primitive, graph)
    return (leaf_of[primitive],)


def _behind_casts(primitive: str, graph: Graph) -> str:
    while graph.labels.get(primitive) in _COPYING:
        primitive = _only_input(primitive, graph)
    return primitive


def _only_input(primitive: str, graph: Graph) -> str:
    """The primitive that the one input of another comes out of; empty where there is none."""
    return graph.producers.get(next(iter(graph.inputs.get(primitive, [])), ""), "")
