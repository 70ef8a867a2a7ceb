"""The shards of a model that a node holds, compared with those of the other nodes.

A shard is compared by size, header, sampled content and, where it is known without reading the file (the hub's cache
names files by their SHA-256), by the digest of all of it. A shard with the same name, size and header but other bytes
is detected in seconds, before any work.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.copies.conversions import find_conversion
from mint.core.errors import MintError
from mint.core.sizes import enough_size, format_size
from mint.formats.units import Unit
from mint.model.checkpoint.shards import PATTERN, SourceTensor, read_index, read_shard, shard_names
from mint.model.gguf.files import is_conversion

ROOTS_VARIABLE = "MINT_MODEL_ROOTS"  # where a node looks for models, separated as in PATH
_DIGESTS = {"header_digest": "header", "sample_digest": "sampled content", "full_digest": "content"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Held:
    """A shard as a node has it; `full_digest` is empty when nobody has read the whole file."""

    name: str
    nbytes: int
    header_digest: str
    sample_digest: str
    full_digest: str = ""

    def differs_from(self, other: "Held") -> str:
        """The first difference in words; empty for the same shard."""
        if self.nbytes != other.nbytes:
            return f"{self.nbytes} bytes and {other.nbytes}"
        for name, word in _DIGESTS.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and mine and theirs:
                return f"{word} {mine[:12]} and {theirs[:12]}"
        return ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The shards of one model on one node, the folder that they lie in (empty for none), and files that are broken."""

    node: str
    folder: str
    shards: tuple[Held, ...] = ()
    faults: tuple[str, ...] = ()


def model_roots() -> tuple[Path, ...]:
    """The folders in which this node looks for models."""
    return tuple(Path(root) for root in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if root)


def find_model(model: str, roots: Sequence[Path]) -> Path | None:
    """This node's folder of the model that the head has in the folder `model`: under its roots, or at the same path.

    A root may be the folder itself. Of a hub cache, the head's snapshot is preferred to the newest one; a snapshot of
    the head may be a folder of the model's name here. Raises `MintError` for a GGUF model that is another one here.
    """
    if is_conversion(Path(model)):
        return find_conversion(Path(model), roots)
    for name in _names(Path(model)):
        for root in roots:
            for folder in (root / name, root):
                if any(folder.glob(PATTERN)) and (folder != root or root.name == name):
                    return folder
            patterns = (f"{name}/snapshots/*", f"models--*--{name}/snapshots/*", f"models--*/snapshots/{name}")
            snapshots = [path for pattern in patterns for path in root.glob(pattern) if any(path.glob(PATTERN))]
            if snapshots:
                return sorted(snapshots, key=lambda snapshot: snapshot.stat().st_mtime)[-1]
    return Path(model) if any(Path(model).glob(PATTERN)) else None


def _names(model: Path) -> tuple[str, ...]:
    """Names of a model on other nodes: a snapshot's commit, the folder of its repository, its name."""
    repository = model.parent.parent.name
    if model.parent.name != "snapshots" or not repository.startswith("models--"):
        return (model.name,)
    return model.name, repository, repository.rpartition("--")[2]


def take_inventory(node: str, folder: Path | None) -> Inventory:
    """The inventory of `folder`, from headers and samples. Broken files are listed as faults, not raised."""
    if folder is None:
        return Inventory(node, "")
    shards, faults = [], []
    try:
        names = shard_names(folder)
    except MintError as error:
        return Inventory(node, str(folder), faults=(str(error),))
    for name in names:
        path = folder / name
        # the first link only: files that huggingface_hub shares between repositories end under another hash
        target = path.readlink().name if path.is_symlink() else ""
        digest = target if _SHA256.fullmatch(target) else ""
        try:
            shard = read_shard(folder, name)
            shards.append(Held(shard.name, shard.nbytes, shard.header_digest, shard.sample_digest, digest))
        except (MintError, OSError) as error:
            faults.append(str(error))
    return Inventory(node, str(folder), tuple(shards), tuple(faults))


def needed_shards(head: Inventory, others: Iterable[Inventory]) -> tuple[str, ...]:
    """The names of all shards: of the head's index where it has one, else all that any node holds."""
    listed = set(read_index(Path(head.folder)).values()) if head.folder else set()
    return tuple(sorted(listed or {shard.name for inventory in (head, *others) for shard in inventory.shards}))


def agree(needed: Sequence[str], inventories: Sequence[Inventory]) -> dict[str, tuple[str, ...]]:
    """The nodes that hold each needed shard, in the order of `inventories`.

    Raises `MintError` that names the first shard that is broken or differs between nodes, or all that nobody has.
    """
    for inventory in inventories:
        if inventory.faults:
            raise MintError(f"on {inventory.node}: {inventory.faults[0]}")
    first: dict[str, tuple[Inventory, Held]] = {}
    holders: dict[str, list[str]] = {name: [] for name in needed}
    for inventory in inventories:
        for shard in inventory.shards:
            if shard.name not in holders:
                continue
            owner, reference = first.setdefault(shard.name, (inventory, shard))
            if difference := shard.differs_from(reference):
                raise MintError(
                    f"shard {shard.name} differs: on {inventory.node} ({inventory.folder}) and on {owner.node} "
                    f"({owner.folder}) it has {difference}; needed: the same file on every node. "
                    "Compare both with the model's source and copy the right one over the other"
                )
            if not reference.full_digest:
                first[shard.name] = owner, replace(reference, full_digest=shard.full_digest)
            holders[shard.name].append(inventory.node)
    if missing := [name for name, nodes in holders.items() if not nodes]:
        folders = ", ".join(f"{inventory.node} ({inventory.folder or 'no such model'})" for inventory in inventories)
        raise MintError(
            f"{len(missing)} of {len(needed)} shards are nowhere: {', '.join(missing[:4])}; looked on {folders}. "
            f"Copy them to any node, or tell a node where its models are in {ROOTS_VARIABLE}"
        )
    return {name: tuple(nodes) for name, nodes in holders.items()}


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

    def model_memory(self, kind: str) -> int:
        """The most memory for a model of the nodes of this kind that hold all shards; 0 without any."""
        able = [node for node, obstacle in self.obstacles(kind, 0).items() if not obstacle]
        return max((self.holders[node].memory_bytes for node in able), default=0)

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
                reasons[node] = f"needs {enough_size(memory_bytes)} of memory, has {format_size(holder.memory_bytes)}"
            else:
                reasons[node] = ""
        return reasons
