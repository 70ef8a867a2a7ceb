"""A pause costs nothing: of the runner, of the service, of the machine. All clocks are virtual."""

import pytest

from cluster.service.data.database import Database
from cluster.service.data.records import Lease
from cluster.service.data.states import QUEUED
from cluster.service.queue.queue import LEASE_SECONDS
from cluster.service.work.awake_clock import AwakeClock
from cluster.service.work.lease_watch import LeaseWatch
from tests.worlds.service_world import Clock, World

HOURS = 8 * 3600.0


class Watched(World):
    """A world that a supervisor on host `here` watches, in rounds of half a second on its own clock."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.monotonic = Clock(0.0)
        self.living: set[str] = set()  # jobs whose runners live here
        self.watch = self.watcher(lives=True)

    def watcher(self, *, lives: bool) -> LeaseWatch:
        return LeaseWatch(self.queue, lambda held: lives and held.job in self.living, self.monotonic)

    def rounds(self, seconds: float, *watches: LeaseWatch) -> list[str]:
        """The jobs that are taken back within some seconds of rounds."""
        lost = []
        for _ in range(round(seconds / 0.5)):
            self.monotonic.now += 0.5
            self.clock.now += 0.5
            for watch in watches or (self.watch,):
                lost += [job.id for job in watch.look()]
        return lost


@pytest.fixture
def watched(database: Database) -> Watched:
    return Watched(database)


def test_a_lease_that_nobody_renews_is_taken_back_after_its_time(watched: Watched) -> None:
    job = watched.submit()
    claim = watched.claim()
    assert watched.rounds(LEASE_SECONDS) == []
    assert watched.rounds(1.0) == [job.id]
    assert watched.queue.renew(claim) is Lease.LOST
    assert watched.queue.get(job.id).state == QUEUED


@pytest.mark.parametrize("wall", [0.0, HOURS, -HOURS])
@pytest.mark.parametrize("monotonic", [0.0, HOURS])
def test_no_jump_of_a_clock_takes_a_lease(watched: Watched, wall: float, monotonic: float) -> None:
    watched.submit()
    claim = watched.claim()
    assert watched.rounds(LEASE_SECONDS / 2) == []
    watched.clock.now += wall  # the machine sleeps, or its clock is set
    watched.monotonic.now += monotonic  # which counts sleep on some systems
    assert watched.rounds(LEASE_SECONDS / 4) == []
    assert watched.queue.renew(claim) is Lease.HELD
    assert watched.rounds(LEASE_SECONDS) == []
    assert watched.queue.get(claim.job.id).attempts == 1


def test_many_naps_are_no_silence(watched: Watched) -> None:
    watched.submit()
    claim = watched.claim()
    for _ in range(100):
        watched.monotonic.now += HOURS
        assert watched.watch.look() == []
        watched.clock.now += HOURS
        assert watched.queue.renew(claim) is Lease.HELD


def test_a_runner_that_lives_keeps_its_lease_however_long_it_is_silent(watched: Watched) -> None:
    job = watched.submit()
    claim = watched.claim()
    watched.living.add(job.id)
    elsewhere = watched.watcher(lives=False)
    assert watched.rounds(10 * LEASE_SECONDS, watched.watch, elsewhere) == []
    assert watched.queue.renew(claim) is Lease.HELD
    watched.living.clear()
    assert watched.rounds(LEASE_SECONDS + 1, elsewhere) == [job.id]


def test_an_awake_clock_counts_time_but_no_pause() -> None:
    clock = Clock(5.0)
    awake = AwakeClock(2.0, clock)
    readings = []
    for seconds in (1.0, HOURS, -HOURS, 0.5):
        clock.now += seconds
        readings.append(awake())
    assert readings == [1.0, 3.0, 3.0, 3.5]
