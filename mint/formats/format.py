"""How a weight matrix may be stored, and the exact bytes of each way.

Sizes are arithmetic, never an experiment: they equal what `mx.quantize` writes, for every format and shape.
Formats are named as people write them: `4/64` (affine, 4 bits, groups of 64), `mxfp4`, `nvfp4`, `keep`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from mint.core.errors import MintError

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

    # plans compare formats by the hundred thousand; what a dataclass writes would make tuples each time

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
        return f"{self.bits}/{self.group_size}" if self.mode == "affine" else self.mode

    def admits(self, shape: tuple[int, ...], dtype: str) -> bool:
        """Whether MLX can store a weight of this shape and safetensors dtype in this format."""
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
        if self.mode != "affine":
            return packed, TensorSpec(f"{path}.scales", "U8", groups)
        return (
            packed,
            TensorSpec(f"{path}.scales", dtype, groups),
            TensorSpec(f"{path}.biases", dtype, groups),
        )

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


KEEP = Format("keep", 0, 1)
AFFINE = tuple(Format("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128))
MXFP4 = Format("mxfp4", 4, 32)
NVFP4 = Format("nvfp4", 4, 16)
FORMATS = (*AFFINE, MXFP4, NVFP4, KEEP)
_BY_NAME = {str(format): format for format in FORMATS}


def parse_format(name: str) -> Format:
    """The format that people write as `name`; `MintError` lists the names that exist."""
    if name not in _BY_NAME:
        raise MintError(f"{name!r} is not a format; needed one of: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def admissible(shape: tuple[int, ...], dtype: str, formats: Iterable[Format] = FORMATS) -> tuple[Format, ...]:
    """Those of `formats` that MLX can store a weight of this shape and dtype in, in the order given."""
    return tuple(format for format in formats if format.admits(shape, dtype))
