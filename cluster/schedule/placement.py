"""Which nodes can do which units: those that hold every source tensor, or that may borrow what they lack.

A unit is read from the shards of its source tensors; units of the same shards form a group, and a node holds all of
them or not. A group is done by the nodes that miss the fewest bytes of it: those that hold all, as long as one lives.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cluster.schedule.events import Item
from mint.core.errors import MintError
from mint.formats.units import Unit
from mint.model.checkpoint.shards import SourceTensor


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
    lent: Collection[str] | None = None,
) -> Placement:
    """Who can do what, given the nodes that hold each shard, and the shards that are lent where nodes may borrow.

    Raises `MintError` that names the first unit that no node can do.
    """
    units = tuple(units)
    held: dict[str, set[str]] = {node: set() for node in nodes}
    for shard, owners in holders.items():
        for node in owners:
            if node in held:
                held[node].add(shard)
    items = tuple(Item(unit.path, unit.nbytes, group_of(unit, tensors)) for unit in units)
    first: dict[str, Unit] = {}
    read: dict[str, Counter[str]] = {}  # bytes of each shard that a group is read from
    for item, unit in zip(items, units, strict=True):
        first.setdefault(item.group, unit)
        by_shard = read.setdefault(item.group, Counter())
        for tensor in (tensors[name] for name in unit.sources):
            by_shard[tensor.shard] += tensor.nbytes
    missing: dict[str, dict[str, int]] = {node: {} for node in held}
    for group, by_shard in read.items():
        able = [node for node, has in held.items() if by_shard.keys() - has <= set(lent or ())]
        if not able:
            raise MintError(_nobody(first[group], by_shard.keys(), held, lent))
        for node in able:
            missing[node][group] = sum(nbytes for shard, nbytes in by_shard.items() if shard not in held[node])
    return Placement(items, missing)


def _nobody(unit: Unit, needed: Collection[str], held: Mapping[str, set[str]], lent: Collection[str] | None) -> str:
    has = "; ".join(
        f"{node} has {', '.join(sorted(shards.intersection(needed))) or 'none of them'}"
        for node, shards in held.items()
    )
    cure = "copy the missing ones to one of the nodes"
    if lent is None:
        cure += ", or let nodes borrow what they lack from those that have it: --share"
    else:
        cure += f"; lent are {', '.join(sorted(set(needed) & set(lent))) or 'none of them'}"
    return f"no node holds all shards that {unit.path} is made of: {', '.join(sorted(needed))} ({has}); {cure}"
