"""Facts about an opened model that its user must read before hours of work, each one sentence."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mint.formats.format import QUANTIZABLE
from mint.formats.units import Unit


def cast_notice(units: Sequence[Unit], dtypes: Mapping[str, str]) -> tuple[str, ...]:
    """The casts that change stored floats: the units whose source tensors have another dtype than the unit."""
    casts = Counter(
        (dtypes[name], unit.dtype)
        for unit in units
        for name in unit.sources[:1]
        if dtypes[name] in QUANTIZABLE and dtypes[name] != unit.dtype
    )
    return tuple(
        f"the weights of {count} units are cast from {before} to {after}, as config.json or --dtype says"
        for (before, after), count in casts.items()
    )
