"""Many people at once at a running service, and whether each of them got what they were promised.

Everybody is a task of one event loop with a bare connection of their own: a client that costs little, so that what is
measured is the service. Users submit one after the other; watchers follow one job each, from its first event to its
end; lookers ask for the status of jobs as long as all this lasts.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

FINAL = ("done", "failed", "cancelled")
_LOOKERS = 4
_PAUSE_SECONDS = 0.05  # of a looker between two questions
_BACK_SECONDS = 0.2  # before a stream that broke is asked for again
_TRIES = 20

Asked = tuple[str, str]  # model and budget


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who comes, and what they ask for: everything that is wanted is asked for equally often."""

    tokens: Sequence[str]
    wanted: Sequence[Asked]
    submissions: int
    watchers: int
    seed: int = 0

    def turns(self) -> list[list[Asked]]:
        """What each user asks for, in their order."""
        asked = [self.wanted[index % len(self.wanted)] for index in range(self.submissions)]
        random.Random(self.seed).shuffle(asked)
        return [asked[user :: len(self.tokens)] for user in range(len(self.tokens))]


@dataclass
class Seen:
    """What the crowd saw. Times are seconds."""

    errors: list[str] = field(default_factory=list)
    jobs: dict[Asked, set[str]] = field(default_factory=dict)  # the jobs that were the answer to the same question
    new: int = 0  # submissions that were told to have made a job
    submitted: list[float] = field(default_factory=list)  # how long each submission took
    submitting_seconds: float = 0.0  # from the first submission to the answer to the last
    looked_in_rush: list[float] = field(default_factory=list)  # how long a status took, while all submit
    looked_later: list[float] = field(default_factory=list)
    events: int = 0  # that watchers were sent
    reconnects: int = 0
    pushed_back: int = 0  # answers 429 and 503
    seconds: float = 0.0
    states: Counter[str] = field(default_factory=Counter)  # of the jobs, at the end
    ends: Counter[str] = field(default_factory=Counter)  # what watchers saw as the end

    def wrong(self, crowd: Crowd) -> list[str]:
        """Everything that is not as promised: errors, jobs that were lost or doubled, watchers without an end."""
        found = list(self.errors)
        found += [f"{asked} has {len(ids)} jobs" for asked, ids in self.jobs.items() if len(ids) != 1]
        if (many := len(crowd.wanted)) != len(self.jobs) or self.new != many or self.states != Counter(done=many):
            found.append(f"{many} requests became {self.new} new jobs, which are {dict(self.states)}")
        if len(self.submitted) != crowd.submissions:
            found.append(f"{len(self.submitted)} of {crowd.submissions} submissions were answered")
        if self.ends != Counter(done=crowd.watchers):
            found.append(f"of {crowd.watchers} watchers these saw an end: {dict(self.ends)}")
        return found


class Line:
    """One connection that is kept, with one request at a time."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()
        self._reader = self._writer = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the JSON of the answer."""
        status, headers, reader = await self._send(method, path, body)
        text = await reader.readexactly(int(headers["content-length"]))
        return status, json.loads(text)

    async def events(self, path: str, after: int) -> AsyncIterator[tuple[int, str, Any]]:
        """Number, kind and body of the events of a stream."""
        status, _, reader = await self._send("GET", path, None, f"Last-Event-ID: {after}\r\n")
        if status == 204:
            return
        if status != 200:
            raise OSError(f"a stream was answered {status}")
        text = b""
        while size := int(await reader.readline() or b"0", 16):
            text += await reader.readexactly(size)
            await reader.readexactly(2)
            *whole, text = text.split(b"\n\n")
            for each in whole:
                told = dict(line.split(": ", 1) for line in each.decode().splitlines())
                if "data" in told:  # else a sign of life
                    yield int(told["id"]), told["event"], json.loads(told["data"])

    async def _send(
        self, method: str, path: str, body: Any, more: str = ""
    ) -> tuple[int, Mapping[str, str], asyncio.StreamReader]:
        if self._reader is None or self._writer is None or self._reader.at_eof():
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        text = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if text else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAuthorization: Bearer {self._token}\r\n"
            f"{kind}{more}Content-Length: {len(text)}\r\n\r\n"
        )
        self._writer.write(head.encode() + text)
        status = int((await self._reader.readuntil(b"\r\n")).split()[1])
        headers = (await self._reader.readuntil(b"\r\n\r\n") if status else b"").decode("latin-1")
        pairs = (line.split(": ", 1) for line in headers.strip().splitlines())
        return status, {name.lower(): value for name, value in pairs}, self._reader


async def rush(port: int, crowd: Crowd) -> Seen:
    """Let them all come at once, and wait until every job is over and every watcher saw it."""
    return await _Rush(port, crowd).run()


class _Rush:
    def __init__(self, port: int, crowd: Crowd) -> None:
        self._port = port
        self._crowd = crowd
        self._seen = Seen()
        loop = asyncio.get_running_loop()
        self._ids: dict[Asked, asyncio.Future[str]] = {asked: loop.create_future() for asked in crowd.wanted}
        self._known: list[str] = []
        self._submitting = True

    async def run(self) -> Seen:
        seen, crowd, started = self._seen, self._crowd, time.perf_counter()
        tokens = crowd.tokens
        lookers = [asyncio.create_task(self._look(tokens[index % len(tokens)])) for index in range(_LOOKERS)]
        watchers = [
            asyncio.create_task(self._watch(tokens[index % len(tokens)], crowd.wanted[index % len(crowd.wanted)]))
            for index in range(crowd.watchers)
        ]
        await asyncio.gather(*map(self._submit, tokens, crowd.turns()))
        seen.submitting_seconds = time.perf_counter() - started
        self._submitting = False
        for future in self._ids.values():
            if not future.done():
                future.cancel()  # nobody was told of its job: those who wait for it end, and are missed
        await asyncio.gather(*watchers)
        await self._settle()
        for each in lookers:
            each.cancel()
        await asyncio.gather(*lookers, return_exceptions=True)
        seen.seconds = time.perf_counter() - started
        return seen

    async def _submit(self, token: str, turns: Sequence[Asked]) -> None:
        async with self._line(token, "a user") as line:
            for asked in turns:
                model, budget = asked
                began = time.perf_counter()
                status, answer = await self._patiently(line, "POST", "/v1/jobs", {"model": model, "budgets": [budget]})
                if status not in (200, 201):
                    self._seen.errors.append(f"a submission was answered {status}: {answer}")
                    continue
                self._seen.submitted.append(time.perf_counter() - began)
                (job,) = answer["jobs"]
                self._seen.new += job["is_new"]
                self._seen.jobs.setdefault(asked, set()).add(job["id"])
                if not self._ids[asked].done():
                    self._ids[asked].set_result(job["id"])
                    self._known.append(job["id"])

    async def _patiently(self, line: Line, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        for _ in range(_TRIES):
            status, answer = await line.ask(method, path, body)
            if status not in (429, 503):
                break
            self._seen.pushed_back += 1
            await asyncio.sleep(_BACK_SECONDS)
        return status, answer

    async def _watch(self, token: str, asked: Asked) -> None:
        try:
            id = await asyncio.shield(self._ids[asked])
        except asyncio.CancelledError:
            return
        last, state = 0, ""
        for attempt in range(_TRIES):
            async with self._line(token, f"a watcher of {id}") as line:
                self._seen.reconnects += attempt > 0
                async for seq, kind, body in line.events(f"/v1/jobs/{id}/events", last):
                    if seq <= last or (seq > last + 1 and kind != "progress"):  # which takes the place of others
                        self._seen.errors.append(f"a watcher of {id} saw event {seq} after {last}")
                    last = seq
                    self._seen.events += 1
                    state = body["state"] if kind == "state" else state
            if state in FINAL:
                break
            await asyncio.sleep(_BACK_SECONDS)
        async with self._line(token, "a watcher") as line:
            _, job = await self._patiently(line, "GET", f"/v1/jobs/{id}")
            if last != job["last_seq"]:
                self._seen.errors.append(f"a watcher of {id} saw {last} of {job['last_seq']} events")
        self._seen.ends[state] += 1

    async def _look(self, token: str) -> None:
        chance = random.Random(self._crowd.seed)
        async with self._line(token, "a looker") as line:
            while True:
                await asyncio.sleep(_PAUSE_SECONDS)
                if not self._known:
                    continue
                in_rush, began = self._submitting, time.perf_counter()
                status, _ = await line.ask("GET", f"/v1/jobs/{chance.choice(self._known)}")
                took = time.perf_counter() - began
                (self._seen.looked_in_rush if in_rush else self._seen.looked_later).append(took)
                if status != 200:
                    self._seen.errors.append(f"a status was answered {status}")

    async def _settle(self) -> None:
        """Count what became of all the jobs that anybody was told of."""
        async with self._line(self._crowd.tokens[0], "the last look") as line:
            for id in sorted(set().union(*self._seen.jobs.values())):
                self._seen.states[(await self._patiently(line, "GET", f"/v1/jobs/{id}"))[1]["state"]] += 1

    @asynccontextmanager
    async def _line(self, token: str, who: str) -> AsyncIterator[Line]:
        """A connection; one that breaks is an error that is counted, and ends what was done with it."""
        try:
            async with Line(self._port, token) as line:
                yield line
        except (OSError, EOFError, ValueError, KeyError) as error:
            self._seen.errors.append(f"{who}: {error!r}")
