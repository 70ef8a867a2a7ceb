"""What stands before every route: limits, the rules of `security`, headers, and one line in the log for each request.

Plain ASGI, so that a stream passes through it piece by piece. The body of a request is read here, whole, within a
size and a time, before a route sees it: a client that sends slowly, or without end, holds nothing but a connection.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from cluster.service.http.error_answers import ApiError, retry_after
from cluster.service.http.rate_limit import TokenBucket
from cluster.service.http.security import HEADERS, is_foreign, is_json, is_own_host
from mint.core.log import log

MOST_BODY_BYTES = 64 << 10
_DISCARDED_BYTES = 4 << 20
BODY_SECONDS = 10.0
MOST_REQUESTS = 4000  # at a time, streams among them
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_NO_STORE = (b"cache-control", b"no-store")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Answered:
    """One request, for logs and metrics; the path is that of the route, the query is left out."""

    method: str
    route: str
    status: int
    seconds: float
    client: str


class Guard:
    """An application behind all that holds for every request."""

    def __init__(
        self,
        app: App,
        *,
        names: frozenset[str],
        rates: TokenBucket,
        on_answered: Callable[[Answered], None],
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app = app
        self._names = names
        self._rates = rates
        self._on_answered = on_answered
        self._body_seconds = body_seconds
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": _with_ours(message.get("headers", []))}
            await send(message)

        self._active += 1
        try:
            try:
                body = await self._admit(scope, receive)
            except ApiError as refusal:
                await answer(refusal, sending, closing=True)
            else:
                await self._app(scope, _replaying(body, receive), sending)
        except Exception:
            log.error("request.failed", method=scope["method"], path=scope["path"], exc_info=True)
            if status:
                raise  # the answer has begun: all that is left is to break it off
            await answer(ApiError(500, "this is a bug in mint, please report it with the log of the service"), sending)
        finally:
            self._active -= 1
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.perf_counter() - started
            answered = Answered(scope["method"], route, status, seconds, client_of(scope))
            self._on_answered(answered)
            log.debug("request.answered", method=answered.method, route=route, status=status, seconds=round(seconds, 4))

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        """The body of a request that may pass; raises `ApiError` for any other."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._active > MOST_REQUESTS:
            raise ApiError(503, f"{MOST_REQUESTS} requests are being answered; come back", headers=retry_after(5))
        if wait := self._rates.take(client_of(scope)):
            raise ApiError(429, f"too many requests; come back in {wait:.1f} seconds", headers=retry_after(wait))
        if not is_own_host(headers.get("host", ""), self._names):
            raise ApiError(
                400,
                "the Host header names another host; needed this machine's address or name, or one given to mint serve "
                "with --name",
                code="bad_host",
            )
        if is_foreign(scope["method"], scope["path"], headers):
            raise ApiError(403, "a page of another site asked for this; open the service's own page", code="cross_site")
        if "\0" in scope["path"]:
            raise ApiError(404, "there is nothing of this name")
        if scope["method"] == "POST" and not is_json(headers.get("content-type", "")):
            raise ApiError(415, "needed: Content-Type: application/json")
        return await self._body(headers, receive)

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        length = headers.get("content-length", "0")
        if "transfer-encoding" not in headers and length == "0":
            return b""
        body = bytearray()
        nbytes = 0
        try:
            async with asyncio.timeout(self._body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the connection ended within the body")
                    nbytes += len(message.get("body", b""))
                    # a client that is still sending would not read the answer: a little more is thrown away first
                    if nbytes > _DISCARDED_BYTES or (length.isdigit() and int(length) > _DISCARDED_BYTES):
                        raise _too_large()
                    if nbytes <= MOST_BODY_BYTES:
                        body += message.get("body", b"")
                    if not message.get("more_body", False):
                        if nbytes > MOST_BODY_BYTES:
                            raise _too_large()
                        return bytes(body)
        except TimeoutError:
            raise ApiError(
                408, f"the body was not complete after {self._body_seconds:g} seconds; send it at once"
            ) from None


def _too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {MOST_BODY_BYTES} bytes, which no request needs")


def client_of(scope: Scope) -> str:
    """The address of the other side."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


async def answer(refusal: ApiError, send: Send, *, closing: bool = False) -> None:
    """Send a refusal; `closing` ends the connection too, since the rest of the request was not read."""
    body = json.dumps(refusal.record).encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")] if closing else []
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_ours(headers: Any) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with those that every answer has."""
    found = [(bytes(name).lower(), bytes(value)) for name, value in headers]
    names = {name for name, _ in found}
    return [*found, *_HEADERS, *([] if b"cache-control" in names else [_NO_STORE])]


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which was read already, and then goes on as before."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
