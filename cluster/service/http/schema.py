"""Answers of the API, version 1. Times are seconds since 1970, sizes bytes."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from mint.client.client import ServedJob
from mint.client.download import ServedFile
from mint.targets.devices import Device

_EXACT = ConfigDict(extra="forbid", from_attributes=True)


class Answer(BaseModel):
    """An answer, whose fields are all that it has."""

    model_config = _EXACT


class ErrorDetail(Answer):
    code: str
    message: str


class ErrorAnswer(Answer):
    """The body of every error."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class JobAnswer(ServedJob):
    """The current state of a job."""

    __pydantic_config__ = _EXACT


class JobsAnswer(Answer):
    """A page of jobs; `counts` says how many of all pages are in each state."""

    jobs: list[JobAnswer]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class SubmittedJob(JobAnswer):
    """A submitted job; `is_new` is false if an earlier request submitted it."""

    is_new: bool


class SubmittedAnswer(Answer):
    jobs: list[SubmittedJob]


class ForecastAnswer(Answer):
    """The expected work on a job: its seconds, and those of each stage, from earlier jobs of this service."""

    budget: str
    seconds: float
    stages: dict[str, float]


class ForecastsAnswer(Answer):
    forecasts: list[ForecastAnswer]


class FetchAnswer(Answer):
    """A download or a conversion: waiting, running, done or failed, with the reason."""

    id: str
    model: str
    state: str
    done_bytes: int
    total_bytes: int
    reason: str


class EstimateAnswer(Answer):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


class PointAnswer(Answer):
    """The best plan of a budget; `gap` bounds its distance from the optimum, 0 if it is proved optimal."""

    budget_bytes: int
    planned_bytes: int
    bits_per_weight: float
    loss: float
    gap: float
    predicted_kl: EstimateAnswer | None
    predicted: str  # in words, as the command line says it
    is_vague: bool  # the prediction can be wrong by a factor of 4 or more


class UnitAnswer(Answer):
    path: str
    role: str
    layer: int
    format: str
    bits: float
    nbytes: int
    reason: str


class NextAnswer(PointAnswer):
    """The plan with `step_bytes` more."""

    step_bytes: int
    says: str


class PlanAnswer(PointAnswer):
    """A plan; its units stand in the order of the model.

    `in_words` are the lines of the command line, by their labels: size, bits, closeness, 4-bit, WARNING.
    """

    model: str
    model_type: str
    budget: str
    bytes_per_token: int
    predicted_from: str
    digest: str
    smallest_bytes: int
    largest_bytes: int
    in_words: dict[str, str]
    units: list[UnitAnswer]
    next: NextAnswer | None


class PlacedDevice(Answer):
    """A device on a curve: the budget that it leaves, if any."""

    name: str
    budget_bytes: int | None
    verdict: str


class UniformAnswer(PointAnswer):
    """The model that `mlx_lm.convert` writes in one format."""

    format: str


class CurveAnswer(Answer):
    """The curve, with the uniform models and the devices to draw beside it."""

    model: str
    model_type: str
    source_bytes: int
    weights: int
    points: list[PointAnswer]
    knees: list[int]
    predicted_from: str
    uniform: list[UniformAnswer]
    devices: list[PlacedDevice]
    no_devices_because: str


class ModelAnswer(Answer):
    """A model below a root; if it cannot be read, `reason` says why, and the other fields are empty.

    A GGUF file has its size, and no identity before `POST /v1/fetches` has converted it.
    """

    name: str
    identity: str
    nbytes: int
    analyzed: bool
    reason: str


class ModelsAnswer(Answer):
    models: list[ModelAnswer]
    allows_hub: bool


class RoleAnswer(Answer):
    role: str
    units: int
    weights: int
    nbytes: int


class AnalysisAnswer(Answer):
    """A stored analysis: its settings, and the artifact that holds it."""

    rounding: str
    dtype: str
    loader: str
    probed: bool
    artifact: str


@dataclass(frozen=True, slots=True)
class FileAnswer(ServedFile):
    __pydantic_config__ = _EXACT
    url: str


class ArtifactAnswer(Answer):
    digest: str
    kind: str
    identity: str
    nbytes: int
    files: list[FileAnswer]


class ArtifactsAnswer(Answer):
    artifacts: list[ArtifactAnswer]


class ModelDetail(Answer):
    """Everything known about a model: its layers and roles (once analyzed), its jobs and artifacts.

    `analyzed` are the roundings of its analyses.
    """

    identity: str
    names: list[str]
    model_type: str
    source_bytes: int
    layers: int
    roles: list[RoleAnswer]
    analyzed: list[str]
    analyses: list[AnalysisAnswer]
    jobs: list[JobAnswer]
    artifacts: list[ArtifactAnswer]


class TicketAnswer(Answer):
    """A link that works once, within a minute; below the address of the service, as all links of files."""

    url: str


@dataclass(frozen=True, slots=True)
class DeviceAnswer(Device):
    __pydantic_config__ = _EXACT


class DevicesAnswer(Answer):
    devices: list[DeviceAnswer]


class HostAnswer(Answer):
    """A machine: the jobs that it runs, and its capacity as it reported it at `seen_at`.

    `drained_by` is the admin who lets it begin no job; empty if it may.
    """

    name: str
    jobs: list[str]
    is_here: bool
    slots: int | None
    free_bytes: int | None
    store_bytes: int | None
    cluster: str | None
    seen_at: float | None
    drained_by: str


class HostsAnswer(Answer):
    hosts: list[HostAnswer]


class PersonAnswer(Answer):
    """The person behind a request, their scopes and their groups."""

    name: str
    scopes: list[str]
    groups: list[str]


class QuotaAnswer(Answer):
    """The limits of a person: running jobs, unfinished jobs, and stored and expected bytes. Null is none."""

    active: int | None
    queued: int | None
    nbytes: int | None


class UsageAnswer(Answer):
    """A person: their token, their quota, the jobs that they own, and the bytes that count against the quota.

    Without a valid token there are no scopes and no times.
    """

    name: str
    scopes: list[str]
    groups: list[str]
    created_at: float | None
    used_at: float | None
    expires_at: float | None
    quota: QuotaAnswer
    waiting: int
    running: int
    ended: int
    worked_seconds: float
    used_bytes: int


class PeopleAnswer(Answer):
    people: list[UsageAnswer]


class AuditEntry(BaseModel):
    """A line of the audit log; further fields depend on the event."""

    model_config = ConfigDict(extra="allow")
    timestamp: str
    event: str
    person: str
    client: str


class AuditAnswer(Answer):
    entries: list[AuditEntry]


class HealthAnswer(Answer):
    status: str
    version: str
