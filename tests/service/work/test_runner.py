"""Real runners, really killed, stopped and cancelled; a disk that is full. The result is mint's own, bit by bit."""

import json
import os
import random
import select
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import connect
from cluster.service.data.records import Artifact, Claim, Job, ModelRequest, Person
from cluster.service.data.states import BLOCKED, CANCELLED, DONE, FAILED, PAUSED, QUEUED
from cluster.service.queue.queue import LEASE_SECONDS, Queue
from cluster.service.settings import Settings
from cluster.service.store.model_roots import Roots
from cluster.service.store.store import RESERVE_BYTES, Store
from cluster.service.work.folder_lock import holder
from cluster.service.work.runner import DISK, OVER
from cluster.service.work.supervisor import Supervisor
from cluster.service.work.warm_runner import send_order, start
from mint.model.checkpoint.manifest import file_digest
from mint.model.source import open_source
from mint.pipeline import quantize
from mint.plan.size_range import possible_bytes
from tests.conftest import own_cache
from tests.worlds.service_world import Clock, submit
from tests.worlds.zoo import write_model

ANN = Person("ann", ("submit",))
LIMIT_SECONDS = 120.0  # for each wait; none of them takes that long on a busy machine


@pytest.fixture(autouse=True)
def _no_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in runners: on a CPU MLX calls a C++ compiler for every fused function."""
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")


@dataclass
class Runner:
    """A runner, and its output."""

    process: subprocess.Popen[bytes]
    output: TextIO

    def end(self) -> list[str]:
        """Wait for its end, and return the rest of its output; after the limit it is killed, and the test fails."""
        limit = threading.Timer(LIMIT_SECONDS, os.killpg, (self.process.pid, signal.SIGKILL))
        limit.start()
        with self.output:
            lines = list(self.output)
        self.process.wait()
        assert limit.is_alive()
        limit.cancel()
        return lines


@dataclass
class Lab:
    """A service's data, without a server."""

    data: Path
    roots: Path
    url: str

    def __post_init__(self) -> None:
        self.database = connect(self.url)
        self.queue, self.catalog = Queue(self.database), Catalog(self.database)
        self.store = Store(self.data / "store", self.catalog)
        self.settings = Settings(self.data, database=self.url, roots=(self.roots,))
        own_cache(self.data / "cache")

    def submit(self, model: str, budget: int | str = "", **options: Any) -> Job:
        identity = Roots([self.roots], self.catalog).identify(model)[1]
        text = f"{budget}B" if isinstance(budget, int) else budget
        return submit(self.queue, ModelRequest(model, identity, text, options), ANN)[0]

    def claim(self) -> Claim:
        claim = self.queue.claim("here")
        assert claim is not None
        return claim

    def begin(self, claim: Claim) -> Runner:
        """A runner as the supervisor starts it, but for its log, which the test reads."""
        read, write = os.pipe()
        process = start(self.settings, claim.job.id, write, "")
        os.close(write)
        send_order(process, self.settings, claim)
        return Runner(process, os.fdopen(read))

    def work(self) -> tuple[Job, list[str]]:
        """Run the next job until it is over; its end, and the output of its runner."""
        claim = self.claim()
        runner = self.begin(claim)
        output = runner.end()
        assert runner.process.returncode == OVER, output
        return self.queue.get(claim.job.id), output

    def expire(self) -> None:
        """Take back all leases, as if nobody had renewed them for long."""
        for held in self.queue.leases():
            self.queue.take_back(held)

    def digests(self, artifact: str) -> dict[str, str]:
        return {file.name: file.digest for file in self.catalog.get(artifact).files}


@contextmanager
def _opened(folder: Path, url: str) -> Iterator[Lab]:
    (folder / "models").mkdir()
    (folder / "data").mkdir()
    lab = Lab(folder / "data", folder / "models", url)
    yield lab
    lab.database.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with _opened(tmp_path, f"sqlite:///{tmp_path / 'service.db'}") as lab:
        yield lab


@pytest.fixture
def any_lab(tmp_path: Path, database_url: str) -> Iterator[Lab]:
    """A lab on each kind of database."""
    with _opened(tmp_path, database_url) as lab:
        yield lab


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("qwen3_moe", tmp_path_factory.mktemp("models") / "moe", shards=2, tokenizer=True)


@pytest.fixture(scope="module")
def budgets(model: Path) -> tuple[int, int]:
    source = open_source(model)
    smallest, largest = possible_bytes(source.units, source.parameters)
    return (smallest + largest) // 2, (smallest + 2 * largest) // 3


@pytest.fixture(scope="module")
def expected(model: Path, budgets: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of the files that mint itself writes."""
    folder = tmp_path_factory.mktemp("own")
    quantize(model, budgets[0], folder / "out", analysis=folder / "analysis.mint")
    return {path.name: file_digest(path).sha256 for path in (folder / "out").iterdir()}


def _units_measured(lines: list[str]) -> Counter[str]:
    return Counter(json.loads(line)["unit"] for line in lines if '"unit.measured"' in line)


def test_jobs_make_what_mint_makes_and_the_second_budget_of_a_model_measures_nothing(
    lab: Lab, model: Path, budgets: tuple[int, int], expected: dict[str, str]
) -> None:
    shutil.copytree(model, lab.roots / "team" / "moe")
    first = lab.submit("team/moe", budgets[0])
    job, lines = lab.work()
    assert (job.id, job.state, job.reason) == (first.id, DONE, "")
    assert lab.digests(job.artifact) == expected
    assert set(_units_measured(lines).values()) == {1}
    assert job.result["planned_bytes"] <= budgets[0] and job.result["verified"]
    assert job.needed_bytes >= job.result["planned_bytes"]
    states = [event.body["state"] for event in lab.queue.events(job.id) if event.kind == "state"]
    assert states == ["queued", "inventory", "analyzing", "solving", "assembling", "verifying", "done"]
    progress = [event.body for event in lab.queue.events(job.id) if event.kind == "progress"]
    analyzed = [body for body in progress if body["stage"] == "analyze"]
    assert analyzed[-1]["done"] == analyzed[-1]["total"] == sum(host["done"] for host in analyzed[-1]["hosts"])
    analysis = lab.catalog.find(kind="analysis")
    assert [artifact.digest for artifact in analysis] == [job.result["analysis"]]
    assert [file.name for file in analysis[0].files] == ["analysis.mint"]

    lab.submit("team/moe", budgets[1])
    other, lines = lab.work()
    assert other.state == DONE
    assert not _units_measured(lines)
    assert other.result["reused_bytes"] > 0
    assert other.artifact != job.artifact
    assert lab.catalog.find(kind="analysis") == analysis


def test_killed_and_stopped_at_any_moment_a_job_ends_with_the_same_bytes_and_measures_nothing_twice(
    lab: Lab, model: Path, budgets: tuple[int, int], expected: dict[str, str]
) -> None:
    shutil.copytree(model, lab.roots / "moe")
    job = lab.submit("moe", budgets[0])
    units = len(open_source(model).units)
    moments = random.Random(5)
    lines: list[str] = []
    for ending, events in ((signal.SIGKILL, moments.randrange(units)), (signal.SIGSTOP, moments.randrange(units))):
        runner = lab.begin(lab.claim())
        # units measured and written
        for line in runner.output:
            lines.append(line)
            events -= '"unit.' in line
            if events < 0:
                break
        with lab.database.write():  # a process that is stopped while it writes keeps SQLite's lock
            os.killpg(runner.process.pid, ending)
            if ending == signal.SIGSTOP:
                os.waitpid(runner.process.pid, os.WUNTRACED)
        if ending == signal.SIGKILL:
            lines += runner.end()
        lab.expire()
        assert lab.queue.get(job.id).state == QUEUED
        stopped = runner
    done, more = lab.work()  # ends the one that was stopped, which holds the files
    lines += [*stopped.end(), *more]
    assert stopped.process.returncode == -signal.SIGKILL
    assert (done.state, done.attempts) == (DONE, 1)  # both made progress
    assert lab.digests(done.artifact) == expected
    measured = _units_measured(lines)
    assert len(measured) == units
    assert set(measured.values()) == {1}


def test_a_job_that_is_paused_before_its_runner_begins_stops_after_a_unit_and_resumes_to_the_same_bytes(
    lab: Lab, model: Path, budgets: tuple[int, int], expected: dict[str, str]
) -> None:
    shutil.copytree(model, lab.roots / "moe")
    job = lab.submit("moe", budgets[0])
    claim = lab.claim()
    lab.queue.pause(job.id, ANN)
    runner = lab.begin(claim)
    lines = runner.end()
    assert runner.process.returncode == OVER, lines
    assert len(_units_measured(lines)) == 1
    paused = lab.queue.get(job.id)
    assert (paused.state, paused.reason, paused.attempts) == (PAUSED, "paused by ann", 0)
    lab.queue.resume(job.id, ANN)
    done, _ = lab.work()
    assert lab.digests(done.artifact) == expected


_GRANDCHILD = """
import os, subprocess, sys
if sys.argv[:1] == ["-c"]:  # a child of the runner
    subprocess.Popen(["sh", "-c", "echo begun; exec sleep 600"], stdout=open(os.environ["GRANDCHILD"], "w"))
"""


def _next_bytes(descriptor: int) -> bytes:
    """The bytes that arrive next within the limit; nothing once all writers have ended."""
    assert select.select([descriptor], [], [], LIMIT_SECONDS)[0]
    return os.read(descriptor, 4096)


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_runner_that_is_cancelled_or_done_ends_all_that_it_started(
    lab: Lab, model: Path, budgets: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    shutil.copytree(model, lab.roots / "moe")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_GRANDCHILD)
    os.mkfifo(tmp_path / "fifo")
    grandchild = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    job = lab.submit("moe", budgets[0])
    claim = lab.claim()
    with monkeypatch.context() as environment:
        environment.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
        environment.setenv("GRANDCHILD", str(tmp_path / "fifo"))
        runner = lab.begin(claim)
    assert _next_bytes(grandchild).startswith(b"begun")
    if is_cancelled:
        assert lab.queue.cancel(job.id, ANN).cancel_wanted
    runner.end()
    while _next_bytes(grandchild):  # until every grandchild has ended
        pass
    os.close(grandchild)
    ended = lab.queue.get(job.id)
    outcome = ended.state, runner.process.returncode
    assert outcome == (DONE, OVER) or (is_cancelled and outcome == (CANCELLED, -signal.SIGKILL))


def test_sigterm_gives_the_job_back(any_lab: Lab, model: Path, budgets: tuple[int, int]) -> None:
    shutil.copytree(model, any_lab.roots / "moe")
    job = any_lab.submit("moe", budgets[0])
    runner = any_lab.begin(any_lab.claim())
    next(line for line in runner.output if '"unit.' in line)
    runner.process.terminate()
    runner.end()
    assert runner.process.returncode == -signal.SIGKILL
    back = any_lab.queue.get(job.id)
    assert (back.state, back.attempts) == (QUEUED, 0)
    assert "told to stop" in back.reason


def test_a_model_that_changed_while_its_job_waited_fails_the_job_with_the_reason(lab: Lab, llama: Path) -> None:
    shutil.copytree(llama, lab.roots / "llama")
    lab.submit("llama", "4bpw")
    config = lab.roots / "llama" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 5000.0}))
    job, lines = lab.work()
    assert job.state == FAILED
    assert "the model llama has changed since it was submitted" in job.reason
    assert "Traceback" not in job.reason
    assert any("Traceback" in line for line in lines)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with 8 MiB beside what the service leaves free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = RESERVE_BYTES + (16 << 20)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("only root mounts a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(disk: Path, leave: int) -> None:
    """A file that leaves so many bytes of the disk free."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    free = shutil.disk_usage(disk).free
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)


def test_a_full_disk_blocks_a_job_until_there_is_room(small_disk: Path, tmp_path: Path, llama: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copytree(llama, tmp_path / "models" / "llama")
    lab = Lab(small_disk, tmp_path / "models", f"sqlite:///{tmp_path / 'service.db'}")
    supervisor = Supervisor(lab.queue, lab.store, lab.settings)
    lab.submit("llama", "4bpw")

    def look() -> Job:
        supervisor.unblock()
        return lab.queue.get(job.id)

    _fill(small_disk, 0)  # while it works
    job, _ = lab.work()
    assert (job.state, job.needed_bytes) == (BLOCKED, 0)
    assert job.reason.startswith(DISK)
    _fill(small_disk, RESERVE_BYTES)
    assert look().state == BLOCKED
    _fill(small_disk, RESERVE_BYTES + (12 << 20))
    assert look().state == QUEUED

    _fill(small_disk, RESERVE_BYTES + (1 << 20))  # before it assembles
    job, _ = lab.work()
    assert (job.state, job.attempts) == (BLOCKED, 0)
    assert job.needed_bytes > 1 << 20
    assert job.reason.startswith("disk: needs ")
    assert " free" in job.reason
    assert look().state == BLOCKED
    (small_disk / "ballast").unlink()
    assert look().state == QUEUED
    job, lines = lab.work()
    assert (job.state, job.attempts) == (DONE, 1)
    assert not _units_measured(lines)
    lab.database.close()


def test_a_supervisor_starts_runners_and_the_next_one_adopts_them(any_lab: Lab, llama: Path, model: Path) -> None:
    shutil.copytree(llama, any_lab.roots / "llama")
    shutil.copytree(model, any_lab.roots / "moe")
    first, second = any_lab.submit("llama"), any_lab.submit("moe")
    before = Supervisor(any_lab.queue, any_lab.store, any_lab.settings)
    before.step()
    before.stop()  # its runner goes on
    after = Supervisor(any_lab.queue, any_lab.store, any_lab.settings)
    after.step()
    assert any_lab.queue.get(second.id).state == QUEUED  # one at a time, and the first still runs
    before.wait()
    job = any_lab.queue.get(first.id)
    assert (job.state, job.attempts) == (DONE, 1)
    assert any_lab.catalog.get(job.artifact).kind == "analysis"
    after.step()
    after.wait()
    after.step()
    assert any_lab.queue.get(second.id).state == DONE
    assert [path.name for path in any_lab.settings.work_folder.iterdir()] == ["locks"]  # nothing is left of them
    assert '"job.begun"' in any_lab.settings.log_path(first.id).read_text()


@pytest.mark.parametrize("is_adopted", [False, True])
def test_a_runner_that_is_stopped_for_long_keeps_its_job(lab: Lab, llama: Path, *, is_adopted: bool) -> None:
    shutil.copytree(llama, lab.roots / "llama")
    job = lab.submit("llama")
    clock = Clock()
    supervisor = Supervisor(lab.queue, lab.store, lab.settings, clock=clock)
    supervisor.step()
    runner = supervisor.runners[job.id]
    lock = lab.settings.work_folder / "locks" / lab.queue.leases()[0].analysis_key
    while is_adopted and not holder(lock):
        assert runner.poll() is None
    with lab.database.write():  # a process that is stopped while it writes keeps SQLite's lock
        os.killpg(runner.pid, signal.SIGSTOP)
        os.waitpid(runner.pid, os.WUNTRACED)
    watching = Supervisor(lab.queue, lab.store, lab.settings, clock=clock) if is_adopted else supervisor
    for _ in range(round(3 * LEASE_SECONDS)):
        clock.now += 1.0
        watching.step()
    assert lab.queue.get(job.id).state != QUEUED
    os.killpg(runner.pid, signal.SIGCONT)
    supervisor.wait()
    done = lab.queue.get(job.id)
    assert (done.state, done.attempts) == (DONE, 1)


def test_a_dead_runner_is_noticed_at_once_and_three_times_is_enough(
    any_lab: Lab, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(llama, any_lab.roots / "llama")
    job = any_lab.submit("llama")
    supervisor = Supervisor(any_lab.queue, any_lab.store, any_lab.settings)
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for attempt in (1, 2, 3):
        supervisor.step()
        assert any_lab.queue.get(job.id).attempts == attempt
        supervisor.wait()
    supervisor.step()
    lost = any_lab.queue.get(job.id)
    assert lost.state == FAILED
    assert "its process ended with code 7 (attempt 3 of 3)" in lost.reason


def test_a_bug_fails_the_job_with_a_line_for_people_and_the_story_in_the_log(
    any_lab: Lab, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(llama, any_lab.roots / "llama")
    any_lab.submit("llama")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import os\nos.fsync = lambda descriptor: 1 // 0\n")
    with monkeypatch.context() as environment:
        environment.setenv("PYTHONPATH", str(tmp_path / "site"))
        job, lines = any_lab.work()
    assert job.state == FAILED
    assert job.reason.startswith("something unforeseen (ZeroDivisionError: ")
    assert any("Traceback" in line for line in lines)


def test_a_folder_that_cannot_be_used_fails_the_job_with_its_name(lab: Lab, llama: Path) -> None:
    shutil.copytree(llama, lab.roots / "llama")
    lab.submit("llama")
    lab.settings.work_folder.mkdir()
    (lab.settings.work_folder / "locks").write_text("a file where a folder has to be")
    job, _ = lab.work()
    assert job.state == FAILED
    assert job.reason.endswith("/locks: File exists; fix that and run the same command again")


def test_the_same_files_are_the_same_artifact_whoever_made_them(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("bytes")
    one = lab.store.put("model", "one", {"file": tmp_path / "file"})
    assert isinstance(one, Artifact)
    assert lab.digests(one.digest) == {"file": file_digest(tmp_path / "file").sha256}
