"""A lab of virtual machines: network namespaces on a switch, each with its own processes, name and /dev/shm.

Hosts can lose power or their network, and their programs can be stopped or slowed. Needs root on Linux. Everything that
is set up is removed, and only processes that were started here are ended.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.settings import TOKEN_VARIABLE, make_token

MINT = (sys.executable, "-m", "mint")
UP_SECONDS = 180.0
STARTS = 3  # Ray gives a node 30 s to start, which is too little where several start on few and busy cores
LOOK_SECONDS = 0.1
_ROOT = Path(__file__).parents[2]
_SCRIPT = """hostname "$1" && mount -t tmpfs tmpfs /dev/shm && mount --bind "$2" /tmp/ray && shift 2 && "$@"
echo -- ended --; exec sleep infinity"""
_ENDED = "-- ended --"  # a host outlives its node
_labs = itertools.count(1)


def not_permitted() -> str:
    """The reason that namespaces cannot be made here; empty if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    if missing := [tool for tool in ("ip", "tc", "unshare", "nsenter", "ss", "hostname") if not shutil.which(tool)]:
        return f"needs {', '.join(missing)}"
    name = f"mint-{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
        subprocess.run(
            ["unshare", "--pid", "--uts", "--fork", "--mount", "true"], check=True, capture_output=True, timeout=20
        )
    except subprocess.CalledProcessError as error:
        return f"namespaces are not permitted here: {error.stderr}"
    return ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


class Host:
    """A machine of the lab: a network namespace with a cable to the switch, and its processes."""

    def __init__(self, lab: "Lab", number: int) -> None:
        self.name = f"host{number}"
        self.address = f"10.77.0.{number}"
        self.folder = lab.folder / self.name
        self.config = self.folder / "config" / "cluster"
        for folder in (self.config, self.folder / "ray"):
            folder.mkdir(parents=True)
        self._lab = lab
        self._net = f"{lab.switch}-{number}"
        self._cable = f"v{lab.number}-{os.getpid() % 10**7}-{number}"
        self._node: subprocess.Popen[bytes] | None = None
        self._starts = 0
        _ip("netns", "add", self._net)
        _ip("link", "add", self._cable, "netns", lab.switch, "type", "veth", "peer", "name", "eth0", "netns", self._net)
        _ip("-n", lab.switch, "link", "set", self._cable, "master", "br0", "up")
        _ip("-n", self._net, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", self._net, "link", "set", device, "up")

    def start(self, *arguments: str, until: str) -> None:
        """Run a command of mint cluster on this host, and wait until its output has `until`."""
        self._starts += 1
        output = self.folder / f"output{self._starts}"
        (self.folder / "ray").mkdir(exist_ok=True)
        with output.open("wb") as out:
            self._node = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self._net, "unshare", "--pid", "--uts", "--fork", "--kill-child"),
                    *("--mount", "--mount-proc", "sh", "-c", _SCRIPT, "sh", self.name, str(self.folder / "ray")),
                    *(*MINT, "cluster", *arguments),
                ],
                env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + UP_SECONDS
        while until not in output.read_text():
            if self._node.poll() is not None or _ENDED in output.read_text() or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not start: {output.read_text()}")
            with suppress(subprocess.TimeoutExpired):
                self._node.wait(LOOK_SECONDS)

    def mint(self, *arguments: str, seconds: float = 90.0) -> "subprocess.CompletedProcess[str]":
        """Run a command of mint on this host, beside its node if there is one."""
        return subprocess.run(
            [*self._inside, *MINT, *arguments],
            env=self._environment, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip

    def python(self, program: str, *arguments: str, log: Path) -> "subprocess.Popen[str]":
        """Start a Python program on this host, with pipes for input and output; its errors go to `log`."""
        with log.open("wb") as errors:
            return subprocess.Popen(
                [*self._inside, sys.executable, "-c", program, *arguments],
                env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def listeners(self) -> set[int]:
        """The ports with a listener on this host."""
        shown = subprocess.run(
            [*self._inside, "ss", "-Hltn"], capture_output=True, text=True, check=True, timeout=20
        ).stdout
        return {int(line.split()[3].rpartition(":")[2]) for line in shown.splitlines()}

    def pull_cable(self) -> None:
        """Disconnect this host from the switch."""
        _ip("-n", self._lab.switch, "link", "set", self._cable, "down")

    def plug_cable(self) -> None:
        """Connect this host again."""
        _ip("-n", self._lab.switch, "link", "set", self._cable, "up")

    @contextmanager
    def slow_cable(self, mbit: int) -> Iterator[None]:
        """Limit the sending rate of this host to `mbit` million bits per second."""
        inside = ("ip", "netns", "exec", self._net, "tc", "qdisc")
        shape = ("tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "400ms")
        subprocess.run([*inside, "add", "dev", "eth0", "root", *shape], check=True, capture_output=True, timeout=20)
        try:
            yield
        finally:
            subprocess.run([*inside, "del", "dev", "eth0", "root"], check=True, capture_output=True, timeout=20)

    def processes(self, name: str) -> list[int]:
        """The processes of this host that have `name` in their command line."""
        pids, unseen = [], [self._node.pid] if self._node else []
        while unseen:
            pid = unseen.pop()
            unseen += _children(pid)
            with suppress(OSError):
                if name in Path(f"/proc/{pid}/cmdline").read_text():
                    pids.append(pid)
        return pids

    @contextmanager
    def slowed(self, name: str, *, of: float, during: float) -> Iterator[None]:
        """Run the processes `name` only for the first `during` of every `of` seconds; 0 stops them."""
        over = threading.Event()
        stopped = set(_signal(self.processes(name), signal.SIGSTOP))

        def slow_down() -> None:
            while not over.wait(of - during):
                if during:
                    _signal(stopped & set(self.processes(name)), signal.SIGCONT)
                    over.wait(during)
                stopped.update(_signal(self.processes(name), signal.SIGSTOP))

        thread = threading.Thread(target=slow_down)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            _signal(stopped & set(self.processes(name)), signal.SIGCONT)

    def end(self, name: str) -> None:
        """Kill the processes `name` without warning."""
        _signal(self.processes(name), signal.SIGKILL)

    def kill(self) -> None:
        """Cut the power: kill the first process of the host, and all others with it."""
        if self._node and self._node.poll() is None:
            _signal(_children(self._node.pid), signal.SIGKILL)
            self._node.wait(20)
        self._node = None
        shutil.rmtree(self.folder / "ray", ignore_errors=True)

    def remove(self) -> None:
        """End all processes of this host and remove its network."""
        self.kill()
        _ip("netns", "del", self._net)

    @property
    def _environment(self) -> Mapping[str, str]:
        environment = {name: value for name, value in os.environ.items() if name not in (TOKEN_VARIABLE, "LD_PRELOAD")}
        return environment | {
            "MINT_CONFIG": str(self.folder / "config"),
            "MINT_CACHE": str(self._lab.cache),
            "PYTHONPATH": str(_ROOT),
        }

    @property
    def _inside(self) -> list[str]:
        if self._node is None:
            return ["ip", "netns", "exec", self._net]
        (first,) = _children(self._node.pid)
        return ["nsenter", "-t", str(first), "--net", "--uts", "--mount", "--pid"]


class Lab:
    """Hosts on a switch; the first is the head of a cluster when it is started."""

    def __init__(self, folder: Path, cache: Path, hosts: int = 3) -> None:
        self.folder = folder
        self.cache = cache
        self.number = next(_labs)
        self.switch = f"mint-{os.getpid()}-{self.number}"
        self.hosts: list[Host] = []
        self.token = folder / "token"
        make_token(self.token)
        Path("/tmp/ray").mkdir(exist_ok=True)
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "br0", "up")
        for number in range(1, hosts + 1):
            self.hosts.append(Host(self, number))

    @property
    def address(self) -> str:
        """Address of the head."""
        return f"{self.hosts[0].address}:6379"

    def start_head(self, *options: str) -> None:
        """Start the cluster's first node."""
        head = self.hosts[0]
        shutil.copy(self.token, head.config / "token")
        head.start("up", "--head", "--address", head.address, *options, until="Ctrl-C stops")

    def join(self, *hosts: Host, scheme: str = "") -> None:
        """Start the nodes of these hosts, one after the other."""
        for host in hosts:
            for attempt in range(STARTS):
                try:
                    host.start("join", scheme + self.address, "--token-file", str(self.token), until="joined")
                    break
                except RuntimeError as error:
                    if attempt + 1 == STARTS or "timed out during startup" not in str(error):
                        raise
                    host.kill()

    def remove(self) -> None:
        """Remove all hosts and the switch."""
        for host in reversed(self.hosts):
            host.remove()
        _ip("netns", "del", self.switch)


def cut_off(program: "subprocess.Popen[str]") -> None:
    """Kill a program of `Host.python` if it still runs, and its child inside the host."""
    if program.poll() is None:
        _signal(_children(program.pid), signal.SIGKILL)
        program.kill()
    program.wait(20)


def _children(pid: int) -> list[int]:
    pids: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            pids += map(int, thread.read_text().split())
    return pids


def _signal(pids: Sequence[int] | set[int], number: signal.Signals) -> list[int]:
    """Send a signal; return the processes that still existed."""
    alive = []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            alive.append(pid)
    return alive
