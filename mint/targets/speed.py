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
    return bytes_per_token(format, shape, dtype, active, looked_up=looked_up) * format.scheme.read_factor(format.bits)
