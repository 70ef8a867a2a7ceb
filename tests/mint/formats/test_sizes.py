"""The bytes of a layout, to the byte: sizes that are counted without making tensors are those of the files."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint.formats.format import AFFINE, FORMATS, KEEP, MXFP4, NVFP4, Format, TensorSpec
from mint.formats.layout import (
    SHARD_OVERHEAD_BYTES,
    lay_out,
    name_nbytes,
    overhead_nbytes,
    shards_nbytes,
    stored_nbytes,
    unit_nbytes,
)

DIGITS = 9
groups_of_bytes = st.lists(st.integers(0, 900).map(lambda size: (TensorSpec("a" * (size % 13 + 1), "U8", (size,)),)))


def _offsets(head: bytes) -> bytes:
    """The header without the spaces that fill its entries and end."""
    return head[8:].replace(b" ", b"")


@given(groups_of_bytes.filter(bool), st.integers(200, 2_000))
def test_counted_shards_are_those_that_are_laid_out(groups: list[tuple[TensorSpec, ...]], limit: int) -> None:
    shards = lay_out(groups, digits=DIGITS, max_shard_bytes=limit)
    parts = [stored_nbytes(group, DIGITS) for group in groups]
    assert shards_nbytes(parts, limit) == sum(shard.nbytes for shard in shards)
    for shard in shards:
        inside = sum(sum(stored_nbytes((placed.tensor,), DIGITS)) for placed in shard.tensors)
        assert inside <= limit or len(shard.tensors) == 1
    for shard, after in pairwise(shards):  # no shard ends before it is full
        both = sum(sum(stored_nbytes((placed.tensor,), DIGITS)) for placed in (*shard.tensors, after.tensors[0]))
        assert both > limit


def test_a_shard_is_filled_to_its_last_byte() -> None:
    groups = [(TensorSpec(name, "U8", (size,)),) for name, size in (("a", 5), ("b", 3))]
    parts = [stored_nbytes(group, DIGITS) for group in groups]
    limit = sum(map(sum, parts))
    for room, count in ((limit, 1), (limit - 1, 2)):
        shards = lay_out(groups, digits=DIGITS, max_shard_bytes=room)
        assert len(shards) == count
        assert shards_nbytes(parts, room) == sum(shard.nbytes for shard in shards)


def test_a_shard_with_as_many_bytes_of_data_as_of_entries_is_not_empty() -> None:
    assert shards_nbytes([(60, 60), (60, 60)], 130) == 2 * shards_nbytes([(60, 60)], 130)


def test_shards_are_named_as_loaders_expect() -> None:
    groups = [(TensorSpec(name, "U8", (5,)),) for name in "abc"]
    assert [shard.name for shard in lay_out(groups, digits=DIGITS)] == ["model.safetensors"]
    assert [shard.name for shard in lay_out(groups, digits=DIGITS, max_shard_bytes=1)] == [
        "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 10, 9_000, 900_000])
def test_entries_of_the_largest_offsets_take_what_was_counted(size: int) -> None:
    tensors = [TensorSpec("a", "U8", (size,)), TensorSpec("b", "U8", (1,))]
    digits = len(str(size + 1))
    data, entries = stored_nbytes(tensors, digits)
    (shard,) = lay_out([tuple(tensors)], digits=digits)
    assert shard.nbytes == shards_nbytes([(data, entries)], 1 << 40)
    header = f',"a":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}'
    second = f',"b":{{"dtype":"U8","shape":[1],"data_offsets":[{size},{size + 1}]}}'
    assert _offsets(shard.head).decode() == f'{{"__metadata__":{{"format":"mlx"}}{header}{second}}}'
    assert data == size + 1
    assert entries == len(header) + len(second) + 2 * digits - 1 - len(str(size))  # each offset takes all digits


def test_the_overhead_of_a_shard_is_met() -> None:
    overheads = set()
    for length in range(1, 17):
        tensor = TensorSpec("a" * length, "U8", (1,))
        (shard,) = lay_out([(tensor,)], digits=DIGITS)
        assert len(shard.head) % 8 == 0
        overheads.add(shard.nbytes - sum(stored_nbytes((tensor,), DIGITS)))
    assert max(overheads) == SHARD_OVERHEAD_BYTES
    assert max(overheads) - min(overheads) == 7


@pytest.mark.parametrize("count", [1, 2, 3, 10, 31, 100])
def test_the_promised_overhead_is_that_of_two_shards_more_than_the_worst_case_makes(count: int) -> None:
    groups = [(TensorSpec("a", "U8", (501,)),)] * count
    limit = 2 * sum(stored_nbytes(groups[0], DIGITS)) - 1  # no two groups share a shard
    shards = lay_out(groups, digits=DIGITS, max_shard_bytes=limit)
    assert len(shards) == count
    total = sum(shard.nbytes for shard in shards)
    shards_foreseen, rest = divmod(overhead_nbytes(total, limit), SHARD_OVERHEAD_BYTES)
    assert rest == 0
    assert count <= shards_foreseen <= 2 * (total // limit) + 2
    assert overhead_nbytes(limit - 1, limit) == 2 * SHARD_OVERHEAD_BYTES


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("path", ["m", "model.layers.11.proj", 'odd "näme"'])
def test_a_unit_costs_what_its_tensors_cost(path: str, format: Format) -> None:
    for shape in ((64, 128), (3, 32, 256)):
        assert unit_nbytes(path, format, shape, "BF16", DIGITS) == stored_nbytes(
            format.tensors(path, shape, "BF16"), DIGITS
        )


@pytest.mark.parametrize(("name", "nbytes"), [("", 0), ("abc", 3), ('"', 2), ("ä", 6)])
def test_a_name_takes_as_many_bytes_as_in_json(name: str, nbytes: int) -> None:
    assert name_nbytes(name) == nbytes


def test_every_format_has_an_own_name_and_every_equal_format_an_equal_hash() -> None:
    assert [str(format) for format in (*AFFINE, MXFP4, NVFP4, KEEP)] == [
        *(f"{bits}/{group_size}" for bits in (2, 3, 4, 5, 6, 8) for group_size in (32, 64, 128)),
        "mxfp4", "nvfp4", "keep",
    ]  # fmt: skip
    for format in FORMATS:
        twin = Format(format.mode, format.bits, format.group_size)
        assert twin == format
        assert hash(twin) == hash(format)
        assert format != (format.mode, format.bits, format.group_size)
        assert sum(format == other for other in FORMATS) == 1
        for field, value in (("mode", "other"), ("bits", 7), ("group_size", 48)):
            fields: dict[str, Any] = {
                "mode": format.mode,
                "bits": format.bits,
                "group_size": format.group_size,
                field: value,
            }
            assert Format(**fields) != format
    assert len({hash(format) for format in FORMATS}) == len(FORMATS) - 1  # mxfp4 and 4/32 share one
