"""An HTTP connection to a lab's service: its address, the token, retries, and errors from refusals.

A token is sent in the header only, and never in the clear over a network. httpx and tenacity are imported when they are
first used.
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from json import loads as json_values
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from mint.core.errors import MintError
from mint.core.files import read_text
from mint.core.records import reading

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState, Retrying

SERVER_VARIABLE, TOKEN_VARIABLE = "MINT_SERVER", "MINT_TOKEN"
PORT = 8420
OTHER_VERSION = "needed: a service of this version of mint"
_MOST_BYTES = 1 << 28  # of an answer
BUSY = (429, 503)  # HTTP's statuses of a service that may answer later

Record = dict[str, Any]


class _Fields(dict[str, Any]):
    """An object of an answer."""

    def __missing__(self, name: str) -> None:
        raise MintError(f"the service answers without {name}; {OTHER_VERSION}")


class RefusedError(MintError):
    """The service answered with an error; `status` is HTTP's, `code` the service's name for it.

    `retry_after` are the seconds after which the service wants the request again.
    """

    def __init__(self, message: str, status: int, code: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


class SilentError(MintError):
    """The service did not answer, or the connection broke; the same request may be sent again."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Timeouts and pauses of a client, in seconds."""

    silence: float = 30.0  # without a byte from the service
    tries: int = 4  # of a request that is safe to repeat
    first_pause: float = 0.5  # after a failed try; it doubles up to `longest_pause`
    longest_pause: float = 10.0  # also the longest that a busy service can ask for before the user decides
    patience: float = 600.0  # without an answer while a job or a fetch is followed
    stalls: int = 20  # of a download in a row without a new byte
    sleep: Callable[[float], None] = time.sleep


class Connection:
    """The service at `server` (`HOST`, `HOST:PORT`, a URL, or else MINT_SERVER), asked with `token`, or MINT_TOKEN.

    `ca` is a file of the authorities that vouch for it; `insecure` sends the token over plain HTTP.
    """

    def __init__(
        self,
        server: str = "",
        token: str = "",
        *,
        ca: Path | None = None,
        insecure: bool = False,
        timing: Timing = Timing(),
    ) -> None:
        import ssl

        import httpx

        if not (server := server or os.environ.get(SERVER_VARIABLE, "")):
            raise MintError(f"no service given; needed: --server HOST:PORT, or {SERVER_VARIABLE}")
        self.url = parse_server(server)
        self.timing = timing
        token = token or token_of(None)
        is_local = is_loopback(urlsplit(self.url).hostname or "")
        if token and not insecure and not is_local and not self.url.startswith("https:"):
            raise MintError(
                f"{self.url}: the token would cross the network in the clear; needed: an https address, or --insecure "
                "for a network that you trust"
            )
        try:
            self._client = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=timing.silence,
                verify=ssl.create_default_context(cafile=ca) if ca else True,
                trust_env=not is_local,  # a proxy could read what is for this machine alone
            )
        except OSError as error:
            raise MintError(f"{ca}: not a file of certificates ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(
        self, method: str, path: str, *, json: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None
    ) -> Record:
        """The service's JSON answer; raises `RefusedError` for an error and `SilentError` without an answer."""

        def send() -> Record:
            with self.stream(method, path, json=json, params=params) as response:
                return self._record(response)

        def may_repeat(error: BaseException) -> bool:
            if isinstance(error, RefusedError) and error.status in BUSY and error.retry_after is not None:
                return error.retry_after <= self.timing.longest_pause
            return isinstance(error, SilentError) and method == "GET"

        return self.retrying(may_repeat, tries=self.timing.tries)(send)

    def ask_list(self, name: str, path: str, *, params: Mapping[str, Any] | None = None) -> list[Record]:
        """The records under a name of the service's answer."""
        return records_of(self.ask("GET", path, params=params), name)

    @contextmanager
    def stream(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read; raises as `ask` does, also while the body is read."""
        import httpx

        try:
            with self._client.stream(method, path, **request) as response:
                if not response.is_success:
                    raise self._refusal(response)
                yield response
        except httpx.RequestError as error:
            raise SilentError(
                f"{self.url}: no answer ({error or type(error).__name__}); is `mint serve` running there?"
            ) from error

    def retrying(
        self, may_repeat: Callable[[BaseException], bool], *, tries: int = 0, seconds: float = 0.0
    ) -> Retrying:
        """A caller that repeats after errors that allow it, at most `tries` times or for `seconds`."""
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay

        stop = stop_after_attempt(tries) if tries else stop_after_delay(seconds)
        return Retrying(
            retry=retry_if_exception(may_repeat), stop=stop, wait=self._pause, sleep=self.timing.sleep, reraise=True
        )

    def _pause(self, state: RetryCallState) -> float:
        """Seconds until the next try: as the service says, else doubling."""
        error = state.outcome.exception() if state.outcome else None
        seconds = self.timing.first_pause * 2.0 ** min(state.attempt_number - 1, 32)
        if isinstance(error, RefusedError) and error.retry_after is not None:
            seconds = error.retry_after
        return min(seconds, self.timing.longest_pause)

    def _record(self, response: httpx.Response) -> Record:
        """The JSON object of an answer that is still to be read."""
        text = bytearray()
        for piece in response.iter_bytes():
            text += piece
            if len(text) > _MOST_BYTES:
                raise MintError(f"{self.url}: an answer of more than {_MOST_BYTES} bytes; {OTHER_VERSION}")
        return record_of(text)

    def _refusal(self, response: httpx.Response) -> RefusedError:
        try:
            error = self._record(response)["error"]
            message, code = str(error["message"]), str(error["code"])
        except (MintError, TypeError):
            message, code = f"{response.status_code} {response.reason_phrase}: not an answer of mint's service", ""
        retry_after = _seconds(response.headers.get("Retry-After", ""))
        if response.status_code == 401:
            message += f" (here: {TOKEN_VARIABLE} or --token-file)"
        if retry_after is not None:
            message += f"; try again in {retry_after:.0f} s"
        return RefusedError(f"{self.url}: {message}", response.status_code, code, retry_after)


def record_of(text: bytes | bytearray) -> Record:
    """The JSON object of an answer, whose fields raise `MintError` where they lack."""
    with reading("not an answer of mint's service", OTHER_VERSION):
        record = json_values(text or b"{}", object_hook=_Fields)
        if not isinstance(record, dict):
            raise TypeError("no JSON object")
    return record


def records_of(answer: Record, name: str) -> list[Record]:
    """The records under a name of an answer."""
    with reading(f"the service answers without a list of {name}", OTHER_VERSION):
        return [_Fields(record) for record in answer[name]]


def _seconds(text: str) -> float | None:
    """The seconds of a header; None for anything else."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < inf else None


def is_away(error: BaseException) -> bool:
    """True for an error of a service that may be back later: it is silent, or says that it is busy."""
    return isinstance(error, SilentError) or (isinstance(error, RefusedError) and error.status in BUSY)


def parse_server(text: str) -> str:
    """The URL of a service; raises `MintError` if it is none."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else PORT)
    except ValueError as error:
        raise MintError(f"{text}: {error}; needed: HOST:PORT or a URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise MintError(f"{text}: not the address of a service; needed: HOST:PORT or http(s)://HOST:PORT[/PATH]")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


def token_of(file: Path | None) -> str:
    """The token in a file that only its owner can read, else that of the environment, else none."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    if not file.is_file():
        raise MintError(f"{file}: not there; needed: a file that holds what `mint token create` printed")
    check_private(file, "token")
    return read_text(file, "a token").strip()


def is_loopback(host: str) -> bool:
    """True if a host is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_private(path: Path, kind: str) -> None:
    """Raise `MintError` if others may read a secret; `kind` names it in the message."""
    if path.stat().st_mode & 0o077:
        raise MintError(f"{path}: others may read this {kind}; needed: chmod 600 {path}")
