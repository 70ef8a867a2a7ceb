"""Connections that a client cannot hold for nothing: beside what uvicorn does, a deadline for the head of a request,
one for taking what was written, and an answer to what is no HTTP in the form of all others.
"""

import asyncio
import json
from typing import Any

from h11 import IDLE
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster.service.http.error_answers import ApiError
from cluster.service.http.security import HEADERS

HEAD_SECONDS = 15.0  # from the first byte of a request, or from the start of a connection, to the end of its head
TAKE_SECONDS = 120.0  # for a piece that was written: 4 MiB of a download, so 35 kB/s
ABORT = "mint.abort"  # in the state of a request: what ends its connection at once


class Connection(H11Protocol):
    """A connection with deadlines."""

    _head: asyncio.TimerHandle | None = None
    _take: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request, but not for ever."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; as long as the head of a request is not complete, the time runs."""
        super().data_received(data)
        if self.conn.their_state is not IDLE:
            if self._head:
                self._head.cancel()
                self._head = None
        elif self._head is None:
            self._wait_for_head()

    def pause_writing(self) -> None:
        """The client has not taken enough to write more: it has some time for that."""
        super().pause_writing()
        if self._take is None:
            self._take = self.loop.call_later(TAKE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client took it."""
        super().resume_writing()
        if self._take:
            self._take.cancel()
            self._take = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        body = json.dumps(ApiError(400, msg).record).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"{name}: {value}" for name, value in {**headers, **HEADERS}.items()]
        self.transport.write("\r\n".join(["HTTP/1.1 400 Bad Request", *lines, "", ""]).encode() + body)
        self.transport.close()

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _forget(self) -> None:
        for timer in (self._head, self._take):
            if timer:
                timer.cancel()
        self._head = self._take = None
