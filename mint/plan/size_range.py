"""The smallest and the largest model that a source can become, and what stays as it is, from its headers alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from mint.core.sizes import MAX_SHARD_BYTES
from mint.formats.format import KEEP, Format
from mint.formats.layout import budget_nbytes, stored_nbytes, unit_nbytes
from mint.formats.units import Parameter, Unit
from mint.model.roles import role_floor
from mint.plan.plan import digits_for
from mint.plan.rules import VETO_DB, is_usually_vetoed

_USUAL = ("4/64", "5/64", "6/64", "8/64")  # in the order of their bits


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

    The smallest format is that which the default veto leaves to usual weights. Measuring, a rounding with less error
    and a probe can allow smaller ones.
    """
    sizes = format_bytes(units, parameters)
    return sizes["smallest"], sizes["largest"]


def format_bytes(units: Sequence[Unit], parameters: Sequence[Parameter]) -> dict[str, int]:
    """Upper bounds of the weight files by the format of the units, the smallest first.

    A unit that cannot have the format, or must have more bits, gets the next larger one.
    """
    digits = _digits(units, parameters)
    others = sum(stored_nbytes([parameter.tensor for parameter in parameters], digits))
    totals = dict.fromkeys(("smallest", *_USUAL, "largest"), others)
    for unit in units:
        floor = floor_bits(unit)
        formats = [format for format in unit.formats if format == KEEP or format.bits >= floor]
        sizes = {str(f): sum(unit_nbytes(unit.path, f, unit.shape, unit.dtype, digits)) for f in formats}
        totals["smallest"] += min(sizes[str(f)] for f in formats if f == KEEP or not is_usually_vetoed(f, VETO_DB))
        kept = sizes[str(formats[-1])]
        totals["largest"] += kept
        for name in _USUAL:
            totals[name] += sizes.get(name) or min((sizes[n] for n in _USUAL if n > name and n in sizes), default=kept)
    return {name: budget_nbytes(nbytes, MAX_SHARD_BYTES) for name, nbytes in totals.items()}


def least_bytes(
    units: Sequence[Unit],
    parameters: Sequence[Parameter],
    formats_of: Callable[[Unit], Sequence[Format]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """The smallest budget that has a plan, where every unit may have these formats."""
    digits = _digits(units, parameters)
    nbytes = sum(stored_nbytes([parameter.tensor for parameter in parameters], digits))
    for unit in units:
        nbytes += min(sum(unit_nbytes(unit.path, f, unit.shape, unit.dtype, digits)) for f in formats_of(unit))
    return budget_nbytes(nbytes, max_shard_bytes)


def _digits(units: Sequence[Unit], parameters: Sequence[Parameter]) -> int:
    return digits_for(sum(unit.size for unit in units) + sum(prod(parameter.shape) for parameter in parameters))
