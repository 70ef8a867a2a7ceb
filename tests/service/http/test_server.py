"""The real server as a process on loopback: killed and started again, cut off, trickled at, stopped."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.ops.certificates import make_certificates
from cluster.service.data.catalog import Catalog
from cluster.service.data.database import connect
from cluster.service.data.records import Artifact, ModelRequest, Person
from cluster.service.data.tokens import Tokens
from cluster.service.queue.queue import Queue
from tests.conftest import own_cache
from tests.worlds.served import WAY, stored
from tests.worlds.service_world import submit

ROOT = Path(__file__).parents[3]


class Server:
    """A server as a process, and a client of it."""

    def __init__(self, data: Path, *options: str) -> None:
        command = [sys.executable, "-m", "mint", "serve", "--data", str(data)]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdout
        self.first_line = self.process.stdout.readline()
        if "serves at" in self.first_line:
            self.url = self.first_line.split()[3].rstrip("/")
            self.port = int(self.url.rpartition(":")[2])

    def client(self, **options: Any) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """End it; its exit code and what it said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@contextmanager
def serving(data: Path, *options: str) -> Iterator[Server]:
    server = Server(data, *options)
    try:
        assert "serves at" in server.first_line, server.end()
        yield server
    finally:
        server.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "--slots", "0") as server:
        yield server


def _events(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    seq = 0
    for line in lines:
        if line.startswith("id: "):
            seq = int(line[4:])
        elif line.startswith("data: "):
            yield seq, json.loads(line[6:])


# a whole job


def test_a_job_goes_on_when_the_service_is_killed_and_whoever_followed_it_misses_nothing(
    tmp_path: Path, llama: Path
) -> None:
    options = ("--root", str(llama.parent))
    own_cache(tmp_path / "cache")  # with kernels that are compiled already
    seen: list[tuple[int, dict[str, Any]]] = []
    with serving(tmp_path, *options) as server, server.client() as client:
        (job,) = client.post("/v1/jobs", json={"model": "llama", "budgets": ["4.5bpw"]}).json()["jobs"]
        with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
            for event in _events(stream.iter_lines()):
                seen.append(event)
                if event[1].get("state") == "analyzing":
                    break
            server.end(signal.SIGKILL)
    with serving(tmp_path, *options) as server, server.client() as client:
        resumed = {"Last-Event-ID": str(seen[-1][0])}
        with client.stream("GET", f"/v1/jobs/{job['id']}/events", headers=resumed) as stream:
            seen += _events(stream.iter_lines())
        numbers = [seq for seq, _ in seen]
        assert all(
            seq == before + 1 or (seq > before and "stage" in body)
            for before, (seq, body) in zip([0, *numbers], seen, strict=False)
        )
        assert numbers[-1] == client.get(f"/v1/jobs/{job['id']}").json()["last_seq"]
        assert [body["state"] for _, body in seen if "attempts" in body] == [
            "queued", "inventory", "analyzing", "solving", "assembling", "verifying", "done",
        ]  # fmt: skip
        done = client.get(f"/v1/jobs/{job['id']}").json()
        assert done["attempts"] == 1
        (again,) = client.post("/v1/jobs", json={"model": "llama", "budgets": ["4.5bpw"]}).json()["jobs"]
        assert (again["id"], again["is_new"]) == (job["id"], False)
        for file in client.get(f"/v1/artifacts/{done['artifact']}").json()["files"]:
            assert stored(client.get(file["url"]).content).digest == file["digest"]
        plan = client.post("/v1/plans", json={"model": "llama", "budget": "4.5bpw"}).json()
        assert plan["planned_bytes"] == done["result"]["planned_bytes"]


# downloads


def test_a_cut_download_goes_on_where_it_stopped(server: Server, folder: Path) -> None:
    text = os.urandom(9 << 20)
    database = connect(f"sqlite:///{folder / 'service.db'}")
    file = stored(text)
    path = folder / "store" / file.digest[:2] / file.digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    artifact = Artifact("model", "0" * 64, (file,))
    Catalog(database).add(artifact)
    database.close()
    url = f"/v1/artifacts/{artifact.digest}/files/{file.name}"
    with server.connect() as connection:  # goes away after some megabytes
        connection.sendall(f"GET {url} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        got = b""
        while len(got) < 5 << 20:
            got += connection.recv(1 << 16)
    head, _, part = got.partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert f'etag: "{file.digest}"'.encode() in head
    with server.client() as client:
        rest = client.get(url, headers={"Range": f"bytes={len(part)}-", "If-Range": f'"{file.digest}"'})
        assert rest.status_code == 206
        assert part + rest.content == text
        assert int(client.head(url).headers["content-length"]) == len(text)
    assert artifact.nbytes == len(text)


# clients that behave badly


def test_a_client_that_sends_slowly_or_nonsense_holds_up_nobody(server: Server) -> None:
    slow = [server.connect() for _ in range(50)]
    for connection in slow[:25]:
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
    for connection in slow[25:]:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
    with server.client() as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/jobs").json()["jobs"] == []
    with server.connect() as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"Content-Security-Policy" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"
    for connection in slow:
        connection.close()


def test_a_huge_head_is_refused(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 20_000)
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 400")


# the end


def test_the_end_comes_at_once_although_somebody_follows_a_job(tmp_path: Path, llama: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with serving(tmp_path, "--slots", "0", "--root", str(llama.parent)) as server, server.client() as client:
            (job,) = client.post("/v1/jobs", json={"model": "llama", "budgets": ["1GB"]}).json()["jobs"]
            with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
                events = _events(stream.iter_lines())
                assert next(events)[0] == 1
                server.process.send_signal(number)
                assert list(events) == []  # it ends, and does not break
            code, errors = server.end()
            assert "Traceback" not in errors
            assert code == 0


# strangers


def test_beyond_loopback_it_does_not_start_without_tokens_or_without_tls(tmp_path: Path) -> None:
    refused = Server(tmp_path, "--slots", "0", "--host", "0.0.0.0")
    code, errors = refused.end()
    assert (code, refused.first_line) == (1, "")
    assert "mint token create" in errors
    _token(tmp_path)
    code, errors = Server(tmp_path, "--slots", "0", "--host", "0.0.0.0").end()
    assert code == 1
    assert "--tls-cert" in errors


def _token(data: Path) -> str:
    database = connect(f"sqlite:///{data / 'service.db'}")
    try:
        return Tokens(database).create("ann", ("read", "submit"))
    finally:
        database.close()


def test_with_tls_and_a_token_it_serves_the_network(tmp_path: Path) -> None:
    (node,) = make_certificates(["127.0.0.1"], tmp_path / "certs")
    data = tmp_path / "data"
    data.mkdir()
    token = _token(data)
    tls = ("--tls-cert", str(node / "node.pem"), "--tls-key", str(node / "node.key"))
    with serving(data, "--slots", "0", "--host", "0.0.0.0", *tls) as server:
        trusted = ssl.create_default_context(cafile=str(node / "ca.pem"))
        trusted.check_hostname = False
        with httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=trusted, trust_env=False) as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/v1/me").status_code == 401
            me = client.get("/v1/me", headers={"Authorization": f"Bearer {token}"})
            assert me.json() == {"name": "ann", "scopes": ["read", "submit"], "groups": []}
        with server.connect() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b"200" not in connection.recv(100)
        assert token not in server.end()[1]


def test_a_second_server_of_one_folder_says_so(server: Server, folder: Path) -> None:
    with serving(folder, "--slots", "0") as second:
        _, errors = second.end()
    assert "data.shared" in errors
    assert f'"pid": {server.process.pid}' in errors


def test_a_data_folder_that_is_a_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, errors = Server(tmp_path / "file").end()
    assert code == 1
    assert "Traceback" not in errors
    assert "needed: a folder" in errors


def test_a_body_of_two_lengths_is_refused(server: Server) -> None:
    with server.connect() as connection:
        lengths = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"
        head = f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{lengths}\r\n"
        connection.sendall(f"{head}0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.count(b"HTTP/1.1") == 1
    assert b"400 Bad Request" in answer


def test_an_address_that_is_taken_is_said_so(server: Server, tmp_path: Path) -> None:
    taken = Server(tmp_path, "--slots", "0", "--port", str(server.port))
    code, errors = taken.end()
    assert code == 1
    assert "cannot listen on" in errors


def test_a_queue_that_others_work_on_is_followed_across_processes(server: Server, folder: Path) -> None:
    database = connect(f"sqlite:///{folder / 'service.db'}")
    queue = Queue(database)
    job, _ = submit(queue, ModelRequest("m", "0" * 64), Person("ann", ("submit",)))
    with server.client() as client, client.stream("GET", f"/v1/jobs/{job.id}/events") as stream:
        events = _events(stream.iter_lines())
        assert next(events)[1]["state"] == "queued"
        claim = queue.claim("elsewhere")
        assert claim is not None
        assert next(events)[1]["state"] == "inventory"
        for state in (*WAY, "done"):
            queue.advance(claim, state)
        assert [body["state"] for _, body in events] == [*WAY, "done"]
    database.close()
