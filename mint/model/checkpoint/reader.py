"""Reading back what was written: the tensors of an assembled folder, and the weights they stand for."""

# S slices, R rows, C columns

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mint.core.errors import MintError
from mint.core.files import naming
from mint.formats.format import KEEP, Format
from mint.formats.units import parts_of
from mint.kernels.backend import backend
from mint.kernels.storage import NUMPY_DTYPES, from_raw
from mint.model.checkpoint.shards import SourceTensor, read_shard, read_shards, tensors_of

ALL = slice(None)
_EXPONENTS = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}
FLOATS = tuple(_EXPONENTS)  # dtypes that `all_finite` looks at
_BLOCK = 4 << 20  # weights of a product, read at once
_COUNTED = 1 << 20  # floats looked at, at once


@dataclass(frozen=True, slots=True)
class StoredModel:
    """The weight files of a folder by tensor name; each read touches only that tensor's bytes."""

    folder: Path
    tensors: dict[str, SourceTensor]

    def raw(self, name: str, rows: slice = ALL) -> npt.NDArray[np.generic]:
        """The tensor, or some `rows` of it along its first axis, as numpy sees it, 16-bit floats as bit patterns."""
        tensor = self.tensors[name]
        dtype = np.dtype(NUMPY_DTYPES[tensor.dtype])
        start, stop, _ = rows.indices(tensor.shape[0]) if tensor.shape else (0, 1, 1)
        shape = (stop - start, *tensor.shape[1:]) if tensor.shape else ()
        row = prod(tensor.shape[1:])
        offset = tensor.offset + start * row * dtype.itemsize
        with naming(self.folder / tensor.shard):
            data: npt.NDArray[np.generic] = np.fromfile(self.folder / tensor.shard, dtype, prod(shape), offset=offset)
        if data.size != prod(shape):  # numpy returns fewer in silence
            message = f"{data.size} of {prod(shape)} values of tensor {name} can be read"
            raise MintError(f"{self.folder / tensor.shard}: {message}; check the disk, or write the file again")
        return data.reshape(shape)

    def array(self, name: str, rows: slice = ALL) -> mx.array:
        """The tensor, or some rows of it, as an MLX array of its own dtype."""
        return from_raw(self.raw(name, rows), self.tensors[name].dtype)

    def wide(self, name: str, rows: slice = ALL) -> mx.array:
        """The tensor, or some rows of it, floats widened to float32."""
        array = self.array(name, rows)
        return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array

    def dequantized(self, path: str, format: Format, rows: slice = ALL) -> mx.array:
        """The weight of the module at `path` in float32, exactly as its stored values say."""
        if format == KEEP:
            return self.wide(f"{path}.weight", rows)
        return backend().unpack(self._parts(path, rows), format)

    def product(self, vectors: mx.array, path: str, format: Format) -> mx.array:
        """(B, R): (B, C) float32 times the transpose of a module's weight (R, C), read in blocks of rows."""
        products = []
        for rows in parts_of((self.tensors[f"{path}.weight"].shape[0], vectors.shape[1]), _BLOCK):
            if format == KEEP:
                products.append(vectors @ self.wide(f"{path}.weight", rows).T)
            else:
                products.append(backend().multiply(vectors, self._parts(path, rows), format))
            mx.eval(products[-1])  # and drop the block
        return mx.concatenate(products, axis=1)

    def _parts(self, path: str, rows: slice) -> list[mx.array]:
        """The stored tensors of a quantized module, some rows of them, in the order of `mx.quantize`."""
        names = (f"{path}.{part}" for part in ("weight", "scales", "biases"))
        return [self.array(name, rows) for name in names if name in self.tensors]


def open_stored(folder: Path) -> StoredModel:
    """Open the weight files in `folder`, headers checked; `MintError` when one is damaged."""
    return StoredModel(folder, tensors_of(read_shards(folder)))


def open_weights(folder: Path, names: Iterable[str]) -> StoredModel:
    """Open these weight files in `folder` alone; an unfinished folder may have no whole index."""
    return StoredModel(folder, {tensor.name: tensor for name in names for tensor in read_shard(folder, name).tensors})


def all_finite(raw: npt.NDArray[Any], dtype: str) -> bool:
    """True if no float is NaN or infinite."""
    return not nonfinite_count(raw, dtype)


def nonfinite_count(raw: npt.NDArray[Any], dtype: str) -> int:
    """The number of floats that are NaN or infinite; such floats have every bit of the exponent set."""
    mask = _EXPONENTS[dtype]
    exponent = np.array(mask, f"u{raw.itemsize}")
    words = raw.reshape(-1).view(exponent.dtype)
    blocks = (words[start : start + _COUNTED] for start in range(0, words.size, _COUNTED))
    return sum(int(np.count_nonzero((block & exponent) == exponent)) for block in blocks)
