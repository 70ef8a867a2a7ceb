"""The nodes of a run, and which of them hold which shards of one model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.copies.inventory import Inventory, agree, needed_shards
from mint.core.sizes import format_size
from mint.formats.units import Unit
from mint.model.checkpoint.shards import SourceTensor


@dataclass(frozen=True, slots=True)
class Holder:
    """A node as its worker describes it."""

    inventory: Inventory
    device: str  # the kind
    memory_bytes: int  # for a model
    pid: int
    versions: Mapping[str, str]  # that results depend on
    lent: tuple[str, ...] = ()  # names of the shards that it lends
    unlent: Mapping[str, str] = field(default_factory=dict)  # the reasons why it does not lend the others

    @property
    def shards(self) -> set[str]:
        """The names of its shards."""
        return {shard.name for shard in self.inventory.shards}


class Holdings:
    """The shards of a model on the head and on all nodes; the same on all of them, or a `MintError`."""

    def __init__(self, head: Inventory, holders: Mapping[str, Holder]) -> None:
        self._head = head
        self.holders = dict(holders)  # by node
        self.devices = tuple(sorted({holder.device for holder in holders.values()}))
        self.needed = needed_shards(head, [holder.inventory for holder in holders.values()])
        own = {shard.name for shard in head.shards}
        self.lacking = [name for name in self.needed if name not in own]  # shards that the head does not hold itself
        self.owners()

    def owners(self) -> dict[str, tuple[str, ...]]:
        """The nodes that hold each needed shard; raises `MintError` for one that differs, is broken, or is nowhere."""
        return agree(self.needed, [self._head, *(holder.inventory for holder in self.holders.values())])

    def nodes_of(self, kinds: Collection[str]) -> list[str]:
        """The nodes with devices of these kinds."""
        return [node for node, holder in self.holders.items() if holder.device in kinds]

    def fed(self, units: Sequence[Unit], tensors: Mapping[str, SourceTensor], kind: str) -> set[str]:
        """The paths of the units whose shards lie all on one node of this kind."""
        shards_of_nodes = [self.holders[node].shards for node in self.nodes_of([kind])]
        needs = {unit.path: {tensors[name].shard for name in unit.sources} for unit in units}
        return {path for path, needed in needs.items() if any(needed <= shards for shards in shards_of_nodes)}

    def obstacles(self, kind: str, memory_bytes: int) -> dict[str, str]:
        """By node, why it cannot run the model on a device of this kind in so much memory; empty where it can."""
        reasons = {}
        for node, holder in self.holders.items():
            lacks = len(set(self.needed) - holder.shards)
            if holder.device != kind:
                reasons[node] = f"is {holder.device}, not {kind}"
            elif lacks:
                reasons[node] = f"lacks {lacks} of {len(self.needed)} shards"
            elif memory_bytes > holder.memory_bytes:
                reasons[node] = f"needs {format_size(memory_bytes)} of memory, has {format_size(holder.memory_bytes)}"
            else:
                reasons[node] = ""
        return reasons
