"""Byte ranges between nodes: which ones are lent, and which ones count as arrived. No Ray: the lenders are called."""

import itertools
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from cluster.copies.inventory import take_inventory
from cluster.copies.lending import PIECE_BYTES, Answer, Borrower, Lender, Loans, Piece, RefusedError, joined
from cluster.schedule.placement import group_of, place_units
from cluster.transport.worker import Worker
from mint.analysis.unit_jobs import Measure
from mint.core.errors import MintError
from mint.model.checkpoint.file_states import FileStates
from mint.model.checkpoint.shards import Shard
from mint.model.checkpoint.sparse_copy import make_view, read_outline
from mint.model.source import open_source
from mint.run.executor import in_process
from tests.worlds.zoo import write_model

JOB = Measure("nearest")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("qwen3_moe", tmp_path_factory.mktemp("models") / "moe", shards=3)


@dataclass
class Called:
    """A peer in this process. Its answers can be lost, or changed on their way."""

    lender: Lender
    name: str = "peer"
    silent: bool = False
    flips: bool = False
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    def ask(self, shard: str, start: int, nbytes: int) -> Answer:
        self.asked.append((shard, start, nbytes))

        def answer() -> Piece:
            if self.silent:
                raise RefusedError("no answer (GetTimeoutError)")
            content, digest = self.lender.piece(shard, start, nbytes)
            return Piece(bytes([content[0] ^ 1]) + content[1:] if self.flips else content, digest)

        return answer


def lending(folder: Path) -> Lender:
    return Lender(take_inventory("node", folder))


def borrower(lender: Lender, shard: str) -> Borrower:
    return Borrower({shard: [Called(lender)]})


def first(model: Path) -> Shard:
    return open_source(model).shards[0]


def _write(path: Path, content: bytes) -> bytes:
    """Write a shard of one tensor; all its bytes."""
    header = b'{"x":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(content), len(content))
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)
    return path.read_bytes()


def test_any_range_of_a_lent_shard_comes_as_it_lies_in_the_file(tmp_path: Path) -> None:
    shard = "model.safetensors"
    content = np.random.default_rng(0).integers(0, 256, 2 * PIECE_BYTES + 12345, np.uint8).tobytes()
    whole = _write(tmp_path / shard, content)
    edges = [0, 1, len(whole) - len(content), PIECE_BYTES, PIECE_BYTES + 1, len(whole)]
    asking = borrower(lending(tmp_path), shard)
    for start, end in itertools.combinations(edges, 2):
        assert b"".join(piece for _, piece in asking.pieces(shard, [(start, end - start)])) == whole[start:end]


def test_neighbouring_ranges_are_asked_for_as_one_and_nothing_is_lost_or_doubled() -> None:
    random = np.random.default_rng(1)
    for _ in range(200):
        ranges = [(int(start), int(size)) for start, size in random.integers(0, 30, (random.integers(0, 8), 2))]
        covered = {byte for start, size in ranges for byte in range(start, start + size)}
        found = joined(ranges)
        assert sorted(byte for start, size in found for byte in range(start, start + size)) == sorted(covered)
        assert all(sum(one) < other[0] for one, other in itertools.pairwise(found))


def test_the_next_piece_is_asked_for_before_one_is_used(tmp_path: Path) -> None:
    shard = "model.safetensors"
    _write(tmp_path / shard, bytes(3 * PIECE_BYTES))
    peer = Called(lending(tmp_path))
    for number, _ in enumerate(Borrower({shard: [peer]}).pieces(shard, [(0, 3 * PIECE_BYTES)])):
        assert len(peer.asked) == min(number + 2, 3)


def test_a_range_that_was_changed_on_its_way_is_refused(model: Path) -> None:
    shard, lender = first(model), lending(model)
    changing = Called(lender, "changing", flips=True)
    with pytest.raises(MintError, match=r"changing: bytes 8 to 108 of .* are not those that it read"):
        list(Borrower({shard.name: [changing]}).pieces(shard.name, [(8, 100)]))
    both = Borrower({shard.name: [changing, Called(lender)]})
    (piece,) = both.pieces(shard.name, [(8, 100)])
    assert piece == ((8, 100), (model / shard.name).read_bytes()[8:108])


def test_a_peer_that_does_not_answer_is_left_for_the_next_until_the_batch_is_done(model: Path) -> None:
    shard, lender = first(model).name, lending(model)
    silent = Called(lender, "silent", silent=True)
    asking = Borrower({shard: [silent, Called(lender, "other")]})
    assert list(asking.pieces(shard, [(8, 100)])) and list(asking.pieces(shard, [(8, 100)]))
    assert len(silent.asked) == 1
    asking.lost.clear()
    assert list(asking.pieces(shard, [(8, 100)]))
    assert len(silent.asked) == 2
    with pytest.raises(MintError, match=rf"{shard} cannot be borrowed .*silent: no answer"):
        list(Borrower({shard: [silent]}).pieces(shard, [(8, 100)]))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "config.json", "model-9.safetensors", ".", "", "a\0b"])
def test_nothing_but_the_shards_of_the_model_is_lent(model: Path, name: str) -> None:
    (model.parent / "secret").write_bytes(b"0123456789")
    with pytest.raises(MintError, match="not lent here"):
        list(borrower(lending(model), name).pieces(name, [(0, 4)]))


def test_a_link_out_of_the_model_is_not_lent_and_said_so_but_a_hub_cache_s_blobs_are(
    model: Path, tmp_path: Path
) -> None:
    inside, outside = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
    snapshot, blobs = tmp_path / "models--o--moe" / "snapshots" / "abc", tmp_path / "models--o--moe" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "b").write_bytes((model / inside).read_bytes())
    (snapshot / inside).symlink_to(blobs / "b")
    (snapshot / outside).symlink_to(model / outside)
    assert list(lending(snapshot).lent) == [inside]
    (tmp_path / "blobs").mkdir()  # where huggingface_hub keeps what its repositories share
    (blobs / "b").rename(tmp_path / "blobs" / "b")
    (blobs / "b").symlink_to(tmp_path / "blobs" / "b")
    lender = lending(snapshot)
    assert list(lender.lent) == [inside]
    assert "outside the model's folder" in lender.unlent[outside]
    assert list(borrower(lender, inside).pieces(inside, [(0, 8)]))
    with pytest.raises(MintError, match="not lent here"):
        list(borrower(lender, outside).pieces(outside, [(0, 8)]))
    (snapshot / inside).unlink()  # nor is a link that it becomes later
    (snapshot / inside).symlink_to(model / inside)
    with pytest.raises(MintError, match="changed since this run began"):
        list(borrower(lender, inside).pieces(inside, [(0, 8)]))


def test_ranges_that_the_shard_does_not_have_are_refused(model: Path) -> None:
    shard, lender = first(model), lending(model)
    for start, nbytes in ((shard.nbytes - 4, 8), (shard.nbytes, 1), (-1, 8), (0, 0), (0, PIECE_BYTES + 1)):
        with pytest.raises(RefusedError, match=f"not a piece of {shard.nbytes} bytes"):
            lender.piece(shard.name, start, nbytes)


def test_a_worker_that_does_not_share_lends_nothing(model: Path) -> None:
    shard, worker = first(model), Worker("node")
    worker.hello(str(model))
    with pytest.raises(RefusedError, match="lends nothing"):
        worker.piece(shard.name, 0, 8)
    worker.hello(str(model), share=True)
    assert worker.piece(shard.name, 0, 8).content == (model / shard.name).read_bytes()[:8]


def test_units_computed_from_borrowed_ranges_are_those_of_the_whole_model(model: Path, tmp_path: Path) -> None:
    source = open_source(model)
    expected = dict(in_process(source, JOB, source.units))
    names = [shard.name for shard in source.shards]
    for held in (names[:1], names[1:], []):
        local = tmp_path / f"local{len(held)}"
        local.mkdir()
        for name in held:
            os.link(model / name, local / name)
        outlines = {name: read_outline(model / name) for name in names if name not in held}
        view = make_view(tmp_path / f"view{len(held)}", local, (model / "config.json").read_bytes(), outlines)
        part = replace(open_source(view), files=FileStates.of(view, held))  # the others change as they are borrowed
        asking = Borrower({name: [Called(lending(model))] for name in names})
        loans = Loans(view, outlines, part.tensors(), asking)
        for batch in (part.units[:5], part.units[5:]):
            for unit, result in loans.before(batch, in_process(part, JOB, batch)):
                assert result == expected[unit]
            loans.give_back()
        blocks = sum((view / name).stat().st_blocks * 512 for name in outlines)
        assert blocks <= sum(len(outline.header) + 8192 for outline in outlines.values()), "the loans were given back"


def test_a_unit_that_cannot_be_borrowed_fails_in_its_turn_and_the_others_do_not(model: Path, tmp_path: Path) -> None:
    source = open_source(model)
    lost = source.shards[-1].name
    outlines = {lost: read_outline(model / lost)}
    local = tmp_path / "local"
    local.mkdir()
    for shard in source.shards[:-1]:
        os.link(model / shard.name, local / shard.name)
    part = open_source(make_view(tmp_path / "view", local, (model / "config.json").read_bytes(), outlines))
    tensors = part.tensors()
    loans = Loans(tmp_path / "view", outlines, tensors, Borrower({}))
    done = 0
    with pytest.raises(MintError, match=f"{lost} cannot be borrowed .nobody lends it"):
        for _, _ in loans.before(part.units, in_process(part, JOB, part.units)):
            done += 1
    needy = [lost in group_of(unit, tensors).split() for unit in part.units]
    assert any(needy) and done == needy.index(True)


def test_a_lender_that_comes_back_is_found_by_who_borrowed_of_it_before(model: Path) -> None:
    shard, lender = first(model), lending(model)
    gone, back = Called(lender, "node", silent=True), Called(lender, "node~2")
    asking = Borrower({shard.name: [gone]})
    with pytest.raises(MintError, match="cannot be borrowed"):
        list(asking.pieces(shard.name, [(8, 8)]))
    asking.peers = {shard.name: [gone, back]}
    assert list(asking.pieces(shard.name, [(8, 8)])) == [((8, 8), (model / shard.name).read_bytes()[8:16])]


def test_where_nodes_may_borrow_a_unit_goes_to_the_node_that_misses_the_fewest_bytes(model: Path) -> None:
    source = open_source(model)
    tensors = source.tensors()
    names = [shard.name for shard in source.shards]
    subsets = [set(chosen) for size in range(4) for chosen in itertools.combinations(names, size)]
    for one, other, lent in itertools.product(subsets, subsets, subsets):
        held = {"one": one, "other": other}
        holders = {name: [node for node, has in held.items() if name in has] for name in names}
        impossible = [
            unit
            for unit in source.units
            if all(set(group_of(unit, tensors).split()) - has - lent for has in held.values())
        ]
        if impossible:
            with pytest.raises(MintError, match=f"{impossible[0].path}: .*; lent are"):
                place_units(source.units, tensors, holders, held, lent)
            continue
        placement = place_units(source.units, tensors, holders, held, lent)
        for node, has in held.items():
            found = placement.missing[node]
            for group in {item.group for item in placement.items}:
                lacking = set(group.split()) - has
                assert (group in found) == (lacking <= lent)
                if group in found:
                    feeders = [
                        name for unit in source.units if group_of(unit, tensors) == group for name in unit.sources
                    ]
                    assert found[group] == sum(
                        tensors[name].nbytes for name in feeders if tensors[name].shard in lacking
                    )
