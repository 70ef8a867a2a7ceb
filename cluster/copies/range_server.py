"""A small server of byte ranges of one model's shards, for the other nodes of a run with `--share`.

It answers one question, `GET /SHARD` with a range of at most `PIECE_BYTES` and the seal of that range, and knows the
shards of its inventory alone: a name is looked up there, never joined to a path. A file that lies elsewhere than the
model (a link out of its folder; a hub cache's own blobs count as the model's) is not lent. It listens on the node's own
address and ends with the process that made it.
"""

import os
import re
import ssl
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cluster.copies.inventory import Held, Inventory
from cluster.copies.seals import content_seal, is_seal, request_seal, secrets_of
from mint.model.hub_cache import blob_folders

PIECE_BYTES = 8 << 20
CONTENT_SEAL = "Mint-Content-Seal"
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})")
_IDLE_SECONDS = 60.0  # before a silent connection is closed
_LOOK_SECONDS = 0.05  # between looks whether to end
_CONNECTIONS = 64  # at once; a node has one to each other node


def lendable(folder: Path, shards: Sequence[Held]) -> tuple[dict[str, Held], dict[str, str]]:
    """The shards of `folder` that may be lent by their names, and why the others may not."""
    lent, kept = {}, {}
    for shard in shards:
        real = (folder / shard.name).resolve()
        if _lies_within(real, folder):
            lent[shard.name] = shard
        else:
            kept[shard.name] = f"a link to {real}, outside the model's folder {folder}"
    return lent, kept


def _lies_within(real: Path, folder: Path) -> bool:
    """Whether a file is the model's own: in its folder, or a blob of the hub cache that the folder is a snapshot of."""
    folder = folder.resolve()
    return real.parent == folder or any(real.is_relative_to(blobs) for blobs in blob_folders(folder))


class Lender:
    """The server, from its making to `close`."""

    def __init__(
        self, address: str, folder: Path, shards: Sequence[Held], key: bytes, tls: ssl.SSLContext | None = None
    ) -> None:
        self.lent, self.kept = lendable(folder, shards)
        self._server = _Server(address, folder, self.lent, key, tls)
        self.url = f"{'https' if tls else 'http'}://{address}:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, args=(_LOOK_SECONDS,), name="mint-lender", daemon=True
        ).start()

    def record(self) -> dict[str, Any]:
        """Where what is lent, and why the rest is not, as a plain record."""
        return {"url": self.url, "lent": list(self.lent), "kept": self.kept}

    def close(self) -> None:
        """Lend nothing more."""
        self._server.shutdown()
        self._server.server_close()


def lend(inventory: Inventory, run: bytes, address: str) -> Lender | None:
    """Lend what an inventory has, at an address of this machine, for this run; None when there is nothing."""
    if not inventory.shards:
        return None
    key, tls = secrets_of(run, ssl.PROTOCOL_TLS_SERVER)
    return Lender(address, Path(inventory.folder), inventory.shards, key, tls)


class _Server(ThreadingHTTPServer):
    """Threads of its own, so many at most, and TLS where the cluster has it."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, address: str, folder: Path, lent: dict[str, Held], key: bytes, tls: ssl.SSLContext | None
    ) -> None:
        self.folder = folder
        self.lent = lent
        self.key = key
        self._tls = tls
        self._room = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__((address, 0), _Request)

    def server_bind(self) -> None:
        """Bind without asking for the host's name, which HTTPServer does and which may take seconds."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[Any, Any]:
        client, address = super().get_request()
        client.settimeout(_IDLE_SECONDS)
        if self._tls:  # the handshake is made in the thread of the request
            client = self._tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._room.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke: the other side asks again."""


class _Request(BaseHTTPRequestHandler):
    """Requests of one connection."""

    protocol_version = "HTTP/1.1"
    server_version = "mint"
    sys_version = ""
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        """Answer with a range of a shard and its seal, or with the reason why not."""
        name = unquote(self.path.removeprefix("/"))
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        start, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, 0)
        seal = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not is_seal(seal, request_seal(self.server.key, name, start, end - start)):
            return self._refuse(HTTPStatus.UNAUTHORIZED, "token rejected")
        shard = self.server.lent.get(name)
        if shard is None:
            return self._refuse(HTTPStatus.NOT_FOUND, "not lent here")
        if not start < end <= shard.nbytes or end - start > PIECE_BYTES:
            return self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"of {shard.nbytes} bytes")
        content = self._read(shard, start, end - start)
        if content is None:
            return self._refuse(HTTPStatus.CONFLICT, "changed since this run began")
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{shard.nbytes}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header(CONTENT_SEAL, content_seal(self.server.key, name, start, content))
        self.end_headers()
        self.wfile.write(content)
        return None

    def _read(self, shard: Held, start: int, nbytes: int) -> bytes | None:
        """The range; None when the file is not the one that was looked at before."""
        path = self.server.folder / shard.name
        if not _lies_within(path.resolve(), self.server.folder):
            return None
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != shard.nbytes:
                return None
            content = os.pread(file.fileno(), nbytes, start)
        return content if len(content) == nbytes else None

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        body = reason.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: what matters is said by who asked."""
