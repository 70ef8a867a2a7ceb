"""Real nodes of `mint cluster` in network namespaces of their own, joined by a switch: tokens, listeners, deaths.

Needs root; everything that is set up is removed. Each node has its own network, processes, /dev/shm and /tmp/ray.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.settings import TOKEN_VARIABLE, make_token
from mint.analyze import analyze
from mint.source import open_source
from tests.conftest import own_cache
from tests.zoo import write_model

pytest.importorskip("ray", reason="the cluster's tests need ray: pip install 'mint-mlx[cluster]'")

HEAD = "10.77.0.1:6379"
MINT = (sys.executable, "-c", "from mint.cli import main; main()")
UP_SECONDS = 120.0
RUN_SECONDS = 120.0
LOOK_SECONDS = 0.1
DRIVER = """
import sys
from pathlib import Path
from mint.analyze import analyze
from mint.places import executing
from mint.source import open_source

def pausing(executor):
    def run(source, job, units):
        for number, result in enumerate(executor(source, job, units)):
            if number == 0:
                print("first", flush=True)
                sys.stdin.readline()
            yield result
    return run

address, model, output = sys.argv[1:]
with executing(address, Path(model)) as (folder, executor):
    analyze(open_source(folder), Path(output), executor=pausing(executor))
"""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


def _permitted() -> str:
    """Why namespaces cannot be made here; empty when they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    if missing := [tool for tool in ("ip", "unshare", "nsenter", "ss") if not shutil.which(tool)]:
        return f"needs {', '.join(missing)}"
    name = f"mint-{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
        subprocess.run(["unshare", "--pid", "--fork", "--mount", "true"], check=True, capture_output=True, timeout=20)
    except subprocess.CalledProcessError as error:
        return f"namespaces are not permitted here: {error.stderr}"
    return ""


class Host:
    """A machine of the lab: a network namespace with a cable to the switch, and what runs there."""

    def __init__(self, lab: "Lab", number: int) -> None:
        self.address = f"10.77.0.{number}"
        self._lab = lab
        self._net = f"{lab.switch}-{number}"
        self._cable = f"v{os.getpid() % 10**7}-{number}"
        self.folder = lab.folder / f"host{number}"
        for name in ("config/cluster", "ray"):
            (self.folder / name).mkdir(parents=True)
        self.node: subprocess.Popen[bytes] | None = None
        self._ran = 0
        _ip("netns", "add", self._net)
        _ip("link", "add", self._cable, "netns", lab.switch, "type", "veth", "peer", "name", "eth0", "netns", self._net)
        _ip("-n", lab.switch, "link", "set", self._cable, "master", "br0", "up")
        _ip("-n", self._net, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", self._net, "link", "set", device, "up")

    @property
    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in (TOKEN_VARIABLE, "LD_PRELOAD")}
        return {
            **kept,
            "MINT_CONFIG": str(self.folder / "config"),
            "MINT_CACHE": str(self._lab.cache),
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }

    def start(self, *arguments: str, until: str) -> None:
        """Run a command of mint cluster in the foreground of this host until it says `until`."""
        self._ran += 1
        said = self.folder / f"said{self._ran}"
        (self.folder / "ray").mkdir(exist_ok=True)
        script = 'mount -t tmpfs tmpfs /dev/shm && mount --bind "$1" /tmp/ray && shift && exec "$@"'
        self.node = subprocess.Popen(
            [
                *("ip", "netns", "exec", self._net, "unshare", "--pid", "--fork", "--kill-child", "--mount"),
                *("--mount-proc", "sh", "-c", script, "sh", str(self.folder / "ray"), *MINT, "cluster", *arguments),
            ],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=said.open("wb"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + UP_SECONDS
        while until not in said.read_text():
            assert self.node.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            with suppress(subprocess.TimeoutExpired):
                self.node.wait(LOOK_SECONDS)

    def mint(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command of mint on this host, beside its node if there is one."""
        return subprocess.run(
            [*self._inside, *MINT, *arguments], env=self._environment, capture_output=True, text=True, timeout=60
        )

    def driver(self, model: Path, output: Path) -> "subprocess.Popen[str]":
        """An analysis over the cluster that waits for a line after its first result."""
        return subprocess.Popen(
            [*self._inside, sys.executable, "-c", DRIVER, HEAD, str(model), str(output)],
            env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=(self.folder / "driver").open("wb"),
        )  # fmt: skip

    def listeners(self) -> set[int]:
        """The ports on which anybody listens here."""
        shown = subprocess.run(
            [*self._inside, "ss", "-Hltn"], capture_output=True, text=True, check=True, timeout=20
        ).stdout
        return {int(line.split()[3].rpartition(":")[2]) for line in shown.splitlines()}

    def kill(self) -> None:
        """As if the power went: the first process of the host is killed, and all others with it."""
        if self.node and self.node.poll() is None:
            for child in self._children(self.node.pid):
                os.kill(child, signal.SIGKILL)
            self.node.wait(20)
        self.node = None
        shutil.rmtree(self.folder / "ray", ignore_errors=True)

    def remove(self) -> None:
        self.kill()
        _ip("netns", "del", self._net)

    @property
    def _inside(self) -> list[str]:
        if self.node is None:
            return ["ip", "netns", "exec", self._net]
        (first,) = self._children(self.node.pid)
        return ["nsenter", "-t", str(first), "--net", "--mount", "--pid"]

    @staticmethod
    def _children(pid: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Lab:
    """Three hosts on a switch, a model that all of them hold, and the analysis that one process makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = own_cache(folder / "cache")
        self.model = write_model("qwen3_moe", folder / "models" / "moe", tokenizer=True)
        analyze(open_source(self.model), folder / "alone.mint")
        self.alone = (folder / "alone.mint").read_bytes()
        self.token = folder / "token"
        make_token(self.token)
        Path("/tmp/ray").mkdir(exist_ok=True)
        self.switch = f"mint-{os.getpid()}"
        self.hosts: list[Host] = []
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "br0", "up")
        for number in (1, 2, 3):
            self.hosts.append(Host(self, number))

    def join(self, host: Host) -> None:
        host.start("join", HEAD, "--token-file", str(self.token), until="joined")

    def remove(self) -> None:
        for host in reversed(self.hosts):
            host.remove()
        _ip("netns", "del", self.switch)

    def run(self, name: str, accident: "threading.Thread") -> bytes:
        """The analysis over the cluster; the accident begins after the first result."""
        output = self.folder / f"{name}.mint"
        driver = self.hosts[0].driver(self.model, output)
        timer = threading.Timer(RUN_SECONDS, driver.kill)
        timer.start()
        try:
            assert driver.stdout
            assert driver.stdin
            assert driver.stdout.readline() == "first\n", (self.hosts[0].folder / "driver").read_text()
            accident.start()
            driver.stdin.write("\n")
            driver.stdin.close()
            assert driver.wait() == 0, (self.hosts[0].folder / "driver").read_text()
        finally:
            timer.cancel()
            driver.kill()
            accident.join()
        return output.read_bytes()

    def living(self) -> set[str]:
        """The nodes that answer, as the head's host shows them."""
        done = self.hosts[0].mint("cluster", "status", HEAD, "--json")
        assert done.returncode == 0, done.stderr
        return {node["node"] for node in json.loads(done.stdout)["nodes"] if node["answers"]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if why := _permitted():
        pytest.skip(why)
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        head = lab.hosts[0]
        shutil.copy(lab.token, head.folder / "config" / "cluster" / "token")
        head.start("up", "--head", "--address", head.address, until="Ctrl-C ends")
        yield lab
    finally:
        lab.remove()


def test_nobody_gets_in_without_the_token(lab: Lab) -> None:
    stranger = lab.hosts[1]
    none = stranger.mint("cluster", "join", HEAD)
    assert none.returncode == 1
    assert "no token at" in none.stderr
    guess = lab.folder / "guess"
    make_token(guess)
    started = time.monotonic()
    wrong = stranger.mint("cluster", "join", HEAD, "--token-file", str(guess))
    assert wrong.returncode == 1
    assert "token rejected" in wrong.stderr
    assert time.monotonic() - started < 20, "Ray itself tries for longer"


def test_with_the_token_they_join_and_few_ports_are_open(lab: Lab) -> None:
    for host in lab.hosts[1:]:
        lab.join(host)
    assert lab.living() == {host.address for host in lab.hosts}
    for host in lab.hosts:
        listening = host.listeners()
        assert not listening & {8265, 8266, 10001, 52365}  # dashboard, client server, agent
        assert len(listening) <= 8, listening


def test_a_node_that_is_killed_is_done_without_and_may_come_back(lab: Lab) -> None:
    victim = lab.hosts[2]
    assert lab.run("killed", threading.Thread(target=victim.kill)) == lab.alone
    lab.join(victim)
    assert victim.address in lab.living()
