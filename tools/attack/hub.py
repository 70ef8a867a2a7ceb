"""A hub on loopback with one model: a real one, or one whose answers are mutated.

Mutated answers are listings, headers of files, and files, all parts of one JSON object.
"""

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

from mint.model.hub_cache import HubId
from mint.model.hub_download import fetch
from mint.model.remote.outline import outlined

ID = HubId("Owner/model")
_COMMIT = "0" * 39 + "1"
_FILES = {"config.json": '{"model_type": "llama"}', "model.safetensors": "\x02\0\0\0\0\0\0\0{}"}
_LINE = str.maketrans({"\r": " ", "\n": " "})  # a header with an end of line would be two


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that have left, and answers that HTTP cannot carry."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str) -> tuple[bytes, dict[str, Any]]:
        """The body and headers for a path."""
        raise NotImplementedError


class _Model(_Server):
    """Serves the files of a folder as the one model `ID`."""

    files: Mapping[str, bytes]

    def answer(self, path: str) -> tuple[bytes, dict[str, Any]]:
        """The body and headers for a path."""
        if path.startswith("/api/"):
            listing = _tree(self.files) if "/tree/" in path else _info(self.files)
            return json.dumps(listing).encode(), {"Content-Type": "application/json"}
        text = self.files[path.rpartition("/")[2]]
        return text, {"ETag": f'"{_digest(text)}"', "X-Repo-Commit": _COMMIT}


class _Hub(_Server):
    answers: dict[str, Any]

    def answer(self, path: str) -> tuple[bytes, dict[str, Any]]:
        """The body and headers for a path."""
        if path.startswith("/api/"):
            listing = self.answers.get("tree" if "/tree/" in path else "info")
            return json.dumps(listing).encode(), {"Content-Type": "application/json"}
        files, headers = self.answers.get("files"), self.answers.get("headers")
        text = files.get(path.rpartition("/")[2], "") if isinstance(files, dict) else ""
        return str(text).encode(errors="replace"), headers if isinstance(headers, dict) else {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        body, headers = self.server.answer(unquote(urlsplit(self.path).path))
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        start, end = int(first or 0), int(last or len(body)) + 1
        self.send_response(206 if first else 200)
        sent = {"Content-Length": len(body[start:end]), **headers, "Connection": "close"}
        if first:
            sent = {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}", **sent}
        for name, value in sent.items():
            self.send_header(*(f"{part:.9999}".translate(_LINE) for part in (str(name), str(value))))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start:end])

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@cache
def _hub() -> _Hub:
    hub = _Hub(("127.0.0.1", 0), _Handler)
    hub.answers = {}
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    return hub


def hub_answers() -> bytes:
    """The answers of a hub that has one model."""
    files = {name: text.encode() for name, text in _FILES.items()}
    headers = {"ETag": '"1"', "X-Repo-Commit": _COMMIT}
    return json.dumps({"info": _info(files), "tree": _tree(files), "headers": headers, "files": _FILES}).encode()


def _info(files: Mapping[str, bytes]) -> dict[str, Any]:
    siblings = [{"rfilename": name, "size": len(text)} for name, text in files.items()]
    return {"id": str(ID), "sha": _COMMIT, "siblings": siblings}


def _tree(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [{"type": "file", "path": name, "size": len(text), "oid": "0" * 40} for name, text in files.items()]


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the model of a folder from a process of its own; yield the address of this hub."""
    with _Model(("127.0.0.1", 0), _Handler) as hub:
        hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        pid = os.fork()  # threads of the parent would not survive its own forks
        if not pid:
            try:
                hub.serve_forever()
            finally:
                os._exit(1)
        try:
            yield hub.url
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def read_hub(folder: Path, text: bytes) -> None:
    """Download a model, and read its headers alone, from a hub with these answers into an empty cache in `folder`."""
    try:
        answers = json.loads(text)
    except (ValueError, RecursionError):
        return
    hub = _hub()
    hub.answers = answers if isinstance(answers, dict) else {}
    cache_folder = folder / "hub"
    with knowing(hub.url, cache_folder), patch("time.sleep"):  # and wait for nothing before it tries again
        shutil.rmtree(cache_folder, ignore_errors=True)
        try:
            with outlined(ID):
                pass
        finally:
            shutil.rmtree(cache_folder, ignore_errors=True)
            fetch(ID)


@contextmanager
def knowing(url: str, cache_folder: Path) -> Iterator[None]:
    """Let huggingface_hub know this hub and no other."""
    with patch.multiple(
        constants,
        ENDPOINT=url,
        HUGGINGFACE_CO_URL_TEMPLATE=url + "/{repo_id}/resolve/{revision}/{filename}",
        HF_HUB_CACHE=str(cache_folder),
        HF_HUB_OFFLINE=False,
        HF_HUB_DISABLE_XET=True,
        HF_TOKEN_PATH=str(cache_folder / "no-token"),
    ):
        yield
