"""Several processes and threads on one database: one claim per job, no lock errors, crashes at any statement."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import Any

from sqlalchemy import Engine, event

from cluster.service.data.database import connect
from cluster.service.data.records import Person, Quota
from cluster.service.data.states import DONE, FAILED, QUEUED
from cluster.service.errors import QuotaExceededError
from cluster.service.queue.queue import LEASE_SECONDS, Queue
from tests.worlds.service_world import ANN, BOB, World, check_laws, model_request, quota, submit

SPAWN = get_context("spawn")


def _in_processes(work: Callable[..., None], arguments: list[tuple[Any, ...]]) -> None:
    processes = [SPAWN.Process(target=work, args=argument) for argument in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def _claim_many(url: str, host: str, most: int, ready: Barrier, claims: "SimpleQueue[list[str]]") -> None:
    database = connect(url)
    queue, ids = Queue(database), list[str]()
    ready.wait()
    while len(ids) < most and (claim := queue.claim(host)):
        ids.append(claim.job.id)
        assert queue.renew(claim)
    claims.put(ids)
    database.close()


def test_two_servers_claim_every_job_once(database_url: str) -> None:
    database = connect(database_url)
    queue, many, most = Queue(database), 40, 30  # neither can claim all
    ids = [submit(queue, model_request(f"m{n}"), (ANN, BOB)[n % 2])[0].id for n in range(many)]
    ready, claims = SPAWN.Barrier(2), SPAWN.SimpleQueue()
    _in_processes(_claim_many, [(database_url, host, most, ready, claims) for host in ("here", "there")])
    claimed = claims.get() + claims.get()
    assert Counter(claimed) == Counter(ids)
    assert {job.attempts for job in queue.find()} == {1}
    check_laws(database)
    database.close()


def test_servers_that_start_at_once_make_the_tables_once(database_url: str) -> None:
    ready = threading.Barrier(4)

    def start(_: int) -> None:
        ready.wait()
        connect(database_url).close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))
    database = connect(database_url)
    assert Queue(database).find() == []
    database.close()


def test_equal_requests_at_the_same_moment_are_one_job(database_url: str) -> None:
    databases = [connect(database_url) for _ in range(4)]  # stand for different processes
    people = [Person(f"person{n}", ("submit",)) for n in range(8)]
    ready = threading.Barrier(len(people))

    def submit_five(number: int) -> list[tuple[str, bool]]:
        queue, answers = Queue(databases[number % len(databases)]), []
        for n in range(5):
            ready.wait()
            job, new = submit(queue, model_request(f"m{n}"), people[number])
            answers.append((job.id, new))
        return answers

    with ThreadPoolExecutor(len(people)) as pool:
        rounds = list(zip(*pool.map(submit_five, range(len(people))), strict=True))
    for answers in rounds:
        assert len({id for id, _ in answers}) == 1
        assert sum(new for _, new in answers) == 1
    assert [len(job.watchers) for job in Queue(databases[0]).find()] == [len(people)] * 5
    check_laws(databases[0])
    for database in databases:
        database.close()


def test_quotas_hold_for_concurrent_submissions(database_url: str) -> None:
    database = connect(database_url)
    queue, few = Queue(database), quota(ANN, queued=3, nbytes=100)

    def is_accepted(number: int) -> bool:
        try:
            return submit(queue, model_request(f"m{number}", "40B"), few)[1]
        except QuotaExceededError:
            return False

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(is_accepted, range(12))) == 2
    database.close()


def test_twenty_threads_and_two_servers_see_no_locked_database(database_url: str) -> None:
    databases = [connect(database_url) for _ in range(2)]
    limited = Person("carl", ("submit",), Quota(active=1))

    def live(number: int) -> None:
        world = World(databases[number % 2])
        world.submit((ANN, BOB, limited)[number % 3], f"m{number % 10}", budget=f"{number + 1}GB")
        for _ in range(3):
            if claim := world.queue.claim(f"host{number}"):
                world.queue.emit(claim, "progress", {"by": number})
                world.queue.find(watcher="ann")
                world.finish(claim)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(live, range(20)))
    world = World(databases[0])
    while claim := world.queue.claim("last"):  # jobs that waited for the analysis of another
        world.finish(claim)
    assert world.queue.counts()[DONE] == 20
    check_laws(databases[0])
    for database in databases:
        database.close()


def _die_everywhere(url: str, step: int) -> None:
    """Run a job again and again, killed at a later statement each time."""
    for last in range(1, 1000, step):
        world = World(connect(url))
        world.clock.now += 10 * LEASE_SECONDS * last
        world.expire()
        check_laws(world.database)
        world.database.close()
        if (pid := os.fork()) == 0:
            _live_until(url, last, world.clock.now)
            os._exit(0)
        if os.waitpid(pid, 0)[1] == 0:
            return  # the job ended


def _live_until(url: str, last: int, now: float) -> None:
    world, statements = World(connect(url)), [0]
    world.clock.now = now

    def count(*_: object) -> None:
        statements[0] += 1
        if statements[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "after_cursor_execute", count)
    world.submit(ANN, f"m{last}")
    world.submit(BOB, f"m{last}")
    claim = world.claim()
    world.queue.renew(claim)
    world.queue.emit(claim, "progress", {"done": 1})
    world.finish(claim)


def test_a_crash_at_any_statement_keeps_the_database_consistent(database_url: str) -> None:
    connect(database_url).close()
    _in_processes(_die_everywhere, [(database_url, 7)])
    world = World(connect(database_url))
    world.clock.now += 10**9
    world.expire()
    check_laws(world.database)
    counts = {state: many for state, many in world.queue.counts().items() if many}
    assert set(counts) <= {QUEUED, DONE, FAILED}
    assert counts[QUEUED] > 3
    assert all("attempt 3 of 3" in job.reason for job in world.queue.find([FAILED]))
    while claim := world.queue.claim("here"):  # every job can still finish
        world.finish(claim)
    assert {job.state for job in world.queue.find(limit=1000)} <= {DONE, FAILED}
    assert {len(job.watchers) for job in world.queue.find(limit=1000)} <= {1, 2}
    check_laws(world.database)
    world.database.close()
