"""Weight files under construction: sized first, then filled at known positions in any order."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from mint.core.errors import DiskFullError
from mint.core.files import naming, sha256_of, write_all
from mint.formats.format import TensorSpec
from mint.formats.layout import OutputShard

CHUNK_BYTES = 4 << 20  # read at once


class WeightFiles(AbstractContextManager["WeightFiles"]):
    """The open shards of a layout in `folder`; an existing file of the right size and head is continued."""

    def __init__(self, folder: Path, layout: Sequence[OutputShard]) -> None:
        self._descriptors: list[int] = []
        self._paths = [folder / shard.name for shard in layout]
        self._positions = {
            placed.tensor.name: (index, placed.offset, placed.tensor)
            for index, shard in enumerate(layout)
            for placed in shard.tensors
        }
        try:
            for path, shard in zip(self._paths, layout, strict=True):
                with naming(path):
                    self._open(path, shard)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def write(self, tensors: Iterable[TensorSpec], data: Sequence[bytes | memoryview]) -> str:
        """Write the bytes of each tensor at its position; returns the SHA-256 of them all."""
        for tensor, piece in zip(tensors, data, strict=True):
            index, offset, planned = self._positions[tensor.name]
            assert tensor == planned and len(piece) == planned.nbytes, f"{tensor.name} is not as planned"
            with naming(self._paths[index]):
                write_all(self._descriptors[index], piece, offset)
        return sha256_of(data)

    def write_piece(self, tensor: TensorSpec, piece: memoryview, start: int) -> None:
        """Write some bytes of a tensor, the first of them at byte `start` of it."""
        index, offset, planned = self._positions[tensor.name]
        assert tensor == planned and 0 <= start <= planned.nbytes - len(piece), f"{tensor.name} is not as planned"
        with naming(self._paths[index]):
            write_all(self._descriptors[index], piece, offset + start)

    def digest(self, tensors: Iterable[TensorSpec]) -> str:
        """The SHA-256 of the bytes that these tensors now have in the files."""
        return sha256_of(piece for tensor in tensors for piece in self._read(tensor))

    def _read(self, tensor: TensorSpec) -> Iterator[bytes]:
        index, offset, planned = self._positions[tensor.name]
        end = offset + planned.nbytes
        with naming(self._paths[index]):
            while offset < end and (
                piece := os.pread(self._descriptors[index], min(end - offset, CHUNK_BYTES), offset)
            ):
                yield piece
                offset += len(piece)

    def flush(self) -> None:
        """Wait until everything is on the disk."""
        for path, descriptor in zip(self._paths, self._descriptors, strict=True):
            with naming(path):
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
            write_all(descriptor, shard.head, 0)
        except OSError as error:
            os.ftruncate(descriptor, 0)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(disk_full(path.parent, shard.nbytes)) from error
            raise


def disk_full(folder: Path, needed: int) -> str:
    """The error message for a disk that has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    return (
        f"{folder}: the disk has {free} bytes free, needed {needed}; free some space or choose another --output, "
        "then run the same command again"
    )
