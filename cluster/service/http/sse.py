"""Job events as server-sent events: one poller of the database for all streams.

Rules. The database holds all events; a channel keeps the last few of a watched job, encoded once. A stream is only the
number of the last event that it sent: it takes the next ones from the channel, or from the database if it fell behind.
So a slow client costs no memory, only progress that newer progress replaced is lost, and nothing is sent twice.
A stream ends after the event of a final state. sse-starlette frames events, pings, and notices clients that leave.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from cluster.service.data.records import Event
from cluster.service.data.states import FINAL
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.http.error_answers import ApiError
from cluster.service.queue.queue import Queue
from mint.core.log import log

POLL_SECONDS = 0.25
PING_SECONDS = 15.0  # between comments that keep a quiet connection open
_LINE_END = "\n"
_PING = ServerSentEvent(comment="still there", sep=_LINE_END)
_RECONNECT = ServerSentEvent(retry=2000, sep=_LINE_END).encode()  # milliseconds after which a browser connects again
_RETRY_SECONDS = 5.0  # for a client that found no free stream
_END_SECONDS = 5.0  # for streams to end by themselves when the service stops


@dataclass(frozen=True, slots=True)
class Frame:
    """An event as it is sent."""

    seq: int
    text: bytes
    is_final: bool


def frame(event: Event) -> Frame:
    """The event in the format of server-sent events; its JSON has no line break."""
    body = json.dumps({"at": event.at, **event.body}, allow_nan=False)
    message = ServerSentEvent(body, event=event.kind, id=str(event.seq), sep=_LINE_END)
    return Frame(event.seq, message.encode(), event.kind == "state" and event.body.get("state") in FINAL)


class EventStream(EventSourceResponse):
    """A response that sends `stream`, and occupies `seat` from its first to its last byte."""

    def __init__(
        self, stream: AsyncIterator[bytes], seat: AbstractContextManager[None], *, ping_seconds: float = PING_SECONDS
    ) -> None:
        super().__init__(
            stream,
            ping=ping_seconds,
            ping_message_factory=lambda: _PING,
            sep=_LINE_END,
            shutdown_grace_period=_END_SECONDS,
        )
        self._seat = seat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # raises `ApiError` before the first byte if there is no seat
        with self._seat:
            await super().__call__(scope, receive, send)


@dataclass(slots=True)
class _Channel:
    """The latest events of one watched job."""

    frames: deque[Frame]  # all events after the first one of these are here
    watchers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def since(self, seq: int) -> list[Frame] | None:
        """The frames after `seq`; None if some of them are no longer here."""
        return None if seq < self.frames[0].seq else [frame for frame in self.frames if frame.seq > seq]

    def wake(self) -> None:
        """Let all waiting streams look again."""
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass
class EventFanout:
    """All channels, and the one poller that fills them. Lives in one event loop."""

    queue: Queue
    streams_per_person: int = 100
    streams: int = 2000
    frames: int = 256  # of one job in memory
    poll_seconds: float = POLL_SECONDS
    idle_seconds: float = PING_SECONDS  # between checks whether a quiet stream is still allowed
    _seats: Counter[str] = field(default_factory=Counter, init=False)
    _channels: dict[str, _Channel] = field(default_factory=dict, init=False)
    _poller: asyncio.Task[None] | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    @property
    def watchers(self) -> int:
        """The number of open streams."""
        return sum(channel.watchers for channel in self._channels.values())

    @contextmanager
    def seat(self, person: str) -> Iterator[None]:
        """Count one stream of a person during this block; raises `ApiError` if the person, or all, have too many."""
        if self._seats[person] >= self.streams_per_person:
            raise ApiError(
                429,
                f"{person} has {self._seats[person]} streams of events open, the most that one may have here; close "
                "one, or ask for the jobs now and then",
                retry_after=_RETRY_SECONDS,
            )
        if self._seats.total() >= self.streams:
            raise ApiError(503, "too many streams are open; come back", retry_after=_RETRY_SECONDS)
        self._seats[person] += 1
        try:
            yield
        finally:
            self._seats[person] -= 1
            self._seats += Counter()  # drops names whose count is zero

    def close(self) -> None:
        """End all streams, soon."""
        self._closed = True
        for channel in self._channels.values():
            channel.wake()

    async def stream(
        self, job: str, *, last_seq: int, after: int, allowed: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        """Yield the events of a job after number `after` as they come; `last_seq` was the last one a moment ago.

        `allowed` is asked before every piece and while the job is quiet; the stream ends when it answers False.
        """
        start = Frame(last_seq, b"", False)
        channel = self._channels.setdefault(job, _Channel(deque([start], maxlen=self.frames)))
        channel.watchers += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        position = min(after, channel.frames[-1].seq)
        try:
            yield _RECONNECT
            while not self._closed:
                changed = channel.changed  # taken before looking: an event in between sets it
                frames = channel.since(position)
                if frames is None:
                    events = await asyncio.to_thread(self.queue.events, job, position, self.frames)
                    frames = list(map(frame, events))
                if not frames:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), self.idle_seconds)
                if not await allowed():
                    return
                if frames:
                    yield b"".join(frame.text for frame in frames)
                    position = frames[-1].seq
                    if frames[-1].is_final:
                        return
        finally:
            channel.watchers -= 1
            if not channel.watchers:
                self._channels.pop(job, None)

    async def _poll(self) -> None:
        """Ask for all watched jobs at once, until none is watched."""
        failure = ""
        while self._channels and not self._closed:
            try:
                seqs = await asyncio.to_thread(self.queue.last_seqs, list(self._channels))
                for job, seq in seqs.items():
                    channel = self._channels.get(job)
                    if channel and seq > (last := channel.frames[-1].seq):
                        events = await asyncio.to_thread(self.queue.events, job, last, self.frames)
                        channel.frames.extend(map(frame, events))  # drops the oldest ones
                        channel.wake()
                failure = ""
            except Exception as error:  # a database that is away for a while must not end the streams
                if not isinstance(error, DatabaseUnavailableError) and repr(error) != failure:
                    log.warning("events.failed", error=repr(error))
                failure = repr(error)
            await asyncio.sleep(self.poll_seconds)
