"""Limits a placement to nodes with enough memory, or to nodes that hold the whole model."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from cluster.schedule.events import Item
from cluster.schedule.placement import Placement
from mint.core.errors import MintError
from mint.core.sizes import format_size
from mint.formats.units import Unit


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
                raise MintError(_too_large(item, peak, memory))
            for node in able:
                missing[node][group] = placement.missing[node][item.group]
            item = replace(item, group=group)
        items.append(item)
    return Placement(tuple(items), missing)


def _too_large(item: Item, peak: int, memory: Mapping[str, int]) -> str:
    sizes = ", ".join(f"{node} {format_size(nbytes)}" for node, nbytes in memory.items())
    return (
        f"{item.name} takes about {format_size(peak)} of memory, more than any node with its shards can give "
        f"({sizes}); needed: a node with more memory"
    )
