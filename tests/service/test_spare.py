"""The runner that waits for a job: when there is one, whose it is, and that it ends when nobody needs it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.service.data.catalog import Ledger
from cluster.service.data.database import connect
from cluster.service.data.records import Person, Wish
from cluster.service.data.states import DONE
from cluster.service.queue.queue import Queue
from cluster.service.store.model_roots import Roots
from cluster.service.work.runner import OVER, RunnerSettings
from cluster.service.work.warm_runner import AGAIN_SECONDS, IDLE_SECONDS, SETTLED_SECONDS, WarmRunner, start
from tests.worlds.zoo import write_model


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def place(tmp_path: Path) -> RunnerSettings:
    place = RunnerSettings(tmp_path / "data", (tmp_path / "models",))
    for folder in (place.locks, place.log("").parent, *place.roots):
        folder.mkdir(parents=True)
    return place


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spare(place: RunnerSettings, clock: Clock) -> Iterator[WarmRunner]:
    spare = WarmRunner(place, clock=clock)
    yield spare
    spare.drop()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_nobody_waits_before_the_first_job(spare: WarmRunner) -> None:
    spare.keep(working=False)
    assert not spare.pid


def test_one_that_has_kernels_to_compile_waits_before_the_first_job(place: RunnerSettings, clock: Clock) -> None:
    spare = WarmRunner(place, early=True, clock=clock)
    spare.keep(working=False)
    assert spare.pid
    spare.drop()


def test_one_is_started_when_the_machine_has_nothing_else_to_begin(spare: WarmRunner, clock: Clock) -> None:
    assert spare.take("") is None
    spare.keep(working=True)
    assert not spare.pid
    clock.now = SETTLED_SECONDS
    spare.keep(working=True)
    waiting = spare.pid
    assert waiting
    spare.keep(working=True)
    assert spare.pid == waiting  # one is enough


def test_one_that_nobody_needs_is_let_go(spare: WarmRunner, clock: Clock) -> None:
    spare.take("")
    spare.keep(working=False)
    waiting = spare.pid
    clock.now = IDLE_SECONDS - 1
    spare.keep(working=False)
    assert spare.pid == waiting
    clock.now = IDLE_SECONDS
    spare.keep(working=False)
    assert not spare.pid
    assert not _is_there(waiting)


def test_one_with_another_library_is_not_given(spare: WarmRunner) -> None:
    spare.take("")
    spare.keep(working=False)
    waiting = spare.pid
    assert spare.take("libother.so") is None
    assert not _is_there(waiting)


def test_one_that_died_is_not_given_and_replaced(spare: WarmRunner) -> None:
    spare.take("")
    spare.keep(working=False)
    waiting = spare.pid
    os.killpg(waiting, 9)
    os.waitid(os.P_PID, waiting, os.WEXITED | os.WNOWAIT)
    assert spare.take("") is None
    spare.keep(working=False)
    assert spare.pid not in (0, waiting)


def test_where_they_die_with_nothing_to_do_few_are_started(spare: WarmRunner, clock: Clock) -> None:
    spare.take("")
    started = 0
    for part in range(10):
        clock.now = part * AGAIN_SECONDS / 5
        spare.keep(working=False)
        if waiting := spare.pid:
            started += 1
            os.killpg(waiting, 9)
            os.waitid(os.P_PID, waiting, os.WEXITED | os.WNOWAIT)
    assert started == 2


def test_it_ends_with_the_service_however_that_ends(place: RunnerSettings) -> None:
    with place.log("spare").open("ab") as said:
        waiting = start(place, "", said.fileno())
    assert waiting.stdin
    waiting.stdin.close()  # as the system does for a process that is killed
    assert waiting.wait() == 0


def test_a_job_that_it_is_told_is_done_as_by_any_runner(
    place: RunnerSettings, spare: WarmRunner, tmp_path: Path
) -> None:
    write_model("llama", place.roots[0] / "llama", tokenizer=True)
    url = f"sqlite:///{tmp_path / 'service.db'}"
    database = connect(url)
    queue = Queue(database)
    wish = Wish("llama", Roots(place.roots).identify("llama")[1], "5bpw")
    job, _ = queue.submit(wish, Person("ann", ("submit",)))
    claim = queue.claim("here")
    assert claim
    spare.take("")
    spare.keep(working=False)
    runner = spare.take("")
    assert runner and runner.stdin
    told = {"job": job.id, "database": url, "lease": claim.lease}
    runner.stdin.write(json.dumps(told).encode() + b"\n")
    runner.stdin.close()
    assert runner.wait() == OVER, place.log("spare").read_text() + place.log(job.id).read_text()
    done = queue.get(job.id)
    assert done.state == DONE
    assert Ledger(database).get(done.artifact).kind == "model"
    assert '"job.begun"' in place.log(job.id).read_text()
    assert not place.log("spare").read_text()
    assert (place.data / "cache" / "analyses").is_dir()
    assert not (place.data / "cache" / "kernels").exists()  # they are those of all that mint does here
    database.close()
