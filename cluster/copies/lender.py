"""Byte ranges of one model's shards, read for the other nodes of a run with `--share`.

A lender knows the shards of its inventory alone: it looks a name up there and never joins it to a path. A file outside
of the model's folder (behind a link; a hub cache's own blobs count as the model's) is not lent. Every range comes with
the digest of its content.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.copies.inventory import Held, Inventory
from mint.model.hub_cache import blob_folders

PIECE_BYTES = 8 << 20


class RefusedError(Exception):
    """The lender does not give these bytes, also when asked again."""


class Piece(NamedTuple):
    """The bytes of a range, and their SHA-256 where they were read."""

    content: bytes
    digest: bytes


def lendable(folder: Path, shards: Sequence[Held]) -> tuple[dict[str, Held], dict[str, str]]:
    """The shards of `folder` that may be lent by their names, and why the others may not."""
    lent, kept = {}, {}
    for shard in shards:
        real = (folder / shard.name).resolve()
        if _lies_within(real, folder):
            lent[shard.name] = shard
        else:
            kept[shard.name] = f"a link to {real}, outside the model's folder {folder}"
    return lent, kept


def _lies_within(real: Path, folder: Path) -> bool:
    """Whether a file is the model's own: in its folder, or a blob of the hub cache that the folder is a snapshot of."""
    folder = folder.resolve()
    return real.parent == folder or any(real.is_relative_to(blobs) for blobs in blob_folders(folder))


class Lender:
    """Reads ranges of the shards of an inventory that may be lent."""

    def __init__(self, inventory: Inventory) -> None:
        self._folder = Path(inventory.folder)
        self.lent, self.kept = lendable(self._folder, inventory.shards)

    def piece(self, shard: str, start: int, nbytes: int) -> Piece:
        """A range of at most `PIECE_BYTES`; `RefusedError` for what is not lent or not there any more."""
        held = self.lent.get(shard)
        if held is None:
            raise RefusedError("not lent here")
        if not 0 <= start < start + nbytes <= held.nbytes or nbytes > PIECE_BYTES:
            raise RefusedError(f"bytes {start} to {start + nbytes} are not a piece of {held.nbytes} bytes")
        path = self._folder / held.name
        if not _lies_within(path.resolve(), self._folder) or path.stat().st_size != held.nbytes:
            raise RefusedError("changed since this run began")
        with path.open("rb") as file:
            content = os.pread(file.fileno(), nbytes, start)
        if len(content) != nbytes:
            raise RefusedError("changed since this run began")
        return Piece(content, hashlib.sha256(content).digest())
