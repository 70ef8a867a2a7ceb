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
    """An HTTP/1.1 connection with two deadlines: until a head is complete, and while the client's buffer is full."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}
        self._timers: dict[str, TimerHandle] = {}
        self._start("head", HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        for deadline in ("head", "take"):
            self._cancel(deadline)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is IDLE:
            self._start("head", HEAD_SECONDS)
        else:
            self._cancel("head")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("take", TAKE_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel("take")

    def _start(self, deadline: str, seconds: float) -> None:
        if deadline not in self._timers:
            self._timers[deadline] = self.loop.call_later(seconds, self.transport.abort)

    def _cancel(self, deadline: str) -> None:
        if timer := self._timers.pop(deadline, None):
            timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not HTTP."""
        body = json.dumps(ApiError(400, msg).record).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"{name}: {value}" for name, value in {**headers, **HEADERS}.items()]
        self.transport.write("\r\n".join(["HTTP/1.1 400 Bad Request", *lines, "", ""]).encode() + body)
        self.transport.close()
