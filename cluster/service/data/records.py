"""What the service speaks of: requests, jobs, their events, artifacts, and those who ask."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

SCOPES = ("read", "submit", "admin")  # each includes those before it


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of a model: everything that decides the bytes of the answer. An empty budget: only an analysis."""

    model: str  # relative to a root, with forward slashes, or a hub id
    identity: str  # of the model's content (`Source.identity`)
    budget: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)  # checked: rounding, objective, probe, dtype, veto, ...

    @property
    def key(self) -> str:
        """SHA-256 of everything that decides the bytes: who asks for the same thing shares the job."""
        asked = {"identity": self.identity, "budget": self.budget, "options": dict(self.options)}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def analysis_key(self) -> str:
        """SHA-256 of what decides the analysis: two jobs of one analysis never run at the same time."""
        asked = [self.identity, self.options.get("rounding"), self.options.get("dtype")]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. Times are seconds since 1970, sizes bytes."""

    id: str
    wish: Wish
    state: str
    reason: str  # of failed, blocked, or of the last attempt that broke
    owner: str  # the first of those who still want it: whose turn it takes
    watchers: tuple[str, ...]
    priority: int
    attempts: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    host: str  # where it runs or ran
    last_seq: int  # of its events
    needed_bytes: int  # on disk, once known from the plan
    artifact: str  # digest of what it made; empty until done
    result: Mapping[str, Any]  # figures for people: plan, predicted KL, seconds a stage, bytes reused
    cancel_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a job; `seq` grows from 1 within the job, with gaps where progress was replaced."""

    job: str
    seq: int
    at: float
    kind: str  # state | progress | note
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that was claimed: its runner proves with `lease` that it may still write."""

    job: Job
    lease: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of an artifact; `digest` is the SHA-256 of its bytes and its name in the store."""

    name: str
    digest: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something to download: a model, or an analysis with its probes. Its digest is that of the list of its files."""

    kind: str  # model | analysis
    identity: str  # of the model that it was made of
    files: tuple[StoredFile, ...]

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
    """How much one may take at a time; None is no limit."""

    active: int | None = None  # jobs that run
    queued: int | None = None  # jobs that wait or run
    nbytes: int | None = None  # of stored models that one asked for and of those still to come


@dataclass(frozen=True, slots=True)
class Person:
    """Whose token it was."""

    name: str
    scopes: tuple[str, ...]
    quota: Quota = Quota()

    def may(self, scope: str) -> bool:
        """Whether one of the scopes covers this one."""
        return any(SCOPES.index(scope) <= SCOPES.index(mine) for mine in self.scopes)


class Lease(Enum):
    """What `Queue.renew` found; only `HELD` is true."""

    HELD = "held"
    CANCEL_WANTED = "cancel wanted"  # still held: to write the end, and then to stop
    LOST = "lost"

    def __bool__(self) -> bool:
        return self is Lease.HELD
