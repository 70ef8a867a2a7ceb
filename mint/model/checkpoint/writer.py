"""Weight files under construction: sized first, then filled at known positions in any order."""

import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from mint.core.errors import DiskFullError
from mint.formats.format import TensorSpec
from mint.formats.layout import OutputShard

_MOST_AT_ONCE = 1 << 30  # bytes of a write: macOS refuses more than 2 GiB, which an expert layer can have


class WeightFiles:
    """The open shards of a layout in `folder`; an existing file of the right size and head is gone on with."""

    def __init__(self, folder: Path, layout: Sequence[OutputShard]) -> None:
        self._descriptors: list[int] = []
        self._places = {
            placed.tensor.name: (index, placed.offset, placed.tensor)
            for index, shard in enumerate(layout)
            for placed in shard.tensors
        }
        try:
            for shard in layout:
                self._open(folder / shard.name, shard)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, tensors: Iterable[TensorSpec], data: Iterable[bytes | memoryview], sha256: str = "") -> str:
        """Write the bytes of each tensor in its place; the SHA-256 of them all, computed unless it is given."""
        digest = hashlib.sha256()
        for tensor, piece in zip(tensors, data, strict=True):
            index, offset, planned = self._places[tensor.name]
            assert tensor == planned and len(piece) == planned.nbytes, f"{tensor.name} is not as planned"
            if not sha256:
                digest.update(piece)
            rest = memoryview(piece)
            while rest:
                count = os.pwrite(self._descriptors[index], rest[:_MOST_AT_ONCE], offset)
                rest, offset = rest[count:], offset + count
        return sha256 or digest.hexdigest()

    def digest(self, tensors: Iterable[TensorSpec]) -> str:
        """The SHA-256 of what now lies in the place of these tensors."""
        digest = hashlib.sha256()
        for tensor in tensors:
            index, offset, planned = self._places[tensor.name]
            end = offset + planned.nbytes
            while offset < end:
                piece = os.pread(self._descriptors[index], min(end - offset, 4 << 20), offset)
                if not piece:
                    break
                digest.update(piece)
                offset += len(piece)
        return digest.hexdigest()

    def flush(self) -> None:
        """Wait until everything is on the disk."""
        for descriptor in self._descriptors:
            os.fsync(descriptor)

    def _open(self, path: Path, shard: OutputShard) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._descriptors.append(descriptor)
        if os.fstat(descriptor).st_size == shard.nbytes and os.pread(descriptor, len(shard.head), 0) == shard.head:
            return
        try:
            os.ftruncate(descriptor, 0)
            if hasattr(os, "posix_fallocate"):  # not on macOS: there the free space was checked, nothing is reserved
                os.posix_fallocate(descriptor, 0, shard.nbytes)
            else:
                os.ftruncate(descriptor, shard.nbytes)
            os.pwrite(descriptor, shard.head, 0)
        except OSError as error:
            os.ftruncate(descriptor, 0)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(disk_full(path.parent, shard.nbytes)) from error
            raise

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


def disk_full(folder: Path, needed: int) -> str:
    """What to tell when there is no room for `needed` bytes in `folder`."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    return (
        f"{folder}: the disk has {free} bytes free, needed {needed}; free some space or choose another --output, "
        "then run the same command again"
    )
