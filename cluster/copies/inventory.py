"""What a node holds of a model, and whether it is what the others hold.

A shard is compared by size, header, sampled content and, where it is known without reading the file (the hub's cache
names files by their SHA-256), by the digest of all of it. One with the same name, size and header but other bytes
is found in seconds, before any work.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mint.core.errors import MintError
from mint.model.checkpoint.shards import PATTERN, Shard, read_index, read_shard

ROOTS_VARIABLE = "MINT_MODEL_ROOTS"  # where a node looks for models, separated as in PATH
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
        """What is not the same, in words; empty for the same shard."""
        if self.nbytes != other.nbytes:
            return f"{self.nbytes} bytes and {other.nbytes}"
        for what in ("header_digest", "sample_digest", "full_digest"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs and mine and theirs:
                word = {"header_digest": "header", "sample_digest": "sampled content", "full_digest": "content"}[what]
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
    """The folders that this node was told to look for models in."""
    return tuple(Path(root) for root in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if root)


def find_model(model: str, roots: Sequence[Path]) -> Path | None:
    """Where this node has the model that the head knows as the folder `model`: under its roots, or at the same path.

    A root may be the folder itself. Of a hub cache, the snapshot that the head has is preferred to the newest one; a
    snapshot that the head has may be a folder of the model's name here.
    """
    for name in _names(Path(model)):
        for root in roots:
            for folder in (root / name, root):
                if any(folder.glob(PATTERN)) and (folder != root or root.name == name):
                    return folder
            if snapshots := _snapshots(root, name):
                return snapshots[-1]
    return Path(model) if any(Path(model).glob(PATTERN)) else None


def _names(model: Path) -> tuple[str, ...]:
    """What a model may be called on another node: a snapshot's commit, the folder of its repository, its name."""
    repository = model.parent.parent.name
    if model.parent.name != "snapshots" or not repository.startswith("models--"):
        return (model.name,)
    return model.name, repository, repository.rpartition("--")[2]


def _snapshots(root: Path, name: str) -> list[Path]:
    """Snapshots in a hub cache of a model whose repository, or snapshot, bears this name; the newest last."""
    patterns = (f"{name}/snapshots/*", f"models--*--{name}/snapshots/*", f"models--*/snapshots/{name}")
    found = [folder for pattern in patterns for folder in root.glob(pattern) if any(folder.glob(PATTERN))]
    return sorted(found, key=lambda folder: folder.stat().st_mtime)


def take_inventory(node: str, folder: Path | None) -> Inventory:
    """What lies in `folder`; reads headers and samples only. Broken files are listed, not raised."""
    if folder is None:
        return Inventory(node, "")
    shards, faults = [], []
    for path in sorted(folder.glob(PATTERN)):
        try:
            shards.append(held(read_shard(path), path))
        except (MintError, OSError) as error:
            faults.append(str(error))
    return Inventory(node, str(folder), tuple(shards), tuple(faults))


def held(shard: Shard, path: Path) -> Held:
    """A shard that was read, with the digest that its file is named by, if it is."""
    # not where the link ends: files that huggingface_hub shares between repositories are named by another hash there
    target = path.readlink().name if path.is_symlink() else ""
    digest = target if _SHA256.fullmatch(target) else ""
    return Held(shard.name, shard.nbytes, shard.header_digest, shard.sample_digest, digest)


def needed_shards(head: Inventory, others: Iterable[Inventory]) -> tuple[str, ...]:
    """The names of all shards: of the head's index where it has one, else all that anybody holds."""
    listed = set(read_index(Path(head.folder)).values()) if head.folder else set()
    everybody = (each.name for inventory in (head, *others) for each in inventory.shards)
    return tuple(sorted(listed or set(everybody)))


def agree(needed: Sequence[str], inventories: Sequence[Inventory]) -> Mapping[str, tuple[str, ...]]:
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
        looked = ", ".join(f"{each.node} ({each.folder or 'no such model'})" for each in inventories)
        raise MintError(
            f"{len(missing)} of {len(needed)} shards are nowhere: {', '.join(missing[:4])}; looked on {looked}. "
            f"Copy them to any node, or tell a node where its models are in {ROOTS_VARIABLE}"
        )
    return {name: tuple(nodes) for name, nodes in holders.items()}
