"""What decoding a token costs: the bytes it reads, times how slowly its format is read.

One token at a time, a matrix-vector product is bound by memory: time = overhead + sum over weights of
bytes * factor / bandwidth. The factors are relative to 4/64 and fitted to published generation speeds of whole
models, with the line through 4/64 and 8/64 as overhead and speed; unquantized bf16 lies on the same line to 0.5 %.

Small groups have no factor of their own: 4/32 fits the line at 1.00, 5/32 at 1.02. They cost the bytes of their scales
and no more; the 7-14 % reported in ml-explore/mlx#3251 is less than those bytes (18 % of 4/128), and later releases
of MLX measure 4 %. All of it holds for Metal and one sequence; prompts and batches are bound by arithmetic instead.
"""

from dataclasses import dataclass

from mint.formats.format import FORMATS, KEEP, Format


@dataclass(frozen=True, slots=True)
class ReadFactor:
    """Time to read a byte of a format, relative to a byte of 4/64."""

    mode: str
    bits: int
    factor: float
    source: str


_BENCHMARKS = "https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/BENCHMARKS.md"
_M4_MAX = f"{_BENCHMARKS}: Qwen3-4B and Qwen3-30B-A3B, M4 Max, mlx 0.29.2"
READ_FACTORS = (
    ReadFactor("affine", 2, 1.11, "ml-explore/mlx#3852: 1.15 and 1.07 for two shapes at group 128, M4 Pro, mlx 0.32.0"),
    ReadFactor(
        "affine",
        3,
        1.15,
        "estimate between 2 bits and 1.29, at which 3/64 takes as long as 4/64: faster than that on M2 Ultra, slower"
        " on M1 Max (ml-explore/mlx#1613, without numbers)",
    ),
    ReadFactor("affine", 4, 1.0, "by definition"),
    ReadFactor("affine", 5, 1.04, f"{_M4_MAX}: 1.03 and 1.06"),
    ReadFactor("affine", 6, 1.03, f"{_M4_MAX}: 1.01 and 1.04"),
    ReadFactor("affine", 8, 1.0, f"{_M4_MAX}: the line goes through it"),
    ReadFactor("mxfp4", 4, 1.02, "ml-explore/mlx#2946: Qwen3-4B, M4 Max"),
    ReadFactor("nvfp4", 4, 1.02, "ml-explore/mlx#2946: Qwen3-4B, M4 Max"),
    ReadFactor(KEEP.mode, KEEP.bits, 1.0, f"{_M4_MAX}: bf16, 1.00"),
)
_BY_FORMAT = {
    format: row.factor
    for format in FORMATS
    for row in READ_FACTORS
    if (row.mode, row.bits) == (format.mode, format.bits)
}


def bytes_per_token(
    format: Format, shape: tuple[int, ...], dtype: str, active: float = 1.0, *, looked_up: bool = False
) -> float:
    """Bytes of a weight stored in `format` that one token reads.

    `active` is the share of a stack (experts, ..., ...) that a token uses. An embedding (rows, columns) that is only
    looked up reads one of its rows; a tied one is read as the head too, and is not `looked_up`.
    """
    assert 0.0 <= active <= 1.0
    rows = shape[-2] if looked_up else 1
    return format.nbytes(shape, dtype) * active / rows


def decode_cost(
    format: Format, shape: tuple[int, ...], dtype: str, active: float = 1.0, *, looked_up: bool = False
) -> float:
    """`bytes_per_token` in bytes of 4/64: what takes as long to read."""
    return bytes_per_token(format, shape, dtype, active, looked_up=looked_up) * _BY_FORMAT[format]
