"""The layer in front of every route: security headers, limits, site rules and the request log.

Plain ASGI, so that a stream passes piece by piece. The guard reads the body of a request whole, within a size and a
time, before a route sees it: a client that sends slowly, or without end, occupies only a connection. Starlette has
no such limits, and its Host check knows no addresses (see `security.is_own_host`).
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.service.data.tokens import hidden
from cluster.service.http.error_answers import ApiError
from cluster.service.http.rate_limit import TokenBucket
from cluster.service.http.security import HEADERS, is_foreign, is_forwarded, is_json, is_own_host, is_page
from mint.core.log import log

MAX_BODY_BYTES = 64 << 10
_MAX_DISCARDED_BYTES = 4 << 20
_MAX_WARNINGS = 10  # of unknown proxies
MAX_REQUESTS = 4000  # at a time, streams among them


@dataclass
class Guard:
    """Refuses requests that break a rule of all routes, adds the headers of `security`, and logs every request.

    Takes `root_path` off the front of paths, where a proxy has not done so. `on_answered` is called with the method,
    the route's path, the status and the seconds of each request.
    """

    app: ASGIApp
    names: frozenset[str]
    rates: TokenBucket
    on_answered: Callable[[str, str, int, float], None]
    body_seconds: float
    root_path: str = ""
    is_behind_proxy: bool = False
    _active: int = field(default=0, init=False)
    _proxies: set[str] = field(default_factory=set, init=False)  # that were warned about

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif self.root_path and scope["path"] == self.root_path:  # the page's addresses are relative
            await RedirectResponse(f"{self.root_path}/")(scope, receive, send)
        elif self.root_path and scope["path"].startswith(f"{self.root_path}/"):
            await self._http({**scope, "path": scope["path"].removeprefix(self.root_path)}, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-cache" if is_page(scope["path"]) else "no-store")
            await send(message)

        self._active += 1
        try:
            try:
                body = await self._admit(scope, receive)
            except ApiError as error:
                error.headers["Connection"] = "close"  # the rest of the request was not read
                await error.response(scope, receive, sending)
            else:
                await self.app(scope, _replaying(body, receive), sending)
        except Exception:
            log.error("request.failed", method=scope["method"], path=hidden(scope["path"]), exc_info=True)
            if status:
                raise  # the answer has begun: all that is left is to break it off
            bug = ApiError(500, "this is a bug in mint, please report it with the log of the service")
            await bug.response(scope, receive, sending)
        finally:
            self._active -= 1
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.perf_counter() - started_at
            self.on_answered(scope["method"], route, status, seconds)
            log.debug("request.answered", method=scope["method"], route=route, status=status, seconds=round(seconds, 4))

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        """The body of a request that may pass; raises `ApiError` for any other."""
        headers = Headers(scope=scope)
        if self._active > MAX_REQUESTS:
            raise ApiError(503, f"{MAX_REQUESTS} requests are being answered; come back", retry_after=5)
        self._warn_of_proxy(scope, headers)
        self.rates.need(client_of(scope))
        if not is_own_host(headers.get("host", ""), self.names):
            raise ApiError(
                400,
                "the Host header names another host; needed this machine's address or name, or one given to mint serve "
                "with --name",
                code="bad_host",
            )
        if is_foreign(scope["method"], scope["path"], headers, scope.get("scheme", "http")):
            raise ApiError(403, "a page of another site asked for this; open the service's own page", code="cross_site")
        if "\0" in scope["path"]:
            raise ApiError(404, "there is nothing of this name")
        if scope["method"] in ("POST", "PATCH") and not is_json(headers.get("content-type", "")):
            raise ApiError(415, "needed: Content-Type: application/json")
        if "transfer-encoding" in headers and "content-length" in headers:
            raise ApiError(400, "found both Content-Length and Transfer-Encoding; needed one of them")
        length = headers.get("content-length", "0")
        if "transfer-encoding" not in headers and length == "0":
            return b""
        try:
            async with asyncio.timeout(self.body_seconds):
                return await _read_body(Request(scope, receive), int(length) if length.isdecimal() else 0)
        except TimeoutError:
            raise ApiError(
                408, f"the body was not complete after {self.body_seconds:g} seconds; send it at once"
            ) from None

    def _warn_of_proxy(self, scope: Scope, headers: Headers) -> None:
        """Log once that requests come through a proxy that nobody named: all of them count as one address."""
        client = client_of(scope)
        if self.is_behind_proxy or client in self._proxies or len(self._proxies) >= _MAX_WARNINGS:
            return
        if is_forwarded(headers.keys()):
            self._proxies.add(client)
            log.warning("proxy.not_trusted", client=client, needed=f"--trusted-proxy {client}, if that is your proxy")


async def _read_body(request: Request, announced_bytes: int) -> bytes:
    """Read a whole body. A client that still sends would not read an answer, so a little of too much is discarded."""
    body, nbytes = bytearray(), 0
    try:
        async for piece in request.stream():
            nbytes += len(piece)
            if max(nbytes, announced_bytes) > _MAX_DISCARDED_BYTES:
                break
            if nbytes <= MAX_BODY_BYTES:
                body += piece
    except ClientDisconnect:
        raise ApiError(400, "the connection ended within the body") from None
    if len(body) < nbytes or announced_bytes > _MAX_DISCARDED_BYTES:
        raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes, which no request needs")
    return bytes(body)


def client_of(scope: Scope) -> str:
    """The address of the client."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a body which was read already, and then continues as before."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
