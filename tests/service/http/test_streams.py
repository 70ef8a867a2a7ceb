"""Event streams and downloads: every watcher gets every event, and every range is those bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.service.data.database import Database, connect
from cluster.service.data.records import Claim, Event, ModelRequest, Person
from cluster.service.http.downloads import Download, is_single_range
from cluster.service.http.error_answers import ApiError
from cluster.service.http.sse import EventFanout, EventStream, frame
from cluster.service.queue.queue import Queue
from mint.client.download import ServedFile
from tests.worlds.served import WAY, Served, served
from tests.worlds.service_world import submit

PING = b": still there\n\n"
ANN = Person("ann", ("submit",))


class Counting(Queue):
    """A queue that counts the calls of the fanout."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.calls: list[str] = []

    def last_seqs(self, ids: Sequence[str]) -> dict[str, int]:
        self.calls.append("last_seqs")
        return super().last_seqs(ids)

    def events(self, id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        self.calls.append("events")
        return super().events(id, after, limit)


async def always() -> bool:
    """True: nobody revokes the token of a stream or a download."""
    return True


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = connect(f"sqlite:///{tmp_path / 'service.db'}")
    yield database
    database.close()


@pytest.fixture
def queue(database: Database) -> Counting:
    return Counting(database)


def _job(queue: Queue, identity: str = "one") -> Claim:
    submit(queue, ModelRequest("m", identity), ANN)
    claim = queue.claim("here")
    assert claim is not None
    return claim


def _finish(queue: Queue, claim: Claim) -> None:
    for state in (*WAY, "done"):
        queue.advance(claim, state)


def _events(text: bytes) -> list[tuple[int, str, dict[str, Any]]]:
    """Number, kind and body of the events in a piece of a stream."""
    events = []
    for block in text.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith((":", "retry")))
        if "data" in fields:
            events.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return events


async def _watch(stream: AsyncIterator[bytes], seen: list[int]) -> None:
    async for piece in stream:
        seen += [seq for seq, _, _ in _events(piece)]


# events


def test_every_watcher_gets_every_event_once_in_order_whenever_they_came(queue: Queue) -> None:
    claims = [_job(queue, name) for name in ("one", "two")]

    async def run() -> list[tuple[int, list[int]]]:
        fanout = EventFanout(queue, poll_seconds=0.001)
        watching: list[tuple[int, list[int], asyncio.Task[None]]] = []
        for step in range(30):
            for claim in claims:
                job = queue.get(claim.job.id)
                if step % 5 == 0:
                    seen: list[int] = []
                    stream = fanout.stream(job.id, last_seq=job.last_seq, after=step // 10, allowed=always)
                    watching.append((step // 10, seen, asyncio.create_task(_watch(stream, seen))))
                await asyncio.to_thread(queue.emit, claim, "note", {"done": step})
        for claim in claims:
            await asyncio.to_thread(_finish, queue, claim)
        await asyncio.wait_for(asyncio.gather(*(task for _, _, task in watching)), 60)
        assert fanout.watchers == 0
        return [(after, seen) for after, seen, _ in watching]

    last = 2 + 30 + 5  # queued, inventory, notes, the way to done
    for after, seen in asyncio.run(run()):
        assert seen == list(range(after + 1, last + 1))


def test_any_number_of_watchers_costs_the_database_one_poller(queue: Counting) -> None:
    claim = _job(queue)

    async def run() -> None:
        fanout = EventFanout(queue, poll_seconds=0.001)
        job = queue.get(claim.job.id)
        seen: list[list[int]] = [[] for _ in range(100)]
        tasks = [
            asyncio.create_task(
                _watch(fanout.stream(job.id, last_seq=job.last_seq, after=job.last_seq, allowed=always), seqs)
            )
            for seqs in seen
        ]
        while fanout.watchers < 100:
            await asyncio.sleep(0)
        await asyncio.to_thread(_finish, queue, claim)
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        assert all(seqs == [3, 4, 5, 6, 7] for seqs in seen)

    asyncio.run(run())
    assert queue.calls.count("events") <= 5  # not one for each of a hundred


def test_a_slow_watcher_costs_no_memory_and_misses_nothing(queue: Counting) -> None:
    claim = _job(queue)

    async def run() -> list[int]:
        fanout = EventFanout(queue, frames=4, poll_seconds=0.001)
        slow = fanout.stream(claim.job.id, last_seq=2, after=0, allowed=always)
        pieces = [await anext(slow), await anext(slow)]  # and then takes nothing for a while
        fast: list[int] = []
        other = asyncio.create_task(_watch(fanout.stream(claim.job.id, last_seq=2, after=2, allowed=always), fast))
        for step in range(20):
            await asyncio.to_thread(queue.emit, claim, "note", {"done": step})
            while not fast or fast[-1] < step + 3:
                await asyncio.sleep(0)
        await asyncio.to_thread(_finish, queue, claim)
        await asyncio.wait_for(other, 60)
        calls = queue.calls.count("events")
        pieces += [piece async for piece in slow]
        assert queue.calls.count("events") - calls == 24 // 4  # only the last four events were in memory
        return [seq for seq, _, _ in _events(b"".join(pieces))]

    assert asyncio.run(run()) == list(range(1, 2 + 20 + 5 + 1))


def test_who_reads_on_from_progress_that_was_replaced_gets_what_came_since(queue: Counting) -> None:
    claim = _job(queue)

    async def run() -> list[list[tuple[int, str]]]:
        fanout = EventFanout(queue, poll_seconds=0.001)
        seen: list[list[tuple[int, str]]] = [[] for _ in range(20)]

        async def watch(after: int, events: list[tuple[int, str]]) -> None:
            async for piece in fanout.stream(claim.job.id, last_seq=4, after=after, allowed=always):
                events += [(seq, kind) for seq, kind, _ in _events(piece)]

        for step in range(2):
            await asyncio.to_thread(queue.emit, claim, "progress", {"done": step})  # 4 is there, and 3 is not
        tasks = [asyncio.create_task(watch(3 if n == 0 else 4, events)) for n, events in enumerate(seen)]
        while fanout.watchers < len(seen) or not seen[0]:
            await asyncio.sleep(0.001)
        for step in range(2, 4):
            queue.emit(claim, "progress", {"done": step})  # both before the poller reads on
        while not all(events and events[-1][0] == 6 for events in seen):
            await asyncio.sleep(0.001)
        await asyncio.to_thread(_finish, queue, claim)
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        return seen

    behind, *others = asyncio.run(run())
    assert behind[0] == (4, "progress")
    for events in (behind[1:], *others):
        assert events == [
            (6, "progress"),
            *((n, "state") for n in range(7, 12)),
        ]
    assert queue.calls.count("events") <= 10  # not one for each who waited for a number that never came


def test_a_quiet_stream_is_kept_open_by_comments_and_ends_when_the_service_does(queue: Queue) -> None:
    claim = _job(queue)

    async def run() -> None:
        fanout = EventFanout(queue, poll_seconds=0.001)
        stream = EventStream(
            fanout.stream(claim.job.id, last_seq=2, after=2, allowed=always), fanout.seat("ann"), ping_seconds=0.01
        )
        sent: list[bytes] = []

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))
            if sent.count(PING) == 3:
                fanout.close()

        await asyncio.wait_for(stream({"type": "http", "method": "GET"}, asyncio.Event().wait, send), 60)  # type: ignore[arg-type]
        assert sent[1].startswith(b"retry:")
        assert set(sent[2:-1]) == {PING}
        assert sent[-1] == b""  # it ends, and does not break
        assert fanout.watchers == 0

    asyncio.run(run())


def test_a_quiet_stream_ends_when_it_is_no_longer_allowed(queue: Queue) -> None:
    claim = _job(queue)
    answers = iter([True, True, False])

    async def allowed() -> bool:
        return next(answers)

    async def run() -> list[bytes]:
        fanout = EventFanout(queue, poll_seconds=0.001, idle_seconds=0.001)
        stream = fanout.stream(claim.job.id, last_seq=2, after=2, allowed=allowed)
        return [piece async for piece in stream]

    (hint,) = asyncio.run(run())
    assert hint.startswith(b"retry:")


def test_a_database_that_is_away_for_a_while_does_not_end_a_stream(database: Database, queue: Queue) -> None:
    claim = _job(queue)

    class Away(Counting):
        def last_seqs(self, ids: Sequence[str]) -> dict[str, int]:
            if len(self.calls) < 3:
                self.calls.append("away")
                raise OSError("the database is away")
            return super().last_seqs(ids)

    async def run() -> list[int]:
        fanout = EventFanout(Away(database), poll_seconds=0.001)
        await asyncio.to_thread(_finish, queue, claim)
        seen: list[int] = []
        await asyncio.wait_for(_watch(fanout.stream(claim.job.id, last_seq=2, after=2, allowed=always), seen), 60)
        return seen

    assert asyncio.run(run()) == [3, 4, 5, 6, 7]


def test_an_event_is_one_line_of_json_whatever_it_says() -> None:
    body = {"reason": "a\nb\r\n\ndata: c\u2028", "done": 1}
    text = frame(Event("job", 7, 1.5, "progress", body)).text
    assert text.count(b"\n") == 4
    assert _events(text) == [(7, "progress", {"at": 1.5, **body})]


@pytest.fixture
def world(tmp_path: Path, llama: Path) -> Iterator[Served]:
    with served(tmp_path / "data", roots=(llama.parent,)) as world:
        yield world


@pytest.fixture
def slow_world(tmp_path: Path, llama: Path) -> Iterator[Served]:
    """A service whose downloads come in pieces of a hundred bytes."""
    with served(tmp_path / "data", roots=(llama.parent,), chunk_bytes=100) as world:
        yield world


def test_a_stream_begins_after_the_event_that_was_seen_last(world: Served) -> None:
    world.submit("llama", "1GB")
    claim = world.claim()
    _finish(world.service.queue, claim)
    path = f"/v1/jobs/{claim.job.id}/events"
    for seen in range(7):
        for request in ({"params": {"after": seen}}, {"headers": {"Last-Event-ID": str(seen)}, "params": {"after": 1}}):
            answer = world.client.get(path, **request)
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert [seq for seq, _, _ in _events(answer.content)] == list(range(seen + 1, 8))
    assert world.client.get(path, params={"after": 7}).status_code == 204  # a browser then stays away
    assert world.client.get(path, params={"after": 1000}).status_code == 204
    assert world.client.get(path, headers={"Last-Event-ID": "x"}).status_code == 422
    assert world.client.get("/v1/jobs/0000000000000000/events").status_code == 404


# downloads

BYTES = bytes(range(256)) * 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-", BYTES),
        ("bytes=0-0", BYTES[:1]),
        ("bytes=100-199", BYTES[100:200]),
        ("bytes=1000-99999", BYTES[1000:]),
        ("bytes=-1", BYTES[-1:]),
        ("bytes=-99999", BYTES),
        (f"bytes={len(BYTES) - 1}-", BYTES[-1:]),
    ],
)
def test_a_range_is_those_bytes(world: Served, text: str, expected: bytes) -> None:
    artifact = world.store("model", "0" * 64, a_bin=BYTES)
    url = f"/v1/artifacts/{artifact.digest}/files/a.bin"
    answer = world.client.get(url, headers={"Range": text})
    assert (answer.status_code, answer.content) == (206, expected)
    assert int(answer.headers["content-length"]) == len(expected)
    first = BYTES.rindex(expected) if text.startswith("bytes=-") else int(text[6:].partition("-")[0])
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{len(BYTES)}"


@pytest.mark.parametrize("text", ["", "bytes=0-1,5-6", "bytes=5-1", "bytes=a-b", "bytes=-", "items=0-1", "bytes=+1-2",
                                  "bytes=1_0-20", "bytes 0-1", "bytes=\u0661-2"])  # fmt: skip
def test_what_is_no_single_range_gets_the_whole_file(text: str) -> None:
    assert not is_single_range(text, 100)


def test_a_range_beyond_the_end_is_refused_with_the_size(world: Served) -> None:
    artifact = world.store("model", "0" * 64, a_bin=BYTES, empty_bin=b"")
    url = f"/v1/artifacts/{artifact.digest}/files"
    for name, text, size in (("a.bin", f"bytes={len(BYTES)}-", len(BYTES)), ("a.bin", "bytes=-0", len(BYTES)),
                             ("empty.bin", "bytes=0-", 0)):  # fmt: skip
        answer = world.client.get(f"{url}/{name}", headers={"Range": text})
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{size}"
        assert answer.json()["error"]["code"] == "range_not_satisfiable"
    assert world.client.get(f"{url}/empty.bin").content == b""


async def _ranged(path: Path, text: str) -> tuple[int, bytes]:
    """Status and body of the answer to a request for a range of a file."""
    status, body = 0, b""

    async def send(message: Any) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    file = ServedFile("a", "e", path.stat().st_size)
    answer = Download(path, file, allowed=always, begin=int, renew=int, end=int, chunk_bytes=100)
    scope = {"type": "http", "method": "GET", "headers": [(b"range", text.encode())]}
    await answer(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
    return status, body


def test_the_pieces_between_any_cuts_are_the_file(tmp_path: Path) -> None:
    def check(text: str, expected: bytes) -> None:
        assert asyncio.run(_ranged(path, text)) == (206, expected), text

    path = tmp_path / "file"
    for nbytes in range(1, 5):
        path.write_bytes(data := BYTES[:nbytes])
        for start in range(nbytes):
            for last in range(start, nbytes + 2):
                check(f"bytes={start}-{last}", data[start : last + 1])
        for suffix in range(1, nbytes + 2):
            check(f"bytes=-{suffix}", data[-suffix:])
        with pytest.raises(ApiError):
            asyncio.run(_ranged(path, f"bytes={nbytes}-"))


def test_a_download_goes_on_only_with_the_very_same_content(world: Served) -> None:
    artifact = world.store("model", "0" * 64, a_bin=BYTES)
    url, etag = f"/v1/artifacts/{artifact.digest}/files/a.bin", f'"{artifact.files[0].digest}"'
    whole = world.client.get(url)
    assert (whole.status_code, whole.content) == (200, BYTES)
    assert whole.headers["etag"] == etag
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-disposition"].startswith("attachment")
    for if_range, status in ((etag, 206), ('"other"', 200), (f"W/{etag}", 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)):
        answer = world.client.get(url, headers={"Range": "bytes=5-", "If-Range": if_range})
        assert (answer.status_code, answer.content) == (status, BYTES[5:] if status == 206 else BYTES), if_range
    for tags, status in ((etag, 304), (f'"x", W/{etag}', 304), ("*", 304), ('"x"', 200)):
        answer = world.client.get(url, headers={"If-None-Match": tags})
        assert answer.status_code == status, tags
        assert answer.headers["etag"] == etag
    head = world.client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(BYTES)


def test_only_files_of_the_artifact_are_sent(world: Served) -> None:
    artifact = world.store("model", "0" * 64, a_bin=BYTES)
    digest = artifact.files[0].digest
    for name in ("b.bin", "..%2fservice.db", "../../service.db", digest, "%2e%2e/%2e%2e/service.db", "a.bin%00", "%ff"):
        answer = world.client.get(f"/v1/artifacts/{artifact.digest}/files/{name}")
        assert answer.status_code in (404, 422), name
        assert answer.json()["error"]["message"]
    assert world.client.get(f"/v1/artifacts/{'0' * 64}/files/a.bin").status_code == 404


def _download(world: Served, path: str, on_piece: Callable[[int], bool]) -> list[bytes]:
    """The pieces of a download by an ASGI client that goes away once `on_piece`, told how many came, says so."""
    pieces: list[bytes] = []

    async def run() -> None:
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body"):
                pieces.append(message["body"])
                if on_piece(len(pieces)):
                    gone.set()
                    await asyncio.sleep(0.001)

        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8420),
            "scheme": "http", "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        await world.app(scope, receive, send)

    asyncio.run(run())
    return pieces


def test_an_artifact_is_held_while_it_is_sent_and_what_was_begun_is_sent_to_its_end(
    slow_world: Served,
) -> None:
    world = slow_world
    artifact = world.store("model", "0" * 64, a_bin=BYTES)
    catalog, path = world.service.catalog, world.service.store.path(artifact.files[0].digest)
    during: list[int] = []

    def on_piece(count: int) -> bool:
        during.append(len(catalog.evictable(1)[0]))
        if count == 3:
            path.unlink()
        return False

    assert len(catalog.evictable(1)[0]) == 1
    pieces = _download(world, f"/v1/artifacts/{artifact.digest}/files/a.bin", on_piece)
    assert b"".join(pieces) == BYTES
    assert max(map(len, pieces)) == 100
    assert set(during) == {0}
    assert len(catalog.evictable(1)[0]) == 1


def test_nothing_more_is_read_for_a_client_that_is_gone(slow_world: Served) -> None:
    world = slow_world
    artifact = world.store("model", "0" * 64, a_bin=BYTES)
    before = len(list(Path("/proc/self/fd").iterdir()))
    pieces = _download(world, f"/v1/artifacts/{artifact.digest}/files/a.bin", lambda count: count == 5)
    assert len(pieces) < 10 < len(BYTES) // 100
    assert len(world.service.catalog.evictable(1)[0]) == 1  # it is held no more
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_file_that_is_gone_is_an_error_that_says_so(world: Served) -> None:
    artifact = world.store("model", "0" * 64, a_bin=BYTES)
    world.service.store.path(artifact.files[0].digest).unlink()
    answer = world.client.get(f"/v1/artifacts/{artifact.digest}/files/a.bin")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert len(world.service.catalog.evictable(1)[0]) == 1
