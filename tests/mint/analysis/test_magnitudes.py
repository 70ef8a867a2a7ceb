"""Relative errors do not depend on the unit of the weights; near the ends of float32 no format is admitted."""

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.unit_jobs import errors_of
from mint.formats.format import parse_format
from mint.formats.rounding import ROUNDINGS

FORMATS = tuple(map(parse_format, ("2/32", "4/64", "8/128", "mxfp4", "nvfp4")))
NORMAL = np.random.default_rng(0).standard_normal((1, 4, 128)).astype(np.float32)


def _ratios(weight: mx.array, rounding: str) -> np.ndarray:
    """The squared relative error of each format."""
    errors = errors_of(weight, FORMATS, ROUNDINGS[rounding])
    assert not errors.nonfinite
    ratios: np.ndarray = errors.squared[0] / errors.energy[0]
    return ratios


@pytest.mark.parametrize("rounding", ["nearest", "search"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
@pytest.mark.parametrize("power", [-95, -60, -40, 30, 60, 110])
def test_relative_errors_do_not_depend_on_the_unit_of_the_weights(power: int, dtype: mx.Dtype, rounding: str) -> None:
    weight = mx.array(NORMAL).astype(dtype)
    scaled = weight * mx.array(2.0**power, dtype)
    expected, measured = _ratios(weight, rounding), _ratios(scaled, rounding)
    assert np.allclose(measured[:-1], expected[:-1], rtol=1e-5)
    assert measured[-1] > 0.9, "the scales of nvfp4 have few exponents"


@pytest.mark.parametrize("rounding", ["nearest", "search"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-31, 5e36, 8e37])
def test_weights_near_the_ends_of_float32_have_no_format(size: float, dtype: mx.Dtype, rounding: str) -> None:
    weight = mx.array(NORMAL * np.float32(size)).astype(dtype)
    if mx.any(weight != 0).item():
        assert (_ratios(weight, rounding) == np.inf).all()
