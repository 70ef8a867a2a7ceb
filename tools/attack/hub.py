"""A hub on loopback whose answers are mutated: listings, headers of files, and files, all parts of one JSON object."""

import json
import shutil
import threading
from collections.abc import Iterator
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


class _Hub(ThreadingHTTPServer):
    daemon_threads = True
    answers: dict[str, Any]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that have left, and answers that HTTP cannot carry."""

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
    server: _Hub

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
    sizes = {name: len(text) for name, text in _FILES.items()}
    return json.dumps({
        "info": {"id": str(ID), "sha": _COMMIT, "siblings": [{"rfilename": n, "size": s} for n, s in sizes.items()]},
        "tree": [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()],
        "headers": {"ETag": '"1"', "X-Repo-Commit": _COMMIT},
        "files": _FILES,
    }).encode()  # fmt: skip


def read_hub(folder: Path, text: bytes) -> None:
    """Download a model, and read its headers alone, from a hub with these answers into an empty cache in `folder`."""
    try:
        answers = json.loads(text)
    except (ValueError, RecursionError):
        return
    hub = _hub()
    hub.answers = answers if isinstance(answers, dict) else {}
    url, cache_folder = f"http://127.0.0.1:{hub.server_port}", folder / "hub"
    with _knowing(url, cache_folder):
        shutil.rmtree(cache_folder, ignore_errors=True)
        try:
            with outlined(ID):
                pass
        finally:
            shutil.rmtree(cache_folder, ignore_errors=True)
            fetch(ID)


@contextmanager
def _knowing(url: str, cache_folder: Path) -> Iterator[None]:
    """Let huggingface_hub know this hub and no other, and wait for nothing before it tries again."""
    with (
        patch("time.sleep"),
        patch.multiple(
            constants,
            ENDPOINT=url,
            HUGGINGFACE_CO_URL_TEMPLATE=url + "/{repo_id}/resolve/{revision}/{filename}",
            HF_HUB_CACHE=str(cache_folder),
            HF_HUB_OFFLINE=False,
            HF_HUB_DISABLE_XET=True,
            HF_TOKEN_PATH=str(cache_folder / "no-token"),
        ),
    ):
        yield
