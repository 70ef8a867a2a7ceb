"""The distance of two forms of a weight."""

import mlx.core as mx
import numpy as np
import pytest

from mint.assembly.distances import distance_of
from mint.formats.units import parts_of


@pytest.mark.parametrize("shape", [(7, 64), (3, 5, 4096), (300, 16384)])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0])
def test_sums_are_those_of_float64(shape: tuple[int, ...], scale: float) -> None:
    generator = np.random.default_rng(0)
    expected = generator.standard_normal(shape, np.float32)
    weight = (expected * (1 + scale * generator.standard_normal(shape))).astype(np.float32)
    difference = weight.astype(np.float64) - expected
    exact = float((difference**2).sum() / (expected.astype(np.float64) ** 2).sum())
    distance = distance_of(mx.array(weight).__getitem__, mx.array(expected).__getitem__, parts_of(shape, 1 << 14))
    assert distance.relative == pytest.approx(exact, rel=1e-6)


def test_a_value_that_is_not_finite_makes_no_distance() -> None:
    weight = mx.ones((4, 64))
    broken = mx.where(mx.arange(64) == 3, mx.nan, weight)
    assert np.isnan(distance_of(broken.__getitem__, weight.__getitem__, parts_of((4, 64), 64)).relative)
