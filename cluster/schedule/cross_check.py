"""Macs of different kinds in one cluster: which units are measured on several of them, to be compared.

Any node may measure, whatever its chip. Some units, decided by their paths alone, are measured on every kind that can,
before the others; kinds that disagree about one are not to be trusted with the rest. What writes bytes or runs the
model is done by nodes of one kind alone, that of the machine where the command runs: chips may differ in single codes,
and the units of one model, like the probes of one file, have to be of one kind.
"""

import hashlib
from collections.abc import Mapping, Sequence
from math import ceil

from mint.analysis.analysis import Measurement
from mint.analysis.cross_device import TOLERANCE, difference
from mint.core.errors import MintError
from mint.formats.units import Unit

SHARE = 0.005  # of all units
FEWEST = 2


def measured_twice(units: Sequence[Unit], able: Mapping[str, set[str]]) -> tuple[Unit, ...]:
    """The units, of all `units`, to measure on every kind; `able` has the paths that each kind can do."""
    shared = [unit for unit in units if sum(unit.path in paths for paths in able.values()) > 1]
    count = max(FEWEST, ceil(SHARE * len(units)))
    chosen = {unit.path for unit in sorted(shared, key=lambda unit: _draw(unit.path))[:count]}
    return tuple(unit for unit in shared if unit.path in chosen)


def insist_on_agreement(found: Mapping[str, Measurement]) -> None:
    """Raise `MintError` when nodes of different kinds disagree about one unit; `found` is by the name of the node."""
    (first, expected), *others = found.items()
    for node, measurement in others:
        if differs := difference(expected, measurement):
            what, one, other = differs
            raise MintError(
                f"unit {measurement.path}: {what} is {one:.9g} on {first} and {other:.9g} on {node}; needed: the same "
                f"within {TOLERANCE:g} relative, whatever the chip. Do without one of the two (mint cluster doctor "
                "there), and analyze again"
            )


def _draw(path: str) -> bytes:
    return hashlib.sha256(f"measured twice\0{path}".encode()).digest()
