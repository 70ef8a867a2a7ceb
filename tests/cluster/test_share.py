"""Byte ranges between nodes: what is lent, to whom, and what counts as come. Real servers on loopback, no Ray."""

import itertools
import os
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from cluster.copies.inventory import take_inventory
from cluster.copies.range_client import Borrower, Loans, joined
from cluster.copies.range_server import PIECE_BYTES, Lender
from cluster.copies.seals import content_seal, new_run, request_seal, run_key, tls_context
from cluster.copies.sparse_copy import make_view, read_outline
from cluster.schedule.placement import group_of, place_units
from cluster.settings import make_token, ray_environment
from mint.analysis.unit_jobs import measure
from mint.core.errors import MintError
from mint.model.checkpoint.shards import Shard
from mint.model.source import open_source
from mint.run.executor import in_process
from tests.worlds.zoo import write_model

HERE = "127.0.0.1"
JOB = partial(measure, rounding="nearest")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("qwen3_moe", tmp_path_factory.mktemp("models") / "moe", shards=3)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    token = tmp_path_factory.mktemp("token") / "token"
    make_token(token)
    return run_key(token, new_run())


@contextmanager
def lending(folder: Path, key: bytes, tls: ssl.SSLContext | None = None) -> Iterator[Lender]:
    with closing(Lender(HERE, folder, take_inventory("node", folder).shards, key, tls)) as lender:
        yield lender


def borrower(lender: Lender | str, shard: str, key: bytes, tls: ssl.SSLContext | None = None) -> Borrower:
    url = lender if isinstance(lender, str) else lender.url
    return Borrower({shard: [url]}, key, tls, pauses=(0.0, 0.0))


def first(model: Path) -> Shard:
    return open_source(model).shards[0]


def test_any_range_of_a_lent_shard_comes_as_it_lies_in_the_file(tmp_path: Path, key: bytes) -> None:
    shard = "model.safetensors"
    rows = np.random.default_rng(0).integers(0, 256, 2 * PIECE_BYTES + 12345, np.uint8)
    header = b'{"x":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (rows.size, rows.size)
    whole = len(header).to_bytes(8, "little") + header + rows.tobytes()
    (tmp_path / shard).write_bytes(whole)
    edges = [0, 1, len(header) + 8, PIECE_BYTES, PIECE_BYTES + 1, len(whole)]
    with lending(tmp_path, key) as lender, closing(borrower(lender, shard, key)) as asking:
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


def test_another_token_or_another_run_is_refused_and_nothing_comes(model: Path, tmp_path: Path) -> None:
    shard = first(model).name
    make_token(tmp_path / "ours")
    make_token(tmp_path / "theirs")
    run = new_run()
    strangers = [run_key(tmp_path / "theirs", run), run_key(tmp_path / "ours", new_run()), b""]
    with lending(model, run_key(tmp_path / "ours", run)) as lender:
        for stranger in strangers:
            with pytest.raises(MintError, match=r"cannot be borrowed .*401 token rejected"):
                list(borrower(lender, shard, stranger).pieces(shard, [(0, 8)]))
        assert list(borrower(lender, shard, run_key(tmp_path / "ours", run)).pieces(shard, [(0, 8)]))


def test_the_token_is_never_sent_and_a_seal_overheard_opens_only_its_own_range(model: Path, tmp_path: Path) -> None:
    make_token(tmp_path / "token")
    run, shard = new_run(), first(model).name
    key = run_key(tmp_path / "token", run)
    seals = {request_seal(*asked) for asked in itertools.product((key, key[::-1]), (shard, "other"), (0, 1), (8, 9))}
    assert len(seals) == 16
    assert content_seal(key, shard, 0, b"one") != content_seal(key, shard, 0, b"two")
    with lending(model, key) as lender, overhearing(lender.url) as (url, heard):
        list(borrower(url, shard, key).pieces(shard, [(0, 8)]))
    assert request_seal(key, shard, 0, 8).encode() in heard
    assert (tmp_path / "token").read_bytes() not in heard
    assert key.hex().encode() not in heard
    assert key not in heard


@contextmanager
def overhearing(url: str, change: Callable[[bytes], bytes] = bytes) -> Iterator[tuple[str, bytearray]]:
    """A relay to `url` that keeps what is asked and changes what is answered; its address and what it kept."""
    host, port = url.removeprefix("http://").split(":")
    heard = bytearray()

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as behind:
                while asked := self.request.recv(1 << 16):
                    heard.extend(asked)
                    behind.sendall(asked)
                    answer = b""
                    while b"\r\n\r\n" not in answer:
                        answer += behind.recv(1 << 16)
                    head, _, body = answer.partition(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    while len(body) < length:
                        body += behind.recv(1 << 16)
                    changed = change(body)
                    self.request.sendall(head + b"\r\n\r\n" + changed)
                    if len(changed) < length:
                        return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server((HERE, 0), Relay) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://{HERE}:{server.server_address[1]}", heard
        finally:
            server.shutdown()


def test_a_range_that_was_changed_on_its_way_is_refused(model: Path, key: bytes) -> None:
    shard = first(model)

    def flipped(body: bytes) -> bytes:
        return bytes([body[0] ^ 1]) + body[1:]

    with lending(model, key) as lender, overhearing(lender.url, flipped) as (url, _):
        with pytest.raises(MintError, match="are not those that were sealed there"):
            list(borrower(url, shard.name, key).pieces(shard.name, [(8, 100)]))
        both = Borrower({shard.name: [url, lender.url]}, key, pauses=())
        (piece,) = both.pieces(shard.name, [(8, 100)])
        assert piece == ((8, 100), (model / shard.name).read_bytes()[8:108])


def test_a_connection_that_breaks_is_made_again_as_often_as_agreed(model: Path, key: bytes) -> None:
    shard = first(model).name
    answers = itertools.count()

    def cut(body: bytes) -> bytes:
        return body[:50] if next(answers) < 2 else body

    with lending(model, key) as lender, overhearing(lender.url, cut) as (url, _):
        assert list(borrower(url, shard, key).pieces(shard, [(8, 100)]))
        assert next(answers) == 3
        answers = itertools.repeat(0)  # type: ignore[assignment]
        with pytest.raises(MintError, match=rf"{shard} cannot be borrowed .*no answer"):
            list(borrower(url, shard, key).pieces(shard, [(8, 100)]))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "config.json", "model-9.safetensors", ".", "", "a\0b"])
def test_nothing_but_the_shards_of_the_model_is_lent(model: Path, key: bytes, name: str) -> None:
    (model.parent / "secret").write_bytes(b"0123456789")
    with lending(model, key) as lender, pytest.raises(MintError, match=r"404 not lent here|401 token"):
        list(borrower(lender, name, key).pieces(name, [(0, 4)]))


def test_a_link_out_of_the_model_is_not_lent_and_said_so_but_a_hub_cache_s_blobs_are(
    model: Path, tmp_path: Path, key: bytes
) -> None:
    inside, outside = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
    snapshot, blobs = tmp_path / "models--o--moe" / "snapshots" / "abc", tmp_path / "models--o--moe" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "b").write_bytes((model / inside).read_bytes())
    (snapshot / inside).symlink_to(blobs / "b")
    (snapshot / outside).symlink_to(model / outside)
    with lending(snapshot, key) as lender:
        assert list(lender.lent) == [inside]
    (tmp_path / "blobs").mkdir()  # where huggingface_hub keeps what its repositories share
    (blobs / "b").rename(tmp_path / "blobs" / "b")
    (blobs / "b").symlink_to(tmp_path / "blobs" / "b")
    with lending(snapshot, key) as lender:
        assert list(lender.lent) == [inside]
        assert "outside the model's folder" in lender.kept[outside]
        assert list(borrower(lender, inside, key).pieces(inside, [(0, 8)]))
        with pytest.raises(MintError, match="404"):
            list(borrower(lender, outside, key).pieces(outside, [(0, 8)]))
        (snapshot / inside).unlink()  # what it becomes later is not lent either
        (snapshot / inside).symlink_to(model / inside)
        with pytest.raises(MintError, match="409 changed since this run began"):
            list(borrower(lender, inside, key).pieces(inside, [(0, 8)]))


def test_ranges_that_the_shard_does_not_have_and_other_methods_are_refused(model: Path, key: bytes) -> None:
    shard = first(model)
    with lending(model, key) as lender:
        for start, nbytes in ((shard.nbytes - 4, 8), (shard.nbytes, 1)):
            with pytest.raises(MintError, match="416"):
                list(borrower(lender, shard.name, key).pieces(shard.name, [(start, nbytes)]))
        connection = HTTPConnection(HERE, int(lender.url.rpartition(":")[2]), timeout=10)
        for method in ("PUT", "POST", "DELETE", "HEAD"):
            connection.request(method, f"/{shard.name}")
            assert connection.getresponse().status == 501
            connection.close()


def test_after_the_run_nothing_is_lent(model: Path, key: bytes) -> None:
    shard = first(model).name
    with lending(model, key) as lender:
        pass
    with pytest.raises(MintError, match="no answer"):
        list(borrower(lender, shard, key).pieces(shard, [(0, 8)]))


def test_with_tls_both_sides_show_a_certificate_of_the_cluster(model: Path, tmp_path: Path, key: bytes) -> None:
    pytest.importorskip("cryptography", reason="the cluster's tests need: pip install 'mint-mlx[cluster]'")
    from cluster.ops.certificates import make_certificates

    (ours,) = make_certificates([HERE], tmp_path / "ours")
    (theirs,) = make_certificates([HERE], tmp_path / "theirs")
    shard = first(model).name

    def side(folder: Path, which: int) -> ssl.SSLContext | None:
        return tls_context(ray_environment(token=tmp_path, loopback=False, tls=folder), which)

    assert tls_context(ray_environment(token=tmp_path, loopback=True), ssl.PROTOCOL_TLS_CLIENT) is None
    with lending(model, key, side(ours, ssl.PROTOCOL_TLS_SERVER)) as lender:
        assert lender.url.startswith("https://")
        (piece,) = borrower(lender, shard, key, side(ours, ssl.PROTOCOL_TLS_CLIENT)).pieces(shard, [(0, 8)])
        assert piece[1] == (model / shard).read_bytes()[:8]
        with pytest.raises(MintError, match="its certificate is not of this cluster"):
            list(borrower(lender, shard, key, side(theirs, ssl.PROTOCOL_TLS_CLIENT)).pieces(shard, [(0, 8)]))
        with pytest.raises(MintError, match="no answer"):
            list(borrower(lender.url.replace("https", "http"), shard, key).pieces(shard, [(0, 8)]))


def test_units_computed_from_borrowed_ranges_are_those_of_the_whole_model(
    model: Path, tmp_path: Path, key: bytes
) -> None:
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
        part = open_source(view)
        with lending(model, key) as lender, closing(Borrower({name: [lender.url] for name in names}, key)) as asking:
            loans = Loans(view, outlines, part.tensors(), asking)
            for batch in (part.units[:5], part.units[5:]):
                for unit, result in loans.before(batch, in_process(part, JOB, batch)):
                    assert result == expected[unit]
                loans.give_back()
        blocks = sum((view / name).stat().st_blocks * 512 for name in outlines)
        assert blocks <= sum(len(outline.header) + 8192 for outline in outlines.values()), "the loans were given back"


def test_a_unit_that_cannot_be_borrowed_fails_in_its_turn_and_the_others_do_not(
    model: Path, tmp_path: Path, key: bytes
) -> None:
    source = open_source(model)
    lost = source.shards[-1].name
    outlines = {lost: read_outline(model / lost)}
    local = tmp_path / "local"
    local.mkdir()
    for shard in source.shards[:-1]:
        os.link(model / shard.name, local / shard.name)
    part = open_source(make_view(tmp_path / "view", local, (model / "config.json").read_bytes(), outlines))
    tensors = part.tensors()
    loans = Loans(tmp_path / "view", outlines, tensors, Borrower({}, key))
    done = 0
    with pytest.raises(MintError, match=f"{lost} cannot be borrowed .nobody lends it"):
        for _, _ in loans.before(part.units, in_process(part, JOB, part.units)):
            done += 1
    needy = [lost in group_of(unit, tensors).split() for unit in part.units]
    assert any(needy) and done == needy.index(True)


def test_a_lender_that_comes_back_elsewhere_is_found_by_who_borrowed_of_it_before(model: Path, key: bytes) -> None:
    shard = first(model)
    path = model / shard.name
    with lending(model, key) as gone:
        asking = Borrower({shard.name: [gone.url]}, key, pauses=())
        assert list(asking.pieces(shard.name, [(0, 8)])) == [((0, 8), path.read_bytes()[:8])]
    asking.close()
    with pytest.raises(MintError, match="cannot be borrowed"):
        list(asking.pieces(shard.name, [(8, 8)]))
    with lending(model, key) as back, closing(asking):
        assert back.url != gone.url
        asking.lent_by({shard.name: [gone.url, back.url]})
        assert list(asking.pieces(shard.name, [(8, 8)])) == [((8, 8), path.read_bytes()[8:16])]


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
