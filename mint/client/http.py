"""One HTTP connection to a lab's service: its address, whose token, and what its refusals mean.

A token is sent in the header only, and never in the clear over a network. httpx is imported with the first connection.
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from mint.core.errors import MintError

if TYPE_CHECKING:
    import httpx

SERVER_VARIABLE, TOKEN_VARIABLE = "MINT_SERVER", "MINT_TOKEN"
PORT = 8420
SECONDS = 30.0  # without a word from the service
TRIES = 4  # of what may be asked again without harm
LONGEST_WAIT = 10.0  # seconds that a busy service may ask us to wait before it is the user's turn to decide

Record = dict[str, Any]


class RefusedError(MintError):
    """The service answered with an error; `status` is HTTP's, `code` the service's name for it."""

    def __init__(self, message: str, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Connection:
    """The service at `server` (`HOST`, `HOST:PORT` or a URL), asked with `token`; `ca` is a file of authorities."""

    def __init__(self, server: str, token: str = "", *, ca: Path | None = None, insecure: bool = False) -> None:
        import httpx

        self.url = parse_server(server)
        if token and not insecure and not _is_private(self.url):
            raise MintError(
                f"{self.url}: the token would cross the network in the clear; needed: an https address, or --insecure "
                "for a network that you trust"
            )
        try:
            self._client = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=SECONDS,
                verify=_context(ca) if ca else True,
                trust_env=not is_loopback(
                    urlsplit(self.url).hostname or ""
                ),  # a proxy would get to read what is for this machine alone
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
        """The JSON answer; raises `RefusedError` for an error and `MintError` when nobody answers."""
        for left in reversed(range(TRIES)):
            try:
                response = self._client.request(method, path, json=json, params=params)
            except self._broken as error:
                if not left or method != "GET":
                    raise self._silent(error) from error
                time.sleep(0.5 * (TRIES - left))
                continue
            wait = _seconds(response)
            if response.status_code in (429, 503) and wait is not None and wait <= LONGEST_WAIT and left:
                time.sleep(wait)
                continue
            self._check(response)
            found: Record = response.json() if response.content else {}
            return found
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read; raises as `ask` does, also while it is read."""
        try:
            with self._client.stream("GET", path, headers=dict(headers)) as response:
                if response.status_code >= 400:
                    response.read()
                self._check(response)
                yield response
        except self._broken as error:
            raise self._silent(error) from error

    @property
    def _broken(self) -> type[Exception]:
        import httpx

        return httpx.TransportError

    def _silent(self, error: Exception) -> MintError:
        return SilentError(f"{self.url}: no answer ({error or type(error).__name__}); is `mint serve` running there?")

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        code = ""
        try:
            told, code = response.json()["error"]["message"], response.json()["error"]["code"]
        except (ValueError, KeyError, TypeError):
            told = f"{response.status_code} {response.reason_phrase}: not an answer of mint's service"
        if response.status_code == 401:
            told += f" (here: {TOKEN_VARIABLE} or --token-file)"
        if (wait := _seconds(response)) is not None:
            told += f"; try again in {wait:.0f} s"
        raise RefusedError(f"{self.url}: {told}", response.status_code, code)


class SilentError(MintError):
    """Nobody answered, or the connection broke; the same may be asked again."""


def parse_server(text: str) -> str:
    """The URL of a service; raises `MintError` for what is none."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else PORT)
    except ValueError as error:
        raise MintError(f"{text}: {error}; needed: HOST:PORT or a URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.path.strip("/"):
        raise MintError(f"{text}: not the address of a service; needed: HOST:PORT or http(s)://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


def server_of(option: str) -> str:
    """The service that an option or the environment names; `MintError` when neither does."""
    server = option or os.environ.get(SERVER_VARIABLE, "")
    if not server:
        raise MintError(f"no service given; needed: --server HOST:PORT, or {SERVER_VARIABLE}")
    return server


def token_of(file: Path | None) -> str:
    """The token in a file that only its owner can read, else that of the environment, else none."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    if not file.is_file():
        raise MintError(f"{file}: not there; needed: a file that holds what `mint token create` printed")
    check_private(file, "token")
    return file.read_text().strip()


def _is_private(url: str) -> bool:
    """Whether nobody else can read what is sent there."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_private(path: Path, what: str) -> None:
    """Raise `MintError` where others may read a secret."""
    if path.stat().st_mode & 0o077:
        raise MintError(f"{path}: others may read this {what}; needed: chmod 600 {path}")


def _context(ca: Path) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(ca))


def _seconds(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
