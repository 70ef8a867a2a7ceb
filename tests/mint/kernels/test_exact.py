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


def _grids(weight: mx.array, formats: Sequence[Format], block: int = 2) -> list[OnGrid]:
    """The weight as stored in every format of its grid, given `block` slices at a time."""
    taken: dict[tuple[Format, int], OnGrid] = {}
    parts = [slice(start, start + block) for start in range(0, len(weight), block)]
    grids = []
    for stored_part in stored_on_grid(lambda: ((part, weight[part]) for part in parts), formats):
        if isinstance(stored_part, tuple):
            taken[stored_part[1].format, stored_part[0].start] = stored_part[1]
            continue
        format = stored_part
        stored = [taken[format, part.start] for part in parts]
        arrays = zip(*(part.parts for part in stored), strict=True)
        squared = np.concatenate([part.squared for part in stored])
        grids.append(OnGrid(format, tuple(map(np.concatenate, arrays)), squared))
    return grids


def _stored(weight: mx.array, formats: Sequence[Format], block: int = 2) -> OnGrid | None:
    """The weight as stored in the format of fewest bits that is its grid."""
    return next(iter(_grids(weight, formats, block)), None)


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
    ("encoding", "dtype", "formats"),
    [
        (awq(128), mx.float16, ["4/128", "5/128"]),
        (gptq(), mx.float16, ["4/64", "5/64"]),
        (gptq(3, 128), mx.float16, ["3/128", "4/128"]),
        (awq(32), mx.float16, ["4/32", "5/32"]),
        (packed(4, zeros=True), mx.bfloat16, ["4/32", "5/32"]),
    ],
)
def test_zero_points_cost_the_rounding_of_their_biases_or_one_bit(
    encoding: Encoding, dtype: mx.Dtype, formats: list[str]
) -> None:
    """The stated error is the true one: that of the weights whose stored value, rounded to the dtype, is another."""
    weight = _weight(encoding, dtype)
    name, wide = "F16" if dtype == mx.float16 else "BF16", np.array(weight.astype(mx.float32), np.float64)
    grids = _grids(weight, AFFINE)
    assert [str(stored.format) for stored in grids] == formats
    for stored in grids:
        restored = _restored(stored.parts, str(stored.format), name)
        differs = np.array(restored.astype(dtype) != weight)
        squares = np.where(differs, np.square(np.array(restored, np.float64) - wide), 0.0).sum((1, 2))
        assert stored.squared == pytest.approx(squares, rel=1e-6)
    rounded, exact = grids
    share = rounded.squared / np.square(wide).sum((1, 2))
    assert np.all((share > 0) & (share <= (2 * LOSSLESS if name == "F16" else 2e-5)))
    assert not exact.squared.any()


@pytest.mark.parametrize("encoding", [awq(), gptq()])
def test_float32_holds_zero_points_without_another_bit(encoding: Encoding) -> None:
    """Its scales and biases take twice the bytes."""
    (stored,) = _grids(_weight(encoding, mx.float32), AFFINE)
    assert stored.format.bits == 4
    assert not np.any(stored.squared > 1e-12)


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
