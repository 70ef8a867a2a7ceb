"""The storage formats of a weight matrix, and the exact bytes of each.

Sizes are arithmetic, never an experiment: they equal what `mx.quantize` writes, for every format and shape.
Names of formats: `4/64` (affine, 4 bits, groups of 64), `mxfp4`, `nvfp4`, `keep`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from mint.core.errors import MintError
from mint.formats.scheme import AFFINE_SCHEME, MXFP4_SCHEME, NVFP4_SCHEME, SCHEMES, Scheme

# bytes of one element of a safetensors dtype (safetensors format description)
ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
QUANTIZABLE = ("BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a safetensors file: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass(frozen=True, slots=True, order=True)
class Format:
    """One way to store a weight whose last axis is cut into groups: `mode`, `bits` and `group_size` as in MLX."""

    mode: str
    bits: int
    group_size: int

    # plans compare formats by the hundred thousand; the methods of a dataclass would make tuples each time

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Format)
            and self.bits == other.bits
            and self.group_size == other.group_size
            and self.mode == other.mode
        )

    def __hash__(self) -> int:
        return self.bits << 16 | self.group_size

    def __str__(self) -> str:
        return self.scheme.name(self.bits, self.group_size)

    @property
    def scheme(self) -> Scheme:
        """The meaning of its codes, scales and biases."""
        return SCHEMES[self.mode]

    def admits(self, shape: tuple[int, ...], dtype: str) -> bool:
        """True where MLX can store a weight of this shape and safetensors dtype in this format."""
        if self == KEEP:
            return True
        return len(shape) >= 2 and shape[-1] % self.group_size == 0 and dtype in QUANTIZABLE

    def tensors(self, path: str, shape: tuple[int, ...], dtype: str) -> tuple[TensorSpec, ...]:
        """The tensors that store the weight of the module at `path`, as `mx.quantize` makes them."""
        weight = f"{path}.weight"
        if self == KEEP:
            return (TensorSpec(weight, dtype, shape),)
        *rows, columns = shape
        packed = TensorSpec(weight, "U32", (*rows, columns * self.bits // 32))
        groups = (*rows, columns // self.group_size)
        scales = TensorSpec(f"{path}.scales", self.scheme.scale_dtype(dtype), groups)
        biases = (TensorSpec(f"{path}.biases", dtype, groups),) if self.scheme.has_bias else ()
        return (packed, scales, *biases)

    def nbytes(self, shape: tuple[int, ...], dtype: str) -> int:
        """Bytes of all tensors of a weight stored in this format."""
        return _nbytes(self, shape, dtype)

    def parameters(self) -> dict[str, Any]:
        """The arguments of `to_quantized` that store a module in this format."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def config(self) -> dict[str, Any] | bool:
        """The module's entry under `quantization` in config.json; `False` means not quantized."""
        return False if self == KEEP else self.parameters()


@cache
def _nbytes(format: Format, shape: tuple[int, ...], dtype: str) -> int:
    return sum(tensor.nbytes for tensor in format.tensors("", shape, dtype))


def formats_of(scheme: Scheme) -> tuple[Format, ...]:
    """The formats of a scheme, by bits and then by group size."""
    return tuple(Format(scheme.mode, bits, group_size) for bits in scheme.bits for group_size in scheme.group_sizes)


KEEP = Format("keep", 0, 1)
AFFINE = formats_of(AFFINE_SCHEME)
(MXFP4,), (NVFP4,) = formats_of(MXFP4_SCHEME), formats_of(NVFP4_SCHEME)
FORMATS = (*AFFINE, MXFP4, NVFP4, KEEP)  # built in


def known_formats() -> tuple[Format, ...]:
    """Every format that a weight can be stored in: `FORMATS`, and those of schemes from outside before `KEEP`."""
    return tuple(_by_name(tuple(SCHEMES.values())).values())


def parse_format(name: str) -> Format:
    """The format of this name; `MintError` lists the names that exist."""
    formats = _by_name(tuple(SCHEMES.values()))
    if name not in formats:
        raise MintError(f"{name!r} is not a format; needed one of: {', '.join(formats)}")
    return formats[name]


@cache
def _by_name(schemes: tuple[Scheme, ...]) -> dict[str, Format]:
    formats = [format for scheme in schemes for format in formats_of(scheme) if format != KEEP]
    return {str(format): format for format in (*formats, KEEP)}


def admissible(shape: tuple[int, ...], dtype: str, formats: Iterable[Format] | None = None) -> tuple[Format, ...]:
    """Those of `formats`, by default of all, that MLX can store a weight of this shape and dtype in, in their order."""
    candidates = known_formats() if formats is None else formats
    return tuple(format for format in candidates if format.admits(shape, dtype))
