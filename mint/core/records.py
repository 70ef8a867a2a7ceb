"""Records as plain values, and back: their fields have the declared types, or one error says so."""

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from mint.core.errors import MintError

MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, struct.error)
T = TypeVar("T")
_hints: Callable[[type], dict[str, Any]] = cache(get_type_hints)


def pick(record: object, names: str) -> dict[str, Any]:
    """The attributes of a record with these names, which are separated by spaces, in their order."""
    return {name: getattr(record, name) for name in names.split()}


def require_record(maker: str, *values: object) -> None:
    """Raise `MintError` for a path in place of a record; `maker` is the function that makes the record of a path."""
    for value in values:
        if isinstance(value, str | Path):
            raise MintError(f"{str(value)!r} is a path; needed: {maker}({str(value)!r})")


@contextmanager
def reading(subject: str, remedy: str) -> Iterator[None]:
    """Turn the errors of reading a malformed record into one `MintError`: the subject, the error, the remedy."""
    try:
        yield
    except MALFORMED as error:
        raise MintError(f"{subject} ({type(error).__name__}: {error}); {remedy}") from error


def typed(record: T) -> T:
    """The same dataclass; `TypeError` for a field whose value is not of its declared type."""
    hints = _hints(type(record))
    for field in fields(record):  # type: ignore[arg-type]
        if not _is_of(value := getattr(record, field.name), hints[field.name]):
            raise TypeError(f"{field.name}: found {str(value)[:60]!r}, needed {hints[field.name]}")
    return record


def _is_of(value: object, hint: Any) -> bool:
    """True for a value of a plain type, of a tuple or mapping of plain types, or of another class."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_of(value, argument) for argument in arguments)
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, float | int)
    if origin is tuple and arguments[-1] is ...:
        return isinstance(value, tuple) and all(_is_of(part, arguments[0]) for part in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        pairs = value.items() if isinstance(value, Mapping) else ()
        return isinstance(value, Mapping) and all(_is_of(k, arguments[0]) and _is_of(v, arguments[1]) for k, v in pairs)
    return isinstance(value, origin or hint)
