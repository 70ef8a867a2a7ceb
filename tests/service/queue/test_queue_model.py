"""For any sequence of actions and times, the queue equals a model in a few lines of plain Python."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from cluster.service.data.database import Database
from cluster.service.data.records import Claim, HeldLease, Lease, Person, Quota
from cluster.service.data.states import ACTIVE, BLOCKED, CANCELLED, DONE, FAILED, FINAL, INVENTORY, QUEUED, can_become
from cluster.service.errors import LeaseLostError, NotWatchingError, QuotaExceededError
from cluster.service.queue.queue import ATTEMPTS, LEASE_SECONDS
from tests.worlds.service_world import World, artifact, check_laws, clear, model_request, submit

PEOPLE = {
    "ann": Person("ann", ("submit",), Quota(active=1)),
    "bob": Person("bob", ("submit",), Quota(queued=2)),
    "eve": Person("eve", ("submit",), Quota(active=2, queued=3)),
    "root": Person("root", ("admin",)),
}


@dataclass
class Expected:
    """The expected state of a job."""

    number: int
    request: tuple[str, str]  # identity (which decides the analysis), budget
    owner: str
    watchers: dict[str, int]  # current watchers in order, and their priorities
    past_watchers: set[str]  # all watchers ever
    state: str = QUEUED
    attempts: int = 0
    seq: int = 1
    lease: str = ""
    until: float = 0.0
    reached: float = 0.0
    has_progressed: bool = False
    cancel_wanted: bool = False
    artifact: str = ""

    @property
    def live(self) -> bool:
        return self.state not in FINAL and not self.cancel_wanted

    @property
    def priority(self) -> int:
        return max(self.watchers.values())

    def become(self, state: str) -> None:
        assert can_become(self.state, state)
        self.state, self.seq = state, self.seq + 1
        if state in ACTIVE:
            self.reach(ACTIVE.index(state))
        if state not in ACTIVE:
            self.lease = ""

    def reach(self, rank: float) -> None:
        if rank > self.reached:
            self.reached, self.has_progressed = rank, True


@dataclass
class Model:
    """The queue in plain Python."""

    jobs: dict[str, Expected] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)
    turns: int = 0

    def shared(self, request: tuple[str, str]) -> str:
        same = [id for id, job in self.jobs.items() if job.request == request]
        usable = [id for id in same if self.jobs[id].live or self.jobs[id].artifact in self.stored]
        return usable[-1] if usable else ""

    def unfinished(self, name: str) -> int:
        return sum(name in job.watchers and job.state not in FINAL for job in self.jobs.values())

    def active(self, name: str) -> int:
        return sum(job.owner == name for job in self.jobs.values() if job.lease)

    def next(self) -> str:
        busy = {job.request[0] for job in self.jobs.values() if job.lease}

        def may_begin(job: Expected) -> bool:
            limit = PEOPLE[job.owner].quota.active
            return limit is None or self.active(job.owner) < limit

        ready = [
            (-job.priority, self.served.get(job.owner, 0), job.number, id)
            for id, job in self.jobs.items()
            if job.state == QUEUED and job.request[0] not in busy and may_begin(job)
        ]
        return min(ready)[-1] if ready else ""

    def lose(self, job: Expected) -> None:
        if not job.cancel_wanted:
            job.attempts -= job.has_progressed
        job.become(CANCELLED if job.cancel_wanted else QUEUED if job.attempts < ATTEMPTS else FAILED)


NTH = st.integers(0, 3)


class Service(RuleBasedStateMachine):
    """All actions on a queue, each compared with the model."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        clear(self.database)
        self.world, self.model = World(self.database), Model()
        self.queue = self.world.queue
        self.claims: list[Claim] = []  # all claims so far
        self.seen: list[HeldLease] = []  # the leases at the last look

    @initialize()
    def begin(self) -> None:
        """Some waiting and some running jobs, so that every step has something to change."""
        for name, identity, budget in (
            ("ann", "m", "1GB"),
            ("eve", "m", "2GB"),
            ("eve", "n", "1GB"),
            ("bob", "o", "1GB"),
        ):
            self.submit(name, identity, budget, 0)
        self.claim("here")
        self.claim("there")

    def nth_claim(self, n: int) -> Claim:
        """A claim: first those with a valid lease, then the latest lost ones."""
        latest_first = self.claims[::-1]
        ordered = sorted(latest_first, key=lambda claim: self.leased(claim) is None)
        return ordered[n % len(ordered)]

    def nth_job(self, n: int) -> str:
        return list(self.model.jobs)[-1 - n % len(self.model.jobs)]

    def leased(self, claim: Claim) -> Expected | None:
        """The job of a claim with a valid lease."""
        job = self.model.jobs[claim.job.id]
        return job if job.lease == claim.lease else None

    def writes(self, claim: Claim, write: Callable[[], Any]) -> Expected | None:
        """Write with a lease; an invalid lease must be refused."""
        job = self.leased(claim)
        if job is None:
            with pytest.raises(LeaseLostError):
                write()
        else:
            write()
        return job

    @rule(
        name=st.sampled_from(sorted(PEOPLE)),
        identity=st.sampled_from("mno"),
        budget=st.sampled_from(["1GB", "2GB"]),
        priority=st.integers(0, 1),
    )
    def submit(self, name: str, identity: str, budget: str, priority: int) -> None:
        id, limit = self.model.shared((identity, budget)), PEOPLE[name].quota.queued
        job = self.model.jobs.get(id)
        more = job is None or (job.state != DONE and name not in job.watchers)
        if more and limit is not None and self.model.unfinished(name) >= limit:
            with pytest.raises(QuotaExceededError):
                submit(self.queue, model_request(identity, budget), PEOPLE[name], priority)
            return
        answer, new = submit(self.queue, model_request(identity, budget), PEOPLE[name], priority)
        assert new == (job is None)
        if job is None:
            assert answer.id not in self.model.jobs
            number = len(self.model.jobs)
            self.model.jobs[answer.id] = Expected(number, (identity, budget), name, {name: priority}, {name})
            return
        assert answer.id == id
        job.watchers[name] = max(priority, job.watchers.get(name, priority))
        job.past_watchers.add(name)
        job.owner = next(iter(job.watchers))

    @rule(host=st.sampled_from(["here", "there"]))
    def claim(self, host: str) -> None:
        claim, id = self.queue.claim(host), self.model.next()
        if claim is None:
            assert id == ""
            return
        assert claim.job.id == id
        job = self.model.jobs[id]
        job.has_progressed = False
        job.become(INVENTORY)
        job.attempts += 1
        job.lease, job.until = claim.lease, self.world.clock.now + LEASE_SECONDS
        self.model.turns += 1
        self.model.served[job.owner] = self.model.turns
        limit = PEOPLE[job.owner].quota.active
        assert limit is None or self.model.active(job.owner) <= limit
        self.claims.append(claim)

    @rule(n=NTH)
    def renew(self, n: int) -> None:
        claim = self.nth_claim(n)
        lease, job = self.queue.renew(claim), self.leased(claim)
        if job is None:
            assert lease is Lease.LOST
            return
        assert lease is (Lease.CANCEL_WANTED if job.cancel_wanted else Lease.HELD)
        job.until = self.world.clock.now + LEASE_SECONDS

    @rule(n=NTH, done=st.integers(0, 4))
    def emit(self, n: int, done: int) -> None:
        claim = self.nth_claim(n)
        if job := self.writes(claim, lambda: self.queue.emit(claim, "progress", {"done": done, "total": 4})):
            job.seq += 1
            job.reach(ACTIVE.index(job.state) + done / 4)

    @rule(n=NTH, state=st.sampled_from([*ACTIVE, *FINAL]))
    def advance_anywhere(self, n: int, state: str) -> None:
        claim = self.nth_claim(n)
        if (job := self.leased(claim)) and not can_become(job.state, state):
            with pytest.raises(ValueError, match="cannot become"):
                self.queue.advance(claim, state)
        elif state != DONE and (job := self.writes(claim, lambda: self.queue.advance(claim, state))):
            job.become(state)

    @rule(n=NTH)
    def work_to_the_end(self, n: int) -> None:
        claim = self.nth_claim(n)
        result = artifact(claim.job.id)
        for state in ("analyzing", "solving", "assembling", "verifying"):
            if (job := self.leased(claim)) and can_become(job.state, state):
                self.queue.advance(claim, state)
                job.become(state)
        self.world.catalog.add(result)
        self.model.stored.add(result.digest)
        if (job := self.leased(claim)) is None or can_become(job.state, DONE):
            job = self.writes(claim, lambda: self.queue.advance(claim, DONE, artifact=result.digest))
        if job and can_become(job.state, DONE):
            job.become(DONE)
            job.artifact = result.digest

    @rule(n=NTH)
    def evict(self, n: int) -> None:
        id = self.nth_job(n)
        digest = self.model.jobs[id].artifact
        if digest in self.model.stored:
            self.world.catalog.remove(digest)
            self.model.stored.remove(digest)

    @rule(n=NTH, how=st.sampled_from(["release", "block", "forfeit"]))
    def stop(self, n: int, how: str) -> None:
        claim = self.nth_claim(n)
        if job := self.writes(claim, lambda: getattr(self.queue, how)(claim, "stopped")):
            if how == "forfeit":
                self.model.lose(job)
            elif job.cancel_wanted:
                job.become(CANCELLED)
            else:
                job.become(QUEUED if how == "release" else BLOCKED)
                job.attempts -= 1

    @rule(n=NTH)
    def unblock(self, n: int) -> None:
        id = self.nth_job(n)
        self.queue.unblock(id)
        if self.model.jobs[id].state == BLOCKED:
            self.model.jobs[id].become(QUEUED)

    @rule(n=NTH, name=st.sampled_from(sorted(PEOPLE)), everybody=st.booleans())
    def cancel(self, n: int, name: str, everybody: bool) -> None:
        id = self.nth_job(n)
        job = self.model.jobs[id]
        if name != "root" and (everybody or name not in job.past_watchers):
            with pytest.raises(NotWatchingError):
                self.queue.cancel(id, PEOPLE[name], everybody=everybody)
            return
        self.queue.cancel(id, PEOPLE[name], everybody=everybody)
        for leaving in job.watchers.copy() if everybody or name not in job.past_watchers else [name]:
            job.watchers.pop(leaving, None)
        if job.watchers:
            job.owner = next(iter(job.watchers))
        elif job.live and job.state in ACTIVE:
            job.cancel_wanted = True
        elif job.live:
            job.become(CANCELLED)

    @rule(seconds=st.sampled_from([1.0, 1.0, LEASE_SECONDS / 2]))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.now += seconds

    @rule()
    def look(self) -> None:
        self.seen = self.queue.leases()
        assert {held.job for held in self.seen} == {id for id, job in self.model.jobs.items() if job.lease}

    @rule()
    def take_back(self) -> None:
        for held in self.seen:
            job = self.model.jobs[held.job]
            is_silent = (job.lease, job.until) == (held.lease, held.until)
            assert (self.queue.take_back(held) is not None) == is_silent
            if is_silent:
                self.model.lose(job)

    @rule(times=st.sampled_from([1, 1, 1, ATTEMPTS]))
    def crash_again_and_again(self, times: int) -> None:
        for _ in range(times):
            self.claim("a host that breaks")
            self.look()
            self.take_back()

    @invariant()
    def every_job_is_as_expected(self) -> None:
        actual = {
            job.id: (
                job.state, job.attempts, job.last_seq, job.owner, job.watchers, job.cancel_wanted, job.artifact,
                job.priority if job.watchers else 0,
            )
            for job in self.queue.find(limit=10_000)
        }  # fmt: skip
        assert actual == {
            id: (
                job.state, job.attempts, job.seq, job.owner, tuple(job.watchers), job.cancel_wanted, job.artifact,
                job.priority if job.watchers else 0,
            )
            for id, job in self.model.jobs.items()
        }  # fmt: skip
        for name, person in PEOPLE.items():
            assert person.quota.queued is None or self.model.unfinished(name) <= person.quota.queued

    def teardown(self) -> None:
        check_laws(self.database)


def test_after_any_actions_no_job_is_lost_doubled_or_out_of_order(database: Database) -> None:
    service = type("Service", (Service,), {"database": database})
    with database.read() as connection:
        quick = connection.dialect.name == "sqlite"
    run_state_machine_as_test(
        service,
        settings=settings(
            max_examples=30 if quick else 8,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
