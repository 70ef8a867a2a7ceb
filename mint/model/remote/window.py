"""Keeps few weights of a remote model on the disk at once: those that are needed now, and small ones for good.

A shard is emptied by cutting it behind its header and giving it back its size, on every file system that has sparse
files. It stays the same file for those that have it open, with the time of its last change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mint.core.files import write_all
from mint.core.progress import OnProgress, ignore
from mint.formats.units import Unit
from mint.model.checkpoint.sparse_copy import read_ranges

if TYPE_CHECKING:
    from mint.model.remote.outline import RemoteModel  # imports what asks a network

_CHANGED_NS = 0  # every sparse shard's time of the last change, which `FileStates` compares


class Window:
    """The tensors of a remote model that are on the disk; at first whatever the outline has."""

    def __init__(self, remote: RemoteModel) -> None:
        self._remote = remote
        self._kept = remote.ranges_of(remote.settings)
        self._filled = set(remote.outlines)  # shards that may hold more than the kept ranges
        self._touch(remote.outlines)

    @property
    def most_bytes(self) -> int:
        """Bytes of the largest shard: a batch has no more, unless one unit has."""
        return max((outline.nbytes for outline in self._remote.outlines.values()), default=0)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors that are not in the hub's cache."""
        return self.nbytes(self._remote.tensors)

    def keep(self, names: Iterable[str]) -> None:
        """Download these tensors, and keep them."""
        ranges = self._remote.ranges_of(names)
        self._remote.bring(ranges)
        for name, parts in ranges.items():
            self._kept.setdefault(name, []).extend(parts)
        self._touch(ranges)

    def show(self, names: Iterable[str], on_progress: OnProgress = ignore) -> None:
        """Drop the tensors that were shown before, and download these."""
        for name in self._filled:
            self._empty(name)
        ranges = self._remote.ranges_of(names)
        self._filled = set(ranges)
        self._remote.bring(ranges, on_progress)
        self._touch(ranges)

    def batches(self, units: Sequence[Unit]) -> Iterator[list[Unit]]:
        """The units in batches of at most `most_bytes` to download, in their order."""
        batch: list[Unit] = []
        sources: set[str] = set()
        for unit in units:
            if batch and self.nbytes({*sources, *unit.sources}) > self.most_bytes:
                yield batch
                batch, sources = [], set()
            batch.append(unit)
            sources.update(unit.sources)
        if batch:
            yield batch

    def nbytes(self, names: Iterable[str]) -> int:
        """Bytes to download for these tensors."""
        return sum(nbytes for parts in self._remote.ranges_of(names).values() for _, nbytes in parts)

    def _empty(self, name: str) -> None:
        path, outline, kept = self._remote.folder / name, self._remote.outlines[name], self._kept.get(name, [])
        pieces = read_ranges(path, kept)
        with path.open("r+b") as file:
            file.truncate(8 + len(outline.header))
            file.truncate(outline.nbytes)
            for (start, _), piece in zip(kept, pieces, strict=True):
                write_all(file.fileno(), piece, start)
        self._touch([name])

    def _touch(self, names: Iterable[str]) -> None:
        for name in names:
            os.utime(self._remote.folder / name, ns=(_CHANGED_NS, _CHANGED_NS))
