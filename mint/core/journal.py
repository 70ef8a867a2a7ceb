"""Files of checksummed frames: append-only, readable up to the last whole frame whenever the writer was killed.

Layout: the magic, then frames of `length: u32, crc32: u32, payload` (little-endian, payload in msgpack).
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgpack

from mint.core.errors import MintError

_FRAME = struct.Struct("<II")
MAX_FRAME_BYTES = 1 << 30

try:
    import fcntl
except ImportError:  # no advisory locks on this platform
    fcntl = None  # type: ignore[assignment]


def frame(record: Any) -> bytes:
    """The bytes of one frame; the same record always gives the same bytes."""
    payload: bytes = msgpack.packb(record, use_bin_type=True)
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def read_frames(text: bytes, start: int) -> Iterator[tuple[Any, int]]:
    """Every whole and undamaged frame from `start` on, with the position of its end; stops at the first bad one."""
    position = start
    while position + _FRAME.size <= len(text):
        length, checksum = _FRAME.unpack_from(text, position)
        payload = text[position + _FRAME.size : position + _FRAME.size + length]
        if length > MAX_FRAME_BYTES or len(payload) < length or zlib.crc32(payload) != checksum:
            return
        position += _FRAME.size + length
        yield msgpack.unpackb(payload, raw=False), position


def write_sealed(path: Path, magic: bytes, header: Mapping[str, Any], records: Sequence[Any]) -> None:
    """Write a finished file, whole or not at all: header, records, and how many and the SHA-256 of all before."""
    text = magic + frame(dict(header)) + b"".join(map(frame, records))
    text += frame({"end": len(records), "sha256": hashlib.sha256(text).hexdigest()})
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def flush_folder(folder: Path) -> None:
    """Let the names in a folder outlive a loss of power."""
    flush_file(folder)


def flush_file(path: Path) -> None:
    """Let what a file holds outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Journal:
    """An open journal: what earlier runs left in it, and a place to append. One writer at a time.

    The first frame is the header. A journal that was begun for another header is refused, never overwritten.
    """

    def __init__(self, path: Path, magic: bytes, header: dict[str, Any]) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
            self.records = self._recover(magic, header)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def append(self, record: Any) -> None:
        """Write one frame; once this returns a killed process no longer loses it."""
        self._write(frame(record))

    def _write(self, text: bytes) -> None:
        view = memoryview(text)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MintError(f"{self.path}: another mint is writing this file; wait for it or end it first") from error

    def _recover(self, magic: bytes, header: dict[str, Any]) -> list[Any]:
        text = self.path.read_bytes()
        first = magic + frame(header)
        if not text.startswith(magic) and not magic.startswith(text):
            raise MintError(f"{self.path}: found a file that mint did not write; choose another output or remove it")
        frames = list(read_frames(text, len(magic)))
        if frames and frames[0][0] != header:
            raise MintError(
                f"{self.path}: begun for something else ({_difference(frames[0][0], header)}); "
                "choose another output, or remove this file to begin again"
            )
        end = frames[-1][1] if frames else 0
        os.ftruncate(self._descriptor, end)
        os.lseek(self._descriptor, end, os.SEEK_SET)
        if not frames:
            self._write(first)
        return [record for record, _ in frames[1:]]


def _difference(found: Any, needed: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "its header is not ours"
    names = [name for name in needed if found.get(name) != needed[name]]
    return ", ".join(
        f"{name}: found {str(found.get(name))[:60]}, needed {str(needed[name])[:60]}" for name in names[:3]
    )
