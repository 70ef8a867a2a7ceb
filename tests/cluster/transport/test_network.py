"""Real nodes of `mint cluster` on machines of their own (`tools.lab`): strangers, deaths, pulled cables, slow nodes.

Needs root; everything that is set up is removed.
"""

import json
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.ops.certificates import make_certificates
from cluster.settings import make_token
from mint.analysis.analyze import analyze
from mint.model.source import open_source
from tests.conftest import own_cache
from tools.lab.service import Host, Lab, cut_off, not_permitted
from tools.models.make_shape import write_shape
from tools.models.shapes import QWEN3_06B, Shape, qwen3

pytest.importorskip("ray", reason="the cluster's tests need ray: pip install 'mint-mlx[cluster]'")

LIMIT_SECONDS = 240.0  # a run that hangs fails; on a loaded machine workers alone take a minute to start
SLOW_MBIT = 40
CABLE_SECONDS = 25.0  # longer than the 20 s after which TCP gives up what it has sent
WORKER = "ray::Worker"  # the process that measures, as Ray names it
SMALL = Shape(QWEN3_06B | {"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 2048}, qwen3)
# an analysis over the cluster that says when this many results are there, and goes on when it reads a line
DRIVER = """
import sys
from pathlib import Path
from mint.analysis.analyze import analyze
from mint.core.log import configure_logging
from mint.run.executor import executing
from mint.model.source import open_source
from tests.worlds.executors import FunctionExecutor

configure_logging(level="debug")
address, model, output, pause, only = sys.argv[1:]

def pausing(executor):
    def run(source, job, units):
        for number, result in enumerate(executor(source, job, units), 1):
            yield result
            if number == int(pause):
                print("reached", flush=True)
                sys.stdin.readline()
    return FunctionExecutor(run, executor.devices, executor.made_by)

with executing(address, Path(model)) as (folder, executor):
    for link in list(executor.carrier.links.values()):
        if not link.node.name.startswith(only):
            executor.carrier.refuse(link, "not asked")
    analyze(open_source(folder), Path(output), executor=pausing(executor))
"""

LINKS = """
import json, sys
from pathlib import Path
from mint.run.executor import executing

with executing(sys.argv[1], Path(sys.argv[2])) as (folder, executor):
    carrier = executor.carrier
    print(json.dumps({link.node.name.split("/")[0]: carrier.rate_of(link) for link in carrier.links.values()}))
"""

Accident = Callable[["subprocess.Popen[str]"], object]


@dataclass(frozen=True, slots=True)
class Run:
    """The outcome of an analysis over the cluster."""

    exit_code: int
    said: str

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The records of this event in its log."""
        records = (json.loads(line) for line in self.said.splitlines() if line.startswith("{"))
        return [record for record in records if record["event"] == event]

    def by_host(self) -> Counter[str]:
        """The number of results of each host."""
        return Counter(record["worker"].split("/")[0] for record in self.logged("result.arrived"))

    def copied(self) -> set[str]:
        """The units that a second worker was asked for while the first still had them."""
        holders: dict[str, set[str]] = {}
        found = set()
        for record in map(json.loads, filter(lambda line: line.startswith("{"), self.said.splitlines())):
            match record["event"]:
                case "batch.sent":
                    found |= {unit for unit in record["units"] if holders.get(unit)}
                    for unit in record["units"]:
                        holders.setdefault(unit, set()).add(record["worker"])
                case "batch.shortened":
                    for unit in record["units"]:
                        holders[unit].discard(record["worker"])
        return found

    def asked_for(self) -> set[str]:
        """The units that any worker was asked for."""
        return {unit for record in self.logged("batch.sent") for unit in record["units"]}


class Bench:
    """A lab, a model that all of its hosts hold, and the analysis that one process makes of it."""

    def __init__(self, lab: Lab, scheme: str = "") -> None:
        self.lab = lab
        self.address = scheme + lab.address
        self.model = lab.folder / "models" / "small"
        self.model.mkdir(parents=True)
        write_shape(self.model, SMALL, random=True)
        analyze(open_source(self.model), lab.folder / "alone.mint")
        self.alone = (lab.folder / "alone.mint").read_bytes()
        self._runs = 0

    def output(self, name: str) -> Path:
        return self.lab.folder / f"{name}.mint"

    def run(self, name: str, accident: Accident, *, pause: int = 1, only: Host | None = None) -> Run:
        """The analysis over the cluster, or `only` one host; after `pause` results it waits for the accident."""
        self._runs += 1
        log = self.lab.folder / f"driver{self._runs}"
        arguments = (self.address, str(self.model), str(self.output(name)), str(pause), only.name if only else "")
        driver = self.lab.hosts[0].python(DRIVER, *arguments, log=log)
        timer = threading.Timer(LIMIT_SECONDS, cut_off, [driver])
        timer.start()
        try:
            assert driver.stdout
            assert driver.stdin
            assert driver.stdout.readline() == "reached\n", log.read_text()
            accident(driver)
            if driver.poll() is None:
                driver.stdin.write("\n")
                driver.stdin.close()
            driver.wait()
        finally:
            timer.cancel()
            cut_off(driver)
        return Run(driver.returncode, log.read_text())

    def finish(self, name: str, accident: Accident, *, pause: int = 1, only: Host | None = None) -> Run:
        """A run that must end well, with the result of one process."""
        run = self.run(name, accident, pause=pause, only=only)
        assert run.exit_code == 0, run.said
        assert self.output(name).read_bytes() == self.alone
        return run

    def living(self) -> set[str]:
        """The nodes that answer, as the head's host shows them."""
        done = self.lab.hosts[0].mint("cluster", "status", self.address, "--json")
        assert done.returncode == 0, done.stderr
        return {node["node"] for node in json.loads(done.stdout)["nodes"] if node["answers"]}


@contextmanager
def _made_lab(folder: Path, hosts: int) -> Iterator[Lab]:
    if why := not_permitted():
        pytest.skip(why)
    lab = Lab(folder, own_cache(folder / "cache"), hosts)
    try:
        yield lab
    finally:
        lab.remove()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with _made_lab(tmp_path_factory.mktemp("lab"), 3) as lab:
        lab.start_head()
        yield Bench(lab)


def _nothing(_: object) -> None:
    """No accident."""


def test_nobody_gets_in_without_the_token(bench: Bench) -> None:
    stranger = bench.lab.hosts[1]
    none = stranger.mint("cluster", "join", bench.lab.address)
    assert none.returncode == 1
    assert "no token at" in none.stderr
    guess = bench.lab.folder / "guess"
    make_token(guess)
    wrong = stranger.mint("cluster", "join", bench.lab.address, "--token-file", str(guess))
    assert wrong.returncode == 1
    assert "token rejected" in wrong.stderr
    assert bench.living() == {bench.lab.hosts[0].address}


def test_with_the_token_they_join_and_few_ports_are_open(bench: Bench) -> None:
    hosts = bench.lab.hosts
    bench.lab.join(*hosts[1:])
    assert bench.living() == {host.address for host in hosts}
    for host in hosts:
        listening = host.listeners()
        assert not listening & {8265, 8266, 10001, 52365}  # dashboard, client server, agent
        assert len(listening) <= 8, listening


def test_how_fast_bytes_of_a_node_arrive_is_what_its_cable_lets_through(bench: Bench) -> None:
    own, slow, _ = bench.lab.hosts
    with slow.slow_cable(SLOW_MBIT):
        driver = own.python(LINKS, bench.address, str(bench.model), log=bench.lab.folder / "links")
        told, _ = driver.communicate(timeout=LIMIT_SECONDS)
    rates = json.loads(told)
    most = SLOW_MBIT * 1e6 / 8
    assert most / 4 < rates[slow.name] < 1.1 * most, rates
    assert rates[own.name] > 2 * most, rates


@pytest.mark.parametrize("during", [0.0, 0.05])
def test_a_node_that_sleeps_or_is_slow_does_little_and_is_not_waited_for(bench: Bench, during: float) -> None:
    """Its open units at the end are done a second time elsewhere, long before it counts as lost."""
    with ExitStack() as until_the_end:

        def slow(_: object) -> None:
            until_the_end.enter_context(bench.lab.hosts[1].slowed(WORKER, of=1.0, during=during))

        run = bench.finish(f"slow{during}", slow)
    assert not run.logged("worker.dismissed")
    done = run.by_host()
    assert done["host2"] < done.total() / 5
    if not any(record["worker"].startswith("host2/") for record in run.logged("batch.sent")):
        pytest.skip("all was done before the second host was ready, on a machine as loaded as this")
    assert during or run.copied(), "what it had in hand"


def test_a_driver_that_is_killed_goes_on_from_its_journal(bench: Bench) -> None:
    units = {unit.path for unit in open_source(bench.model).units}
    half = len(units) // 2
    killed = bench.run("resumed", cut_off, pause=half)
    assert killed.exit_code
    first = [record["unit"] for record in killed.logged("unit.measured")]
    assert len(first) == half
    again = bench.finish("resumed", _nothing)
    assert again.asked_for() == units - set(first)


@contextmanager
def _cable_out(host: Host) -> Iterator[Accident]:
    """The accident that pulls a host's cable; it is back before this ends."""
    with ExitStack() as until_the_end:

        def pull(_: object) -> None:
            host.pull_cable()
            plug = threading.Timer(CABLE_SECONDS, host.plug_cable)
            plug.start()
            until_the_end.callback(plug.join)

        yield pull


def test_a_cable_that_is_pulled_for_a_while_changes_nothing(bench: Bench) -> None:
    host = bench.lab.hosts[1]
    with _cable_out(host) as pull:
        bench.finish("pulled", pull)


def test_work_that_only_one_node_can_do_waits_until_its_cable_is_back(bench: Bench) -> None:
    host = bench.lab.hosts[1]
    with _cable_out(host) as pull:
        run = bench.finish("awaited", pull, only=host)
    assert set(run.by_host()) == {"host2"}


def test_with_tls_only_machines_of_one_authority_are_let_in(tmp_path_factory: pytest.TempPathFactory) -> None:
    with _made_lab(tmp_path_factory.mktemp("tls"), 2) as lab:
        head, worker = lab.hosts
        ours = make_certificates([head.address, worker.address], lab.folder / "ours")
        theirs = make_certificates([head.address, worker.address], lab.folder / "theirs")
        shutil.copytree(ours[0], head.config / "tls")
        lab.start_head("--tls")
        join = ("cluster", "join", "--token-file", str(lab.token))
        plain = worker.mint(*join, lab.address)
        assert (plain.returncode, "speaks TLS; needed: --tls" in plain.stderr) == (1, True), plain.stderr
        none = worker.mint(*join, f"tls://{lab.address}")
        assert (none.returncode, "needed for TLS" in none.stderr) == (1, True), none.stderr
        shutil.copytree(theirs[1], worker.config / "tls")
        other = worker.mint(*join, f"tls://{lab.address}")
        assert (other.returncode, "the certificates do not fit" in other.stderr) == (1, True), other.stderr
        shutil.rmtree(worker.config / "tls")
        shutil.copytree(ours[1], worker.config / "tls")
        lab.join(worker, scheme="tls://")
        bench = Bench(lab, "tls://")
        assert bench.living() == {head.address, worker.address}
        run = bench.finish("encrypted", _nothing)
        assert len(run.asked_for()) == len(open_source(bench.model).units)


def test_a_node_that_is_killed_is_done_without_and_may_come_back(bench: Bench) -> None:
    victim = bench.lab.hosts[2]
    bench.finish("killed", lambda _: victim.kill())
    bench.lab.join(victim)
    assert victim.address in bench.living()


def test_a_cluster_whose_head_is_killed_goes_on_from_the_journal_when_it_is_back(bench: Bench) -> None:
    units = {unit.path for unit in open_source(bench.model).units}
    head = bench.lab.hosts[0]

    def end(_: object) -> None:
        for name in (WORKER, "ray.scripts"):  # a worker that is left would go on without the head
            head.end(name)

    killed = bench.run("headless", end, pause=3, only=head)
    assert killed.exit_code != 0, killed.said
    assert f"the head of the cluster at {bench.lab.address} is gone" in killed.said, killed.said
    first = {record["unit"] for record in killed.logged("unit.measured")}
    assert 3 <= len(first) < len(units)
    for host in bench.lab.hosts:
        host.kill()
    bench.lab.start_head()
    bench.lab.join(bench.lab.hosts[1])
    again = bench.finish("headless", _nothing)
    assert again.asked_for() == units - first
