"""Damage to records of plain values, as an edited file or another version of a program makes it."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

NONSENSE: tuple[Any, ...] = (None, 3, -1.5, "text", b"\x00", [], {}, [None], [[1]], True)


def damaged(record: Any) -> Iterator[Any]:
    """Copies of a record of plain values: each value of its outer levels in turn is gone, or is nonsense."""
    for place in _places(record, depth=3):
        for value in NONSENSE:
            copy = deepcopy(record)
            _at(copy, place[:-1])[place[-1]] = value
            yield copy
        copy = deepcopy(record)
        del _at(copy, place[:-1])[place[-1]]
        yield copy


def _places(record: Any, depth: int) -> Iterator[tuple[Any, ...]]:
    keys = list(record) if isinstance(record, dict) else range(min(len(record), 2)) if isinstance(record, list) else ()
    for key in keys if depth else ():
        yield (key,)
        yield from ((key, *rest) for rest in _places(record[key], depth - 1))


def _at(record: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        record = record[key]
    return record
