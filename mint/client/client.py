"""Python client of a lab's quantization service: submit, follow, cancel and download, as the commands of these names.

with mint.Client("lab.local:8420", token) as client:
    (job,) = client.submit("Qwen3-8B", ["6GB"])
    client.download(client.wait(job.id).artifact, "Qwen3-8B-6GB")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mint.client.download import ServedFile, download
from mint.client.http import OTHER_VERSION, Connection, Record, RefusedError, SilentError, is_away, records_of
from mint.core.cache import cache_folder
from mint.core.errors import MintError
from mint.core.progress import OnProgress, Progress, Share, ignore
from mint.core.records import reading, typed
from mint.plan.recipe import ANALYSIS_FIELDS, Budget, Recipe, Room

if TYPE_CHECKING:
    from httpx_sse import EventSource, ServerSentEvent

FINAL = ("done", "failed", "cancelled")
WAITING = ("queued", "blocked", "paused")
ANALYSIS = "analysis.mint"  # its name in an artifact
_RECIPE = Recipe()


@dataclass(frozen=True, slots=True)
class ServedJob:
    """A job of the service at the time of the request. Times are seconds since 1970, sizes bytes."""

    id: str
    model: str
    identity: str
    budget: str  # empty: an analysis
    options: Mapping[str, Any]
    group: str  # that sees it; empty: everybody
    state: str
    reason: str
    owner: str
    watchers: tuple[str, ...]
    mine: bool  # the asking person is a watcher
    priority: int
    attempts: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    host: str
    last_seq: int  # of its events
    needed_bytes: int  # on the service's disk
    artifact: str  # digest of the result
    result: Mapping[str, Any]
    in_words: Mapping[str, str]  # rounding; closeness of the result: whole, `short`, `4-bit` beside it, `WARNING`
    source_bytes: int  # of the model's weights
    expected_stages: Mapping[str, float]  # seconds of each stage, from earlier jobs
    worked_seconds: float  # before its last start
    deadline_seconds: float | None
    queued_at: float
    position: int  # in the queue, from 1; 0 for a job that is not queued
    yields_to: str  # the state that it moves to after the unit at work; empty: it continues
    cancel_wanted: bool

    @property
    def is_final(self) -> bool:
        """True if the job is done, failed or cancelled."""
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event of a job: `kind` is state, progress or note."""

    seq: int
    kind: str
    body: Mapping[str, Any]


class Client(Connection):
    """A connection to a service, with a method for each of its commands."""

    def submit(
        self,
        model: str,
        budgets: Sequence[str | Budget] = (),
        recipe: Recipe = _RECIPE,
        *,
        priority: int = 0,
        group: str = "",
        deadline_hours: float | None = None,
        on_progress: OnProgress = ignore,
    ) -> tuple[ServedJob, ...]:
        """Submit a job for each budget, or one for the analysis alone if there is none.

        A request equal to an earlier one gets the job of that. A model of the hub that the service allows and does not
        have is fetched first, and a GGUF file is converted. Raises `RefusedError` with the service's reason, and
        `MintError` for devices of different rooms: those need a submission each.
        """
        request = _request(model, budgets, recipe) | {"priority": priority}
        request |= {"group": group} if group else {}
        request |= {"deadline_hours": deadline_hours} if deadline_hours else {}
        try:
            answer = self.ask("POST", "/v1/jobs", json=request)
        except RefusedError as error:
            if error.code != "not_fetched":
                raise
            self.fetch(model, on_progress)
            answer = self.ask("POST", "/v1/jobs", json=request)
        return tuple(map(job_of, answer["jobs"]))

    def forecast(
        self, model: str, budgets: Sequence[str | Budget] = (), recipe: Recipe = _RECIPE
    ) -> tuple[Record, ...]:
        """The expected seconds of the jobs that `submit` would make, in all and by stage, from earlier jobs."""
        request = _request(model, budgets, recipe)
        return tuple(self.ask("POST", "/v1/jobs/forecasts", json=request)["forecasts"])

    def fetch(self, model: str, on_progress: OnProgress = ignore) -> None:
        """Let the service download a model of the hub or convert a GGUF file, and wait; one under way is joined.

        Raises `MintError` with the reason of a failure; the same call then resumes. A service that answered once may be
        away for `timing.patience` seconds.
        """
        patiently = self.retrying(is_away, seconds=self.timing.patience)
        record = self.ask("POST", "/v1/fetches", json={"model": model})
        while record["state"] in ("waiting", "running"):
            on_progress(Progress("download", record["done_bytes"], record["total_bytes"], model))
            self.timing.sleep(self.timing.first_pause)
            try:
                record = patiently(self.ask, "GET", f"/v1/fetches/{_plain(record['id'])}")
            except RefusedError as error:
                if error.status != 404:
                    raise
                record = self.ask("POST", "/v1/fetches", json={"model": model})  # the service was restarted
        if record["state"] != "done":
            raise MintError(f"{self.url}: {record['reason']}")

    def jobs(
        self,
        *,
        state: str | Sequence[str] = (),
        mine: bool = False,
        search: str = "",
        sort: str = "newest",
        before: str = "",
        limit: int = 50,
    ) -> tuple[ServedJob, ...]:
        """A page of jobs, by states or `running`, `waiting` and `ended`, and by words of their ids, models, persons.

        `sort` is `newest`, `oldest`, `ended` or `live`: what runs, what waits in its order, what ended last. `before`
        is the last id of the page before.
        """
        params = {"state": state, "mine": mine, "search": search, "sort": sort, "before": before, "limit": limit}
        return tuple(map(job_of, records_of(self._list(**params), "jobs")))

    def job_counts(self, *, mine: bool = False, search: str = "") -> dict[str, int]:
        """The number of such jobs in each state."""
        counts: dict[str, int] = self._list(mine=mine, search=search, limit=1)["counts"]
        return counts

    def _list(self, **params: Any) -> Record:
        return self.ask("GET", "/v1/jobs", params={name: value for name, value in params.items() if value})

    def job(self, id: str) -> ServedJob:
        """The current state of a job."""
        return job_of(self.ask("GET", f"/v1/jobs/{_plain(id)}"))

    def cancel(self, id: str) -> ServedJob:
        """Withdraw from a job; it ends when no other subscriber is left."""
        return job_of(self.ask("DELETE", f"/v1/jobs/{_plain(id)}"))

    def pause(self, id: str) -> ServedJob:
        """Pause a job, a running one after the unit at work; `resume` returns it to the queue."""
        return job_of(self.ask("PATCH", f"/v1/jobs/{_plain(id)}", json={"paused": True}))

    def resume(self, id: str) -> ServedJob:
        """Return a paused job to the queue."""
        return job_of(self.ask("PATCH", f"/v1/jobs/{_plain(id)}", json={"paused": False}))

    def events(self, id: str, after: int = 0) -> Iterator[JobEvent]:
        """Yield the events of a job after number `after`, to its end; a broken connection is made again.

        A service that answered once may be away for `timing.patience` seconds: it is restarted, and the job goes on.
        """
        tries = 1
        while True:
            response = ExitStack()
            connect = self.retrying(is_away, tries=tries, seconds=self.timing.patience)
            source = connect(self._connect, response, f"/v1/jobs/{_plain(id)}/events", after)
            tries = 0  # from now on it is worth waiting for
            last: JobEvent | None = None
            with suppress(SilentError), response:
                for event in source.iter_sse():
                    if event.id and event.data:  # else a comment, or the pause before connecting again
                        last = event_of(event)
                        after = last.seq
                        yield last
            if last and last.kind == "state" and last.body.get("state") in FINAL:
                return
            with suppress(SilentError):
                if last is None and self.job(id).is_final:
                    return
            self.timing.sleep(self.timing.first_pause)

    def _connect(self, response: ExitStack, path: str, after: int) -> EventSource:
        """Open a stream of events, which `response` closes."""
        from httpx_sse import EventSource

        headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
        return EventSource(response.enter_context(self.stream("GET", path, headers=headers)))

    def wait(
        self, id: str, on_progress: OnProgress = ignore, on_note: Callable[[str], object] = lambda text: None
    ) -> ServedJob:
        """Wait until a job is done, and return it; raises `MintError` with the reason if it fails or is cancelled.

        `on_note` is called with its states, and with the reason of a state that waits.
        """
        for event in self.events(id):
            body = event.body
            if event.kind == "state":
                on_note(f"job {id}: {body['state']}" + (f", {body['reason']}" if body["state"] == "blocked" else ""))
            elif event.kind == "note":
                on_note(f"job {id}: {body['message']}")
            elif event.kind == "progress":
                shares = [Share(host["host"], host["done"], host["bytes_per_second"]) for host in body.get("hosts", ())]
                step = Progress(body["stage"], body["done"], body["total"], body.get("item", ""), tuple(shares))
                on_progress(step)
        job = self.job(id)
        if job.state != "done":
            raise MintError(f"job {job.id} of {job.model} is {job.state}" + (f": {job.reason}" if job.reason else ""))
        return job

    def download(self, artifact: str, output: Path | str, on_progress: OnProgress = ignore) -> tuple[ServedFile, ...]:
        """Download an artifact into the new folder `output`, and return its files. Killed, the same call resumes."""
        return download(self, _plain(artifact), Path(output), on_progress)

    def analysis(
        self,
        model: str,
        recipe: Recipe = _RECIPE,
        *,
        on_progress: OnProgress = ignore,
        on_note: Callable[[str], object] = lambda text: None,
    ) -> Path:
        """The path of a model's analysis here, with its probes beside it; the service makes a missing one.

        A stored one needs a token to read only, and waits for no job. `on_note` is called as in `wait`.
        """
        kind = {name: value for name in ANALYSIS_FIELDS if (value := getattr(recipe, name))}
        try:
            artifact: str = self.ask("GET", "/v1/analyses", params={"model": model, **kind})["digest"]
        except RefusedError as error:
            if error.code not in ("not_analyzed", "not_fetched"):
                raise
            (job,) = self.submit(model, (), recipe.analysis, on_progress=on_progress)
            waiting = sum(self.job_counts().get(state, 0) for state in WAITING)
            on_note(f"the service has no such analysis of {model} yet; job {job.id} makes it, {waiting} jobs wait")
            artifact = self.wait(job.id, on_progress, on_note).artifact
        folder = cache_folder() / "served" / artifact
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            self.download(artifact, folder, on_progress)
        return folder / ANALYSIS

    def history(self, id: str, after: int = 0) -> tuple[JobEvent, ...]:
        """The events of a job so far, after number `after`; `events` waits for more."""
        answer = self.ask("GET", f"/v1/jobs/{_plain(id)}/history", params={"after": after})
        return tuple(JobEvent(event["seq"], event["kind"], event["body"]) for event in answer["events"])

    def log(self, id: str) -> str:
        """The end of the output of a job's runners, for its subscribers and admins."""
        with self.stream("GET", f"/v1/jobs/{_plain(id)}/log") as response:
            return response.read().decode()

    def curve(self, identity: str, recipe: Recipe = _RECIPE, *, points: int = 60) -> Record:
        """The curve of budget and loss of an analyzed model, its knees, and where devices lie on it."""
        options = {name: getattr(recipe, name) for name in ("rounding", "dtype", "loader", "objective")}
        return self.ask("GET", f"/v1/models/{_plain(identity)}/curve", params=options | {"points": points})

    def plan(self, model: str, budget: str | Budget, recipe: Recipe = _RECIPE) -> Record:
        """The plan of a budget from a stored analysis, now and without a job; `model` is a name or an identity."""
        size = Budget.of(budget)
        options = {**recipe.to_dict(), **(size.room if size.device else Room()).to_dict()}
        return self.ask("POST", "/v1/plans", json={"model": model, "budget": str(size), "options": options})

    def artifacts(self, *, kind: str = "", identity: str = "", limit: int = 100) -> list[Record]:
        """The stored artifacts with their files, of a kind (`model` or `analysis`) and of a model, newest first."""
        params = {"kind": kind, "model": identity, "limit": limit}
        given = {name: value for name, value in params.items() if value}
        return self.ask_list("artifacts", "/v1/artifacts", params=given)

    def artifact(self, digest: str) -> Record:
        """An artifact and its files."""
        return self.ask("GET", f"/v1/artifacts/{_plain(digest)}")

    def model(self, identity: str) -> Record:
        """Everything that the service knows about a model: its layers, analyses, jobs and artifacts."""
        return self.ask("GET", f"/v1/models/{_plain(identity)}")

    def devices(self) -> list[Record]:
        """The devices whose names can stand for a budget."""
        return self.ask_list("devices", "/v1/devices")

    def hosts(self) -> list[Record]:
        """The machines that work for the queue, with their jobs and their capacity."""
        return self.ask_list("hosts", "/v1/hosts")

    # for admins

    def requeue(self, id: str) -> ServedJob:
        """Return a job to the queue: a running one after the unit at work, an ended one as a new job."""
        return job_of(self.ask("POST", f"/v1/jobs/{_plain(id)}/requeue", json={}))

    def drain(self, host: str, *, drained: bool = True) -> Record:
        """Let a machine begin no more jobs, or let it begin jobs again."""
        return self.ask("PATCH", f"/v1/hosts/{quote(host, safe='')}", json={"drained": drained})

    def people(self) -> list[Record]:
        """Everybody with a token or a job: their token, quota, jobs and work."""
        return self.ask_list("people", "/v1/people")

    def change_person(
        self, name: str, *, quota: Mapping[str, int | None] | None = None, groups: Sequence[str] | None = None
    ) -> Record:
        """Replace the quota of a person, `active` and `queued` jobs and `nbytes`, or the groups.

        A limit that is left out is none.
        """
        change = {"quota": quota, "groups": groups}
        return self.ask("PATCH", f"/v1/people/{quote(name, safe='')}", json=change)

    def remove_artifact(self, digest: str) -> Record:
        """Remove an artifact from the service's disk."""
        return self.ask("DELETE", f"/v1/artifacts/{_plain(digest)}")

    def audit(self, *, search: str = "", limit: int = 100) -> list[Record]:
        """The latest entries of the audit log, the newest first, with all words of a search."""
        return self.ask_list("entries", "/v1/audit", params={"search": search, "limit": limit})

    def me(self) -> Record:
        """The person of the token: name and scopes."""
        return self.ask("GET", "/v1/me")

    def models(self) -> list[Record]:
        """The models that the service can quantize."""
        return self.ask_list("models", "/v1/models")


def _request(model: str, budgets: Sequence[str | Budget], recipe: Recipe) -> dict[str, Any]:
    sizes = [Budget.of(budget) for budget in budgets]
    rooms = {budget.room for budget in sizes if budget.device} or {Room()}
    if len(rooms) > 1:
        raise MintError(f"found devices with {len(rooms)} different rooms; needed one room, or a submission each")
    return {"model": model, "budgets": list(map(str, sizes)), "options": {**recipe.to_dict(), **rooms.pop().to_dict()}}


def job_of(record: Record) -> ServedJob:
    """The job of a record; `MintError` for a service of another version."""
    with reading("the service describes a job", OTHER_VERSION):
        values = {field.name: record[field.name] for field in fields(ServedJob)}
        return typed(ServedJob(**values | {"watchers": tuple(record["watchers"])}))


def event_of(event: ServerSentEvent) -> JobEvent:
    """The event of a stream; `MintError` for a service of another version."""
    with reading("the service describes an event", OTHER_VERSION):
        return typed(JobEvent(int(event.id), event.event, json.loads(event.data)))


def _plain(id: str) -> str:
    """An id or digest as a part of a path; raises `MintError` for anything else."""
    if not id or not id.isalnum() or not id.isascii():
        raise MintError(f"{id!r}: not the id of a job or artifact")
    return id
