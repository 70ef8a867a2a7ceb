"""Attributes of a record as a dict, for JSON."""

from typing import Any


def pick(record: object, names: str) -> dict[str, Any]:
    """The attributes of a record with these names, which are separated by spaces, in their order."""
    return {name: getattr(record, name) for name in names.split()}
