"""The cost of decoding a token: the bytes that it reads, times the reading time of their formats.

One token at a time, a matrix-vector product is bound by memory: time = overhead + sum over weights of
bytes * factor / bandwidth. The factors (`Scheme.read_factors`) are relative to 4/64 and fitted to published generation
speeds of whole models, with the line through 4/64 and 8/64 as overhead and speed; unquantized bf16 lies on the same
line to 0.5 %.

Small groups have no factor of their own: 4/32 fits the line at 1.00, 5/32 at 1.02. They cost the bytes of their scales
and no more; the 7-14 % reported in ml-explore/mlx#3251 is less than those bytes (18 % of 4/128), and later releases
of MLX measure 4 %. All of it holds for Metal and one sequence; prompts and batches are bound by arithmetic instead.
"""

from mint.formats.format import Format


def bytes_per_token(format: Format, shape: tuple[int, ...], dtype: str, active: float = 1.0) -> float:
    """Bytes of a weight stored in `format` that one token reads.

    `active` is the share of its rows that a token uses: some experts of a stack, one row of an embedding that is not
    the head too.
    """
    assert 0.0 <= active <= 1.0
    return format.nbytes(shape, dtype) * active


def decode_cost(format: Format, shape: tuple[int, ...], dtype: str, active: float = 1.0) -> float:
    """`bytes_per_token` in bytes of 4/64: what takes as long to read."""
    return bytes_per_token(format, shape, dtype, active) * format.scheme.read_factor(format.bits)
