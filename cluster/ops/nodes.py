"""Runs a cluster node as a child process in the foreground, with the command line of `ray start`.

`ray stop` is never called, because it ends every Ray on the machine. Only the child process is stopped.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen, TimeoutExpired

from cluster.copies.inventory import ROOTS_VARIABLE
from cluster.head.handshake import LABELS, is_here, knock, own_versions
from cluster.settings import RESOURCE, STORE_BYTES, UNWANTED, Address, Secrets, ray_environment
from mint.core.cache import cache_folder
from mint.core.errors import MintError
from mint.run.blas import fast_environment

START_SECONDS = 90.0
POLL_SECONDS = 0.5
LEAVE_SECONDS = 3.0  # after Ctrl-C, which the terminal sends to the child too
STOP_SECONDS = 15.0
_TAIL_LINES = 12
# with gRPC, `ray start` also opens an unneeded client server on port 10001; so gRPC is hidden from it
_RAY = "import sys; sys.modules['grpc'] = None; from ray.scripts.scripts import main; main()"


@dataclass(frozen=True, slots=True)
class NodeStart:
    """The settings of a node: the head at `address`, or a worker at `ip` that joins this head."""

    address: Address
    ip: str
    is_head: bool
    secrets: Secrets
    roots: tuple[Path, ...] = ()


def command_line(start: NodeStart) -> list[str]:
    """The arguments of `ray start`, without secrets."""
    head = ["--head", f"--port={start.address.port}", "--include-dashboard=false"]
    role = head if start.is_head else [f"--address={start.address}"]
    labels = ",".join(f"{label}={version}" for label, version in own_versions().items() if label in LABELS)
    return [
        *(sys.executable, "-c", _RAY, "start", *role),
        *("--block", f"--node-ip-address={start.ip}", "--num-cpus=0", f"--resources={json.dumps({RESOURCE: 1})}"),
        *("--disable-usage-stats", f"--object-store-memory={STORE_BYTES}", f"--labels={labels}"),
    ]


def environment(start: NodeStart, outer: Mapping[str, str]) -> dict[str, str]:
    """The environment of `ray start` and of all processes of the node."""
    roots = os.pathsep.join(filter(None, [*map(str, start.roots), outer.get(ROOTS_VARIABLE)]))
    wanted = {name: value for name, value in outer.items() if name not in UNWANTED}
    return wanted | ray_environment(start.secrets, start.address) | ({ROOTS_VARIABLE: roots} if roots else {})


def own_address(head: Address) -> str:
    """The address of this machine on the network that leads to `head`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((head.host, head.port))
        return str(probe.getsockname()[0])


def require_free(address: Address) -> None:
    """Raise `MintError` unless a head can listen at `address` on this machine."""
    if not is_here(address.host):
        raise MintError(
            f"{address.host} is no address of this machine; needed: an address that ifconfig or ip address shows"
        )
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise MintError(
                f"port {address.port} of {address.host} is taken ({error.strerror}), perhaps by a "
                "running head (mint cluster status); needed: another --port"
            ) from error


def run_node(start: NodeStart, on_up: Callable[[], None]) -> int:
    """Start a node, call `on_up`, and wait until the node ends or this process is interrupted; return the exit code.

    Raises `MintError` with the end of Ray's log if the node does not start or ends by itself.
    """
    log = cache_folder() / "cluster" / f"{'head' if start.is_head else 'worker'}-{start.ip}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out, _interruptible():
        variables = environment(start, fast_environment())  # its workers probe
        child = Popen(command_line(start), env=variables, stdin=DEVNULL, stdout=out, stderr=STDOUT)
        try:
            _wait_until_up(start, child, log)
            on_up()
            code = child.wait()
        except KeyboardInterrupt:
            return 130
        finally:
            stop(child)
    raise MintError(f"the node ended by itself (exit code {code}): {_tail(log)}")


def stop(child: "Popen[bytes]") -> None:
    """Stop a child process, first with SIGTERM; Ray's own children end with it."""
    for seconds, end in ((LEAVE_SECONDS, child.terminate), (STOP_SECONDS, child.kill), (STOP_SECONDS, child.kill)):
        with suppress(TimeoutExpired):
            child.wait(seconds)
            return
        end()


def _wait_until_up(start: NodeStart, child: "Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    reason = "no answer yet"
    while time.monotonic() < deadline:
        with suppress(TimeoutExpired):
            code = child.wait(POLL_SECONDS)
            raise MintError(f"Ray did not start (exit code {code}): {_tail(log)}")
        try:
            if knock(start.address, start.secrets).has(start.ip):
                return
            reason = f"{start.ip} is not among its nodes"
        except MintError as error:
            reason = str(error)
    raise MintError(f"the node was not up within {START_SECONDS:.0f} s ({reason}); the log of Ray: {_tail(log)}")


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{' | '.join(lines[-_TAIL_LINES:]) or 'empty'} (complete log: {log})"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM, which launchd and systemd send, like Ctrl-C."""

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only once: the stop of the node must not be interrupted
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
