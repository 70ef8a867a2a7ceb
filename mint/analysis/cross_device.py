"""Measurements of one model by several kinds of device.

Two kinds add the same float32 squares in different orders. Sums of squares run over at most 128 numbers before float64
takes over (`mint/kernels`), so two orders differ by at most 2 * 127 * 2^-24 = 1.5e-5 of the sum, usually by 1e-7,
since the errors of many runs cancel; a fused multiply-add and halfway codes change no more than that.
So measurements of two kinds may differ by `TOLERANCE`, and those of a mixed analysis are rounded to `DIGITS`
significant digits. That step is 10 to 100 times the tolerance, so the kind that measured a unit rarely matters. Half
of it is less than the distance between formats, whose errors are 2 to 4 times apart. It depends on the value alone.

Measurements of one kind alone are never rounded.
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
    """A measurement of a mixed analysis; features stay as they are."""
    slices = np.frombuffer(measurement.slice_errors, "<f4")
    return replace(
        measurement,
        errors=_rounded(measurement.errors),
        worst_errors=_rounded(measurement.worst_errors),
        energy=_rounded([measurement.energy])[0],
        slice_errors=np.array(_rounded(slices.tolist()), "<f4").tobytes(),
    )


def difference(one: Measurement, other: Measurement) -> tuple[str, float, float] | None:
    """The first value that differs by more than the tolerance: its name and both values; None if none does."""
    rows = [
        ("bad weights", float(one.nonfinite), float(other.nonfinite)),
        ("energy", one.energy, other.energy),
        *zip([f"error in {format}" for format in one.formats], one.errors, other.errors, strict=True),
        *zip([f"worst error in {format}" for format in one.formats], one.worst_errors, other.worst_errors, strict=True),
    ]
    return next((row for row in rows if not abs(row[1] - row[2]) <= TOLERANCE * max(map(abs, row[1:]))), None)


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS - 1}e}") for value in values)
