"""Many users at once at a running service, and a check of its promises to each of them.

Every user is a task of one event loop with a bare connection: a client that costs little, so that the service is
measured. Users submit requests one after the other. Watchers follow one job each, from its first event to its end.
Pollers ask for the status of jobs until all others have finished.
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
_POLLERS = 4
_PAUSE_SECONDS = 0.05  # of a poller between two requests
_BACK_SECONDS = 0.2  # before a broken stream is opened again
_TRIES = 20

Request = tuple[str, str]  # model and budget


@dataclass(frozen=True, slots=True)
class Crowd:
    """Users and their requests: every request is submitted equally often."""

    tokens: Sequence[str]
    requests: Sequence[Request]
    submissions: int
    watchers: int
    seed: int = 0

    def turns(self) -> list[list[Request]]:
        """The submissions of each user, in order."""
        submissions = [self.requests[index % len(self.requests)] for index in range(self.submissions)]
        random.Random(self.seed).shuffle(submissions)
        return [submissions[user :: len(self.tokens)] for user in range(len(self.tokens))]


@dataclass
class Seen:
    """Observations of the crowd. Times are seconds."""

    errors: list[str] = field(default_factory=list)
    jobs: dict[Request, set[str]] = field(default_factory=dict)  # job ids that answered a request
    new: int = 0  # submissions whose answer was a new job
    submitted: list[float] = field(default_factory=list)  # duration of each submission
    submitting_seconds: float = 0.0  # from the first submission to the last answer
    looked_in_rush: list[float] = field(default_factory=list)  # duration of a status request during the submissions
    looked_later: list[float] = field(default_factory=list)
    events: int = 0  # events that watchers received
    reconnects: int = 0
    pushed_back: int = 0  # answers 429 and 503
    seconds: float = 0.0
    states: Counter[str] = field(default_factory=Counter)  # of the jobs, at the end
    ends: Counter[str] = field(default_factory=Counter)  # last states that watchers saw

    def wrong(self, crowd: Crowd) -> list[str]:
        """Violations of promises: errors, lost or doubled jobs, watchers without an end."""
        violations = list(self.errors)
        violations += [f"{request} has {len(ids)} jobs" for request, ids in self.jobs.items() if len(ids) != 1]
        if (many := len(crowd.requests)) != len(self.jobs) or self.new != many or self.states != Counter(done=many):
            violations.append(f"{many} requests became {self.new} new jobs, which are {dict(self.states)}")
        if len(self.submitted) != crowd.submissions:
            violations.append(f"{len(self.submitted)} of {crowd.submissions} submissions were answered")
        if self.ends != Counter(done=crowd.watchers):
            violations.append(f"of {crowd.watchers} watchers these saw an end: {dict(self.ends)}")
        return violations


class Line:
    """One persistent connection, with one request at a time."""

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
        """Send a request; return the status and the JSON of the answer."""
        status, headers, reader = await self._send(method, path, body)
        text = await reader.readexactly(int(headers["content-length"]))
        return status, json.loads(text)

    async def events(self, path: str, after: int) -> AsyncIterator[tuple[int, str, Any]]:
        """Yield number, kind and body of the events of a stream."""
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
            for block in whole:
                fields = dict(line.split(": ", 1) for line in block.decode().splitlines())
                if "data" in fields:  # else a heartbeat
                    yield int(fields["id"]), fields["event"], json.loads(fields["data"])

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
    """Run all users at once, until every job has ended and every watcher saw it."""
    return await _Rush(port, crowd).run()


class _Rush:
    def __init__(self, port: int, crowd: Crowd) -> None:
        self._port = port
        self._crowd = crowd
        self._seen = Seen()
        loop = asyncio.get_running_loop()
        self._ids: dict[Request, asyncio.Future[str]] = {request: loop.create_future() for request in crowd.requests}
        self._known: list[str] = []
        self._submitting = True

    async def run(self) -> Seen:
        seen, crowd, started = self._seen, self._crowd, time.perf_counter()
        tokens = crowd.tokens
        pollers = [asyncio.create_task(self._poll(tokens[index % len(tokens)])) for index in range(_POLLERS)]
        watchers = [
            asyncio.create_task(self._watch(tokens[index % len(tokens)], crowd.requests[index % len(crowd.requests)]))
            for index in range(crowd.watchers)
        ]
        await asyncio.gather(*map(self._submit, tokens, crowd.turns()))
        seen.submitting_seconds = time.perf_counter() - started
        self._submitting = False
        for future in self._ids.values():
            if not future.done():
                future.cancel()  # no submission succeeded: its watchers end, and count as missing
        await asyncio.gather(*watchers)
        await self._settle()
        for poller in pollers:
            poller.cancel()
        await asyncio.gather(*pollers, return_exceptions=True)
        seen.seconds = time.perf_counter() - started
        return seen

    async def _submit(self, token: str, turns: Sequence[Request]) -> None:
        async with self._line(token, "a user") as line:
            for request in turns:
                model, budget = request
                began = time.perf_counter()
                status, answer = await self._ask_until_accepted(
                    line, "POST", "/v1/jobs", {"model": model, "budgets": [budget]}
                )
                if status not in (200, 201):
                    self._seen.errors.append(f"a submission was answered {status}: {answer}")
                    continue
                self._seen.submitted.append(time.perf_counter() - began)
                (job,) = answer["jobs"]
                self._seen.new += job["is_new"]
                self._seen.jobs.setdefault(request, set()).add(job["id"])
                if not self._ids[request].done():
                    self._ids[request].set_result(job["id"])
                    self._known.append(job["id"])

    async def _ask_until_accepted(self, line: Line, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        for _ in range(_TRIES):
            status, answer = await line.ask(method, path, body)
            if status not in (429, 503):
                break
            self._seen.pushed_back += 1
            await asyncio.sleep(_BACK_SECONDS)
        return status, answer

    async def _watch(self, token: str, request: Request) -> None:
        try:
            id = await asyncio.shield(self._ids[request])
        except asyncio.CancelledError:
            return
        last, state = 0, ""
        for attempt in range(_TRIES):
            async with self._line(token, f"a watcher of {id}") as line:
                self._seen.reconnects += attempt > 0
                async for seq, kind, body in line.events(f"/v1/jobs/{id}/events", last):
                    if seq <= last or (seq > last + 1 and kind != "progress"):  # progress events replace earlier ones
                        self._seen.errors.append(f"a watcher of {id} saw event {seq} after {last}")
                    last = seq
                    self._seen.events += 1
                    state = body["state"] if kind == "state" else state
            if state in FINAL:
                break
            await asyncio.sleep(_BACK_SECONDS)
        async with self._line(token, "a watcher") as line:
            _, job = await self._ask_until_accepted(line, "GET", f"/v1/jobs/{id}")
            if last != job["last_seq"]:
                self._seen.errors.append(f"a watcher of {id} saw {last} of {job['last_seq']} events")
        self._seen.ends[state] += 1

    async def _poll(self, token: str) -> None:
        chance = random.Random(self._crowd.seed)
        async with self._line(token, "a poller") as line:
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
        """Count the final states of all jobs."""
        async with self._line(self._crowd.tokens[0], "the final check") as line:
            for id in sorted(set().union(*self._seen.jobs.values())):
                self._seen.states[(await self._ask_until_accepted(line, "GET", f"/v1/jobs/{id}"))[1]["state"]] += 1

    @asynccontextmanager
    async def _line(self, token: str, owner: str) -> AsyncIterator[Line]:
        """A connection; an error of it is recorded and ends the block."""
        try:
            async with Line(self._port, token) as line:
                yield line
        except (OSError, EOFError, ValueError, KeyError) as error:
            self._seen.errors.append(f"{owner}: {error!r}")
