"""Places units on nodes that hold their source tensors, or may borrow the missing ones.

A unit is read from the shards of its source tensors. Units of the same shards form a group, which a node holds as a
whole or not. The nodes that miss the fewest bytes of a group do it: a node that holds all, as long as one lives. A
placement may be limited to nodes with enough memory, or to nodes that hold the whole model.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from cluster.schedule.events import Item
from mint.core.errors import MintError
from mint.core.sizes import format_size
from mint.formats.units import Unit
from mint.model.checkpoint.shards import SourceTensor


@dataclass(frozen=True, slots=True)
class Placement:
    """Items in the order of the units, and for each node the missing bytes of every group that it can do."""

    items: tuple[Item, ...]
    missing: Mapping[str, Mapping[str, int]]


def group_of(unit: Unit, tensors: Mapping[str, SourceTensor]) -> str:
    """The names of the shards of a unit, joined by spaces."""
    return " ".join(sorted({tensors[name].shard for name in unit.sources}))


def place_units(
    units: Iterable[Unit],
    tensors: Mapping[str, SourceTensor],
    holders: Mapping[str, Collection[str]],
    nodes: Iterable[str],
    lent: Collection[str] | None = None,
) -> Placement:
    """Place units by the nodes that hold each shard; `lent` are the shards to borrow, None without borrowing.

    Raises `MintError` for the first unit that no node can do.
    """
    units = tuple(units)
    shards = {node: {shard for shard, owners in holders.items() if node in owners} for node in nodes}
    items = tuple(Item(unit.path, unit.nbytes, group_of(unit, tensors)) for unit in units)
    first = {item.group: unit for item, unit in zip(reversed(items), reversed(units), strict=True)}
    read: dict[str, Counter[str]] = {item.group: Counter() for item in items}  # bytes that a group reads, by shard
    for item, unit in zip(items, units, strict=True):
        for tensor in (tensors[name] for name in unit.sources):
            read[item.group][tensor.shard] += tensor.nbytes
    missing: dict[str, dict[str, int]] = {node: {} for node in shards}
    for group, by_shard in read.items():
        able = [node for node, own in shards.items() if by_shard.keys() - own <= set(lent or ())]
        if not able:
            raise MintError(_unplaceable(first[group], by_shard.keys(), shards, lent))
        for node in able:
            missing[node][group] = sum(nbytes for shard, nbytes in by_shard.items() if shard not in shards[node])
    return Placement(items, missing)


def _unplaceable(
    unit: Unit, needed: Collection[str], shards: Mapping[str, set[str]], lent: Collection[str] | None
) -> str:
    def listed(names: set[str]) -> str:
        return ", ".join(sorted(names.intersection(needed))) or "none of them"

    own = "; ".join(f"{node} has {listed(names)}" for node, names in shards.items())
    cure = "copy the missing ones to one of the nodes"
    cure += "; lent are " + listed(set(lent)) if lent is not None else ", or let nodes borrow them: --share"
    return f"no node holds all shards of {unit.path}: {', '.join(sorted(needed))} ({own}); {cure}"


def place_whole_model(
    units: Iterable[Unit], nbytes: int, holders: Mapping[str, Collection[str]], nodes: Collection[str]
) -> Placement:
    """The placement of jobs that run the whole model of `nbytes`: on the nodes that hold every shard.

    An item is as much work as the model. If no node holds every shard, no node has a group.
    """
    group = " ".join(sorted(holders))
    complete = set(nodes).intersection(*holders.values())
    return Placement(
        tuple(Item(unit.path, nbytes, group) for unit in units),
        {node: {group: 0} if node in complete else {} for node in nodes},
    )


def within_memory(placement: Placement, peaks: Mapping[str, int], memory: Mapping[str, int]) -> Placement:
    """The placement without nodes whose memory is below the peak of a unit.

    Units that not every node can take form groups of their own. Raises `MintError` for a unit that no node can take.
    """
    least = min(memory.values(), default=0)
    missing = {node: dict(groups) for node, groups in placement.missing.items()}
    items = []
    for item in placement.items:
        peak = peaks[item.name]
        if peak > least:
            group = f"{item.group} {peak}"
            able = [node for node, groups in placement.missing.items() if item.group in groups and memory[node] >= peak]
            if not able:
                sizes = ", ".join(f"{node} {format_size(nbytes)}" for node, nbytes in memory.items())
                raise MintError(
                    f"{item.name} takes about {format_size(peak)} of memory, more than any node with its shards can "
                    f"give ({sizes}); needed: a node with more memory"
                )
            for node in able:
                missing[node][group] = placement.missing[node][item.group]
            item = replace(item, group=group)
        items.append(item)
    return Placement(tuple(items), missing)
