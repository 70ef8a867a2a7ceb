"""The tables of schemes and dtypes, against those that read the files: safetensors, ml_dtypes and MLX."""

import json
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
from safetensors import SafetensorError, deserialize

from mint.formats.format import FORMATS, ITEMSIZE, KEEP, Format, admissible, formats_of, known_formats, parse_format
from mint.formats.scheme import (
    AFFINE_SCHEME,
    E2M1,
    E4M3,
    E8M0,
    KEEP_SCHEME,
    MXFP4_SCHEME,
    NVFP4_SCHEME,
    SCHEMES,
    ReadFactor,
    Scheme,
)

BYTES = np.arange(256, dtype=np.uint8)


def _file(dtype: str, nbytes: int) -> bytes:
    header = json.dumps({"a": {"dtype": dtype, "shape": [3], "data_offsets": [0, nbytes]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(nbytes)


def test_every_dtype_of_safetensors_with_whole_bytes_has_a_size() -> None:
    names = "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 U16 I16 F16 BF16 U32 I32 F32 U64 I64 F64 C64"
    assert set(ITEMSIZE) == set(names.split())


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_an_element_has_the_bytes_that_safetensors_counts(dtype: str) -> None:
    read: Any = deserialize
    ((name, tensor),) = read(_file(dtype, 3 * ITEMSIZE[dtype]))
    assert (name, tensor["shape"]) == ("a", [3])
    with pytest.raises(SafetensorError):
        read(_file(dtype, 3 * ITEMSIZE[dtype] + 3))


def test_tables_of_small_floats_are_those_of_ml_dtypes() -> None:
    np.testing.assert_array_equal(E4M3, BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float64))
    np.testing.assert_array_equal(E2M1, BYTES[:16].view(ml_dtypes.float4_e2m1fn).astype(np.float64))
    np.testing.assert_array_equal(E8M0[:255], BYTES[:255].view(ml_dtypes.float8_e8m0fnu).astype(np.float64))
    assert (len(E8M0), E8M0[255]) == (256, np.inf)


@pytest.mark.parametrize("scheme", [MXFP4_SCHEME, NVFP4_SCHEME], ids=lambda scheme: scheme.mode)
def test_codes_times_scales_are_what_mlx_reads(scheme: Scheme) -> None:
    (group_size,) = scheme.group_sizes
    codes = np.resize(np.arange(16), (256, group_size))
    words = (codes.reshape(256, -1, 8) << np.arange(0, 32, 4)).sum(-1).astype(np.uint32)
    restored = mx.dequantize(
        mx.array(words), mx.array(BYTES)[:, None], group_size=group_size, bits=4, mode=scheme.mode, dtype=mx.float32
    )
    scales = np.array(scheme.scale_values)
    is_told = np.isfinite(scales) & (scales >= 1e-37) & (scales < 1e37)  # MLX's kernels drop signs and subnormals
    assert is_told.sum() > 120
    expected = np.array(scheme.code_values)[codes[is_told]] * scales[is_told, None]
    np.testing.assert_array_equal(np.array(restored)[is_told], expected)


def test_each_scheme_says_what_mlx_stores() -> None:
    assert list(SCHEMES) == ["affine", "mxfp4", "nvfp4", "keep"]
    assert [scheme.has_bias for scheme in SCHEMES.values()] == [True, False, False, False]
    assert [scheme.scale_dtype("BF16") for scheme in SCHEMES.values()] == ["BF16", "U8", "U8", "BF16"]
    assert [scheme.is_default for scheme in SCHEMES.values()] == [True, False, False, False]
    assert [scheme.is_compiled for scheme in SCHEMES.values()] == [True, True, True, False]
    assert not Scheme("own", (4,), (32,), ()).is_compiled
    assert len({scheme.kernel for scheme in SCHEMES.values()}) == 4


def test_a_format_of_a_mode_with_several_has_the_mode_in_its_name() -> None:
    assert Scheme("own", (4, 8), (32,), ()).name(8, 32) == "own-8/32"
    assert Scheme("own", (4,), (32, 64), ()).name(4, 64) == "own-4/64"
    assert Scheme("own", (4, 8), (32, 64), ()).name(8, 64) == "own-8/64"
    assert Scheme("own", (4,), (32,), ()).name(4, 32) == "own"


def test_a_read_factor_is_that_of_the_bits() -> None:
    scheme = Scheme("own", (4, 8), (32,), (ReadFactor(4, 1.5, "test"), ReadFactor(8, 2.5, "test")))
    assert (scheme.read_factor(4), scheme.read_factor(8)) == (1.5, 2.5)


def test_the_published_read_factors() -> None:
    """The figures that docs and forecasts rest on; a new measurement changes both."""
    factors = [AFFINE_SCHEME.read_factor(bits) for bits in (2, 3, 4, 5, 6, 8)]
    assert factors == [1.11, 1.15, 1.0, 1.04, 1.03, 1.0]
    assert [MXFP4_SCHEME.read_factor(4), NVFP4_SCHEME.read_factor(4), KEEP_SCHEME.read_factor(0)] == [1.02, 1.02, 1.0]


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_the_entry_of_a_module_has_the_arguments_of_mlx(format: Format) -> None:
    entry: Any = {"group_size": format.group_size, "bits": format.bits, "mode": format.mode}
    assert format.parameters() == entry
    assert format.config() == (False if format == KEEP else entry)


def test_known_formats_are_the_built_in_ones_with_keep_last() -> None:
    assert known_formats() == FORMATS
    assert FORMATS[-1] == KEEP == parse_format("keep")
    assert formats_of(KEEP_SCHEME) == (KEEP,)
    assert KEEP.admits((3,), "I32")
    assert admissible((8, 128), "BF16") == FORMATS
    assert admissible((8, 128), "BF16", [KEEP, FORMATS[0]]) == (KEEP, FORMATS[0])
    assert admissible((8, 128), "BF16", []) == ()
