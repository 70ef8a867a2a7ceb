"""Streams of events: nobody takes all of them, and whoever leaves makes room."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.service.http.sse import EventFanout
from tests.worlds.served import Served, served


@pytest.fixture
def world(tmp_path: Path, llama: Path) -> Iterator[Served]:
    with served(tmp_path / "data", roots=(llama.parent,), streams_each=2) as world:
        yield world


@asynccontextmanager
async def _following(world: Served, job: str, headers: dict[str, str]) -> AsyncIterator[tuple[int, dict[str, str]]]:
    """Status and headers of the answer to who follows a job, until the block ends: then they hang up."""
    answered: asyncio.Queue[tuple[int, dict[str, str]]] = asyncio.Queue()
    is_sent, gone = False, asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal is_sent
        if is_sent:
            await gone.wait()
            return {"type": "http.disconnect"}
        is_sent = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers_sent = {name.decode(): value.decode() for name, value in message["headers"]}
            answered.put_nowait((message["status"], headers_sent))

    path = f"/v1/jobs/{job}/events"
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), *((k.lower().encode(), v.encode()) for k, v in headers.items())],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8420), "scheme": "http", "http_version": "1.1",
        "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip
    task = asyncio.create_task(world.app(scope, receive, send))
    try:
        yield await answered.get()
    finally:
        gone.set()
        await task


def test_one_person_can_follow_so_many_jobs_and_no_more_and_others_still_can(world: Served) -> None:
    ann, bob = world.token("ann"), world.token("bob")
    (job,) = world.submit("llama", "1GB", headers=ann)

    async def run() -> None:
        async with _following(world, job["id"], ann) as one, _following(world, job["id"], ann) as two:
            assert (one[0], two[0]) == (200, 200)
            async with _following(world, job["id"], ann) as (status, answer):
                assert (status, answer["retry-after"]) == (429, "5")
            async with _following(world, job["id"], bob) as (status, _):
                assert status == 200
        async with _following(world, job["id"], ann) as (status, _):
            assert status == 200  # those that ended count no more

    asyncio.run(run())


def test_all_together_can_open_so_many() -> None:
    queue: Any = None
    fanout = EventFanout(queue, streams_per_person=2, streams=3)
    with fanout.seat("ann"), fanout.seat("ann"), fanout.seat("bob"):
        for name in ("bob", "eve"):
            with pytest.raises(Exception, match="too many streams") as refused, fanout.seat(name):
                pass
            assert refused.value.status == 503  # type: ignore[attr-defined]
        with pytest.raises(Exception, match="ann has 2 streams") as refused, fanout.seat("ann"):
            pass
        assert refused.value.status == 429  # type: ignore[attr-defined]
    with fanout.seat("eve"), fanout.seat("ann"), fanout.seat("ann"):
        pass
