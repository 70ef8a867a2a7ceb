"""Weights on an affine grid are stored without a new rounding error; ordinary weights have no grid."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from mint.formats.format import AFFINE, Format, parse_format
from mint.kernels import oracle
from mint.kernels.exact import OnGrid, stored_on_grid
from mint.kernels.storage import from_raw
from mint.plan.rules import LOSSLESS
from tests.worlds.encodings import Encoding, awq, gptq, int8, packed

SHAPE = (64, 256)


def _weight(encoding: Encoding, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    values = np.stack([encoding(np.random.default_rng(seed), "x.weight", SHAPE)[1] for seed in range(2)])
    return mx.array(values.astype(np.float32)).astype(dtype)


def _stored(weight: mx.array, formats: Sequence[Format], block: int = 2) -> OnGrid | None:
    """The weight as stored on its grid, given `block` slices at a time."""
    taken: dict[int, OnGrid] = {}
    parts = [slice(start, start + block) for start in range(0, len(weight), block)]
    format = stored_on_grid(
        lambda: ((part, weight[part]) for part in parts),
        formats,
        lambda part, stored: taken.update({part.start: stored}),
    )
    arrays = zip(*(taken[part.start].parts for part in parts), strict=True) if format else ()
    squared = np.concatenate([stored.squared for stored in taken.values()]) if format else np.empty(0)
    return OnGrid(format, tuple(map(np.concatenate, arrays)), squared) if format else None


def _restored(parts: tuple[np.ndarray, ...], format: str, dtype: str) -> mx.array:
    codes, scales, biases = parts
    return oracle.dequantize((mx.array(codes), from_raw(scales, dtype), from_raw(biases, dtype)), parse_format(format))


@pytest.mark.parametrize(
    ("encoding", "format"),
    [(packed(), "4/32"), (packed(group=128), "4/128"), (packed(2), "2/32"), (packed(8, group=0), "8/128"),
     (int8(), "8/128")],
)  # fmt: skip
def test_symmetric_integers_are_stored_exactly(encoding: Encoding, format: str) -> None:
    weight = _weight(encoding)
    stored = _stored(weight, AFFINE)
    assert stored and str(stored.format) == format
    assert not stored.squared.any()
    assert mx.array_equal(_restored(stored.parts, format, "BF16").astype(mx.bfloat16), weight)


@pytest.mark.parametrize(
    ("encoding", "format"), [(awq(128), "4/128"), (gptq(), "4/64"), (gptq(3, 128), "3/128"), (awq(32), "4/32")]
)
def test_zero_points_cost_no_more_than_the_rounding_of_their_biases(encoding: Encoding, format: str) -> None:
    weight = _weight(encoding, mx.float16)
    stored = _stored(weight, AFFINE)
    assert stored and str(stored.format) == format
    wide = weight.astype(mx.float32)
    squares = mx.square(_restored(stored.parts, format, "F16") - wide).sum((1, 2))
    energy = mx.square(wide).sum((1, 2))
    assert np.all(stored.squared <= np.array(squares) * 1.001)
    assert np.all(stored.squared / np.array(energy) <= 2 * LOSSLESS)


def test_weights_of_float32_have_grids_too() -> None:
    stored = _stored(_weight(packed(), mx.float32), AFFINE)
    assert stored and str(stored.format) == "4/32" and not stored.squared.any()


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_ordinary_weights_and_zeros_have_no_grid(dtype: mx.Dtype) -> None:
    assert _stored(mx.random.normal((1, 64, 256), key=mx.random.key(0)).astype(dtype), AFFINE) is None
    assert _stored(mx.zeros((1, 64, 256), dtype), AFFINE) is None


def test_one_weight_off_the_grid_is_enough() -> None:
    weight = _weight(packed())
    weight[1, 63, 255] = 0.00123
    assert _stored(weight, AFFINE) is None


def test_a_grid_that_no_admitted_format_stores_is_none() -> None:
    assert _stored(_weight(packed()), [parse_format("3/32"), parse_format("4/64"), parse_format("mxfp4")]) is None


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("order", ["fewest bits first", "fewest bits last", "zeros first", "off the grid last"])
def test_the_grid_of_a_stack_does_not_depend_on_its_division_into_blocks(order: str, block: int) -> None:
    parts = [_weight(packed(2, group=64)), _weight(packed()), _weight(packed(8))]
    parts = parts[::-1] if order == "fewest bits last" else parts
    zeros = mx.zeros((3, *SHAPE), mx.bfloat16)
    parts = [zeros, *parts] if order == "zeros first" else [*parts, zeros]
    if order == "off the grid last":
        parts += [mx.random.normal((1, *SHAPE), key=mx.random.key(0)).astype(mx.bfloat16)]
    weight = mx.concatenate(parts)
    whole, divided = _stored(weight, AFFINE, len(weight)), _stored(weight, AFFINE, block)
    assert (whole is None) == (divided is None) == (order == "off the grid last")
    if whole and divided:
        assert whole.format == divided.format
        assert np.array_equal(whole.squared, divided.squared)
        assert all(map(np.array_equal, whole.parts, divided.parts))
