"""Files of checksummed frames: append-only, readable up to the last whole frame whenever the writer was killed.

Layout: the magic, then frames of `length: u32, crc32: u32, payload` (little-endian, payload in msgpack).
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from mint.core.errors import MintError
from mint.core.files import naming, partial_path, read_whole, sha256_of, write_whole

_FRAME = struct.Struct("<II")
MAX_FRAME_BYTES = 1 << 30


def frame(record: Any) -> bytes:
    """The bytes of one frame; the same record always gives the same bytes."""
    payload: bytes = msgpack.packb(record, use_bin_type=True)
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def read_frames(text: bytes, start: int) -> Iterator[tuple[Any, int]]:
    """Every whole and undamaged frame from `start` on, with the position of its end; stops at the first bad one.

    A power cut can leave zeros behind the last frame, and an empty frame would have the right checksum: it is bad too.
    """
    position = start
    while position + _FRAME.size <= len(text):
        length, checksum = _FRAME.unpack_from(text, position)
        payload = text[position + _FRAME.size : position + _FRAME.size + length]
        if not 0 < length <= MAX_FRAME_BYTES or len(payload) < length or zlib.crc32(payload) != checksum:
            return
        try:
            record = msgpack.unpackb(payload, raw=False)
        except (ValueError, msgpack.UnpackException):
            return
        position += _FRAME.size + length
        yield record, position


def read_header(path: Path, magic: bytes) -> dict[str, Any] | None:
    """The header of the file at `path`, without the rest of it; None where there is no whole one after `magic`."""
    if not path.exists():
        return None
    with naming(path), path.open("rb") as file:
        text = file.read(len(magic) + _FRAME.size)
        if len(text) < len(magic) + _FRAME.size or not text.startswith(magic):
            return None
        text += file.read(min(_FRAME.unpack_from(text, len(magic))[0], MAX_FRAME_BYTES))
    header, _ = next(read_frames(text, len(magic)), (None, 0))
    return header if isinstance(header, dict) else None


def remove_stray(finished: Path, magic: bytes) -> None:
    """Remove the journal of a finished file: a process that was killed in between left it."""
    journal = partial_path(finished)
    header = read_header(journal, magic)
    if header is not None and header == read_header(finished, magic):
        journal.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class SealedKind:
    """A kind of finished file: how it begins, its schema, and the words of its error messages."""

    magic: bytes
    schema: int
    name: str  # with its article
    command: str  # writes such files
    remedy: str  # of a bad one


@dataclass(frozen=True, slots=True)
class Sealed:
    """The content of a finished file; `sha256` is that of everything before its end frame."""

    header: dict[str, Any]
    records: list[Any]
    sha256: str


def write_sealed(path: Path, kind: SealedKind, header: Mapping[str, Any], records: Sequence[Any]) -> str:
    """Write header, records and an end frame with their number and SHA-256, whole or not at all; return the SHA-256."""
    text = kind.magic + frame(dict(header)) + b"".join(map(frame, records))
    digest = sha256_of([text])
    write_whole(path, text + frame({"end": len(records), "sha256": digest}))
    return digest


def read_sealed(path: Path, kind: SealedKind) -> Sealed:
    """Read a finished file; `MintError` when it is foreign, damaged, unfinished or of another schema."""
    text = read_whole(path)
    if not text.startswith(kind.magic):
        raise MintError(f"{path}: not {kind.name}; needed: a file that `{kind.command}` wrote")
    frames = list(read_frames(text, len(kind.magic)))
    records = [record for record, _ in frames]
    header = records[0] if records and isinstance(records[0], dict) else {}
    if header.get("schema") != kind.schema:
        raise MintError(f"{path}: {kind.name} of schema {header.get('schema')}, needed {kind.schema}; {kind.remedy}")
    body, seal = records[1:-1], records[-1]
    digest = sha256_of([text[: frames[-2][1]]]) if len(frames) > 1 else None
    if digest is None or not isinstance(seal, dict) or (seal.get("end"), seal.get("sha256")) != (len(body), digest):
        fault = f"damaged: {len(records) - 1} frames after the header are readable, the last is no seal"
        raise MintError(f"{path}: {fault}; remove the file and {kind.remedy}")
    return Sealed(header, body, digest)


class Journal(AbstractContextManager["Journal"]):
    """An open journal: the `records` of earlier runs, to append to. One writer at a time.

    The first frame is the header. A journal that was begun for another header is refused, and overwritten only where
    `is_replaceable` says so of that header.
    """

    def __init__(
        self,
        path: Path,
        magic: bytes,
        header: dict[str, Any],
        is_replaceable: Callable[[Mapping[str, Any]], bool] = lambda header: False,
    ) -> None:
        self.path = path
        self._is_replaceable = is_replaceable
        self._file = path.open("a+b")
        with naming(path):
            try:
                self.records = self._recover(magic, header)
            except BaseException:
                self._file.close()  # flushes what could not be written, and can fail as that did
                raise

    def __exit__(self, *_: object) -> None:
        with naming(self.path):
            self._file.close()

    def append(self, record: Any) -> None:
        """Write one frame; once this returns a killed process no longer loses it."""
        with naming(self.path):
            self._file.write(frame(record))
            self._file.flush()

    def _recover(self, magic: bytes, header: dict[str, Any]) -> list[Any]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MintError(f"{self.path}: another mint is writing this file; wait for it or end it first") from error
        if not self.path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
            raise MintError(f"{self.path}: another mint has just finished this file; run the same command again")
        text = read_whole(self.path)
        if not text.startswith(magic) and not magic.startswith(text):
            raise MintError(f"{self.path}: found a file that mint did not write; choose another output or remove it")
        frames = list(read_frames(text, len(magic)))
        earlier = frames[0][0] if frames else header
        if isinstance(earlier, dict) and earlier != header and self._is_replaceable(earlier):
            frames = []
        elif earlier != header:
            fault = f"begun for something else ({_difference(earlier, header)})"
            raise MintError(f"{self.path}: {fault}; choose another output, or remove this file to begin again")
        self._file.truncate(frames[-1][1] if frames else 0)
        if not frames:
            self._file.write(magic + frame(header))
            self._file.flush()
        return [record for record, _ in frames[1:]]


def _difference(other: Any, needed: dict[str, Any]) -> str:
    if not isinstance(other, dict):
        return "its header is not ours"
    names = [name for name in needed if other.get(name) != needed[name]][:3]
    return ", ".join(f"{name}: found {str(other.get(name))[:60]}, needed {str(needed[name])[:60]}" for name in names)
