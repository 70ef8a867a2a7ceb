"""Which nodes can do what by more than the shards that they hold: by their memory, and for the whole model at once."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cluster.schedule.events import Item
from cluster.schedule.placement import Placement
from mint.core.errors import MintError
from mint.core.sizes import format_size
from mint.formats.units import Unit


def place_whole(
    units: Iterable[Unit], nbytes: int, holders: Mapping[str, Iterable[str]], nodes: Iterable[str]
) -> Placement:
    """Who can run the model of `nbytes` for each unit: whoever holds every shard. An item is as much work as the model.

    Nobody may be able to: then no node has a group.
    """
    group = " ".join(sorted(holders))
    held = [set(owners) for owners in holders.values()]
    able = {node: all(node in owners for owners in held) for node in nodes}
    return Placement(
        tuple(Item(unit.path, nbytes, group) for unit in units),
        {node: {group: 0} if can else {} for node, can in able.items()},
    )


def within_memory(placement: Placement, peaks: Mapping[str, int], memory: Mapping[str, int]) -> Placement:
    """The placement without the nodes whose memory is smaller than the peak of a unit.

    Units that not every node can take form groups of their own. Raises `MintError` naming one that nobody can take.
    """
    least = min(memory.values(), default=0)
    missing = {node: dict(reach) for node, reach in placement.missing.items()}
    items = []
    for item in placement.items:
        peak = peaks[item.name]
        if peak > least:
            group = f"{item.group} {peak}"
            able = [node for node, reach in placement.missing.items() if item.group in reach and memory[node] >= peak]
            if not able:
                raise MintError(_nobody(item, peak, memory))
            for node in able:
                missing[node][group] = placement.missing[node][item.group]
            item = replace(item, group=group)
        items.append(item)
    return Placement(tuple(items), missing)


def _nobody(item: Item, peak: int, memory: Mapping[str, int]) -> str:
    has = ", ".join(f"{node} {format_size(nbytes)}" for node, nbytes in memory.items())
    return (
        f"{item.name} takes about {format_size(peak)} of memory, more than any node that holds its shards has for it "
        f"({has}); needed: a node with more"
    )
