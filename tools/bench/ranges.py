"""Rate of ranges of a shard between two nodes with --share, beside a plain HTTP server.

    python -m tools.bench.ranges --mb 256 --rounds 5

Starts a head and two nodes of Ray on this machine, with token authentication, each with an object store of its own, so
that the bytes cross a socket. One node lends a shard, the other borrows all of it in pieces of `PIECE_BYTES` and checks
the digest of each. Both ways take turns after one round to warm up; the medians and all rounds are printed.
"""

import argparse
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from cluster.copies.inventory import Held, Inventory
from cluster.copies.lending import PIECE_BYTES, Borrower, Lender
from cluster.settings import STORE_BYTES, Secrets, make_token, ray_environment

SHARD = "model.safetensors"


class Lending(Lender):
    """The node that holds the shard."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Inventory("lender", str(folder), (Held(SHARD, (folder / SHARD).stat().st_size, "", ""),)))
        self._server = _server(self)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def port(self) -> int:
        """Where the HTTP server listens."""
        return self._server.server_port


def _server(lender: Lender) -> ThreadingHTTPServer:
    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            _, start, nbytes = self.path.split("/")
            content, digest = lender.piece(SHARD, int(start), int(nbytes))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Digest", digest.hex())
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Print nothing."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Request)


class Borrowing:
    """The node that lacks the shard."""

    def over_http(self, port: int, nbytes: int) -> float:
        """Seconds for the shard from the HTTP server, piece after piece over one connection."""
        connection = HTTPConnection("127.0.0.1", port)

        def pieces() -> Iterable[bytes]:
            for start in range(0, nbytes, PIECE_BYTES):
                connection.request("GET", f"/{start}/{min(PIECE_BYTES, nbytes - start)}")
                answer = connection.getresponse()
                content = answer.read()
                assert hashlib.sha256(content).hexdigest() == answer.headers["Digest"]
                yield content

        return _seconds(pieces(), nbytes)

    def over_ray(self, lender: Any, nbytes: int) -> float:
        """Seconds for the shard from the actor, as `--share` fetches it."""
        from cluster.transport.actor import RayPeer

        borrower = Borrower({SHARD: [RayPeer("lender", lender)]})
        return _seconds((content for _, content in borrower.pieces(SHARD, [(0, nbytes)])), nbytes)


def _seconds(pieces: Iterable[bytes], nbytes: int) -> float:
    started = time.perf_counter()
    assert sum(map(len, pieces)) == nbytes
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mint-") as name:
        print(json.dumps(rates(Path(name), options.mb * 10**6, options.rounds), indent=2))


def rates(folder: Path, nbytes: int, rounds: int) -> dict[str, Any]:
    """Megabytes per second over Ray and over HTTP."""
    make_token(folder / "token")
    os.environ.update(ray_environment(Secrets(folder / "token")))
    (folder / SHARD).write_bytes(os.urandom(nbytes))
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for role in ("lender", "borrower"):
        cluster.add_node(num_cpus=0, resources={role: 1}, object_store_memory=STORE_BYTES)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        lender = ray.remote(num_cpus=0, resources={"lender": 1}, max_concurrency=2)(Lending).remote(folder)
        borrower = ray.remote(num_cpus=0, resources={"borrower": 1})(Borrowing).remote()
        port = ray.get(lender.port.remote())
        ways: dict[str, Callable[[], Any]] = {
            "http": lambda: borrower.over_http.remote(port, nbytes),
            "ray": lambda: borrower.over_ray.remote(lender, nbytes),
        }
        rates_by_way: dict[str, list[int]] = {way: [] for way in ways}
        for way, begin in [*ways.items()] * (rounds + 1):
            rates_by_way[way].append(round(nbytes / ray.get(begin()) / 1e6))
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {way: {"median_mb_per_s": median(rates[1:]), "rounds": rates[1:]} for way, rates in rates_by_way.items()}


if __name__ == "__main__":
    main()
