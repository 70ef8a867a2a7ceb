"""The shards that nodes hold, their agreement, and the units that nodes can do: no Ray, no network."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from cluster.copies.inventory import Held, Holder, Inventory, agree, find_model, needed_shards, take_inventory
from cluster.schedule.events import Arrived, Failed
from cluster.schedule.placement import group_of, place_units
from cluster.transport.messages import Gathering, holder_from, pack, unpack
from mint.core.errors import MintError
from mint.model.checkpoint.shards import SAMPLES, read_shard, sampled_ranges
from mint.model.checkpoint.sparse_copy import fill_in, make_view, read_outline, read_ranges
from mint.model.locate import locate
from mint.model.source import open_source
from tests.worlds.gguf_world import write_gguf
from tests.worlds.zoo import write_model

SHARD = Held("model-1.safetensors", 100, "a" * 64, "b" * 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("qwen3_moe", tmp_path_factory.mktemp("models") / "moe", shards=3)


def test_the_same_files_agree_wherever_they_lie(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "moe")
    here, there = take_inventory("here", model), take_inventory("there", tmp_path / "moe")
    names = needed_shards(here, [there])
    assert len(names) == 3
    assert agree(names, [here, there]) == dict.fromkeys(names, ("here", "there"))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("nbytes", 99, "99 bytes and 100"),
        ("header_digest", "c" * 64, "header cccccccccccc and aaaaaaaaaaaa"),
        ("sample_digest", "c" * 64, "sampled content cccccccccccc and bbbbbbbbbbbb"),
    ],
)
def test_any_difference_is_named_with_shard_and_both_nodes(field: str, value: object, words: str) -> None:
    other = replace(SHARD, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(MintError, match=f"model-1.safetensors differs: on two .* and on one .*{words}"):
        agree([SHARD.name], [Inventory("one", "/a", (SHARD,)), Inventory("two", "/b", (other,))])


def test_full_digests_are_compared_as_soon_as_two_are_known() -> None:
    inventories = [Inventory(f"n{n}", "/", (replace(SHARD, full_digest=digest),))
                   for n, digest in enumerate(("", "d" * 64, "", "e" * 64))]  # fmt: skip
    assert agree([SHARD.name], inventories[:3]) == {SHARD.name: ("n0", "n1", "n2")}
    with pytest.raises(MintError, match="differs: on n3"):
        agree([SHARD.name], inventories)


def test_a_truncated_file_is_named_with_its_node(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moe"
    shutil.copytree(model, folder)
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    inventory = take_inventory("mini-2", folder)
    assert len(inventory.shards) == 2
    with pytest.raises(MintError, match=f"on mini-2: .*{path.name}"):
        agree([], [inventory])


def test_what_nobody_has_is_named_and_what_the_index_wants_is_needed(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moe"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*00002*"))
    inventory = take_inventory("here", folder)
    names = needed_shards(inventory, [])
    assert len(names) == 3
    with pytest.raises(MintError, match=r"1 of 3 shards are nowhere: model-00002-of-00003\.safetensors"):
        agree(names, [inventory])


def test_a_hub_cache_tells_the_digest_of_a_file_without_reading_it(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--moe" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--moe" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(model.glob("*.safetensors"))):
        shutil.copyfile(path, blobs / (f"{number}" * 64))
        (snapshot / path.name).symlink_to(blobs / (f"{number}" * 64))
    assert find_model("/elsewhere/moe", [tmp_path]) == snapshot
    digests = [f"{n}" * 64 for n in range(3)]
    assert [shard.full_digest for shard in take_inventory("here", snapshot).shards] == digests
    shared = tmp_path / "blobs" / ("a" * 64)  # a file that repositories share has the name of another hash
    shared.parent.mkdir()
    (blobs / digests[0]).rename(shared)
    (blobs / digests[0]).symlink_to(shared)
    assert [shard.full_digest for shard in take_inventory("here", snapshot).shards] == digests


def test_a_node_looks_under_its_roots_before_the_path_of_the_head(model: Path, tmp_path: Path) -> None:
    assert find_model(str(model), [tmp_path]) == model
    assert find_model("/nowhere/moe", [tmp_path]) is None
    shutil.copytree(model, tmp_path / "moe")
    assert find_model(str(model), [tmp_path]) == tmp_path / "moe"
    assert find_model(str(model), [tmp_path / "moe"]) == tmp_path / "moe"


def test_a_snapshot_of_the_head_is_found_as_the_same_one_then_as_a_newer_one_then_as_a_folder(
    model: Path, tmp_path: Path
) -> None:
    head = "/head/hub/models--org--moe/snapshots/abc"
    assert find_model(head, [tmp_path]) is None
    shutil.copytree(model, tmp_path / "moe")
    assert find_model(head, [tmp_path]) == tmp_path / "moe"
    shutil.copytree(model, tmp_path / "models--other--moe" / "snapshots" / "def")
    shutil.copytree(model, tmp_path / "models--org--moe" / "snapshots" / "def")
    assert find_model(head, [tmp_path]) == tmp_path / "models--org--moe" / "snapshots" / "def"
    shutil.copytree(model, tmp_path / "models--org--moe" / "snapshots" / "abc")
    shutil.copytree(model, tmp_path / "models--org--moe" / "snapshots" / "ghi")
    assert find_model(head, [tmp_path]) == tmp_path / "models--org--moe" / "snapshots" / "abc"


def test_the_description_of_a_node_with_its_inventory_travels_unchanged(model: Path) -> None:
    holder = Holder(take_inventory("here", model), "cpu", 1 << 30, 1, {"mlx": "1"}, ("one",), {"other": "a link"})
    assert holder_from(unpack(pack(holder))) == holder


def test_every_unit_goes_to_exactly_the_nodes_that_hold_all_its_tensors(model: Path) -> None:
    source = open_source(model)
    tensors = source.tensors()
    names = [shard.name for shard in source.shards]
    subsets = [set(chosen) for size in range(4) for chosen in itertools.combinations(names, size)]
    for one, other in itertools.product(subsets, repeat=2):
        held = {"one": one, "other": other, "all": set(names)}
        holders = {name: [node for node, has in held.items() if name in has] for name in names}
        placement = place_units(source.units, tensors, holders, held)
        assert [item.name for item in placement.items] == [unit.path for unit in source.units]
        for unit in source.units:
            able = {node for node, missing in placement.missing.items() if group_of(unit, tensors) in missing}
            needed = {tensors[feeder].shard for feeder in unit.sources}
            assert able == {node for node, has in held.items() if needed <= has}
            assert all(placement.missing[node][group_of(unit, tensors)] == 0 for node in able)


def test_a_unit_that_no_node_can_read_whole_is_named_with_its_shards(model: Path) -> None:
    source = open_source(model)
    holders = {shard.name: [f"node{n}"] for n, shard in enumerate(source.shards)}
    with pytest.raises(MintError, match=r"no node holds all shards of model.layers.0.mlp.switch_mlp\S+:"):
        place_units(source.units, source.tensors(), holders, ["node0", "node1", "node2"])


def test_samples_cover_the_start_and_the_end_of_every_file() -> None:
    for data_start, nbytes in itertools.product((8, 1000), (1000, 70_000, 10_000_000)):
        ranges = sampled_ranges(data_start, nbytes)
        assert len(ranges) == SAMPLES
        assert ranges[0][0] == data_start
        assert all(data_start <= start <= start + length <= nbytes for start, length in ranges)
        assert ranges[-1][0] + ranges[-1][1] == nbytes


def test_a_view_has_the_units_of_the_model_and_the_bytes_of_what_is_held_or_filled_in(
    model: Path, tmp_path: Path
) -> None:
    source = open_source(model)
    local = tmp_path / "local"
    shutil.copytree(model, local, ignore=shutil.ignore_patterns("*00002*"))
    lost = "model-00002-of-00003.safetensors"
    view = make_view(tmp_path / "view", local, (model / "config.json").read_bytes(), {lost: read_outline(model / lost)})
    shard = read_shard(view, lost)
    assert shard.tensors == read_shard(model, lost).tensors
    assert shard.sample_digest != read_shard(model, lost).sample_digest
    assert (view / lost).stat().st_blocks * 512 < (model / lost).stat().st_size
    assert open_source(view).units == source.units
    ranges = [(tensor.offset, tensor.nbytes) for tensor in shard.tensors]
    fill_in(view / lost, ranges, read_ranges(model / lost, ranges))
    assert open_source(view).identity == source.identity
    arrays, expected = open_source(view).arrays(), source.arrays()
    for name in expected:
        assert np.array_equal(np.array(arrays[name].astype(mx.float32)), np.array(expected[name].astype(mx.float32)))


def test_a_held_file_is_never_written_through_a_view(model: Path, tmp_path: Path) -> None:
    view = make_view(tmp_path / "view", model, (model / "config.json").read_bytes(), {})
    with pytest.raises(AssertionError, match="held, not borrowed"):
        fill_in(view / "model-00001-of-00003.safetensors", [(8, 1)], [b"x"])


def test_a_result_has_arrived_with_its_last_piece_and_streams_do_not_mix() -> None:
    one, other = Gathering("a"), Gathering("b")
    assert list(one.add(pack([["unit", "", b"one", False]]))) == []
    assert list(other.add(pack([["other", "", b"else", True]]))) == [Arrived("b", "other", [b"else"])]
    assert list(one.add(pack([["unit", "", b"two", True], ["third", "", b"x", True]]))) == [
        Arrived("a", "unit", [b"one", b"two"]),
        Arrived("a", "third", [b"x"]),
    ]
    assert list(one.add(pack([["unit", "", b"half", False]]))) == []  # a unit that fails half-way through its result
    failed = list(one.add(pack([["next", "KeyError", b"", True], ["last", "", b"y", True]])))
    assert failed == [Failed("a", "next", "KeyError"), Arrived("a", "last", [b"y"])]


def _gguf(folder: Path) -> Path:
    write_gguf(write_model("llama", folder / "hf"), folder / "tiny-Q8.gguf")
    return folder / "tiny-Q8.gguf"


@pytest.mark.parametrize("place", ["{}.gguf", "team/{}.gguf", "models--a--b/snapshots/c/{}.gguf"])
def test_a_node_converts_its_own_copy_of_a_gguf_model_of_the_head(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _gguf(tmp_path / "head")
    head = locate(file)
    monkeypatch.setenv("MINT_CACHE", str(tmp_path / "cache of the node"))
    assert find_model(str(head), []) == head  # as on the head itself
    shutil.rmtree(head)
    assert find_model(str(head), [tmp_path / "root"]) is None
    own = tmp_path / "root" / place.format("tiny-Q8")
    own.parent.mkdir(parents=True)
    shutil.copyfile(file, own)
    folder = find_model(str(head), [tmp_path / "root"])
    assert folder and folder.is_relative_to(tmp_path / "cache of the node")
    own.unlink()
    assert find_model(str(head), [tmp_path / "root"]) == folder


def test_a_node_names_a_gguf_file_that_is_another_than_the_head_s(tmp_path: Path) -> None:
    head = locate(_gguf(tmp_path / "head")).parent.parent / ("0" * 32) / "tiny-Q8"
    with pytest.raises(MintError, match=r"tiny-Q8.gguf is not the GGUF file that the head has under this name"):
        find_model(str(head), [tmp_path / "head"])
