"""Answers of a service that is none, is another version or means harm: each is refused in one sentence."""

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mint.client import http
from mint.client.client import Client
from mint.client.http import Timing
from mint.core.errors import MintError
from tools.attack.mutations import DIGITS, NESTED

ASK: dict[str, Callable[[Client], object]] = {
    "job": lambda client: client.job("a"),
    "models": lambda client: client.models(),
    "me": lambda client: client.me(),
    "events": lambda client: list(client.events("a")),
    "submit": lambda client: client.submit("m", ["6bpw"]),
    "audit": lambda client: client.audit(),
}
BODIES: dict[str, bytes] = {
    "empty": b"",
    "page": b"<html>log in first</html>",
    "list": b"[1]",
    "number": b"1",
    "binary": b"\xff\xfe\x00",
    "nested": NESTED.encode(),
    "digits": DIGITS.encode(),
    "other fields": b'{"jobs": [{"id": 1}], "job": {}, "models": 5, "entries": null}',
    "event without a number": b"id: x\nevent: state\ndata: {}\n\n",
    "event of no JSON": b"id: 1\nevent: state\ndata: [\n\n",
    "event of a list": b"id: 1\nevent: state\ndata: [1]\n\n",
}


class _Server(ThreadingHTTPServer):
    body, status, headers = b"", 200, dict[str, str]()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _answer(self) -> None:
        self.send_response(self.server.status)
        is_stream = self.path.endswith("/events")
        self.send_header("Content-Type", "text/event-stream" if is_stream else "application/json")
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _client(server: _Server) -> Client:
    timing = Timing(tries=1, patience=0.0, stalls=0, first_pause=0.0, longest_pause=0.0)
    return Client(f"127.0.0.1:{server.server_port}", "token", timing=timing)


@pytest.mark.parametrize("question", ASK)
@pytest.mark.parametrize("body", BODIES)
def test_an_answer_that_is_none_is_refused(body: str, question: str, server: _Server) -> None:
    server.body = BODIES[body]
    if question == "events" and not body.startswith("event"):
        server.body = b"data: 1\n\n"  # an event without a number says nothing, and then the job is asked for
    with _client(server) as client:
        try:
            ASK[question](client)
        except MintError as error:
            assert len(str(error)) < 1000
        else:
            assert question == "me" and body in ("empty", "other fields")


@pytest.mark.parametrize("pause", ["nan", "inf", "-1", "1e999", "soon", "٣"])
def test_a_pause_that_is_none_is_not_taken(pause: str, server: _Server) -> None:
    server.status, server.headers = 503, {"Retry-After": pause} if pause.isascii() else {}
    with _client(server) as client, pytest.raises(http.RefusedError) as caught:
        client.me()
    assert caught.value.retry_after is None


def test_a_compressed_answer_without_an_end_is_refused(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MOST_BYTES", 1 << 20)
    server.headers, server.body = {"Content-Encoding": "gzip"}, gzip.compress(bytes(1 << 22))
    with _client(server) as client, pytest.raises(MintError, match="more than 1048576 bytes"):
        client.me()


def test_damaged_compression_is_no_answer(server: _Server) -> None:
    server.headers, server.body = {"Content-Encoding": "gzip"}, b"no gzip"
    with _client(server) as client, pytest.raises(MintError, match="no answer"):
        client.me()
