"""A token that is revoked opens nothing any more, and what it opened is over."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import uvicorn

from cluster.service.data.tokens import Tokens, digest_of
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.http.downloads import Download
from cluster.service.http.grants import TokenCache
from cluster.service.http.head_deadline import DeadlineProtocol
from cluster.service.http.sse import EventFanout
from mint.client.download import ServedFile
from tests.worlds.served import Served, served

BYTES = bytes(range(256)) * 8
CHUNK_BYTES = 1 << 20


@pytest.fixture
def world(tmp_path: Path, llama: Path) -> Iterator[Served]:
    with served(tmp_path / "data", roots=(llama.parent,), chunk_bytes=100, token_seconds=0) as world:
        yield world


def _grant(headers: dict[str, str]) -> str:
    return digest_of(headers["Authorization"].removeprefix("Bearer "))


def test_who_lost_the_last_token_does_not_get_in_by_leaving_it_out(world: Served) -> None:
    ann = world.token("ann")
    assert world.client.get("/v1/me", headers=ann).status_code == 200
    world.service.tokens.revoke("ann")
    assert world.client.get("/v1/me", headers=ann).status_code == 401
    assert world.client.get("/v1/me").status_code == 401


def test_nobody_can_be_given_the_name_of_everybody(world: Served) -> None:
    with pytest.raises(Exception, match="not local"):
        world.service.tokens.create("local", ["read"])


def test_a_stream_ends_before_the_first_event_after_its_token_was_revoked(world: Served) -> None:
    queue, tokens = world.service.queue, world.service.tokens
    ann, bob = world.token("ann"), world.token("bob")
    world.submit("llama", "1GB", headers=ann)
    claim = world.claim()

    async def run() -> list[list[bytes]]:
        fanout, good = EventFanout(queue, poll_seconds=0.001), TokenCache(tokens, seconds=0)

        async def watch(headers: dict[str, str]) -> list[bytes]:
            stream = fanout.stream(
                claim.job.id, last_seq=2, after=0, allowed=lambda: good.is_still_good(_grant(headers))
            )
            seen = []
            async for piece in stream:
                seen.append(piece)
                if len(seen) == 2:  # the hint when to come back, and what had happened so far
                    waiting.release()
            return seen

        waiting = asyncio.Semaphore(0)
        watching = [asyncio.create_task(watch(headers)) for headers in (ann, bob)]
        for _ in watching:
            await waiting.acquire()
        await asyncio.to_thread(tokens.revoke, "bob")
        await asyncio.to_thread(tokens.create, "bob", ["read"])  # a new one does not save what the old one opened
        for state in ("analyzing", "failed"):
            await asyncio.to_thread(queue.advance, claim, state)
        return await asyncio.wait_for(asyncio.gather(*watching), 60)

    for_ann, for_bob = asyncio.run(run())
    assert b'"failed"' in b"".join(for_ann)
    assert for_bob == for_ann[:2]


def test_a_download_is_broken_off_once_its_token_is_revoked(world: Served) -> None:
    artifact = world.store("model", "0" * 64, a_bin=BYTES)
    ann, bob = world.token("ann"), world.token("bob")
    path = f"/v1/artifacts/{artifact.digest}/files/a.bin"
    assert world.client.get(path, headers=ann).content == BYTES
    pieces: list[bytes] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        if message.get("body"):
            pieces.append(message["body"])
            if len(pieces) == 3:
                await asyncio.to_thread(world.service.tokens.revoke, "bob")

    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"authorization", bob["Authorization"].encode())],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8420), "scheme": "http", "http_version": "1.1",
        "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip
    asyncio.run(world.app(scope, receive, send))
    assert b"".join(pieces) == BYTES[:300]
    assert len(world.service.catalog.evictable(1)[0]) == 1  # it is held no more


def test_breaking_off_a_download_ends_the_connection_and_is_no_bug(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(bytes(CHUNK_BYTES * 3))
    done: list[int] = []

    async def never() -> bool:
        return False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        answer = Download(
            tmp_path / "file", ServedFile("file", "0" * 64, CHUNK_BYTES * 3),
            allowed=never, begin=int, renew=int, end=done.append, chunk_bytes=CHUNK_BYTES,
        )  # fmt: skip
        await answer(scope, receive, send)

    config = uvicorn.Config(app, http=DeadlineProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = Thread(target=server.run, args=([listener],))
        serving.start()
        try:
            with (
                httpx.Client(trust_env=False) as client,
                pytest.raises(httpx.TransportError),
                client.stream("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/") as response,
            ):
                assert response.status_code == 200
                response.read()
        finally:
            server.should_exit = True
            serving.join()
    assert done == [CHUNK_BYTES]
    assert [record.message for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_a_ticket_is_worth_no_more_than_the_token_it_was_asked_for_with(world: Served) -> None:
    artifact = world.store("model", "0" * 64, a_bin=BYTES)
    ann = world.token("ann")
    url = f"/v1/artifacts/{artifact.digest}/tickets"
    urls = [world.client.post(url, json={"name": "a.bin"}, headers=ann).json()["url"] for _ in range(2)]
    assert world.client.get(urls[0]).content == BYTES
    world.service.tokens.revoke("ann")
    assert world.client.get(urls[1]).status_code == 401


def test_what_was_opened_without_a_token_is_over_with_the_first_one(world: Served) -> None:
    good = TokenCache(world.service.tokens, seconds=0)
    assert asyncio.run(good.is_still_good(""))
    assert good.is_good("")
    world.token("ann")
    assert not asyncio.run(good.is_still_good(""))
    assert not good.is_good("")


class AwayTokens(Tokens):
    """Tokens in a database that is away for as long as `is_away`."""

    is_away = True

    def valid_digests(self) -> frozenset[str]:
        if self.is_away:
            raise DatabaseUnavailableError("away")
        return super().valid_digests()


def test_a_database_that_is_away_takes_nothing_from_anybody(world: Served) -> None:
    grant = _grant(world.token("ann"))
    tokens = AwayTokens(world.service.database)
    good = TokenCache(tokens, seconds=0)
    assert asyncio.run(good.is_still_good(grant))  # nothing was read yet
    tokens.is_away = False
    assert asyncio.run(good.is_still_good(grant))
    world.service.tokens.revoke("ann")
    tokens.is_away = True
    assert asyncio.run(good.is_still_good(grant))
    tokens.is_away = False
    assert not asyncio.run(good.is_still_good(grant))


def test_however_many_ask_the_database_is_asked_once_a_second(world: Served) -> None:
    now = [0.0]
    good, grant = TokenCache(world.service.tokens, seconds=1.0, clock=lambda: now[0]), _grant(world.token("ann"))
    assert asyncio.run(good.is_still_good(grant))
    world.service.tokens.revoke("ann")
    now[0] = 0.9
    assert asyncio.run(good.is_still_good(grant))
    now[0] = 1.0
    assert not asyncio.run(good.is_still_good(grant))
