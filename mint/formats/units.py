"""Units, each stored in a format of its own, and parameters, which are stored as they are."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, TypeVar

from mint.core.records import typed
from mint.formats.format import ITEMSIZE, KEEP, Format, TensorSpec, admissible

KEEP_BITS = 16  # the floor of a unit that the model's class does not quantize
CLASS_KEEPS = "the model's own quant_predicate keeps it; --ignore-floors PATTERN waives that"


def parts_of(shape: tuple[int, ...], size: int) -> Iterator[slice]:
    """Slices of the first axis of `shape`, each of at most `size` values, or of one index."""
    step = max(1, size // max(1, prod(shape[1:])))
    return (slice(start, start + step) for start in range(0, shape[0] if shape else 1, step))


@dataclass(frozen=True, slots=True)
class Unit:
    """One quantizable MLX module: what is measured, decided and stored in one format.

    `shape` is `(out, in)`, or `(experts, out, in)` for a stack; `dtype` (safetensors name) is that of the weight as
    it will be stored. `sources` are the tensors on disk that feed it. `min_bits` is the model's own floor, `KEEP_BITS`
    where its class does not quantize the unit. `keep_reason` says why the unit may not be quantized at all; empty when
    it may. `twin` is the path of an equal unit whose stored weight the loader takes for this one, so both have one
    format.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    layer: int
    sources: tuple[str, ...]
    min_bits: int = 0
    keep_reason: str = ""
    twin: str = ""

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def slices(self) -> int:
        """Number of matrices in the stack; 1 for a plain matrix."""
        return prod(self.shape[:-2])

    @property
    def nbytes(self) -> int:
        """Bytes of the weight kept as it is."""
        return KEEP.nbytes(self.shape, self.dtype)

    def parts(self, size: int) -> Iterator[slice]:
        """Slices of the first axis, each of at most `size` weights, or of one index."""
        return parts_of(self.shape, size)

    @property
    def stays(self) -> str:
        """The reason why MLX can store this unit in no format but as it is; empty if it can."""
        if self.keep_reason or any(format != KEEP for format in self.formats):
            return self.keep_reason
        return f"no group size divides its last axis ({self.shape[-1]})"

    @property
    def kept(self) -> str:
        """The reason why the unit stays as it is unless its floor is waived; empty if it may be quantized."""
        return self.stays or (CLASS_KEEPS if self.min_bits >= KEEP_BITS else "")

    @property
    def formats(self) -> tuple[Format, ...]:
        """Every format that MLX can store this unit in, `keep` last."""
        return (KEEP,) if self.keep_reason else admissible(self.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter that is stored as it is: norms, biases, convolutions, and the like."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[str, ...]

    @property
    def tensor(self) -> TensorSpec:
        return TensorSpec(self.name, self.dtype, self.shape)

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes


T = TypeVar("T", Unit, Parameter)


def to_fields(record: Unit | Parameter) -> list[Any]:
    """A unit or parameter as a plain list."""
    return [list(value) if isinstance(value, tuple) else value for value in asdict(record).values()]


def from_fields(kind: type[T], fields: list[Any]) -> T:
    """The unit or parameter of a list that `to_fields` made; `TypeError` for another."""
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in fields]
    record = typed(kind(*values))
    if record.dtype not in ITEMSIZE or min(record.shape, default=1) < 1 or (kind is Unit and len(record.shape) < 2):
        raise ValueError(f"found {record.dtype} of shape {record.shape}, needed a matrix or a parameter")
    return record
