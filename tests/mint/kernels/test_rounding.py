"""A search for scales is never worse than mx.quantize, measures what it packs, and agrees with its oracle."""

# S slices, R rows, C columns, G groups of N weights

import mlx.core as mx
import numpy as np
import pytest

from mint.formats.format import AFFINE, MXFP4, NVFP4, Format, parse_format
from mint.kernels import cpu, gpu, oracle, search_arrays
from tests.mint.kernels.test_kernels import DTYPES, KINDS, MEASURED, on_the_cpu, raw, stored_as, weights

__all__ = ["on_the_cpu"]
SHAPE = (2, 3, 640)
ORACLE = tuple(map(parse_format, ("2/32", "3/64", "4/64", "5/128", "8/32", "mxfp4", "nvfp4")))
SCALES = [1e-45, 1e-39, 1e-7, 2e4, 1e34, 1e38]


def squared_by_group(weight: mx.array, packed: tuple[mx.array, ...], format: Format) -> np.ndarray:
    """The squared error of every group of what is stored, (G,), in float64."""
    restored = np.array(oracle.dequantize(packed, format)).astype(np.float64)
    difference = restored - np.array(weight.astype(mx.float32)).astype(np.float64)
    return np.asarray(np.square(difference).reshape(-1, format.group_size).sum(1))


def searched(
    weight: mx.array, dtype: str, format: Format, importance: np.ndarray | None = None
) -> tuple[mx.array, ...]:
    """The arrays that the CPU packs with its search."""
    codes, *rest = cpu.pack(raw(weight), dtype, format, search=True, importance=importance)
    if format.mode != "affine":
        return mx.array(codes), mx.array(rest[0])
    view = DTYPES[dtype] if dtype != "F32" else mx.float32
    return mx.array(codes), *(mx.array(part).view(view) for part in rest)


def assert_measured_is_packed(weight: mx.array, dtype: str, formats: tuple[Format, ...] = MEASURED) -> None:
    measured = cpu.errors(raw(weight), dtype, formats, search=True)
    for index, format in enumerate(formats):
        stored = squared_by_group(weight, searched(weight, dtype, format), format).reshape(len(weight), -1).sum(1)
        floor = 1e-12 * measured.energy  # float32's own rounding
        np.testing.assert_allclose(measured.squared[:, index], stored, rtol=1e-5, atol=floor.max(), err_msg=str(format))


def assert_never_worse(weight: mx.array, dtype: str, formats: tuple[Format, ...] = MEASURED) -> None:
    for format in formats:
        plain = squared_by_group(weight, oracle.pack(weight, format), format)
        errors = squared_by_group(weight, searched(weight, dtype, format), format)
        noise = 1e-12 * np.square(np.array(weight.astype(mx.float32)).astype(np.float64)).reshape(len(errors), -1).sum(
            1
        )
        worse = ~(errors <= plain * (1 + 1e-5) + noise) & np.isfinite(plain)
        assert not worse.any(), (str(format), errors[worse], plain[worse])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_group_is_worse_and_what_is_measured_is_what_is_packed(kind: str, dtype: str) -> None:
    weight = stored_as(dtype, weights(kind))
    assert_never_worse(weight, dtype)
    assert_measured_is_packed(weight, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_the_same_from_subnormals_to_the_greatest_floats(scale: float, dtype: str) -> None:
    with np.errstate(over="ignore"):
        weight = stored_as(dtype, weights("normal") * np.float32(50) * np.float32(scale))
    assert_never_worse(weight, dtype, AFFINE)
    if scale < 1e34:  # the squares of others are beyond float32 in the test's own sums of mx.quantize's errors
        assert_measured_is_packed(weight, dtype, AFFINE)


def numpy_search(weight: mx.array, dtype: str, format: Format, importance: np.ndarray | None = None) -> np.ndarray:
    """The squared error (G,) that the oracle reaches, in float64; times the importance of the weights if given."""
    groups = np.array(weight.astype(mx.float32)).astype(np.float64).reshape(-1, format.group_size)
    heights = None if importance is None else np.broadcast_to(importance, weight.shape).reshape(groups.shape)
    _, *plain = (np.array(part.astype(mx.float32)).reshape(-1, 1) for part in oracle.pack(weight, format))

    def store(values: np.ndarray) -> np.ndarray:
        return np.array(mx.array(values.astype(np.float32)).astype(DTYPES[dtype]).astype(mx.float32), np.float64)

    with np.errstate(all="ignore"):
        if format.mode == "affine":
            codes, scales, biases = search_arrays.search_affine(
                np, groups, (plain[0], plain[1]), format.bits, dtype, store, heights
            )
            restored = codes * scales + biases
        else:
            ones = np.ones((len(groups), 1))
            codes, byte = search_arrays.search_fp4(np, groups, plain[0].astype(int), format.scheme, ones, heights)
            table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
            restored = np.where(codes > 7, -1, 1) * table[codes % 8] * np.array(format.scheme.scale_values)[byte]
    return np.asarray((np.square(restored - groups) * (1 if heights is None else heights)).sum(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "offset", "ties", "heavy tails", "constant", "one outlier"])
def test_the_search_finds_what_its_oracle_finds(kind: str, dtype: str) -> None:
    weight = stored_as(dtype, weights(kind, (2, 40, 640)))
    measured = cpu.errors(raw(weight), dtype, ORACLE, search=True)
    for index, format in enumerate(ORACLE):
        expected = numpy_search(weight, dtype, format).sum()
        assert measured.squared[:, index].sum() == pytest.approx(expected, rel=1e-2, abs=1e-12 * measured.energy.sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "offset", "ties", "heavy tails", "constant"])
def test_the_gpu_path_searches_as_well_and_measures_what_it_packs(kind: str, dtype: str) -> None:
    weight = stored_as(dtype, weights(kind, (2, 20, 640)))
    errors = gpu.errors(weight, MEASURED, search=True)
    expected = cpu.errors(raw(weight), dtype, MEASURED, search=True)
    noise = 1e-12 * expected.energy.max()
    np.testing.assert_allclose(errors.squared.sum(0), expected.squared.sum(0), rtol=1e-2, atol=noise)
    for index, format in enumerate(MEASURED):
        packed = gpu.pack(weight, format, search=True)
        by_group = squared_by_group(weight, packed, format)
        plain = squared_by_group(weight, oracle.pack(weight, format), format)
        assert (by_group <= plain * (1 + 1e-5) + noise / 1000).all(), str(format)
        np.testing.assert_allclose(errors.squared[:, index], by_group.reshape(2, -1).sum(1), rtol=1e-5, atol=noise)
        for ours, theirs in zip(packed, oracle.pack(weight, format), strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype


@pytest.mark.parametrize(("bits", "least"), [(2, 0.16), (3, 0.11), (4, 0.08), (5, 0.07), (6, 0.06), (8, 0.2)])
def test_the_search_takes_this_much_off_the_error_of_gaussian_weights(bits: int, least: float) -> None:
    weight = raw(stored_as("BF16", weights("normal", (1, 64, 4096))))
    format = Format("affine", bits, 64)
    plain, errors = (cpu.errors(weight, "BF16", [format], search=search) for search in (False, True))
    assert 1 - np.sqrt(errors.squared / plain.squared).item() > least


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_on_a_grid_are_stored_exactly(dtype: str) -> None:
    """Where mx.quantize moves the grid so that zero lies on it, the search finds the grid that the weights are on."""
    random = np.random.default_rng(20)
    for format in AFFINE[:9]:
        top = 2**format.bits - 1
        codes = random.integers(0, top + 1, (1, 8, 640)).reshape(-1, format.group_size)
        codes[:, 0], codes[:, 1] = 0, top
        scales = random.integers(1, 8, (len(codes), 1)) * 2.0**-8
        biases = -(random.integers(2, 40, (len(codes), 1)) * 2.0**-9)
        weight = stored_as(dtype, (codes * scales + biases).reshape(1, 8, 640).astype(np.float32))
        errors = cpu.errors(raw(weight), dtype, [format], search=True)
        # in float32 a neighbour of the grid can look as exact
        assert (errors.squared <= (1e-14 if dtype == "F32" else 0) * errors.energy[:, None]).all(), str(format)
    assert cpu.errors(raw(weight), dtype, [format]).squared.max() > 0


def test_columns_of_more_importance_are_stored_more_exactly() -> None:
    weight = stored_as("BF16", weights("normal", (2, 40, 640)))
    importance = np.exp(np.random.default_rng(20).standard_normal(640) * 1.5).astype(np.float32)
    for format in ORACLE:
        plain, blind = (
            np.square(np.array(oracle.dequantize(packed, format) - weight.astype(mx.float32)))
            for packed in (oracle.pack(weight, format), searched(weight, "BF16", format))
        )
        packed = searched(weight, "BF16", format, importance)
        errors = np.square(np.array(oracle.dequantize(packed, format) - weight.astype(mx.float32)))
        by_group = [(squares * importance).reshape(-1, format.group_size).sum(1) for squares in (errors, plain)]
        assert (by_group[0] <= by_group[1] * (1 + 1e-5)).all()
        assert (errors * importance).sum() < (blind * importance).sum()
        measured = cpu.errors(raw(weight), "BF16", [format], search=True, importance=importance)
        assert measured.squared.sum() == pytest.approx(errors.sum(), rel=1e-4)
        expected = numpy_search(weight, "BF16", format, importance).sum()
        assert (errors * importance).sum() == pytest.approx(expected, rel=5e-3)
        on_gpu = gpu.pack(weight, format, search=True, importance=mx.array(importance))
        squares = np.square(np.array(oracle.dequantize(on_gpu, format) - weight.astype(mx.float32)))
        assert (squares * importance).sum() == pytest.approx((errors * importance).sum(), rel=1e-2)


def test_even_importance_changes_nothing() -> None:
    weight = raw(stored_as("BF16", weights("normal")))
    ones = np.ones(640, np.float32)
    for format in ORACLE:
        plain = cpu.pack(weight, "BF16", format, search=True)
        for ours, theirs in zip(cpu.pack(weight, "BF16", format, search=True, importance=ones), plain, strict=True):
            assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("columns", [32, 64, 96, 160, 576, 4224])
@pytest.mark.parametrize("rows", [1, 5])
def test_any_shape_is_searched(columns: int, rows: int) -> None:
    weight = stored_as("BF16", weights("normal", (3, rows, columns)))
    formats = tuple(format for format in (*ORACLE, *AFFINE[12:15]) if format.admits(weight.shape, "BF16"))
    assert_never_worse(weight, "BF16", formats)
    assert_measured_is_packed(weight, "BF16", formats)


def test_neither_threads_nor_company_nor_neighbours_change_a_bit_of_a_search() -> None:
    weight = raw(stored_as("BF16", weights("normal", (3, 70, 4224))))
    formats = (*ORACLE[1:4], MXFP4, NVFP4)
    one, *others = (cpu.errors(weight, "BF16", formats, search=True, threads=threads) for threads in (1, 2, 3))
    for other in others:
        assert other.squared.tobytes() == one.squared.tobytes()
    alone = cpu.errors(weight[1:2], "BF16", formats[2:3], search=True)
    assert alone.squared.tobytes() == np.ascontiguousarray(one.squared[1:2, 2:3]).tobytes()
    packed, *repacked = (cpu.pack(weight, "BF16", formats[1], search=True, threads=threads) for threads in (1, 2, 3))
    for again in repacked:
        assert [tensor.tobytes() for tensor in again] == [tensor.tobytes() for tensor in packed]
