"""The kernels agree: what they write is what `mx.quantize` writes, what they measure is what is written."""

# S slices, R rows, C columns

from collections.abc import Callable
from itertools import product

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint.formats.format import AFFINE, MXFP4, NVFP4, Format, admissible
from mint.kernels import cpu, gpu
from mint.kernels import oracle as reference
from mint.kernels.oracle import Errors
from mint.kernels.unpack import multiply, unpack

DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
MEASURED = (*AFFINE, MXFP4, NVFP4)
GREATEST = {"BF16": 3.38e38, "F16": 65504.0, "F32": 3.4e38}
SEED = 20


@pytest.fixture(autouse=True, scope="module")
def on_the_cpu() -> None:
    mx.set_default_device(mx.cpu)


def weights(kind: str, shape: tuple[int, int, int] = (2, 3, 640)) -> np.ndarray:
    """(S, R, C) float32 weights of one `kind`, the same on every call."""
    normal = np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)
    return KINDS[kind](normal)


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "normal": lambda w: w * np.float32(0.02),
    "positive": lambda w: abs(w) + np.float32(0.1),
    "negative": lambda w: -abs(w) - np.float32(0.1),
    "zero": np.zeros_like,
    "negative zero": lambda w: -np.zeros_like(w),
    "constant": lambda w: np.full_like(w, 0.3),
    "negative constant": lambda w: np.full_like(w, -7.0),
    "below the smallest scale": lambda w: w * np.float32(1e-8),
    "offset": lambda w: w * np.float32(0.01) + np.float32(5.0),
    "ties": lambda w: np.round(w * 4) / 4,
    "ties of few codes": lambda w: np.round(w * 40) / 8,
    "heavy tails": lambda w: w**7,
    "one outlier": lambda w: np.where(np.arange(w.shape[-1]) == 7, np.float32(50.0), w),
}


def stored_as(dtype: str, values: np.ndarray) -> mx.array:
    """Float32 values as weights of a safetensors dtype, with what overflows left out."""
    greatest = GREATEST[dtype]
    return mx.array(np.clip(values, -greatest, greatest).astype(np.float32)).astype(DTYPES[dtype])


def raw(weight: mx.array) -> np.ndarray:
    """The bits of an array: uint16 for 16-bit floats, else as it is."""
    return np.array(weight if weight.itemsize != 2 else weight.view(mx.uint16))


def assert_packed_as_mlx_does(weight: mx.array, dtype: str, format: Format) -> None:
    packed = cpu.pack(raw(weight), dtype, format)
    expected = reference.pack(weight, format)
    assert len(packed) == len(expected)
    for ours, theirs in zip(packed, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.tobytes() == raw(theirs).tobytes()


def assert_close(ours: Errors, theirs: Errors) -> None:
    np.testing.assert_allclose(ours.squared, theirs.squared, rtol=1e-5)
    np.testing.assert_allclose(ours.energy, theirs.energy, rtol=1e-5)
    assert ours.nonfinite == theirs.nonfinite


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_the_one_mlx_writes(kind: str, dtype: str) -> None:
    weight = stored_as(dtype, weights(kind))
    for format in MEASURED:
        assert_packed_as_mlx_does(weight, dtype, format)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-45, 1e-39, 1e-7, 2e4, 1e34, 1e38, "mixed"])
def test_affine_bytes_are_mlx_s_from_subnormals_to_overflow(scale: float | str, dtype: str) -> None:
    normal = weights("normal") * np.float32(50)
    powers = np.exp2(np.random.default_rng(SEED).integers(-140, 127, normal.shape))
    with np.errstate(over="ignore"):
        weight = stored_as(dtype, normal * (powers if scale == "mixed" else np.float32(scale)))
    for format in AFFINE:
        assert_packed_as_mlx_does(weight, dtype, format)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("format", [MXFP4, NVFP4], ids=str)
def test_fp4_bytes_are_mlx_s_for_every_16_bit_maximum(format: Format, dtype: str) -> None:
    least, beyond = {"BF16": (0x0240, 0x4E80), "F16": (0, 0x7C00)}[dtype]  # BF16: from 6 * 2^-127 to 2^30
    greatest = np.arange(least, beyond, dtype=np.uint16)
    fractions = np.random.default_rng(SEED).uniform(-1, 1, (greatest.size, format.group_size)).astype(np.float32)
    fractions[:, 0] = 1
    scaled = mx.array(greatest).view(DTYPES[dtype])[:, None].astype(mx.float32) * mx.array(fractions)
    columns = format.group_size * 2
    assert_packed_as_mlx_does(scaled.astype(DTYPES[dtype]).reshape(1, -1, columns), dtype, format)


def test_fp4_ties_go_where_mlx_sends_them() -> None:
    midpoints = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0], np.float32)
    around = np.concatenate([midpoints, np.nextafter(midpoints, 9), np.nextafter(midpoints, 0), -midpoints])
    for power, format in product((-20, -3, 0, 7), (MXFP4, NVFP4)):
        scaled = np.ldexp(around, power if format == MXFP4 else 0)
        for dtype in DTYPES:
            assert_packed_as_mlx_does(stored_as(dtype, scaled.reshape(1, 1, 32)), dtype, format)


@pytest.mark.parametrize("columns", [32, 64, 96, 160, 576, 4224])
@pytest.mark.parametrize("rows", [1, 5])
def test_any_shape_is_packed_and_measured_in_its_admissible_formats(columns: int, rows: int) -> None:
    weight = stored_as("BF16", weights("normal", (3, rows, columns)))
    formats = [format for format in admissible(weight.shape, "BF16") if format in MEASURED]
    for format in formats:
        assert_packed_as_mlx_does(weight, "BF16", format)
    assert_close(cpu.errors(raw(weight), "BF16", formats), reference.errors(weight, formats))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-60000, 60000, width=16), min_size=64, max_size=64),
    st.sampled_from(sorted(DTYPES)),
    st.sampled_from([format for format in MEASURED if format.group_size <= 64]),
)
def test_any_group_of_numbers_is_packed_as_mlx_does(numbers: list[float], dtype: str, format: Format) -> None:
    assert_packed_as_mlx_does(stored_as(dtype, np.array(numbers, np.float32).reshape(1, 1, 64)), dtype, format)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_those_of_the_stored_weights(kind: str, dtype: str) -> None:
    weight = stored_as(dtype, weights(kind))
    expected = reference.errors(weight, MEASURED)
    assert_close(cpu.errors(raw(weight), dtype, MEASURED), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "offset", "ties", "heavy tails", "constant"])
def test_the_gpu_path_measures_the_same(kind: str, dtype: str) -> None:
    weight = stored_as(dtype, weights(kind))
    assert_close(gpu.errors(weight, MEASURED), reference.errors(weight, MEASURED))


def test_the_gpu_path_does_not_depend_on_its_blocks() -> None:
    weight = stored_as("BF16", weights("normal", (3, 7, 256)))
    assert_close(gpu.errors(weight, MEASURED, block_elements=2 * 256), gpu.errors(weight, MEASURED))
    for format in MEASURED:
        whole, expected = gpu.pack(weight, format), reference.pack(weight, format)
        parts = gpu.pack(weight, format, block_elements=2 * 256)
        for ours, theirs, oracle in zip(parts, whole, expected, strict=True):
            assert ours.shape == oracle.shape
            assert mx.array_equal(ours, theirs) and mx.array_equal(ours, oracle)


def test_the_number_of_threads_changes_no_bit() -> None:
    weight = raw(stored_as("BF16", weights("normal", (3, 70, 4224))))
    one, *others = (cpu.errors(weight, "BF16", MEASURED[:3], threads=threads) for threads in (1, 2, 3, None))
    packed, *repacked = (cpu.pack(weight, "BF16", AFFINE[4], threads=threads) for threads in (1, 2, 3, None))
    for other in others:
        assert other.squared.tobytes() == one.squared.tobytes()
        assert other.energy.tobytes() == one.energy.tobytes()
    for again in repacked:
        assert [tensor.tobytes() for tensor in again] == [tensor.tobytes() for tensor in packed]


def test_a_slice_is_measured_as_if_it_were_alone() -> None:
    weight = raw(stored_as("F16", weights("heavy tails")))
    together = cpu.errors(weight, "F16", MEASURED)
    for index in range(len(weight)):
        alone = cpu.errors(weight[index : index + 1], "F16", MEASURED)
        assert alone.squared.tobytes() == together.squared[index : index + 1].tobytes()
        assert alone.energy[0] == together.energy[index]


def test_a_format_s_error_does_not_depend_on_its_company() -> None:
    weight = raw(stored_as("BF16", weights("normal")))
    together = cpu.errors(weight, "BF16", MEASURED)
    for index, format in enumerate(MEASURED):
        assert cpu.errors(weight, "BF16", [format]).squared.tobytes() == together.squared[:, index].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_not_finite_are_counted(dtype: str) -> None:
    values = weights("normal")
    values[0, 1, 5], values[1, 0, 0], values[1, 2, 639] = np.nan, np.inf, -np.inf
    weight = mx.array(values).astype(DTYPES[dtype])
    assert cpu.errors(raw(weight), dtype, MEASURED).nonfinite == 3
    assert gpu.errors(weight, MEASURED[:1]).nonfinite == 3


def test_a_long_sum_keeps_five_digits() -> None:
    weight = stored_as("BF16", weights("normal", (1, 300, 4096)))
    formats = (Format("affine", 2, 128), Format("affine", 8, 32), MXFP4)
    assert_close(cpu.errors(raw(weight), "BF16", formats), reference.errors(weight, formats))


def test_the_energy_does_not_depend_on_the_search() -> None:
    weight = stored_as("BF16", weights("normal"))
    plain, searched = (
        cpu.errors(raw(weight), "BF16", (Format("affine", 4, 64), MXFP4), search=search) for search in (False, True)
    )
    assert plain.energy.all()
    np.testing.assert_array_equal(searched.energy, plain.energy)


def test_without_formats_only_the_energy_is_measured() -> None:
    weight = stored_as("BF16", weights("normal"))
    answer = cpu.errors(raw(weight), "BF16", ())
    assert answer.squared.shape == (2, 0)
    np.testing.assert_allclose(answer.energy, reference.errors(weight, ()).energy, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", MEASURED, ids=str)
def test_a_product_is_that_with_the_unpacked_weights(format: Format, dtype: str) -> None:
    weight = stored_as(dtype, weights("normal", (1, 500, 640)))  # of three chunks
    parts = [part[0] for part in cpu.pack(raw(weight), dtype, format)]
    vectors = np.random.default_rng(SEED).standard_normal((2, 640)).astype(np.float32)
    products = multiply(parts, dtype, format, vectors)
    expected = vectors.astype(np.float64) @ np.asarray(unpack(parts, dtype, format)).T.astype(np.float64)
    assert products.shape == (2, 500)
    assert np.allclose(products, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.array_equal(products, multiply(parts, dtype, format, vectors, threads=1))
