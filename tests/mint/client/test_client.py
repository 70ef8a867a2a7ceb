"""The client's side of the service: addresses, tokens, refusals, and downloads that break in every way they can."""

import hashlib
import json
import random
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mint import MintError
from mint.client.client import Client
from mint.client.download import ServedFile, download, fetch
from mint.client.http import Connection, RefusedError, SilentError, Timing, parse_server, token_of
from mint.core.progress import Progress, Share
from tools.attack.readers import empty_job

FILES = {
    name: random.Random(name).randbytes(nbytes) for name, nbytes in (("a.safetensors", 300_001), ("config.json", 7))
}


HASTY = Timing(sleep=lambda _: None)
AWAY = 0  # in place of a status: no answer


class Teller:
    """A service that tells what the test wants: JSON by path, files by name, cut after so many bytes, or spoiled."""

    def __init__(self) -> None:
        self.records: dict[str, list[tuple[int, dict[str, str], Any]]] = {}
        self.cuts: list[int] = []
        self.spoiled: set[str] = set()
        self.files = dict(FILES)
        self.ranges: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.listed = list(FILES)

    def handler(teller) -> type[BaseHTTPRequestHandler]:  # noqa: N805, the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                teller.tokens.append(self.headers.get("Authorization", ""))
                path = self.path.partition("?")[0]
                if match := re.fullmatch("/v1/artifacts/abc/files/(.+)", path):
                    self._file(match[1])
                elif path == "/v1/artifacts/abc":
                    files = [_listed(name, teller.files.get(name, b"")) for name in teller.listed]
                    self._json(200, {}, {"files": files})
                else:
                    answers = teller.records[path]
                    status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
                    if status == AWAY:
                        self.close_connection = True
                    elif path.endswith("/events") and status == 200:
                        self._stream(body)
                    else:
                        self._json(status, headers, body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def _stream(self, events: list[tuple[int, str, dict[str, Any]]]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for seq, kind, body in events:
                    self.wfile.write(f"id: {seq}\nevent: {kind}\ndata: {json.dumps(body)}\n\n".encode())
                self.close_connection = True

            def _json(self, status: int, headers: dict[str, str], body: Any) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def _file(self, name: str) -> None:
                data = teller.files[name]
                range_header = self.headers["Range"]
                teller.ranges.append((name, range_header))
                start = int(range_header.removeprefix("bytes=").rstrip("-"))
                current = self.headers["If-Range"] == f'"{hashlib.sha256(data).hexdigest()}"'
                start = start if current else 0
                self.send_response(206 if current else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                rest = data[start:]
                if name in teller.spoiled:
                    teller.spoiled.remove(name)
                    rest = bytes([rest[0] ^ 1]) + rest[1:]
                cut = teller.cuts.pop(0) if teller.cuts else len(rest)
                self.wfile.write(rest[:cut])
                self.close_connection = cut < len(rest)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _listed(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "digest": hashlib.sha256(data).hexdigest(), "nbytes": len(data)}


@pytest.fixture
def teller() -> Teller:
    return Teller()


@pytest.fixture
def connection(teller: Teller) -> Iterator[Connection]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), teller.handler())
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    with Connection(f"127.0.0.1:{server.server_port}", "secret", timing=HASTY) as connection:
        yield connection
    server.shutdown()
    thread.join()
    server.server_close()


def _held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_download_is_all_of_it(connection: Connection, teller: Teller, tmp_path: Path) -> None:
    seen: list[int] = []
    download(connection, "abc", tmp_path / "out", lambda step: seen.append(step.done))
    assert _held(tmp_path / "out") == FILES
    assert seen == sorted(seen) and seen[-1] == sum(map(len, FILES.values()))
    assert set(teller.tokens) == {"Bearer secret"}


@pytest.mark.parametrize("seed", range(5))
def test_a_download_that_is_cut_again_and_again_fetches_only_what_is_missing(
    connection: Connection, teller: Teller, tmp_path: Path, seed: int
) -> None:
    teller.cuts = [random.Random(seed).randrange(1, 40_000) for _ in range(12)]
    cuts = list(teller.cuts)
    download(connection, "abc", tmp_path / "out")
    assert _held(tmp_path / "out") == FILES
    starts = [
        int(range_header.removeprefix("bytes=").rstrip("-"))
        for name, range_header in teller.ranges
        if name == "a.safetensors"
    ]
    assert starts == [sum(cuts[:count]) for count in range(len(starts))]


def test_a_killed_download_goes_on_where_it_was(connection: Connection, teller: Teller, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "a.safetensors").write_bytes(FILES["a.safetensors"][:1000])
    download(connection, "abc", tmp_path / "out")
    assert _held(tmp_path / "out") == FILES
    assert teller.ranges[0] == ("a.safetensors", "bytes=1000-")


def test_what_is_left_of_another_artifact_does_no_harm(connection: Connection, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "a.safetensors").write_bytes(b"x" * len(FILES["a.safetensors"]))
    (tmp_path / "out.partial" / "other.safetensors").write_bytes(b"x")
    download(connection, "abc", tmp_path / "out")
    assert _held(tmp_path / "out") == FILES


def test_bytes_that_differ_from_their_digest_are_refused_and_come_again(
    connection: Connection, teller: Teller, tmp_path: Path
) -> None:
    teller.spoiled = {"a.safetensors"}
    with pytest.raises(MintError, match="digest"):
        download(connection, "abc", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    download(connection, "abc", tmp_path / "out")
    assert _held(tmp_path / "out") == FILES


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", "a\\b"])
def test_names_that_lead_elsewhere_are_refused(
    connection: Connection, teller: Teller, tmp_path: Path, name: str
) -> None:
    teller.listed = [name]
    with pytest.raises(MintError, match="named"):
        download(connection, "abc", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(connection: Connection, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(MintError, match="exists"):
        download(connection, "abc", tmp_path / "out")


def test_pauses_double_up_to_the_longest_and_a_busy_service_sets_its_own(
    teller: Teller, connection: Connection
) -> None:
    pauses: list[float] = []
    timing = Timing(tries=5, longest_pause=3.0, sleep=pauses.append)
    teller.records["/x"] = [(AWAY, {}, None), (503, {"Retry-After": "2.5"}, {}), *[(AWAY, {}, None)] * 9]
    with Connection(connection.url, timing=timing) as patient, pytest.raises(SilentError):
        patient.ask("GET", "/x")
    assert pauses == [0.5, 2.5, 2.0, 3.0]
    with Connection(connection.url, timing=timing) as patient, pytest.raises(SilentError):
        patient.ask("POST", "/x", json={})  # which might be done twice
    assert len(pauses) == 4


def test_a_service_that_never_goes_on_is_given_up(connection: Connection, teller: Teller, tmp_path: Path) -> None:
    teller.cuts = [1000] + [0] * 100
    with pytest.raises(SilentError):
        download(connection, "abc", tmp_path / "out")
    assert len(teller.ranges) < 30


def test_a_service_that_ends_a_file_early_and_means_it_is_named(
    connection: Connection, teller: Teller, tmp_path: Path
) -> None:
    teller.files["config.json"] = b""
    with pytest.raises(MintError, match="none of the 8 bytes left"):
        fetch(
            connection, "/v1/artifacts/abc/files/config.json", ServedFile("config.json", "0" * 64, 8), tmp_path / "file"
        )


def test_a_refusal_tells_the_reason_and_when_to_come_again(connection: Connection, teller: Teller) -> None:
    teller.records["/x"] = [(429, {"Retry-After": "60"}, {"error": {"code": "quota", "message": "two jobs wait"}})]
    with pytest.raises(RefusedError, match="two jobs wait; try again in 60 s") as refused:
        connection.ask("POST", "/x", json={})
    assert refused.value.status == 429


def test_a_busy_service_is_asked_again(connection: Connection, teller: Teller) -> None:
    teller.records["/x"] = [(503, {"Retry-After": "1"}, {}), (429, {"Retry-After": "2"}, {}), (200, {}, {"ok": 1})]
    assert connection.ask("GET", "/x") == {"ok": 1}


def test_who_is_not_known_learns_where_the_token_belongs(connection: Connection, teller: Teller) -> None:
    teller.records["/x"] = [(401, {}, {"error": {"code": "unknown", "message": "who are you"}})]
    with pytest.raises(RefusedError, match="MINT_TOKEN"):
        connection.ask("GET", "/x")


def test_an_answer_of_something_else_is_named(connection: Connection, teller: Teller) -> None:
    teller.records["/x"] = [(404, {}, ["a page"])]
    with pytest.raises(RefusedError, match="not an answer of mint's service"):
        connection.ask("GET", "/x")


def test_who_follows_a_job_waits_for_a_service_that_is_started_again(connection: Connection, teller: Teller) -> None:
    running, over = (1, "state", {"state": "analyzing"}), (2, "state", {"state": "done"})
    busy = (503, {"Retry-After": "60"}, {"error": {"code": "unavailable", "message": "come back"}})
    away: tuple[int, dict[str, str], Any] = (AWAY, {}, None)
    teller.records["/v1/jobs/abc/events"] = [(200, {}, [running]), *[away] * 9, busy, (200, {}, [over])]
    teller.records["/v1/jobs/abc"] = [*[away] * 4 * 9, (200, {}, empty_job() | {"state": "analyzing"})]
    with Client(connection.url, timing=HASTY) as client:
        assert [event.seq for event in client.events("abc")] == [1, 2]


def test_a_fetch_is_waited_for_while_the_service_is_busy_or_away(teller: Teller, connection: Connection) -> None:
    going: dict[str, Any] = {"id": "ab", "state": "running", "done_bytes": 1, "total_bytes": 2, "reason": ""}
    troubles: list[tuple[int, dict[str, str], Any]] = [
        (status, {}, {"error": {"code": "busy", "message": "come back"}}) for status in (503, 429)
    ]
    teller.records["/v1/fetches"] = [(202, {}, going)]
    teller.records["/v1/fetches/ab"] = [
        *troubles,
        (AWAY, {}, None),
        (200, {}, going),
        (200, {}, going | {"state": "done"}),
    ]
    steps: list[Progress] = []
    with Client(connection.url, timing=HASTY) as client:
        client.fetch("Owner/tiny", steps.append)
    assert {(step.done, step.total) for step in steps} == {(1, 2)}
    teller.records["/v1/fetches/ab"] = [(403, {}, {"error": {"code": "x", "message": "no longer yours"}})]
    with Client(connection.url, timing=HASTY) as client, pytest.raises(RefusedError, match="no longer yours"):
        client.fetch("Owner/tiny")


@pytest.mark.parametrize("answer", [(AWAY, {}, None), (404, {}, {"error": {"code": "x", "message": "no such job"}})])
def test_who_follows_a_job_of_nobody_is_told_at_once(connection: Connection, teller: Teller, answer: Any) -> None:
    teller.records["/v1/jobs/abc/events"] = [answer]
    with Client(connection.url, timing=HASTY) as client, pytest.raises(MintError):
        next(client.events("abc"))


def test_progress_comes_with_what_every_node_did(connection: Connection, teller: Teller) -> None:
    hosts = [{"host": "alpha", "done": 30, "bytes_per_second": 5}, {"host": "beta", "done": 10, "bytes_per_second": 0}]
    body = {"stage": "analyze", "done": 40, "total": 90, "item": "x", "hosts": hosts}
    teller.records["/v1/jobs/abc/events"] = [(200, {}, [(1, "progress", body), (2, "state", {"state": "done"})])]
    teller.records["/v1/jobs/abc"] = [(200, {}, empty_job() | {"state": "done"})]
    steps: list[Progress] = []
    with Client(connection.url, timing=HASTY) as client:
        client.wait("abc", steps.append)
    assert steps == [Progress("analyze", 40, 90, "x", (Share("alpha", 30, 5), Share("beta", 10, 0)))]


def test_nobody_there_is_said_at_once() -> None:
    with Connection("127.0.0.1:1") as connection, pytest.raises(SilentError, match="mint serve"):
        connection.ask("POST", "/v1/jobs", json={})


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("lab", "http://lab:8420"),
        ("lab:9", "http://lab:9"),
        ("https://lab", "https://lab:443"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert parse_server(text) == url


@pytest.mark.parametrize("text", ["", "ftp://lab", "http://", "http://lab/path?x", "http://me:secret@lab", "lab:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(MintError, match="needed"):
        parse_server(text)


@pytest.mark.parametrize("server", ["10.0.0.1", "http://lab:1"])
def test_a_token_never_crosses_a_network_in_the_clear(server: str) -> None:
    with pytest.raises(MintError, match="in the clear"):
        Connection(server, "secret")
    Connection(server, "secret", insecure=True)
    Connection(server)


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret\n")
    file.chmod(0o644)
    with pytest.raises(MintError, match="chmod 600"):
        token_of(file)
    file.chmod(0o600)
    assert token_of(file) == "secret"


@pytest.mark.parametrize("id", ["", "../x", "a/b", "a b", "é"])
def test_ids_cannot_lead_to_other_paths(id: str) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(MintError, match="not the id"):
        client.job(id)
