"""The smallest and the largest model that a source can become, and what stays as it is, from its headers alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from mint.core.sizes import MAX_SHARD_BYTES
from mint.formats.format import KEEP, Format
from mint.formats.layout import overhead_nbytes, stored_nbytes, unit_nbytes
from mint.formats.units import Parameter, Unit
from mint.model.roles import role_floor
from mint.plan.plan import digits_for


@dataclass(frozen=True, slots=True)
class Kept:
    """A matrix that no plan quantizes by itself."""

    name: str
    nbytes: int
    reason: str


def kept_matrices(units: Sequence[Unit], parameters: Sequence[Parameter]) -> list[Kept]:
    """The units and other parameters of two axes and more that a plan keeps by itself, the largest first."""
    kept = [Kept(unit.path, unit.nbytes, unit.kept) for unit in units if unit.kept]
    for parameter in parameters:
        if prod(parameter.shape) > max(parameter.shape, default=0):  # no vector
            kept.append(Kept(parameter.name, parameter.nbytes, "no module that MLX quantizes holds it"))
    return sorted(kept, key=lambda matrix: -matrix.nbytes)


def floor_bits(unit: Unit) -> int:
    """The fewest bits that the model or the unit's role asks for before it is probed."""
    return max(unit.min_bits, role_floor(unit.role))


def possible_bytes(units: Sequence[Unit], parameters: Sequence[Parameter]) -> tuple[int, int]:
    """Upper bounds of the weight files: every unit in its smallest format, and every unit kept.

    The veto, known only after measuring, can forbid the smallest formats; a probe can allow smaller ones.
    """
    digits = _digits(units, parameters)
    smallest = largest = sum(stored_nbytes([parameter.tensor for parameter in parameters], digits))
    for unit in units:
        floor = floor_bits(unit)
        formats = [format for format in unit.formats if format == KEEP or format.bits >= floor]
        sizes = [sum(unit_nbytes(unit.path, format, unit.shape, unit.dtype, digits)) for format in formats]
        smallest += min(sizes)
        largest += sizes[-1]
    return smallest + overhead_nbytes(smallest, MAX_SHARD_BYTES), largest + overhead_nbytes(largest, MAX_SHARD_BYTES)


def least_bytes(
    units: Sequence[Unit], parameters: Sequence[Parameter], formats_of: Callable[[Unit], Sequence[Format]]
) -> int:
    """A lower bound of the weight files: every unit in the smallest of the formats that it might get."""
    digits = _digits(units, parameters)
    nbytes = sum(stored_nbytes([parameter.tensor for parameter in parameters], digits))
    for unit in units:
        nbytes += min(sum(unit_nbytes(unit.path, f, unit.shape, unit.dtype, digits)) for f in formats_of(unit))
    return nbytes


def _digits(units: Sequence[Unit], parameters: Sequence[Parameter]) -> int:
    return digits_for(sum(unit.size for unit in units) + sum(prod(parameter.shape) for parameter in parameters))
