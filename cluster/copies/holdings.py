"""Which nodes hold which shards of one model, and what those nodes are."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cluster.copies.inventory import Inventory, agree, needed_shards
from mint.core.sizes import format_size
from mint.formats.units import Unit
from mint.model.checkpoint.shards import SourceTensor


@dataclass(frozen=True, slots=True)
class Holder:
    """A node with the shards that it holds, the kind of its device, and the memory that it has for a model."""

    inventory: Inventory
    device: str
    memory_bytes: int

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
        self.owners()

    def owners(self) -> dict[str, tuple[str, ...]]:
        """The nodes that hold each needed shard; raises `MintError` for one that differs, is broken, or is nowhere."""
        return dict(agree(self.needed, [self._head, *(holder.inventory for holder in self.holders.values())]))

    @property
    def lacking(self) -> list[str]:
        """The shards that the head does not hold itself."""
        held = {shard.name for shard in self._head.shards}
        return [name for name in self.needed if name not in held]

    def nodes_of(self, kinds: Collection[str]) -> list[str]:
        """The nodes with devices of these kinds."""
        return [node for node, holder in self.holders.items() if holder.device in kinds]

    def fed(self, units: Sequence[Unit], tensors: Mapping[str, SourceTensor], kind: str) -> set[str]:
        """The paths of the units whose shards lie all on one node of this kind."""
        nodes = [self.holders[node].shards for node in self.nodes_of([kind])]
        needs = {unit.path: {tensors[name].shard for name in unit.sources} for unit in units}
        return {path for path, shards in needs.items() if any(shards <= held for held in nodes)}

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
