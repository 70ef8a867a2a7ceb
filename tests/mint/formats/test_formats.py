import mlx.core as mx
import pytest

from mint.core.errors import MintError
from mint.formats.format import AFFINE, FORMATS, KEEP, MXFP4, NVFP4, Format, admissible, parse_format
from mint.kernels.storage import DTYPES

SHAPES = [(64, 128), (96, 256), (3, 32, 384), (1, 128), (7, 160)]
MLX_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


@pytest.mark.parametrize("format", [*AFFINE, MXFP4, NVFP4], ids=str)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensors_are_those_that_mlx_makes(format: Format, dtype: str, shape: tuple[int, ...]) -> None:
    if not format.admits(shape, dtype):
        with pytest.raises(ValueError):
            mx.quantize(mx.zeros(shape, MLX_DTYPES[dtype]), **format.parameters())
        return
    made = mx.quantize(mx.zeros(shape, MLX_DTYPES[dtype]), **format.parameters())
    planned = format.tensors("m", shape, dtype)
    assert [tensor.name for tensor in planned] == ["m.weight", "m.scales", "m.biases"][: len(made)]
    assert [(tensor.shape, tensor.dtype) for tensor in planned] == [(a.shape, DTYPES[a.dtype]) for a in made]
    assert format.nbytes(shape, dtype) == sum(array.nbytes for array in made)


def test_a_kept_weight_costs_what_it_is() -> None:
    assert KEEP.nbytes((3, 5), "BF16") == 30
    assert KEEP.config() is False


def test_a_group_that_does_not_divide_the_last_axis_is_not_admissible() -> None:
    assert {format.group_size for format in admissible((8, 576), "BF16", AFFINE)} == {32, 64}
    assert admissible((8, 100), "BF16") == (KEEP,)
    assert admissible((64,), "BF16") == (KEEP,)
    assert admissible((8, 128), "I32") == (KEEP,)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_names_read_back(format: Format) -> None:
    assert parse_format(str(format)) == format


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MintError, match=r"'7/64' is not a format.*4/64"):
        parse_format("7/64")
