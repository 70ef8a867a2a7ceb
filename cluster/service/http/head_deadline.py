"""Connections with deadlines: for the head of a request, and for a client to take what was written.

uvicorn has neither, and answers a request that is not HTTP with plain text; here it gets an error like all others.
"""

import json
from asyncio import TimerHandle
from typing import Any

from h11 import IDLE
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster.service.http.error_answers import ApiError
from cluster.service.http.security import HEADERS

HEAD_SECONDS = 15.0  # from the first byte of a request, or the start of a connection, to the end of the head
TAKE_SECONDS = 120.0  # for one piece: 4 MiB of a download, so 35 kB/s
ABORT = "mint.abort"  # key in a request's state: a function that ends the connection at once


class DeadlineProtocol(H11Protocol):
    """An HTTP/1.1 connection with deadlines."""

    _head: TimerHandle | None = None
    _take: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the deadline of the first head."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadlines."""
        for timer in (self._head, self._take):
            if timer:
                timer.cancel()
        self._head = self._take = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read data; the deadline runs until the head of a request is complete."""
        super().data_received(data)
        if self.conn.their_state is not IDLE:
            if self._head:
                self._head.cancel()
                self._head = None
        elif self._head is None:
            self._wait_for_head()

    def pause_writing(self) -> None:
        """Start the deadline for a client whose buffer is full."""
        super().pause_writing()
        if self._take is None:
            self._take = self.loop.call_later(TAKE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel that deadline."""
        super().resume_writing()
        if self._take:
            self._take.cancel()
            self._take = None

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not HTTP."""
        body = json.dumps(ApiError(400, msg).record).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"{name}: {value}" for name, value in {**headers, **HEADERS}.items()]
        self.transport.write("\r\n".join(["HTTP/1.1 400 Bad Request", *lines, "", ""]).encode() + body)
        self.transport.close()

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)
