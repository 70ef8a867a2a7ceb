"""Reads a large weight in blocks: slices of a stack, decoded, as the model's class stacks them, or rows of a matrix.

MLX would hold every matrix of a stack once decoded and once stacked. The graph says which tensors hold the slices
(`mint/model/lineage.py`), so memory is bounded by one block and two as stored: the next block is read while this one
is worked on. Rows are those of a plain tensor that the class takes as it is.
"""

# S slices, R rows, C columns

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy.typing as npt

from mint.formats.units import Unit, parts_of
from mint.kernels.storage import MLX_DTYPES, from_raw, numpy_view
from mint.kernels.storage import raw as raw_of
from mint.model.checkpoint.reader import ALL
from mint.model.checkpoint.shards import SourceTensor
from mint.model.source import Source
from mint.model.storages.decoding import STORAGES
from mint.model.storages.storage import Encoded, Leaf
from mint.run.job import BlockJob, Blocks, Job

BLOCK = 64 << 20  # weights at once; a stack with no more comes whole

_Raw = Mapping[str, npt.NDArray[Any]]  # the memory of tensors by name


def in_blocks(job: Job[Any], source: Source, unit: Unit) -> bool:
    """True if a job gets a unit block by block: a large stack in slices, a large matrix in rows if it takes them."""
    is_stack = len(unit.shape) > 2
    return may_come_in_blocks(source, unit) and isinstance(job, BlockJob) and (is_stack or job.takes_rows(unit))


def comes_in_blocks(source: Source, unit: Unit) -> bool:
    """True for a stack that all jobs get block by block."""
    return may_come_in_blocks(source, unit) and len(unit.shape) > 2


def may_come_in_blocks(source: Source, unit: Unit) -> bool:
    """True for a stack or a matrix that jobs get block by block if they can."""
    return unit.size > BLOCK and unit.path in source.stacks


def held_bytes(source: Source, unit: Unit) -> int:
    """The most bytes, about, that the weight of a unit takes in a job; in blocks two as stored and one decoded."""
    if not may_come_in_blocks(source, unit):
        return unit.nbytes
    share = max(BLOCK / unit.size, 1 / unit.shape[0])
    stored = sum(source.opened.stored.tensors[name].nbytes for name in unit.sources)
    return int(share * 3 * (stored + unit.nbytes))


def blocks_of(source: Source, unit: Unit) -> Blocks:
    """The weight of a unit that comes in blocks: every pass yields evaluated arrays (S, R, C), read anew."""
    return partial(_blocks, _Stack(source, unit, source.stacks[unit.path]))


def _blocks(stack: "_Stack") -> Iterator[mx.array]:
    count = stack.unit.shape[0]  # slices of a stack, rows of a matrix
    parts = [slice(*part.indices(count)[:2]) for part in parts_of(stack.unit.shape, BLOCK)]
    with ThreadPoolExecutor(1, thread_name_prefix="mint-read") as aside:
        ahead = aside.submit(stack.read, parts[0])
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            raw = ahead.result()
            if following:
                ahead = aside.submit(stack.read, following)
            block = stack.decoded(part, raw)
            del raw
            mx.eval(block)
            yield block
            del block


@dataclass(frozen=True, slots=True)
class _Stack:
    """A stack and the leaves of its slices: one for each, or one that has them along its first axis, as of a matrix."""

    source: Source
    unit: Unit
    leaves: tuple[Leaf, ...]

    def read(self, part: slice) -> _Raw:
        """The tensors that hold some slices, or those rows of them that do."""
        files = self.source.opened.stored
        return {
            tensor.name: files.raw(tensor.name, self._rows(tensor, part))
            for leaf in self._of(part)
            for tensor in _tensors(leaf).values()
        }

    def decoded(self, part: slice, raw: _Raw) -> mx.array:
        """Some slices (S, R, C) from their tensors; slices of tensors of their own are decoded one after another."""
        name, dtype = f"{self.unit.path}.weight", MLX_DTYPES[self.unit.dtype]
        with mx.stream(mx.cpu):
            if len(self.unit.shape) == 2:
                return self._weight(self.leaves[0], part, raw).astype(dtype)[None]
            if len(self.leaves) > 1:
                return self._joined(part, raw, dtype)
            arrays = {leaf.name: self._weight(leaf, part, raw) for leaf in self.leaves}
            block = self.source.opened.remade(arrays, name)
            assert block.shape == (part.stop - part.start, *self.unit.shape[1:]), f"{name}: {block.shape}"
            return block.astype(dtype).reshape(-1, *self.unit.shape[-2:])

    def _joined(self, part: slice, raw: _Raw, dtype: mx.Dtype) -> mx.array:
        memory = mx.zeros((part.stop - part.start, *self.unit.shape[1:]), mx.uint16 if dtype.size == 2 else dtype)
        mx.eval(memory)
        bits = numpy_view(memory)  # it is filled through this view
        for index, leaf in enumerate(self._of(part)):
            bits[index] = raw_of(self._weight(leaf, part, raw).astype(dtype))
        return memory.view(dtype)

    def _of(self, part: slice) -> tuple[Leaf, ...]:
        return self.leaves[part] if len(self.leaves) > 1 else self.leaves

    def _rows(self, tensor: SourceTensor, part: slice) -> slice:
        """Some rows of a tensor that has one for each slice; all of others."""
        return part if len(self.leaves) == 1 and tensor.shape[:1] == self.unit.shape[:1] else ALL

    def _weight(self, leaf: Leaf, part: slice, raw: _Raw) -> mx.array:
        parts = {role: from_raw(raw[tensor.name], tensor.dtype) for role, tensor in _tensors(leaf).items()}
        if isinstance(leaf, SourceTensor):
            return parts[_PLAIN]
        if len(self.leaves) == 1:
            leaf = replace(leaf, shape=(part.stop - part.start, *leaf.shape[1:]))
        return STORAGES[leaf.storage].decode(leaf, parts, self.source.opened.decoded_dtype)


_PLAIN = "weight"  # the role of a plain tensor


def _tensors(leaf: Leaf) -> Mapping[str, SourceTensor]:
    """The tensors of a leaf by role."""
    return leaf.parts if isinstance(leaf, Encoded) else {_PLAIN: leaf}
