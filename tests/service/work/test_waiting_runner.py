"""The runner that waits for a job: when there is one, whose it is, and that it ends when nobody needs it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import connect
from cluster.service.data.records import ModelRequest, Person
from cluster.service.data.states import DONE
from cluster.service.queue.queue import Queue
from cluster.service.settings import Settings
from cluster.service.store.model_roots import Roots
from cluster.service.work.runner import OVER
from cluster.service.work.warm_runner import AGAIN_SECONDS, IDLE_SECONDS, SETTLED_SECONDS, WarmRunner, send_order, start
from tests.worlds.service_world import submit
from tests.worlds.zoo import write_model


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    settings = Settings(tmp_path / "data", database=url, roots=(tmp_path / "models",))
    for folder in (settings.work_folder, settings.log_path("").parent, *settings.roots):
        folder.mkdir(parents=True)
    return settings


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def warm(settings: Settings, clock: Clock) -> Iterator[WarmRunner]:
    warm = WarmRunner(settings, early=False, clock=clock)
    yield warm
    warm.drop()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_nobody_waits_before_the_first_job(warm: WarmRunner) -> None:
    warm.keep(working=False)
    assert not warm.pid


def test_one_that_has_kernels_to_compile_waits_before_the_first_job(settings: Settings, clock: Clock) -> None:
    warm = WarmRunner(settings, early=True, clock=clock)
    warm.keep(working=False)
    assert warm.pid
    warm.drop()


def test_one_is_started_when_the_machine_has_nothing_else_to_begin(warm: WarmRunner, clock: Clock) -> None:
    assert warm.take("") is None
    warm.keep(working=True)
    assert not warm.pid
    clock.now = SETTLED_SECONDS
    warm.keep(working=True)
    waiting = warm.pid
    assert waiting
    warm.keep(working=True)
    assert warm.pid == waiting  # one is enough


def test_one_that_nobody_needs_is_let_go(warm: WarmRunner, clock: Clock) -> None:
    warm.take("")
    warm.keep(working=False)
    waiting = warm.pid
    clock.now = IDLE_SECONDS - 1
    warm.keep(working=False)
    assert warm.pid == waiting
    clock.now = IDLE_SECONDS
    warm.keep(working=False)
    assert not warm.pid
    assert not _is_there(waiting)


def test_one_with_another_library_is_not_given(warm: WarmRunner) -> None:
    warm.take("")
    warm.keep(working=False)
    waiting = warm.pid
    assert warm.take("libother.so") is None
    assert not _is_there(waiting)


def test_one_that_died_is_not_given_and_replaced(warm: WarmRunner) -> None:
    warm.take("")
    warm.keep(working=False)
    waiting = warm.pid
    os.killpg(waiting, 9)
    os.waitid(os.P_PID, waiting, os.WEXITED | os.WNOWAIT)
    assert warm.take("") is None
    warm.keep(working=False)
    assert warm.pid not in (0, waiting)


def test_where_they_die_with_nothing_to_do_few_are_started(warm: WarmRunner, clock: Clock) -> None:
    warm.take("")
    started = 0
    for part in range(10):
        clock.now = part * AGAIN_SECONDS / 5
        warm.keep(working=False)
        if waiting := warm.pid:
            started += 1
            os.killpg(waiting, 9)
            os.waitid(os.P_PID, waiting, os.WEXITED | os.WNOWAIT)
    assert started == 2


def test_it_ends_with_the_service_however_that_ends(settings: Settings) -> None:
    with settings.log_path("spare").open("ab") as output:
        waiting = start(settings, "", output.fileno(), "")
    assert waiting.stdin
    waiting.stdin.close()  # as the system does for a process that is killed
    assert waiting.wait() == 0


def test_a_job_that_it_is_told_is_done_as_by_any_runner(settings: Settings, warm: WarmRunner) -> None:
    write_model("llama", settings.roots[0] / "llama", tokenizer=True)
    database = connect(settings.database_url)
    queue = Queue(database)
    request = ModelRequest("llama", Roots(settings.roots, Catalog(database)).identify("llama")[1], "5bpw")
    job, _ = submit(queue, request, Person("ann", ("submit",)))
    claim = queue.claim("here")
    assert claim
    warm.take("")
    warm.keep(working=False)
    runner = warm.take("")
    assert runner
    send_order(runner, settings, claim)
    assert runner.wait() == OVER, settings.log_path("spare").read_text() + settings.log_path(job.id).read_text()
    done = queue.get(job.id)
    assert done.state == DONE
    assert Catalog(database).get(done.artifact).kind == "model"
    assert '"job.begun"' in settings.log_path(job.id).read_text()
    assert not settings.log_path("spare").read_text()
    assert (settings.data / "cache" / "analyses").is_dir()
    assert not (settings.data / "cache" / "kernels").exists()  # they are those of all that mint does here
    database.close()
