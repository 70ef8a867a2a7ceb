"""Events of jobs as the API answers them, and the report of an end as a webhook gets it."""

from typing import Annotated, Literal

from pydantic import Field

from cluster.service.http.schema import Answer


class StateBody(Answer):
    state: str
    reason: str
    host: str
    attempts: int


class HostShare(Answer):
    host: str
    done: int
    bytes_per_second: int


class ProgressBody(Answer):
    stage: str
    done: int
    total: int
    item: str
    hosts: list[HostShare]


class NoteBody(Answer):
    message: str


class _Event(Answer):
    job: str
    seq: int
    at: float


class StateEvent(_Event):
    """A job came to another state."""

    kind: Literal["state"]
    body: StateBody


class ProgressEvent(_Event):
    """A stage went on: `done` of `total`, and the share of each host, in bytes of weights where the stage has them."""

    kind: Literal["progress"]
    body: ProgressBody


class NoteEvent(_Event):
    """A sentence for people."""

    kind: Literal["note"]
    body: NoteBody


class EventsAnswer(Answer):
    events: list[Annotated[StateEvent | ProgressEvent | NoteEvent, Field(discriminator="kind")]]


class JobEnded(Answer):
    """The body of a webhook."""

    type: Literal["job.ended"]
    job: str
    state: Literal["done", "failed", "cancelled"]
    model: str
    budget: str
    owner: str
    watchers: list[str]
    reason: str
    finished_at: float
    worked_seconds: float
    artifact: str
    result: dict[str, int | float | str | bool]
