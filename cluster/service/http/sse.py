"""Events of jobs as server-sent events: one poller for all who watch, whatever their number.

Rules. The database holds all events; a channel keeps the last few of a watched job, encoded once. A watcher is a
number, the last event that it was sent: it takes what comes next from the channel, or, where it fell behind, from the
database. So a slow watcher costs no memory, nothing is lost but progress that newer progress replaced, and nothing is
sent twice. A stream ends after the event of a final state.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from cluster.service.data.records import Event
from cluster.service.data.states import FINAL
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.http.error_answers import ApiError, retry_after
from mint.core.log import log

POLL_SECONDS = 0.25
HEARTBEAT_SECONDS = 15.0
_KEPT = 256  # events of a job in memory
_MOST_STREAMS = 2000
_BACK_SECONDS = 5.0  # whom there is no room for may ask again after
_RETRY = b"retry: 2000\n\n"  # milliseconds after which a browser comes back
HEARTBEAT = b": still there\n\n"


async def always() -> bool:
    """Nobody is sent away."""
    return True


class Source(Protocol):
    """Where events come from: a `Queue`."""

    def last_seqs(self, ids: Sequence[str]) -> dict[str, int]:
        """The number of the last event of each job."""
        ...

    def events(self, id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events of a job in their order."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """An event as it is sent."""

    seq: int
    text: bytes
    is_final: bool


def frame(event: Event) -> Frame:
    """The event in the format of server-sent events; its JSON has no line break."""
    body = json.dumps({"at": event.at, **event.body}, allow_nan=False)
    text = f"id: {event.seq}\nevent: {event.kind}\ndata: {body}\n\n"
    return Frame(event.seq, text.encode(), event.kind == "state" and event.body.get("state") in FINAL)


@dataclass(slots=True)
class _Channel:
    """What is known of one watched job."""

    seq: int  # of the last event
    start: int  # of the event before the first frame: all that came since are here
    frames: deque[Frame] = field(default_factory=deque)
    watchers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def since(self, seq: int) -> list[Frame] | None:
        """The frames after `seq`; None where they are no longer here."""
        if seq >= self.seq:
            return []
        return [each for each in self.frames if each.seq > seq] if seq >= self.start else None

    def add(self, frames: Sequence[Frame]) -> None:
        """Keep what came, and let all who wait look again."""
        self.frames.extend(frames)
        self.seq = self.frames[-1].seq
        while len(self.frames) > _KEPT:
            self.start = self.frames.popleft().seq
        self.wake()

    def wake(self) -> None:
        """Let all who wait look again."""
        self.changed.set()
        self.changed = asyncio.Event()


class EventFanout:
    """All channels, and the one poller that fills them. Lives in one event loop."""

    def __init__(
        self,
        source: Source,
        *,
        most_each: int = 100,
        poll_seconds: float = POLL_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._source = source
        self._most_each = most_each
        self._seats: Counter[str] = Counter()
        self._poll_seconds = poll_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._channels: dict[str, _Channel] = {}
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def watchers(self) -> int:
        """How many streams are open."""
        return sum(channel.watchers for channel in self._channels.values())

    @contextmanager
    def seat(self, person: str) -> Iterator[None]:
        """Room for a stream of someone, in this block; raises `ApiError` where there is none."""
        if self._seats[person] >= self._most_each:
            raise ApiError(
                429,
                f"{person} has {self._seats[person]} streams of events open, the most that one may have here; close "
                "one, or ask for the jobs now and then",
                headers=retry_after(_BACK_SECONDS),
            )
        if self._seats.total() >= _MOST_STREAMS:
            raise ApiError(503, "too many streams are open; come back", headers=retry_after(_BACK_SECONDS))
        self._seats[person] += 1
        try:
            yield
        finally:
            self._seats[person] -= 1
            self._seats += Counter()  # forgets who has none

    def close(self) -> None:
        """End all streams, soon."""
        self._closed = True
        for channel in self._channels.values():
            channel.wake()

    async def stream(
        self, job: str, *, last_seq: int, after: int, allowed: Callable[[], Awaitable[bool]] = always
    ) -> AsyncIterator[bytes]:
        """The events of a job after number `after`, whose last one was `last_seq` a moment ago, as they come.

        It ends when something is to be sent and that is no longer `allowed`.
        """
        channel = self._channels.setdefault(job, _Channel(last_seq, last_seq))
        channel.watchers += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            yield _RETRY
            async for text in self._follow(job, channel, min(after, channel.seq)):
                if not await allowed():
                    return
                yield text
        finally:
            channel.watchers -= 1
            if not channel.watchers:
                self._channels.pop(job, None)

    async def _follow(self, job: str, channel: _Channel, after: int) -> AsyncIterator[bytes]:
        while not self._closed:
            changed = channel.changed  # taken before looking: what comes in between wakes it
            frames = channel.since(after)
            if frames is None:
                frames = [frame(event) for event in await asyncio.to_thread(self._source.events, job, after, _KEPT)]
            if frames:
                yield b"".join(each.text for each in frames)
                after = frames[-1].seq
                if frames[-1].is_final:
                    return
                continue
            try:
                await asyncio.wait_for(changed.wait(), self._heartbeat_seconds)
            except TimeoutError:
                yield HEARTBEAT

    async def _poll(self) -> None:
        """Ask for all watched jobs at once, until nobody watches."""
        failed = ""
        while self._channels and not self._closed:
            try:
                seqs = await asyncio.to_thread(self._source.last_seqs, list(self._channels))
                for job, seq in seqs.items():
                    if (channel := self._channels.get(job)) and seq > channel.seq:
                        await self._fetch(job, channel)
                failed = ""
            except Exception as error:  # a database that is away for a while must not end the streams
                if not isinstance(error, DatabaseUnavailableError) and repr(error) != failed:
                    log.warning("events.failed", error=repr(error))
                failed = repr(error)
            with suppress(TimeoutError):
                await asyncio.sleep(self._poll_seconds)

    async def _fetch(self, job: str, channel: _Channel) -> None:
        events = await asyncio.to_thread(self._source.events, job, channel.seq, _KEPT)
        if events:
            channel.add([frame(event) for event in events])
