"""The position of every output byte, computed before anything is written.

A unit or parameter is stored whole in one shard. Its entry in the safetensors header is padded with spaces to a
length that depends on nothing but its name, dtype and shape (JSON allows white space anywhere), so that the bytes
of a choice add up: the knapsack can spend the budget to the byte, and planned equals written.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from mint.core.sizes import MAX_SHARD_BYTES
from mint.formats.format import Format, TensorSpec

_HEAD = '{"__metadata__":{"format":"mlx"}'
_TAIL = "}"
_ALIGNMENT = 8
SHARD_OVERHEAD_BYTES = 8 + len(_HEAD) + len(_TAIL) + _ALIGNMENT - 1  # at most


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor and the position of its first byte in its shard."""

    tensor: TensorSpec
    offset: int


@dataclass(frozen=True, slots=True)
class OutputShard:
    """A safetensors file to be: its name, its first bytes (length and header), its tensors and its size."""

    name: str
    head: bytes
    tensors: tuple[PlacedTensor, ...]
    nbytes: int


def stored_nbytes(tensors: Iterable[TensorSpec], digits: int) -> tuple[int, int]:
    """Bytes of data and of header entries that `tensors` add to a file whose offsets have at most `digits` digits."""
    sizes = [(tensor.nbytes, _entry_nbytes(tensor, digits)) for tensor in tensors]
    return sum(data for data, _ in sizes), sum(entry for _, entry in sizes)


@cache
def name_nbytes(name: str) -> int:
    """Bytes that a path takes in every header entry that it is part of."""
    return len(json.dumps(name)) - 2


@cache
def unnamed_nbytes(format: Format, shape: tuple[int, ...], dtype: str, digits: int) -> tuple[int, int, int]:
    """Bytes of data, bytes of header entries and number of tensors of a unit whose path is empty."""
    tensors = format.tensors("", shape, dtype)
    return *stored_nbytes(tensors, digits), len(tensors)


def unit_nbytes(path: str, format: Format, shape: tuple[int, ...], dtype: str, digits: int) -> tuple[int, int]:
    """`stored_nbytes` of a unit's tensors, without making them."""
    data, entries, count = unnamed_nbytes(format, shape, dtype, digits)
    return data, entries + count * name_nbytes(path)


def shards_nbytes(groups: Iterable[tuple[int, int]], max_shard_bytes: int) -> int:
    """Bytes of all shards that `lay_out` makes of groups with so many bytes of data and of header entries."""
    total = data = entries = 0
    for group_data, group_entries in groups:
        if data + entries and data + entries + group_data + group_entries > max_shard_bytes:
            total += _shard_nbytes(data, entries)
            data = entries = 0
        data += group_data
        entries += group_entries
    return total + _shard_nbytes(data, entries)


def _shard_nbytes(data: int, entries: int) -> int:
    header = len(_HEAD) + entries + len(_TAIL)
    return 8 + header + -header % _ALIGNMENT + data


def overhead_nbytes(total: int, max_shard_bytes: int) -> int:
    """An upper bound of what the shards of `total` bytes cost beyond their tensors."""
    # two neighbouring shards together exceed the limit, else they would be one
    return SHARD_OVERHEAD_BYTES * (2 * (total // max_shard_bytes) + 2)


def budget_nbytes(nbytes: int, max_shard_bytes: int) -> int:
    """The smallest budget that has room for `nbytes` of tensors and the overhead of its shards."""
    budget = nbytes
    while (short := nbytes + overhead_nbytes(budget, max_shard_bytes) - budget) > 0:
        budget += short
    return budget


def lay_out(
    groups: Iterable[tuple[TensorSpec, ...]], *, digits: int, max_shard_bytes: int = MAX_SHARD_BYTES
) -> tuple[OutputShard, ...]:
    """Place `groups` of tensors in their order, in shards of at most `max_shard_bytes`; a larger group gets its own."""
    shards: list[list[TensorSpec]] = [[]]
    room = max_shard_bytes
    for group in groups:
        nbytes = sum(stored_nbytes(group, digits))
        if shards[-1] and nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].extend(group)
        room -= nbytes
    count = len(shards)
    names = (f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1))
    return tuple(
        _shard("model.safetensors" if count == 1 else name, tensors, digits)
        for name, tensors in zip(names, shards, strict=True)
    )


def _shard(name: str, tensors: Sequence[TensorSpec], digits: int) -> OutputShard:
    entries, ends = [], [0]
    for tensor in tensors:
        ends.append(ends[-1] + tensor.nbytes)
        entries.append(_entry(tensor, *ends[-2:]).ljust(_entry_nbytes(tensor, digits)))
    head = file_head(_HEAD + "".join(entries) + _TAIL)
    placed = tuple(PlacedTensor(tensor, len(head) + begin) for tensor, begin in zip(tensors, ends[:-1], strict=True))
    return OutputShard(name, head, placed, len(head) + ends[-1])


def file_head(header: str) -> bytes:
    """The first bytes of a safetensors file with this header: its length, and the header padded with spaces."""
    text = header.encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _entry(tensor: TensorSpec, begin: int, end: int) -> str:
    shape = ",".join(map(str, tensor.shape))
    name = json.dumps(tensor.name)  # ASCII: one byte a character
    return f',{name}:{{"dtype":"{tensor.dtype}","shape":[{shape}],"data_offsets":[{begin},{end}]}}'


def _entry_nbytes(tensor: TensorSpec, digits: int) -> int:
    return len(_entry(tensor, 10 ** (digits - 1), 10 ** (digits - 1)))
