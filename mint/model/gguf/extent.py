"""Checks that everything the header of a GGUF file counts lies in the file: its reader counts without an end."""

import struct
from pathlib import Path
from typing import BinaryIO

from mint.core.files import naming

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9  # the kinds of values with a length
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of all other kinds


class _Header:
    """Reads a file from its beginning; `ValueError` at its end."""

    def __init__(self, file: BinaryIO, nbytes: int) -> None:
        self._file, self._nbytes, self._order = file, nbytes, "<"

    def check(self) -> None:
        """Read all values and the descriptions of all tensors."""
        if self._file.read(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        if self._number("I") & 0xFFFF == 0:
            self._order = ">"  # a version is small
        tensors, values = self._number("Q"), self._number("Q")
        for _ in range(values):
            self._skip(self._number("Q"))
            self._value(self._number("I"))
        for _ in range(tensors):
            self._skip(self._number("Q"))
            self._skip(8 * self._number("I") + 12)  # dimensions, kind and offset

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip(self._number("Q"))
        elif kind == _ARRAY:
            inner, count = self._number("I"), self._number("Q")
            if inner in _BYTES:
                self._skip(_BYTES[inner] * count)
            else:
                for _ in range(count):
                    self._value(inner)
        else:
            if kind not in _BYTES:
                raise ValueError(f"its header has a value of the unknown kind {kind}")
            self._skip(_BYTES[kind])

    def _number(self, code: str) -> int:
        size = struct.calcsize(code)
        text = self._file.read(size)
        if len(text) < size:
            raise ValueError(f"it ends within its header, after {self._nbytes} bytes")
        (number,) = struct.unpack(self._order + code, text)
        return int(number)

    def _skip(self, nbytes: int) -> None:
        if self._file.tell() + nbytes > self._nbytes:
            raise ValueError(f"its header counts {nbytes} bytes beyond byte {self._file.tell()} of {self._nbytes}")
        self._file.seek(nbytes, 1)


def check_extent(path: Path) -> None:
    """Raise `ValueError` for a file whose header is malformed."""
    with naming(path), path.open("rb") as file:
        _Header(file, path.stat().st_size).check()
