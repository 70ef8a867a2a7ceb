"""The two layers in front of every route: security headers, and a guard with limits, site rules and the request log.

Plain ASGI, so that a stream passes piece by piece. The guard reads the body of a request whole, within a size and a
time, before a route sees it: a client that sends slowly, or without end, holds nothing but a connection. Starlette has
no such limits, and its Host check knows no addresses (see `security.is_own_host`).
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.service.http.error_answers import ApiError, retry_after
from cluster.service.http.rate_limit import TokenBucket
from cluster.service.http.security import HEADERS, is_foreign, is_json, is_own_host
from mint.core.log import log

MAX_BODY_BYTES = 64 << 10
_MAX_DISCARDED_BYTES = 4 << 20
BODY_SECONDS = 10.0
MAX_REQUESTS = 4000  # at a time, streams among them


class SecurityHeaders:
    """Adds the headers of `security` to every answer, and forbids caching where a route does not allow it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the additional headers."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, sending)


@dataclass(frozen=True, slots=True)
class Answered:
    """One request, for logs and metrics; the path is that of the route, without the query."""

    method: str
    route: str
    status: int
    seconds: float
    client: str


class Guard:
    """Refuses requests that break a rule which holds for all routes, and logs every request."""

    def __init__(
        self,
        app: ASGIApp,
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
        started_at = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._active += 1
        try:
            try:
                body = await self._admit(scope, receive)
            except ApiError as error:  # the rest of the request was not read, so the connection ends too
                await _answer(error, {"Connection": "close"})(scope, receive, sending)
            else:
                await self._app(scope, _replaying(body, receive), sending)
        except Exception:
            log.error("request.failed", method=scope["method"], path=scope["path"], exc_info=True)
            if status:
                raise  # the answer has begun: all that is left is to break it off
            bug = ApiError(500, "this is a bug in mint, please report it with the log of the service")
            await _answer(bug)(scope, receive, sending)
        finally:
            self._active -= 1
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.perf_counter() - started_at
            self._on_answered(Answered(scope["method"], route, status, seconds, client_of(scope)))
            log.debug("request.answered", method=scope["method"], route=route, status=status, seconds=round(seconds, 4))

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        """The body of a request that may pass; raises `ApiError` for any other."""
        headers = Headers(scope=scope)
        if self._active > MAX_REQUESTS:
            raise ApiError(503, f"{MAX_REQUESTS} requests are being answered; come back", headers=retry_after(5))
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

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "0")
        if "transfer-encoding" not in headers and length == "0":
            return b""
        try:
            async with asyncio.timeout(self._body_seconds):
                return await _read_body(int(length) if length.isdigit() else 0, receive)
        except TimeoutError:
            raise ApiError(
                408, f"the body was not complete after {self._body_seconds:g} seconds; send it at once"
            ) from None


async def _read_body(announced_bytes: int, receive: Receive) -> bytes:
    """Read a whole body. A client that still sends would not read an answer, so a little of too much is discarded."""
    too_large = ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes, which no request needs")
    body, nbytes, is_complete = bytearray(), 0, False
    while not is_complete:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the connection ended within the body")
        piece = message.get("body", b"")
        nbytes += len(piece)
        if max(nbytes, announced_bytes) > _MAX_DISCARDED_BYTES:
            raise too_large
        if nbytes <= MAX_BODY_BYTES:
            body += piece
        is_complete = not message.get("more_body", False)
    if nbytes > MAX_BODY_BYTES:
        raise too_large
    return bytes(body)


def client_of(scope: Scope) -> str:
    """The address of the client."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _answer(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error.record, error.status, {**error.headers, **(headers or {})})


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a body which was read already, and then continues as before."""
    is_replayed = False

    async def replay() -> Message:
        nonlocal is_replayed
        if is_replayed:
            return await receive()
        is_replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
