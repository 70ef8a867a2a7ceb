"""Downloads of stored files, whole or from where an interrupted one stopped.

Rules (RFC 9110). The ETag is the SHA-256 of the file, so `If-Range` continues only the very same content. Starlette's
`FileResponse` sends one range at most; several, or a malformed one, are answered with the whole file, as every server
may. A download ends as soon as its token is revoked.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.staticfiles import NotModifiedResponse
from starlette.types import Message, Receive, Scope, Send

from cluster.service.http.error_answers import ApiError
from cluster.service.http.head_deadline import ABORT
from mint.client.download import ServedFile

_RENEW_SECONDS = 60.0
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


class Download(FileResponse):
    """A stored file at `path` that is sent for as long as `allowed` answers True.

    `begin` is called with the status, `renew` about once a minute, `end` with the number of bytes that were sent.
    Raises `FileNotFoundError`, and `OSError` for a file of another size.
    """

    max_ranges = 1

    def __init__(
        self,
        path: Path,
        file: ServedFile,
        *,
        allowed: Callable[[], Awaitable[bool]],
        begin: Callable[[int], object],
        renew: Callable[[], object],
        end: Callable[[int], object],
        chunk_bytes: int,
    ) -> None:
        stat = path.stat()
        if stat.st_size != file.nbytes:
            raise OSError(f"a stored file has {stat.st_size} bytes; it had {file.nbytes} when it was stored")
        super().__init__(
            path,
            headers={"ETag": f'"{file.digest}"', "Cache-Control": "private, no-cache, no-transform"},
            media_type="application/octet-stream",
            filename=file.name.rpartition("/")[2],
            stat_result=stat,
        )
        self.chunk_size = chunk_bytes
        self._nbytes = file.nbytes
        self._allowed, self._begin, self._renew, self._end = allowed, begin, renew, end
        self._sent_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            if _matches(headers.get("if-none-match", ""), self.headers["etag"]):
                await NotModifiedResponse(self.headers)(scope, receive, self._watched(send))
                return
            if not is_single_range(headers.get("range", ""), self._nbytes):
                scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}
            await super().__call__(scope, receive, self._watched(send))
        except _RevokedError:
            await _break_off(scope, receive)
        finally:
            await asyncio.shield(asyncio.to_thread(self._end, self._sent_bytes))

    def _watched(self, send: Send) -> Send:
        """`send`, which counts bytes, renews, and raises `_RevokedError` between two pieces of a revoked download."""
        clock = asyncio.get_running_loop().time
        renewed_at = clock()

        async def sending(message: Message) -> None:
            nonlocal renewed_at
            if message["type"] == "http.response.start":
                await asyncio.to_thread(self._begin, message["status"])
            await send(message)
            self._sent_bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                return
            if not await self._allowed():
                raise _RevokedError
            if clock() - renewed_at > _RENEW_SECONDS:
                renewed_at = clock()
                await asyncio.to_thread(self._renew)

        return sending


class _RevokedError(Exception):
    """The token of a download was revoked."""


def is_single_range(text: str, nbytes: int) -> bool:
    """True if a Range header names one range of a file; raises `ApiError` (416) for one beyond the file's end."""
    match = _RANGE.fullmatch(text.strip())
    if not match:
        return False
    first, last, suffix = match.groups()
    if last and int(last) < int(first):
        return False
    if (int(first) >= nbytes) if first else (int(suffix) == 0 or nbytes == 0):
        raise ApiError(
            416, f"the file has {nbytes} bytes, asked for {text}", headers={"Content-Range": f"bytes */{nbytes}"}
        )
    return True


def _matches(if_none_match: str, etag: str) -> bool:
    """True if an If-None-Match names this content, or any."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


async def _break_off(scope: Scope, receive: Receive) -> None:
    """End the connection if the server lets us, since less came than was promised.

    A server that finds an answer without its end on a living connection logs a bug.
    """
    if abort := scope.get("state", {}).get(ABORT):
        abort()
        while (await receive())["type"] != "http.disconnect":
            pass
