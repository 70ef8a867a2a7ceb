"""Which nodes can do which units: those that hold every source tensor.

A unit is read from the shards of its source tensors; units of the same shards form a group. With sharing, a group that
no node holds whole may be done by any node, which then borrows the missing shards' tensors from others: the
coordinator gives it to the one that misses the fewest bytes.
"""

from collections import defaultdict
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
    *,
    share: bool = False,
) -> Placement:
    """Who can do what, given the nodes that hold each shard.

    Raises `MintError` that names the first unit that no node can do by itself, unless `share`.
    """
    units = tuple(units)
    held: dict[str, set[str]] = {node: set() for node in nodes}
    for shard, owners in holders.items():
        for node in owners:
            if node in held:
                held[node].add(shard)
    items = tuple(Item(unit.path, unit.nbytes, group_of(unit, tensors)) for unit in units)
    first = {item.group: unit for item, unit in reversed(list(zip(items, units, strict=True)))}
    nbytes = _bytes_by_shard(units, tensors)
    missing: dict[str, dict[str, int]] = {node: {} for node in held}
    for group, unit in first.items():
        needed = set(group.split(" ")) if group else set()
        lacking = {node: sum(nbytes[group][shard] for shard in needed - has) for node, has in held.items()}
        whole = [node for node, has in held.items() if needed <= has]
        if not whole and not share:
            raise MintError(_nobody(unit, needed, held))
        for node in whole or held:
            missing[node][group] = lacking[node]
    return Placement(items, missing)


def _bytes_by_shard(units: Iterable[Unit], tensors: Mapping[str, SourceTensor]) -> dict[str, dict[str, int]]:
    """Bytes that the units of each group read from each shard."""
    nbytes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for unit in units:
        for name in unit.sources:
            nbytes[group_of(unit, tensors)][tensors[name].shard] += tensors[name].nbytes
    return nbytes


def _nobody(unit: Unit, needed: set[str], held: Mapping[str, set[str]]) -> str:
    has = "; ".join(
        f"{node} has {', '.join(sorted(needed & shards)) or 'none of them'}" for node, shards in held.items()
    )
    return (
        f"no node holds all shards that {unit.path} is made of: {', '.join(sorted(needed))} ({has}); "
        "copy the missing ones to one of the nodes"
    )
