"""A test world of the service's database: a fixed clock, persons, requests, and the laws of the tables."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from sqlalchemy import select

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import Database
from cluster.service.data.records import Artifact, Claim, Forecast, Job, ModelRequest, Person, Quota
from cluster.service.data.states import ACTIVE, DONE, FINAL, INVENTORY, QUEUED, can_become
from cluster.service.data.tables import events, jobs, metadata, watchers
from cluster.service.queue.queue import ATTEMPTS, Queue
from mint.client.download import ServedFile
from mint.core.sizes import parse_budget

ANN, BOB, EVE = (Person(name, ("submit",)) for name in ("ann", "bob", "eve"))
ADMIN = Person("root", ("admin",))
WAY = ("analyzing", "solving", "assembling", "verifying")  # the shortest way to done


class Clock:
    """A clock that tests advance."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class World:
    """A queue and a catalog over an empty database, with one clock."""

    def __init__(self, database: Database) -> None:
        self.database, self.clock = database, Clock()
        self.queue, self.catalog = Queue(database, self.clock), Catalog(database, self.clock)

    def submit(self, by: Person = ANN, identity: str = "one", priority: int = 0, **fields: Any) -> Job:
        """Submit a request."""
        return submit(self.queue, model_request(identity, **fields), by, priority)[0]

    def claim(self) -> Claim:
        """Claim the next job, which must exist."""
        claim = self.queue.claim("here")
        assert claim is not None
        return claim

    def expire(self) -> list[Job]:
        """Take back all leases, as if nobody had renewed them for long."""
        return [job for held in self.queue.leases() if (job := self.queue.take_back(held))]

    def finish(self, claim: Claim, nbytes: int = 10) -> Artifact:
        """Finish a job, with an artifact in the catalog."""
        result = artifact(claim.job.id, identity=claim.job.request.identity, nbytes=nbytes)
        self.catalog.add(result)
        for state in WAY:
            self.queue.advance(claim, state)
        self.queue.advance(claim, DONE, artifact=result.digest)
        return result


def submit(queue: Queue, request: ModelRequest, by: Person, priority: int = 0) -> tuple[Job, bool]:
    """The job for a request whose result takes at most its budget, if that is one of bytes; and whether it is new."""
    budget = parse_budget(request.budget) if request.budget else None
    most_bytes = int(budget.number) if budget and budget.unit == "B" else 0
    return queue.submit([(request, Forecast(most_bytes))], by, priority)[0]


def model_request(identity: str = "one", budget: str = "", options: Mapping[str, Any] | None = None) -> ModelRequest:
    """A request for a model."""
    return ModelRequest(f"models/{identity}", identity, budget, options or {})


def artifact(name: str, *, identity: str = "one", nbytes: int = 10, shared: int = 0) -> Artifact:
    """A model with its own file, and a file of `shared` bytes that others have too."""
    files = [ServedFile("own", f"{name:0>64}", nbytes)]
    if shared:
        files.append(ServedFile("shared", f"{'shared' + str(shared):0>64}", shared))
    return Artifact("model", identity, tuple(files))


def quota(person: Person, **limits: int) -> Person:
    """The person with limits."""
    return Person(person.name, person.scopes, Quota(**limits))


def clear(database: Database) -> None:
    """Delete all rows."""
    with database.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())


def check_laws(database: Database) -> None:
    """Assert the invariants of every database, read from the tables alone."""
    with database.read() as connection:
        rows = connection.execute(select(jobs)).all()
        history = connection.execute(select(events).order_by(events.c.job, events.c.seq)).all()
        wants = connection.execute(select(watchers).where(watchers.c.wants).order_by(watchers.c.position)).all()
    active = [row for row in rows if row.state in ACTIVE]
    live = [row for row in rows if row.state not in FINAL and not row.cancel_wanted]
    assert len({row.analysis_key for row in active}) == len(active), "two jobs work on one analysis"
    assert len({row.wish_key for row in live}) == len(live), "two jobs for one request"
    for row in rows:
        assert (row.lease is not None) == (row.lease_until is not None) == (row.state in ACTIVE)
        assert (row.finished_at is not None) == (row.state in FINAL)
        assert 0 <= row.attempts <= ATTEMPTS
        own = [event for event in history if event.job == row.number]
        assert [0, *(event.seq for event in own)][-1] == row.last_seq, "the last event is missing"
        assert all(
            after.seq == before.seq + 1 or (after.seq > before.seq and after.kind == "progress")
            for before, after in pairwise(own)
        ), "a gap without progress"
        assert [event.at for event in own] == sorted(event.at for event in own)
        states = [event.body["state"] for event in own if event.kind == "state"]
        assert states[0] == QUEUED
        assert states[-1] == row.state
        assert all(can_become(state, to) for state, to in pairwise(states))
        assert states.count(INVENTORY) >= row.attempts
        names = [watcher.name for watcher in wants if watcher.job == row.number]
        assert not names or row.owner == names[0]
        assert row.state in FINAL or row.cancel_wanted or names, "a job without watchers"
