"""Byte ranges of one model's shards, read for the other nodes of a run with `--share`.

A lender lends only shards of its inventory: an unknown name never becomes part of a path. A file outside of the model's
folder (behind a link; a hub cache's own blobs count as the model's) is not lent. Every range comes with its digest.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from cluster.copies.inventory import Held, Inventory
from cluster.copies.sparse_copy import read_ranges
from mint.model.hub_cache import blob_folders

PIECE_BYTES = 8 << 20


class RefusedError(Exception):
    """The lender does not give these bytes, also when it is asked again."""


class Piece(NamedTuple):
    """The bytes of a range, and their SHA-256 where they were read."""

    content: bytes
    digest: bytes


class Lender:
    """Reads ranges of the shards of an inventory that may be `lent`; `unlent` has the reasons against the others."""

    def __init__(self, inventory: Inventory) -> None:
        self._folder = Path(inventory.folder)
        self.lent: dict[str, Held] = {}  # by name
        self.unlent: dict[str, str] = {}
        for shard in inventory.shards:
            if self._is_own(shard.name):
                self.lent[shard.name] = shard
            else:
                real = (self._folder / shard.name).resolve()
                self.unlent[shard.name] = f"a link to {real}, outside the model's folder {self._folder}"

    def piece(self, shard: str, start: int, nbytes: int) -> Piece:
        """A range of at most `PIECE_BYTES`; `RefusedError` for bytes that are not lent or not there any more."""
        if shard not in self.lent:
            raise RefusedError("not lent here")
        size = self.lent[shard].nbytes
        if not 0 <= start < start + nbytes <= size or nbytes > PIECE_BYTES:
            raise RefusedError(f"bytes {start} to {start + nbytes} are not a piece of {size} bytes")
        path = self._folder / shard
        if self._is_own(shard) and path.stat().st_size == size:
            (content,) = read_ranges(path, [(start, nbytes)])
            if len(content) == nbytes:
                return Piece(content, hashlib.sha256(content).digest())
        raise RefusedError("changed since this run began")

    def _is_own(self, shard: str) -> bool:
        """True for a file in the model's folder, or in the blobs of the hub cache that it is a snapshot of."""
        real, folder = (self._folder / shard).resolve(), self._folder.resolve()
        return real.parent == folder or any(real.is_relative_to(blobs) for blobs in blob_folders(folder))
