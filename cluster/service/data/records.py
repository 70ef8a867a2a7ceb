"""The records of the service: requests, jobs, their events, artifacts, persons and quotas."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from mint.client.download import ServedFile

TIME_BOUNDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)  # seconds
SCOPES = ("read", "submit", "admin")  # each includes those before it


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request for a model: everything that decides the bytes of the result. Without a budget: an analysis only."""

    model: str  # relative to a root, with forward slashes, or a hub id
    identity: str  # of the model's content (`Source.identity`)
    budget: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)  # checked: rounding, objective, probe, dtype, veto, ...
    group: str = ""  # that sees it; empty: everybody

    @property
    def key(self) -> str:
        """SHA-256 of everything that decides the bytes, and of the group: equal requests share a job."""
        content = {"identity": self.identity, "budget": self.budget, "options": dict(self.options)}
        content |= {"group": self.group} if self.group else {}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def analysis_key(self) -> str:
        """SHA-256 of everything that decides the analysis: jobs of one analysis never run at the same time."""
        content = [self.identity, self.options.get("rounding"), self.options.get("dtype"), self.options.get("loader")]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected size and length of a job before its turn."""

    most_bytes: int = 0  # upper bound of the result, for a quota
    source_bytes: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds

    @property
    def seconds(self) -> float:
        """The expected seconds of all stages."""
        return sum(self.stages.values())


@dataclass(frozen=True, slots=True)
class Job:
    """A snapshot of a job. Times are seconds since 1970, sizes bytes."""

    id: str
    request: ModelRequest
    state: str
    reason: str  # of failed, blocked, or of the last broken attempt until the next one enters a stage
    owner: str  # the first watcher; the job takes a turn of the owner
    watchers: tuple[str, ...]
    priority: int
    attempts: int  # this one among them, without broken ones that made progress
    created_at: float
    started_at: float | None
    finished_at: float | None
    host: str  # of the last runner
    last_seq: int  # of its events
    needed_bytes: int  # on disk, known once there is a plan
    artifact: str  # digest of the result; empty until done
    result: Mapping[str, Any]  # figures to show: plan, predicted KL, seconds per stage, bytes reused
    source_bytes: int  # of the model's weights
    expected_stages: Mapping[str, float]  # seconds, from earlier jobs
    worked_seconds: float  # of runners before the one at work
    deadline_seconds: float | None  # of work; None: the service's own limit
    queued_at: float
    position: int  # of a queued job in the order of the queue, from 1; else 0
    yields_to: str = ""  # the state that it moves to after the unit at work
    cancel_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a job; `seq` grows from 1 within the job, with gaps where progress was replaced."""

    job: str
    seq: int
    at: float
    kind: str  # state | progress | note
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed job and the secret `lease`, which its runner needs to write."""

    job: Job
    lease: str

    @property
    def holder(self) -> str:
        """The name under which the job holds its artifacts until it is done."""
        return f"job-{self.job.id}"


@dataclass(frozen=True, slots=True)
class HeldLease:
    """The lease that a runner holds, as others see it; `until` changes with every renewal."""

    job: str
    host: str
    analysis_key: str
    lease: str
    until: float


@dataclass(frozen=True, slots=True)
class Times:
    """Of the jobs of a person in a state: their number, and how long they wait or, once they ended, waited and worked.

    Counts are numbers of jobs of at most so many seconds, for each of `TIME_BOUNDS`.
    """

    state: str
    owner: str
    number: int
    begun: int  # that had a runner
    waited: float
    worked: float
    first_queued_at: float
    waited_counts: tuple[int, ...]
    worked_counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A downloadable result: a model, or an analysis with its probes."""

    kind: str  # model | analysis
    identity: str  # of the source model
    files: tuple[ServedFile, ...]  # the store has each under its digest

    @property
    def digest(self) -> str:
        """SHA-256 of kind and files (names, digests, sizes), sorted by name."""
        files = [asdict(file) for file in sorted(self.files, key=lambda file: file.name)]
        return hashlib.sha256(json.dumps([self.kind, files], sort_keys=True).encode()).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits of a person; None is no limit."""

    active: int | None = None  # running jobs
    queued: int | None = None  # waiting and running jobs
    nbytes: int | None = None  # of stored and expected models


@dataclass(frozen=True, slots=True)
class Person:
    """The owner of a token."""

    name: str
    scopes: tuple[str, ...]
    quota: Quota = Quota()
    groups: tuple[str, ...] = ()

    def may(self, scope: str) -> bool:
        """True if one of the scopes includes this scope."""
        return any(SCOPES.index(scope) <= SCOPES.index(own) for own in self.scopes)


class Lease(Enum):
    """The result of `Queue.renew`."""

    HELD = "held"
    CANCEL_WANTED = "cancel wanted"  # still held, to write the end and stop
    YIELD_WANTED = "yield wanted"  # still held, to finish the unit at work and return the job
    LOST = "lost"
