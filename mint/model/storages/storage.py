"""A storage: one way in which a checkpoint stores a weight, such as FP8 with a scale per block.

A storage finds its weights by names, dtypes and shapes of tensors; the config is asked only for what these do not say.
It decodes them lazily on the CPU stream, before the model's own `sanitize` sees them.
"""

# R rows, C columns; N a whole axis

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

import mlx.core as mx

from mint.model.checkpoint.shards import SourceTensor

Arrays = Mapping[str, mx.array]  # by role
BLOCK = 1 << 19  # weights decoded at once where a whole weight has more than LARGE
LARGE = 15 << 20  # more than one expert of a DeepSeek V3, of which there are 44,544
GGUF = "gguf"  # the method of a folder that was converted from it


@dataclass(frozen=True, slots=True)
class Settings:
    """The facts in a `quantization_config` that tensors do not tell."""

    method: str = ""  # empty: the config names no quantization
    bits: int = 0  # 0: not the same for all weights, or not given
    block: tuple[int, ...] = ()  # weights per scale along the last axes
    exact_zeros: bool = False  # GPTQ's second version stores a zero point as it is, the first one less
    is_symmetric: bool = False  # of GPTQ: every zero point is half the range
    modules: Mapping[str, Any] = field(default_factory=dict)  # `quantization` of a model that MLX has quantized


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a checkpoint by name, without their data, and its settings."""

    tensors: Mapping[str, SourceTensor]
    settings: Settings
    read: Callable[[SourceTensor], bytes]  # the data of a small tensor

    def first(self, *names: str) -> SourceTensor | None:
        """The first of these tensors that is there."""
        return next((self.tensors[name] for name in names if name in self.tensors), None)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A weight that is stored in parts: the tensors by role, and the numbers that its decoding needs.

    `name` and `shape` are those of the decoded weight, as the model's class expects it.
    """

    storage: str
    name: str
    shape: tuple[int, ...]
    parts: Mapping[str, SourceTensor]
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_bare(self) -> bool:
        """True for codes without scales."""
        return self.parts.keys() == {"codes"}


Leaf = SourceTensor | Encoded  # a plain tensor, or an encoded weight


@dataclass(frozen=True, slots=True)
class Storage:
    """One entry of the table of storages.

    `match` gives the encoded weight whose main part is this tensor, or None. `decode` turns the arrays of the parts by
    role into the lazy weight in a dtype. `stacks` says that the parts of a stack are stacks: some of its matrices are
    decoded from those rows of every part that has one for each matrix.
    """

    name: str
    title: str
    match: Callable[[SourceTensor, Checkpoint], Encoded | None]
    decode: Callable[[Encoded, Arrays, mx.Dtype], mx.array]
    stacks: bool = False


def module_of(name: str) -> str:
    """The path of the module that a weight belongs to."""
    return name.removesuffix(".weight")


def in_blocks(shape: tuple[int, ...], dtype: mx.Dtype, decode: Callable[[slice], mx.array], rows: int = 1) -> mx.array:
    """A lazy array of `shape` from `decode`, which gives some indices of the first axis.

    A block starts at a multiple of `rows`.
    """
    return in_tiles(shape, dtype, lambda part, _: decode(part), rows=rows, columns=shape[-1])


def in_tiles(
    shape: tuple[int, ...], dtype: mx.Dtype, decode: Callable[[slice, slice], mx.array], *, rows: int, columns: int
) -> mx.array:
    """A lazy array of `shape` from `decode`, which gives some indices of the first axis and some of the last.

    A large array is written tile by tile into one buffer, so that wide intermediate values take little memory. Tiles
    start at multiples of `rows` and `columns`.
    """
    count, width, size = shape[0], shape[-1], prod(shape)
    if size <= LARGE:
        return decode(slice(0, count), slice(0, width))
    height = max(rows, BLOCK * count // size // rows * rows)
    breadth = max(columns, BLOCK * width // (size // count * height) // columns * columns)
    array = mx.zeros(shape, dtype)
    for top in range(0, count, height):
        for left in range(0, width, breadth):
            tile = decode(slice(top, min(top + height, count)), slice(left, min(left + breadth, width)))
            array = mx.slice_update(array, tile, mx.array([top, left]), axes=[0, len(shape) - 1])
    return array


def block_sizes(shape: tuple[int, ...], scales: tuple[int, ...], settings: Settings) -> tuple[int, ...] | None:
    """The weights per scale along each axis of a weight, 0 for all of them; None where the scales do not fit.

    Scales of fewer axes belong to the first axes: (R,) is one for each row of (R, C). Blocks are those of the config
    where they fit, else of 128, else of 32, else such that they divide the axis.
    """
    if len(scales) > len(shape):
        return None
    counts = (*scales, *(1,) * (len(shape) - len(scales)))
    plain = {axis: 0 if count == 1 else 1 for axis, count in enumerate(counts) if count in (1, shape[axis])}
    configured = (*(1,) * (len(shape) - len(settings.block)), *settings.block)
    divided = tuple(n // count if count and n % count == 0 else 0 for n, count in zip(shape, counts, strict=True))
    for sizes in (configured[-len(shape) :], (128,) * len(shape), (32,) * len(shape), divided):
        blocks = {axis: size for axis, size in enumerate(sizes) if axis not in plain}
        if all(size and ceil(shape[axis] / size) == counts[axis] for axis, size in blocks.items()):
            return tuple({**plain, **blocks}[axis] for axis in range(len(shape)))
    return None


def of_rows(scales: mx.array, rows: slice, size: int) -> mx.array:
    """The scales of some indices of the first axis, from a multiple of `size` on; 0 is one scale for all of them."""
    return scales[rows.start // size : ceil(rows.stop / size)] if size else scales


def spread(
    apply: Callable[[mx.array, mx.array], mx.array], values: mx.array, scales: mx.array, sizes: tuple[int, ...]
) -> mx.array:
    """Apply to every value the scale of its block; `sizes` are those of `block_sizes`."""
    shape = values.shape
    scales = scales.reshape(*scales.shape, *(1,) * (len(shape) - scales.ndim))
    sizes = tuple(size or n for n, size in zip(shape, sizes, strict=True))
    if all(n % size == 0 for n, size in zip(shape, sizes, strict=True)):
        split = [part for n, size in zip(shape, sizes, strict=True) for part in (n // size, size)]
        widths = [part for count in scales.shape for part in (count, 1)]
        return apply(values.reshape(split), scales.reshape(widths)).reshape(shape)
    for axis, (n, size) in enumerate(zip(shape, sizes, strict=True)):
        if 1 < scales.shape[axis] < n:
            scales = mx.repeat(scales, size, axis=axis)
            scales = mx.take(scales, mx.arange(n), axis=axis)
    return apply(values, scales)
