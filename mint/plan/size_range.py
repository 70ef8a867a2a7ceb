"""The smallest and the largest model that a source can become, from its headers alone."""

from collections.abc import Sequence

from mint.formats.format import KEEP, TensorSpec
from mint.formats.layout import MAX_SHARD_BYTES, overhead_nbytes, stored_nbytes
from mint.formats.units import Parameter, Unit
from mint.plan.plan import digits_for


def possible_bytes(units: Sequence[Unit], parameters: Sequence[Parameter]) -> tuple[int, int]:
    """Upper bounds of the weight files' bytes with every unit as small as its formats allow, and with all units kept.

    What is really safe to choose (the veto) is known only after measuring.
    """
    digits = digits_for((unit.shape for unit in units), tuple(parameters))
    fixed = sum(stored_nbytes((TensorSpec(p.name, p.dtype, p.shape),), digits) for p in parameters)
    sizes = [
        [
            stored_nbytes(format.tensors(unit.path, unit.shape, unit.dtype), digits)
            for format in unit.formats
            if format == KEEP or format.bits >= unit.min_bits
        ]
        for unit in units
    ]
    smallest = fixed + sum(min(options) for options in sizes)
    largest = fixed + sum(options[-1] for options in sizes)
    return tuple(total + overhead_nbytes(total, MAX_SHARD_BYTES) for total in (smallest, largest))  # type: ignore[return-value]
