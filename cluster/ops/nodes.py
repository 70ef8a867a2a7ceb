"""A node of a cluster as a child of this process: the command line of `ray start`, and its life in the foreground.

`ray stop` is never called: it would end every Ray on the machine. Only the child that was started here is ended.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cluster.copies.inventory import ROOTS_VARIABLE
from cluster.settings import RESOURCE, STORE_BYTES, Address, ray_environment, without_unwanted
from cluster.transport.handshake import LABELS, Head, is_here, knock, own_versions
from mint.core.cache import cache_folder
from mint.core.errors import MintError

START_SECONDS = 90.0
LOOK_SECONDS = 0.5
LEAVE_SECONDS = 3.0  # after Ctrl-C, which the child gets from the terminal too
END_SECONDS = 15.0
_TAIL_LINES = 12
# where gRPC is installed `ray start` opens its client server too, on port 10001; nobody needs it, so it finds no gRPC
_RAY = "import sys; sys.modules['grpc'] = None; from ray.scripts.scripts import main; main()"


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be started: the head at `address`, or a worker that joins the head there from `ip`."""

    address: Address
    ip: str
    is_head: bool
    token: Path
    tls: Path | None = None
    roots: tuple[Path, ...] = ()


def command_line(start: Start) -> list[str]:
    """The arguments of `ray start`; no secret is among them."""
    head = ["--head", f"--port={start.address.port}", "--include-dashboard=false"]
    where = head if start.is_head else [f"--address={start.address}"]
    versions = own_versions()
    labels = ",".join(f"{label}={versions[label]}" for label in LABELS)
    return [
        *(sys.executable, "-c", _RAY, "start", *where),
        *("--block", f"--node-ip-address={start.ip}", "--num-cpus=0", f"--resources={json.dumps({RESOURCE: 1})}"),
        *("--disable-usage-stats", f"--object-store-memory={STORE_BYTES}"),
        f"--labels={labels}",
    ]


def environment(start: Start, outer: Mapping[str, str]) -> dict[str, str]:
    """The environment of `ray start` and of all that works on the node."""
    roots = [*(str(root) for root in start.roots), *filter(None, [outer.get(ROOTS_VARIABLE, "")])]
    loopback = start.address.is_loopback
    return (
        without_unwanted(outer)
        | ray_environment(token=start.token, loopback=loopback, tls=start.tls)
        | ({ROOTS_VARIABLE: os.pathsep.join(roots)} if roots else {})
    )


def own_address(head: Address) -> str:
    """The address of this machine on the network that leads to `head`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((head.host, head.port))
        return str(probe.getsockname()[0])


def need_free(address: Address) -> None:
    """Raise `MintError` unless a head can listen at `address` on this machine."""
    if not is_here(address.host):
        raise MintError(f"{address.host} is no address of this machine; needed: one that ifconfig or ip address shows")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise MintError(
                f"port {address.port} of {address.host} is taken ({error.strerror}), perhaps by a head that runs "
                "already (mint cluster status); needed: another --port"
            ) from error


def run_node(start: Start, on_up: Callable[[Head], None]) -> int:
    """Start a node, say when it is up, and stay until it ends or this process is told to; the exit code.

    Raises `MintError` with the end of what Ray said when the node does not come up.
    """
    said = _log_place(start)
    with said.open("wb") as out, _interruptible():
        child = subprocess.Popen(
            command_line(start),
            env=environment(start, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            on_up(_wait_until_up(start, child, said))
            code = child.wait()
        except KeyboardInterrupt:
            return 130
        finally:
            end(child)
    raise MintError(f"the node ended by itself (exit code {code}): {_tail(said)}")


def end(child: "subprocess.Popen[bytes]") -> None:
    """End a child of ours, gently first; Ray's own children go with it."""
    for wait, how in ((LEAVE_SECONDS, child.terminate), (END_SECONDS, child.kill), (END_SECONDS, child.kill)):
        with suppress(subprocess.TimeoutExpired):
            child.wait(wait if child.poll() is None else 0)
        if child.poll() is not None:
            return
        how()


def _wait_until_up(start: Start, child: "subprocess.Popen[bytes]", said: Path) -> Head:
    deadline = time.monotonic() + START_SECONDS
    trouble = "it has not said anything"
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise MintError(f"Ray did not start (exit code {child.returncode}): {_tail(said)}")
        with suppress(subprocess.TimeoutExpired):
            child.wait(LOOK_SECONDS)
        try:
            head = knock(start.address, token=start.token, tls=start.tls)
        except MintError as error:
            trouble = str(error)
            continue
        if head.has(start.ip):
            return head
        trouble = f"{start.ip} is not among its nodes"
    raise MintError(f"the node was not up within {START_SECONDS:.0f} s ({trouble}); Ray said: {_tail(said)}")


def _tail(said: Path) -> str:
    lines = [line.strip() for line in said.read_text(errors="replace").splitlines() if line.strip()]
    return f"{' | '.join(lines[-_TAIL_LINES:]) or 'nothing'} (all of it: {said})"


def _log_place(start: Start) -> Path:
    folder = cache_folder() / "cluster"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{'head' if start.is_head else 'worker'}-{start.ip}.log"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM, which launchd and systemd send, end the node as Ctrl-C does."""

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what ends the node must not be interrupted
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
