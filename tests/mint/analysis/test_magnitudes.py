"""Measured errors are those of the stored weights, of any size; near the ends of float32 no format is admitted."""

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.unit_jobs import errors_of
from mint.formats.format import Format, parse_format
from mint.formats.rounding import ROUNDINGS
from mint.kernels.backend import backend
from mint.kernels.storage import DTYPE_NAMES, from_raw

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
@pytest.mark.parametrize("power", [-45, -20, 0, 30, 45, 60, 110])
def test_errors_are_those_of_the_stored_weights_of_any_size(power: int, dtype: mx.Dtype, rounding: str) -> None:
    weight = mx.array(NORMAL).astype(dtype) * mx.array(2.0**power, dtype)
    exact = np.array(weight.astype(mx.float32)).astype(np.float64)
    measured = _ratios(weight, rounding)
    for format, ratio in zip(FORMATS, measured, strict=True):
        parts = _pack(weight, dtype, format, rounding)
        restored = np.array(backend().unpack(parts, format)).astype(np.float64)
        stored = np.square(restored - exact).sum() / np.square(exact).sum()
        assert np.isclose(ratio, stored, rtol=1e-4) or (str(format) == "nvfp4" and ratio == np.inf and stored > 0.9)


def _pack(weight: mx.array, dtype: mx.Dtype, format: Format, rounding: str) -> list[mx.array]:
    packed = backend().pack(weight, format, ROUNDINGS[rounding])
    stored = [tensor.dtype for tensor in format.tensors("", weight.shape, DTYPE_NAMES[dtype])]
    return [from_raw(part, name) for part, name in zip(packed, stored, strict=True)]


@pytest.mark.parametrize("rounding", ["nearest", "search"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-25, 5e36, 8e37])
def test_weights_near_the_ends_of_float32_have_no_format(size: float, dtype: mx.Dtype, rounding: str) -> None:
    weight = mx.array(NORMAL * np.float32(size)).astype(dtype)
    if mx.any(weight != 0).item():
        assert (_ratios(weight, rounding) == np.inf).all()
