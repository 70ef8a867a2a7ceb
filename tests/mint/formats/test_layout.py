import errno
import json
import os
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mint.core import files
from mint.formats.format import AFFINE, KEEP, TensorSpec
from mint.formats.layout import OutputShard, lay_out, overhead_nbytes, stored_nbytes
from mint.model.checkpoint.writer import WeightFiles

groups_of_tensors = st.lists(
    st.builds(
        lambda index, format, rows: format.tensors(f"layers.{index}.proj", (rows, 128), "BF16"),
        st.integers(0, 10**6),
        st.sampled_from([*AFFINE, KEEP]),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda tensors: tensors[0].name,
)


@given(groups_of_tensors, st.integers(1_000, 40_000))
def test_a_layout_costs_no_more_than_its_parts_and_the_promised_overhead(
    groups: list[tuple[TensorSpec, ...]], limit: int
) -> None:
    shards = lay_out(groups, digits=9, max_shard_bytes=limit)
    total = sum(shard.nbytes for shard in shards)
    parts = sum(sum(stored_nbytes(group, 9)) for group in groups)
    assert parts <= total <= parts + overhead_nbytes(total, limit)


@given(groups_of_tensors)
def test_header_bytes_do_not_depend_on_the_order(groups: list[tuple[TensorSpec, ...]]) -> None:
    forward = lay_out(groups, digits=9)
    assert forward[0].nbytes == lay_out(groups[::-1], digits=9)[0].nbytes


@given(groups_of_tensors, st.integers(1_000, 40_000))
def test_a_group_is_never_torn_apart(groups: list[tuple[TensorSpec, ...]], limit: int) -> None:
    shards = lay_out(groups, digits=9, max_shard_bytes=limit)
    home = {placed.tensor.name: shard.name for shard in shards for placed in shard.tensors}
    assert all(len({home[tensor.name] for tensor in group}) == 1 for group in groups)
    assert len(home) == sum(map(len, groups))


def _write(folder: Path, shards: tuple[OutputShard, ...]) -> None:
    with WeightFiles(folder, shards) as files:
        for shard in shards:
            for placed in shard.tensors:
                files.write((placed.tensor,), (bytes(index % 251 for index in range(placed.tensor.nbytes)),))


def test_the_files_are_read_by_safetensors_and_by_mlx(tmp_path: Path) -> None:
    tensors = (
        TensorSpec("a.weight", "U32", (3, 4)),
        TensorSpec('odd "näme"', "BF16", (5,)),
        TensorSpec("z", "F32", ()),
    )
    shards = lay_out([(tensor,) for tensor in tensors], digits=12)
    _write(tmp_path, shards)
    path = tmp_path / shards[0].name
    assert path.stat().st_size == shards[0].nbytes
    with safe_open(path, "numpy") as file:
        assert set(file.keys()) == {tensor.name for tensor in tensors}
        assert file.metadata() == {"format": "mlx"}
        assert file.get_tensor("a.weight").tobytes() == bytes(range(48))
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    assert {name: array.shape for name, array in loaded.items()} == {t.name: t.shape for t in tensors}
    header = path.read_bytes()
    assert int.from_bytes(header[:8], "little") % 8 == 0
    json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])


def test_no_write_is_larger_than_every_system_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = TensorSpec("a", "U8", (1000,))
    data, pwrite = bytes(index % 251 for index in range(1000)), os.pwrite

    def small(descriptor: int, piece: memoryview, offset: int) -> int:
        if len(piece) > 64:
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(descriptor, piece, offset)

    assert files.MOST_AT_ONCE < 1 << 31  # macOS: EINVAL beyond INT_MAX
    (shard,) = lay_out([(tensor,)], digits=5)
    monkeypatch.setattr(files, "MOST_AT_ONCE", 64)
    monkeypatch.setattr(os, "pwrite", small)
    with WeightFiles(tmp_path, (shard,)) as written:
        written.write((tensor,), (data,))
    assert (tmp_path / shard.name).read_bytes()[shard.tensors[0].offset :] == data


def test_a_system_that_writes_less_than_it_was_given_gets_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = TensorSpec("a", "U8", (1000,))
    data, pwrite = bytes(index % 251 for index in range(1000)), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, piece, offset: pwrite(descriptor, piece[:7], offset))
    (shard,) = lay_out([(tensor,)], digits=5)
    with WeightFiles(tmp_path, (shard,)) as written:
        written.write((tensor,), (data,))
    assert (tmp_path / shard.name).read_bytes() == shard.head + data


@settings(max_examples=20)
@given(st.integers(1, 200))
def test_what_was_written_is_recognized_by_its_digest(rows: int) -> None:
    import tempfile

    tensor = TensorSpec("a", "U8", (rows, 3))
    with tempfile.TemporaryDirectory() as folder, WeightFiles(Path(folder), lay_out([(tensor,)], digits=5)) as files:
        written = files.write((tensor,), (b"\x07" * (3 * rows),))
        assert files.digest((tensor,)) == written
        files.write((tensor,), (b"\x08" * (3 * rows),))
        assert files.digest((tensor,)) != written
