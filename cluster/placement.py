"""Which nodes can do which units: those that hold every source tensor.

A unit is read from the shards of its source tensors; units of the same shards form a group, and a node holds all of
them or none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.events import Item
from mint.errors import MintError
from mint.shards import SourceTensor
from mint.units import Unit


@dataclass(frozen=True, slots=True)
class Placement:
    """Items in the order of the units, and for each node the bytes it misses of every group that it can do."""

    items: tuple[Item, ...]
    missing: Mapping[str, Mapping[str, int]]


def group_of(unit: Unit, tensors: Mapping[str, SourceTensor]) -> str:
    """The shards that a unit is read from, as one name."""
    return " ".join(sorted({tensors[name].shard for name in unit.sources}))


def place(
    units: Iterable[Unit],
    tensors: Mapping[str, SourceTensor],
    holders: Mapping[str, Iterable[str]],
    nodes: Iterable[str],
) -> Placement:
    """Who can do what, given the nodes that hold each shard.

    Raises `MintError` that names the first unit that no node can do by itself.
    """
    units = tuple(units)
    held: dict[str, set[str]] = {node: set() for node in nodes}
    for shard, owners in holders.items():
        for node in owners:
            if node in held:
                held[node].add(shard)
    items = tuple(Item(unit.path, unit.nbytes, group_of(unit, tensors)) for unit in units)
    first: dict[str, Unit] = {}
    for item, unit in zip(items, units, strict=True):
        first.setdefault(item.group, unit)
    missing: dict[str, dict[str, int]] = {node: {} for node in held}
    for group, unit in first.items():
        needed = set(group.split())
        able = [node for node, has in held.items() if needed <= has]
        if not able:
            raise MintError(_nobody(unit, needed, held))
        for node in able:
            missing[node][group] = 0
    return Placement(items, missing)


def _nobody(unit: Unit, needed: set[str], held: Mapping[str, set[str]]) -> str:
    has = "; ".join(
        f"{node} has {', '.join(sorted(needed & shards)) or 'none of them'}" for node, shards in held.items()
    )
    return (
        f"no node holds all shards that {unit.path} is made of: {', '.join(sorted(needed))} ({has}); "
        "copy the missing ones to one of the nodes"
    )
