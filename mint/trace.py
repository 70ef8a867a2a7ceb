"""Which source tensors feed which parameter, read off MLX's own graph.

`mx.export_to_dot` prints the graph of unevaluated arrays with a stable id for every primitive. The primitives of
the source tensors are learnt first, in calls of their own; then the graph of the parameters is printed once and
walked backwards. (mlx 0.32: one call takes at most 1,024 named arrays; an array that is already evaluated has no
primitive and therefore no sources.)
"""

import io
import re
from collections.abc import Iterator, Mapping

import mlx.core as mx

_BATCH = 1000
_INTO = re.compile(r'^"(?P<name>.*)" -> (?P<primitive>\d+)$')
_OUT_OF = re.compile(r'^(?P<primitive>\d+) -> "(?P<name>.*)"$')


def trace_sources(parameters: Mapping[str, mx.array], leaves: Mapping[str, mx.array]) -> dict[str, tuple[str, ...]]:
    """For every parameter the names of the leaves that it is computed from, in the order of `leaves`."""
    leaf_of: dict[str, str] = {}
    for names in _batches(leaves):
        _, producers = _export({f"leaf:{name}": array for name, array in names.items()})
        leaf_of.update({producers[f"leaf:{name}"]: name for name in names if f"leaf:{name}" in producers})
    rank = {name: index for index, name in enumerate(leaves)}
    sources: dict[str, tuple[str, ...]] = {}
    for names in _batches(parameters):
        inputs, producers = _export({f"parameter:{name}": array for name, array in names.items()})
        for name in names:
            found = _leaves_behind(producers.get(f"parameter:{name}", ""), inputs, producers, leaf_of)
            sources[name] = tuple(sorted(found, key=rank.__getitem__))
    return sources


def _batches(arrays: Mapping[str, mx.array]) -> Iterator[dict[str, mx.array]]:
    items = list(arrays.items())
    for start in range(0, len(items), _BATCH):
        yield dict(items[start : start + _BATCH])


def _export(arrays: Mapping[str, mx.array]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Names that go into each primitive, and the primitive that each name comes out of."""
    buffer = io.StringIO()
    mx.export_to_dot(buffer, **arrays)
    inputs: dict[str, list[str]] = {}
    producers: dict[str, str] = {}
    for line in buffer.getvalue().splitlines():
        if match := _INTO.match(line):
            inputs.setdefault(match["primitive"], []).append(match["name"])
        elif match := _OUT_OF.match(line):
            producers[match["name"]] = match["primitive"]
    return inputs, producers


def _leaves_behind(
    primitive: str, inputs: Mapping[str, list[str]], producers: Mapping[str, str], leaf_of: Mapping[str, str]
) -> set[str]:
    found: set[str] = set()
    seen: set[str] = set()
    stack = [primitive]
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in leaf_of:
            found.add(leaf_of[current])
            continue
        stack.extend(producers[name] for name in inputs.get(current, ()) if name in producers)
    return found
