"""Routes of jobs: submit, list, look, cancel, follow."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import SEEK_END
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response

from cluster.service.data.records import Forecast, Job, ModelRequest, Person
from cluster.service.data.states import ACTIVE, ANALYZING, FINAL, GROUPS, PROBING, WAITING
from cluster.service.data.visibility import group_of, sees
from cluster.service.errors import DatabaseUnavailableError, NotFetchedError
from cluster.service.http.context import POSTED, Admin, Here, Reader, Service, Submitter, refusals
from cluster.service.http.error_answers import ApiError
from cluster.service.http.schema import (
    ForecastAnswer,
    ForecastsAnswer,
    JobAnswer,
    JobsAnswer,
    SubmittedAnswer,
    SubmittedJob,
)
from cluster.service.http.schema_events import EventsAnswer, JobEnded
from cluster.service.http.schema_requests import ForecastRequest, JobChange, Nothing, Sha256, Submission
from cluster.service.http.sse import EventStream
from cluster.service.http.stored import has, is_opened_as, require_room, stored_analyses
from cluster.service.queue.forecast import expected_stages
from cluster.service.queue.listing import NEWEST, SORTS
from cluster.service.request_options import DEFAULTS, budget_of, canonical, checked_options, most_bytes, recipe_of
from mint.core.errors import MintError
from mint.plan.recipe import Budget
from mint.quality.verdict import result_in_words

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
JobId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
State = Literal[*WAITING, *ACTIVE, *FINAL, *GROUPS]  # type: ignore[valid-type]
Sort = Literal[*SORTS]  # type: ignore[valid-type]


def job_record(job: Job, person: Person) -> dict[str, Any]:
    """A job as the API answers it."""
    record = asdict(job)
    words = {"rounding": job.request.options.get("rounding", DEFAULTS["rounding"]), **result_in_words(job.result)}
    return {**record.pop("request"), **record, "mine": person.name in job.watchers, "in_words": words}


@router.post("", status_code=201, responses={200: {"model": SubmittedAnswer}, **refusals(404, 409, *POSTED)})
def submit_jobs(
    request: Request, response: Response, submission: Submission, service: Here, person: Submitter
) -> SubmittedAnswer:
    """Submit a job for each budget, or one for the analysis alone. All of them are accepted, or none.

    A request equal to an earlier one shares its job: 200 if all jobs are shared, 201 otherwise. Repeating a request
    after an error is safe. A model of the hub that is not here yet, and a GGUF file that is not converted yet, are
    refused as `not_fetched`: fetch it first.
    """
    if submission.priority > 0 and not person.may("admin"):
        raise ApiError(
            403, f"priority {submission.priority} goes before others; needed the scope 'admin', or at most 0"
        )
    group = _group(submission, person)
    requests = _requests(service, submission.model, submission.budgets, submission.options.model_dump(), group, person)
    deadline = submission.deadline_hours and submission.deadline_hours * 3600.0
    jobs = []
    for job, is_new in service.queue.submit(requests, person, submission.priority, deadline):
        service.note(
            request,
            person,
            "job.submitted",
            job=job.id,
            model=job.request.model,
            budget=job.request.budget,
            is_new=is_new,
        )
        jobs.append(SubmittedJob(**job_record(job, person), is_new=is_new))
    response.status_code = 201 if any(job.is_new for job in jobs) else 200
    return SubmittedAnswer(jobs=jobs)


@router.post("/forecasts", responses=refusals(404, 409, *POSTED))
def forecast_jobs(body: ForecastRequest, service: Here, person: Reader) -> ForecastsAnswer:
    """The expected work on the jobs of a submission, without submitting them."""
    requests = _requests(service, body.model, body.budgets, body.options.model_dump(), "", person)
    return ForecastsAnswer(
        forecasts=[
            ForecastAnswer(budget=request.budget, seconds=forecast.seconds, stages=dict(forecast.stages))
            for request, forecast in requests
        ]
    )


def _requests(
    service: Service, model: str, texts: Sequence[str], options: Mapping[str, Any], group: str, person: Person
) -> list[tuple[ModelRequest, Forecast]]:
    """The request of each budget, or that of the analysis alone, with its forecast; raises for what cannot be made."""
    budgets: Sequence[Budget | None] = [budget_of(text, options) for text in texts] or [None]
    changes = {canonical(budget): (budget, checked_options(budget, options)) for budget in budgets}
    path, identity = identified(service, model, person)
    sized = [budget for budget in budgets if budget]
    if sized:
        require_room(service, identity, recipe_of(sized[0], options), sized, person)
    source_bytes = sum(shard.stat().st_size for shard in path.glob("*.safetensors"))
    return [
        (
            ModelRequest(model, identity, text, values, group),
            _forecast(service, identity, budget, values, source_bytes, person),
        )
        for text, (budget, values) in changes.items()
    ]


def _forecast(
    service: Service,
    identity: str,
    budget: Budget | None,
    options: Mapping[str, Any],
    source_bytes: int,
    person: Person,
) -> Forecast:
    """The expected size and stages of a job."""
    recipe = recipe_of(budget, options)
    stored: set[str] = set()
    for entry in stored_analyses(service, identity, person):
        if has(entry.answer, recipe.rounding, recipe.dtype, recipe.loader):
            stored.add(ANALYZING)
        if entry.answer.probed and is_opened_as(entry.answer, recipe.dtype, recipe.loader):
            stored.add(PROBING)
    stages = expected_stages(service.database, options, source_bytes, stored=stored, only_analysis=budget is None)
    return Forecast(most_bytes(budget, source_bytes), source_bytes, stages)


def _group(submission: Submission, person: Person) -> str:
    """The group of the jobs of a submission; raises `ApiError` for one that the person or the model is not of."""
    owner = group_of(submission.model)
    if not sees(person, submission.group):
        raise ApiError(
            403, f"{person.name} is not of the group {submission.group!r}; needed: one of your groups, or none"
        )
    if owner and submission.group not in ("", owner):
        raise ApiError(422, f"the model is of the group {owner!r}, its jobs cannot be of {submission.group!r}")
    return owner or submission.group


def identified(service: Service, name: str, person: Person) -> tuple[FilePath, str]:
    """The folder and the identity of a model; raises `ApiError` if the service has no such model for the person."""
    need_seen(name, person)
    try:
        return service.models.identify(name)
    except (DatabaseUnavailableError, NotFetchedError):
        raise
    except MintError as error:
        raise ApiError(404, str(error), code="no_such_model") from error


def need_seen(name: str, person: Person) -> None:
    """Raise `ApiError` for a model of a group that the person is not of, as for one that is not there."""
    if not sees(person, group_of(name)):
        raise ApiError(
            404, f"there is no model {name!r} here; GET /v1/models lists those that there are", code="no_such_model"
        )


@router.get("", responses=refusals(404))
def list_jobs(
    service: Here,
    person: Reader,
    state: Annotated[list[State], Query(description="States, or running, waiting and ended for several.")] = [],  # noqa: B006, FastAPI copies it
    mine: bool = False,
    search: Annotated[
        str, Query(max_length=200, description="Words of the id, model, budget, person, host or reason.")
    ] = "",
    sort: Annotated[Sort, Query(description="live: what runs, what waits in its order, what ended last.")] = NEWEST,
    model: Annotated[Sha256 | None, Query(description="The identity of a model.")] = None,
    before: Annotated[
        str | None, Query(pattern="^[0-9a-f]{16}$", description="The last job of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> JobsAnswer:
    """A page of jobs, and the number of jobs in each state whatever `state` and the page are."""
    watcher = person.name if mine else None
    states = [name for part in state for name in GROUPS.get(part, (part,))]
    jobs = service.queue.find(
        states,
        viewer=person,
        watcher=watcher,
        model_identity=model,
        search=search,
        sort=sort,
        before=before,
        limit=limit,
    )
    counts = service.queue.counts(viewer=person, watcher=watcher, model_identity=model, search=search)
    return JobsAnswer(jobs=[JobAnswer(**job_record(job, person)) for job in jobs], counts=counts)


@router.get("/{id}", responses=refusals(404))
def show_job(id: JobId, service: Here, person: Reader) -> JobAnswer:
    """The current state of a job."""
    return JobAnswer(**job_record(service.queue.get(id, person), person))


@router.delete("/{id}", responses=refusals(404))
def cancel_job(
    request: Request,
    id: JobId,
    service: Here,
    person: Submitter,
    everybody: Annotated[bool, Query(description="Take it from all who want it; only for admins.")] = False,
) -> JobAnswer:
    """Withdraw from a job, which ends when it has no subscriber left. An admin who is not one ends it for all."""
    service.queue.get(id, person)
    job = service.queue.cancel(id, person, everybody=everybody)
    service.note(request, person, "job.cancelled", job=id, left=len(job.watchers))
    return JobAnswer(**job_record(job, person))


@router.patch("/{id}", responses=refusals(404, *POSTED))
def change_job(request: Request, id: JobId, body: JobChange, service: Here, person: Submitter) -> JobAnswer:
    """Pause a job, a running one after the unit at work, or return it to the queue; it resumes where it was.

    Only its one subscriber, or an admin, may.
    """
    service.queue.get(id, person)
    job = service.queue.pause(id, person) if body.paused else service.queue.resume(id, person)
    service.note(request, person, "job.paused" if body.paused else "job.resumed", job=id)
    return JobAnswer(**job_record(job, person))


@router.post("/{id}/requeue", responses=refusals(404, *POSTED))
def requeue_job(request: Request, id: JobId, body: Nothing, service: Here, person: Admin) -> JobAnswer:
    """Return a job to the queue: a running one after the unit at work, an ended one as a new job for its subscribers.

    A job that is done and still stored stays as it is.
    """
    job = service.queue.requeue(id, person)
    service.note(request, person, "job.requeued", job=id, new=job.id)
    return JobAnswer(**job_record(job, person))


@router.get(
    "/{id}/log",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **refusals(404)},
)
def read_log(
    id: JobId,
    service: Here,
    person: Reader,
    nbytes: Annotated[int, Query(ge=1, le=1 << 20, description="Of the end of the log.")] = 64 << 10,
) -> Response:
    """The end of the output of a job's runners, for its subscribers and admins; empty before it has begun."""
    job = service.queue.get(id, person)
    if person.name not in job.watchers and not person.may("admin"):
        raise ApiError(403, f"the log of job {id} is for those who want the job, and for admins")
    return Response(_tail(service.settings.log_path(id), nbytes), media_type="text/plain")


def _tail(path: FilePath, nbytes: int) -> str:
    """The last bytes of a text file, from the start of a line on; empty without the file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, SEEK_END)
            file.seek(max(0, size - nbytes))
            text = file.read()
    except FileNotFoundError:
        return ""
    return (text if size <= nbytes else text.partition(b"\n")[2]).decode("utf-8", "replace")


def job_ended(body: JobEnded) -> None:
    """Sent to the address of `mint serve --webhook` at the end of a job, at least once, signed.

    `webhook-signature` is `v1,` and the base64 of HMAC-SHA256(secret, `webhook-id.webhook-timestamp.BODY`).
    """


@router.get("/{id}/history", responses=refusals(404))
def list_events(
    id: JobId,
    service: Here,
    person: Reader,
    after: Annotated[int, Query(ge=0, le=2**53, description="Only events after this one.")] = 0,
) -> EventsAnswer:
    """The events of a job so far, at most 1000: what the stream of events sends, as one answer."""
    service.queue.get(id, person)
    events = service.queue.events(id, after)
    return EventsAnswer.model_validate({"events": [asdict(event) for event in events]})


@router.get(
    "/{id}/events",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The events."},
        204: {"description": "The job is over, and there are no more events."},
        **refusals(404),
    },
)
def follow_job(
    request: Request,
    id: JobId,
    service: Here,
    person: Reader,
    after: Annotated[int, Query(ge=0, le=2**53, description="Only events after this one.")] = 0,
    last_event_id: Annotated[str, Header(pattern="^[0-9]{0,15}$", description="The same; it wins.")] = "",
) -> Response:
    """The events of a job as server-sent events: `id` is the event's number, `event` its kind, `data` JSON.

    Numbers grow, with gaps: progress replaces the progress before it. 30 days after the end of a job only its end is
    left. The stream ends after the event of a final state; comments keep it open until then. A revoked token ends it
    too.
    """
    job = service.queue.get(id, person)
    seen = min(int(last_event_id) if last_event_id else after, job.last_seq)
    if job.state in FINAL and seen == job.last_seq:
        return Response(status_code=204)
    grant = service.grant(request)
    stream = service.fanout.stream(
        id, last_seq=job.last_seq, after=seen, allowed=lambda: service.token_cache.is_still_good(grant)
    )
    return EventStream(stream, service.fanout.seat(person.name))
