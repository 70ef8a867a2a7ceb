"""Files as they are downloaded: whole or from where a cut one stopped.

Rules (RFC 9110). One range at most; several, or one that is no range, are answered with the whole file, as every server
may. `If-Range` counts only where it names this very content by its strong ETag, which is the SHA-256 of the file. The
file is opened before the first header is sent, so what was promised is sent to its end even if the file's name goes
away; 4 MiB at a time are read, and no more until the client took them.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.service.http.error_answers import ApiError
from cluster.service.http.head_deadline import ABORT

CHUNK_BYTES = 4 << 20
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


def wanted_range(text: str, if_range: str, *, etag: str, nbytes: int) -> tuple[int, int] | None:
    """The first byte and the one after the last of what is asked for; None for the whole file.

    Raises `ApiError` (416) for a range that begins beyond the end.
    """
    match = _RANGE.fullmatch(text.strip())
    if not match or (if_range and if_range != etag):
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, nbytes - int(suffix)), nbytes
    else:
        start, end = int(first), min(int(last) + 1, nbytes) if last else nbytes
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise ApiError(
            416, f"the file has {nbytes} bytes, asked for {text}", headers={"Content-Range": f"bytes */{nbytes}"}
        )
    return start, end


class Download(Response):
    """A file that is sent in pieces, for as long as it is `allowed`.

    `renew` is called about once a minute while it is, `done` when it was.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        digest: str,
        nbytes: int,
        asked: Callable[[str], str],
        allowed: Callable[[], Awaitable[bool]],
        renew: Callable[[], object],
        done: Callable[[int], object],
    ) -> None:
        etag = f'"{digest}"'
        headers = {
            "Accept-Ranges": "bytes",
            "ETag": etag,
            "Cache-Control": "private, no-cache, no-transform",
            "Content-Disposition": _disposition(name),
        }
        self._start, self._end = 0, nbytes
        status = 200
        if _names(asked("if-none-match"), etag):
            status, self._end = 304, 0
        elif (span := wanted_range(asked("range"), asked("if-range"), etag=etag, nbytes=nbytes)) is not None:
            status, (self._start, self._end) = 206, span
            headers["Content-Range"] = f"bytes {self._start}-{self._end - 1}/{nbytes}"
        if status != 304:
            headers["Content-Length"] = str(self._end - self._start)
        super().__init__(None, status, headers, "application/octet-stream")
        if status == 304:
            del self.headers["content-length"]
        self._allowed, self._renew, self._done = allowed, renew, done
        self._file = os.open(path, os.O_RDONLY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until the client has it or goes away."""
        gone = asyncio.create_task(_disconnected(receive))
        position = self._start
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                position = self._end
            renewed = asyncio.get_running_loop().time()
            while position < self._end and not gone.done():
                piece = await asyncio.to_thread(os.pread, self._file, min(CHUNK_BYTES, self._end - position), position)
                if not piece:
                    raise OSError("a stored file is shorter than it was when it was stored")
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                position += len(piece)
                if position < self._end and not await self._allowed():
                    await _break_off(scope, gone)  # less came than was promised
                    return
                if asyncio.get_running_loop().time() - renewed > _RENEW_SECONDS:
                    renewed = asyncio.get_running_loop().time()
                    await asyncio.to_thread(self._renew)
            if not gone.done():
                await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            os.close(self._file)
            await asyncio.shield(asyncio.to_thread(self._done, position - self._start))


_RENEW_SECONDS = 60.0


def _disposition(name: str) -> str:
    from urllib.parse import quote

    return f"attachment; filename*=utf-8''{quote(name.rpartition('/')[2], safe='')}"


def _names(if_none_match: str, etag: str) -> bool:
    """Whether an If-None-Match names this content, or any."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


async def _break_off(scope: Scope, gone: asyncio.Task[None]) -> None:
    """End the connection, where the server lets us; one that finds an answer without its end calls that a bug."""
    if end := scope.get("state", {}).get(ABORT):
        end()
        await gone


async def _disconnected(receive: Callable[[], Awaitable[object]]) -> None:
    """Return when the client is gone."""
    while True:
        message = await receive()
        if isinstance(message, dict) and message["type"] == "http.disconnect":
            return
