"""A Hugging Face hub on loopback, as far as huggingface_hub asks one: what it serves, what breaks, what was asked."""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

_CHUNK = 1 << 14
_API = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/]+)")
_WRITE = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)/(?P<what>preupload|commit)/main")
_BATCH = re.compile(r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
_BLOB = re.compile(r"/lfs/(?P<digest>[0-9a-f]{64})")
_OTHER = "/other"  # begins the paths of the other host
_FILE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass(slots=True)
class Asked:
    """A request for a file, and how many bytes have gone out."""

    method: str
    name: str
    start: int
    token: str = ""
    nbytes: int = 0


@dataclass
class FakeHub:
    """Models by id, each the files of a folder. Large files (`large`, by their ending) have a SHA-256."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)  # by id: status, and the hub's code for it
    gated: set[str] = field(default_factory=set)  # ids whose files are refused
    asked: list[Asked] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    breaks: dict[str, int] = field(default_factory=dict)  # by file: after so many bytes, once
    holds: dict[str, int] = field(default_factory=dict)  # by file: after so many bytes, until `go`
    held: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    large: tuple[str, ...] = (".safetensors",)
    is_redirecting: bool = False  # ranges come from another host, which must not see the token
    busy: int = 0  # the next so many ranges are answered by 429
    knows_ranges: bool = True  # otherwise the whole file comes
    is_mute: bool = False  # a range comes without a byte
    blobs: dict[str, bytes] = field(default_factory=dict)  # uploaded large files, by SHA-256
    commits: list[str] = field(default_factory=list)  # their messages
    loses: int = 0  # the next so many uploads of large files are cut off
    is_closed: bool = False  # to those who write
    url: str = ""

    def add(self, id: str, folder: Path, **more: bytes) -> None:
        """Serve the files of a folder, and more; `_` in a name is a dot."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.models[id] = files | {name.replace("_", "."): text for name, text in more.items()}

    def commit(self, id: str) -> str:
        """The hash of what a model is."""
        digest = hashlib.sha1(id.encode())
        for name, text in sorted(self.models[id].items()):
            digest.update(name.encode() + text)
        return digest.hexdigest()

    def sent(self, ending: str) -> list[Asked]:
        """The requests for the content of files that end so."""
        return [each for each in self.asked if each.method == "GET" and each.name.endswith(ending)]

    def environment(self, cache: Path) -> dict[str, str]:
        """Environment of a process that knows this hub and no other."""
        told = {"HF_ENDPOINT": self.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
        return {**os.environ, **told, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN_PATH": str(cache / "no-token")}


def etag(name: str, text: bytes, large: tuple[str, ...]) -> str:
    """The hub's name of a file's content: SHA-256 of a large file, git's hash of any other."""
    if name.endswith(large):
        return hashlib.sha256(text).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that knows no model yet."""
    hub = FakeHub()

    class Handler(_Handler):
        world = hub

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Ignore clients that have left."""

    with Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        hub.go.set()
        server.shutdown()


def know(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub in this process know this hub, and no other."""
    from huggingface_hub import constants

    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(cache / "no-token"),
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: FakeHub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        found = _BLOB.fullmatch(self.path)
        text = self._body()
        if not found or self.world.loses > 0:
            self.world.loses -= 1
            self._refuse(400, "")
            return
        assert hashlib.sha256(text).hexdigest() == found["digest"]
        self.world.blobs[found["digest"]] = text
        self._tell({})

    def do_POST(self) -> None:
        body, path = self._body(), unquote(urlsplit(self.path).path)
        found = _WRITE.fullmatch(path) or _BATCH.fullmatch(path)
        if self.world.is_closed:
            self._refuse(403, "")
        elif path == "/api/repos/create":
            id = "{organization}/{name}".format(**json.loads(body))
            self.world.models.setdefault(id, {})
            self._tell({"url": f"{self.world.url}/{id}", "id": id})
        elif path == "/api/validate-yaml":
            faults = [] if "---\nlicense: [" not in json.loads(body)["content"] else [{"message": "no license"}]
            self._tell({"errors": faults, "warnings": []}, 400 if faults else 200)
        elif not found:
            self._refuse(404, "")
        elif "what" not in found.groupdict():
            self._tell({"transfer": "basic", "objects": [self._action(item) for item in json.loads(body)["objects"]]})
        elif found["what"] == "preupload":
            self._tell({"files": [self._mode(item["path"]) for item in json.loads(body)["files"]]})
        else:
            self._commit(found["id"], [json.loads(line) for line in body.splitlines()])

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _mode(self, name: str) -> Mapping[str, Any]:
        mode = "lfs" if name.endswith(self.world.large) else "regular"
        return {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _action(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """The way to upload a large file, unless the hub has it."""
        there = item["oid"] in self.world.blobs
        return {**item, **({} if there else {"actions": {"upload": {"href": f"{self.world.url}/lfs/{item['oid']}"}}})}

    def _commit(self, id: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.world.commits.append(value["summary"])
            elif line["key"] == "file":
                self.world.models[id][value["path"]] = base64.b64decode(value["content"])
            else:
                self.world.models[id][value["path"]] = self.world.blobs[value["oid"]]
        commit = self.world.commit(id)
        self._tell({"commitUrl": f"{self.world.url}/{id}/commit/{commit}", "commitOid": commit})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = _API.fullmatch(urlsplit(self.path).path) or _FILE.fullmatch(path.removeprefix(_OTHER))
        self.world.tokens.append(self.headers.get("Authorization", ""))
        id = found["id"] if found else ""
        if id in self.world.refused:
            self._refuse(*self.world.refused[id])
        elif not found or id not in self.world.models:
            self._refuse(401, "")  # as the hub answers whom it does not know
        elif unquote(found["revision"]) not in ("main", self.world.commit(id)):
            self._refuse(404, "RevisionNotFound")
        elif "what" in found.groupdict():
            self._tell({"revision": self._info, "tree": self._tree}[found["what"]](id))
        elif id in self.world.gated:
            self._refuse(403, "GatedRepo")
        elif self.world.busy and "Range" in self.headers:
            self.world.busy -= 1
            self._refuse(429, "", **{"Retry-After": "0"})
        elif self.world.is_redirecting and "Range" in self.headers and not path.startswith(_OTHER):
            port = urlsplit(self.world.url).port
            self._refuse(302, "", Location=f"http://localhost:{port}{_OTHER}{self.path}")
        else:
            self._send(id, found["name"])

    def _info(self, id: str) -> Any:
        siblings = [{"rfilename": name, **self._metadata(name, text)} for name, text in self.world.models[id].items()]
        return {"id": id, "sha": self.world.commit(id), "siblings": siblings}

    def _tree(self, id: str) -> Any:
        return [
            {"type": "file", "path": name, "oid": "0" * 40, **self._metadata(name, text)}
            for name, text in self.world.models[id].items()
        ]

    def _metadata(self, name: str, text: bytes) -> Mapping[str, Any]:
        if not name.endswith(self.world.large):
            return {"size": len(text)}
        digest = etag(name, text, self.world.large)
        return {"size": len(text), "lfs": {"sha256": digest, "oid": digest, "size": len(text), "pointerSize": 130}}

    def _refuse(self, status: int, code: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _tell(self, answer: Any, status: int = 200) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _send(self, id: str, name: str) -> None:
        text = self.world.models[id][name]
        asks = "Range" in self.headers and self.world.knows_ranges
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-") if asks else ("0", "", "")
        start, end = int(first), min(int(last or len(text)) + 1, len(text))
        request = Asked(self.command, name, start, self.headers.get("Authorization", ""))
        self.world.asked.append(request)
        self.send_response(206 if asks else 200)
        if asks:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(text)}")
        self.send_header("ETag", f'"{etag(name, text, self.world.large)}"')
        self.send_header("X-Repo-Commit", self.world.commit(id))
        body = b"" if asks and self.world.is_mute else text[start:end]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self._send_body(request, name, body)

    def _send_body(self, asked: Asked, name: str, text: bytes) -> None:
        most = min(len(text), self.world.breaks.pop(name, len(text)))
        hold = self.world.holds.get(name, len(text))
        for sent in range(0, most, _CHUNK):
            if sent >= hold:
                self.wfile.flush()
                self.world.held.set()
                self.world.go.wait()
            self.wfile.write(text[sent : min(sent + _CHUNK, most)])
            asked.nbytes = min(sent + _CHUNK, most)
        if most < len(text):
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)
