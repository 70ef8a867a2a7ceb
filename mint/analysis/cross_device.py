"""Measurements of one model that several kinds of device made together.

Two kinds add the same float32 squares in different orders. Sums of squares run over at most 128 numbers before float64
takes over (`mint/kernels`), so two orders differ by at most 2 * 127 * 2^-24 = 1.5e-5 of the sum, and by 1e-7 as a rule,
since the errors of many runs cancel; a fused multiply-add, and codes that lie halfway, change no more than that.
So what two kinds find may differ by `TOLERANCE`, and what all of them found is rounded to `DIGITS` significant digits:
that step is 10 to 100 times the tolerance, so that it rarely matters which of them measured a unit, and half of it is
less than what decides between formats, which are 2 to 4 times apart. It is a function of the value alone.

This is the one place where anything is rounded. What one kind measured alone is never.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from mint.analysis.analysis import Measurement
from mint.run.device_kind import kinds_in

DIGITS = 3
ROUNDING = 0.5 * 10.0 ** (1 - DIGITS)  # the largest relative change
TOLERANCE = 1e-4  # relative


def is_mixed(device: str) -> bool:
    """True if the name of a device joins several kinds."""
    return len(kinds_in(device)) > 1


def rounded(measurement: Measurement) -> Measurement:
    """A measurement as the solver gets to see it when several kinds measured; features are kept as they are."""
    slices = np.frombuffer(measurement.slice_errors, "<f4")
    return replace(
        measurement,
        errors=_rounded(measurement.errors),
        worst_errors=_rounded(measurement.worst_errors),
        energy=_rounded([measurement.energy])[0],
        slice_errors=np.array(_rounded(slices.tolist()), "<f4").tobytes(),
    )


def difference(one: Measurement, other: Measurement) -> tuple[str, float, float] | None:
    """The first value in which two measurements differ by more than the tolerance, from both; None if none."""
    pairs = [
        ("bad weights", float(one.nonfinite), float(other.nonfinite)),
        ("energy", one.energy, other.energy),
        *zip([f"error in {format}" for format in one.formats], one.errors, other.errors, strict=True),
        *zip([f"worst error in {format}" for format in one.formats], one.worst_errors, other.worst_errors, strict=True),
    ]
    return next(((what, a, b) for what, a, b in pairs if not abs(a - b) <= TOLERANCE * max(abs(a), abs(b))), None)


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS - 1}e}") for value in values)
