"""Chooses the units that every kind of Mac in a cluster measures, and compares their results.

A node of any chip may measure. Some units, chosen by their paths alone, are first measured on every kind that can do
them. If kinds disagree about one, the run stops. Jobs that write bytes or run the model use one kind only, that of the
machine where the command runs: chips may differ in single codes, and one model or probe file needs one kind.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import TypeVar

from mint.analysis.cross_device import TOLERANCE
from mint.core.errors import MintError
from mint.formats.units import Unit
from mint.run.job import Difference

T = TypeVar("T")

SHARE = 0.005  # of all units
FEWEST = 2  # units


def cross_check_units(units: Sequence[Unit], able: Mapping[str, set[str]]) -> tuple[Unit, ...]:
    """The units to measure on every kind; `able` maps a kind to the paths that it can do."""
    shared = [unit for unit in units if sum(unit.path in paths for paths in able.values()) > 1]
    count = max(FEWEST, ceil(SHARE * len(units)))
    drawn = sorted(shared, key=lambda unit: hashlib.sha256(f"measured twice\0{unit.path}".encode()).digest())[:count]
    chosen = {unit.path for unit in drawn}
    return tuple(unit for unit in shared if unit.path in chosen)


def check_agreement(unit: str, results: Mapping[str, T], difference: Callable[[T, T], Difference | None]) -> None:
    """Raise `MintError` if nodes of different kinds disagree about a unit; `results` is by node name."""
    (first, expected), *others = results.items()
    for node, result in others:
        if values := difference(expected, result):
            quantity, one, other = values
            raise MintError(
                f"unit {unit}: {quantity} is {one:.9g} on {first} and {other:.9g} on {node}; needed: the "
                f"same within {TOLERANCE:g} relative on every chip. Run mint doctor on both, remove one, and "
                "analyze again"
            )
