"""A lab's quantization service from Python: submit, follow, cancel, download; what the commands of the same names do.

with mint.Client("lab.local:8420", token) as client:
    (job,) = client.submit("Qwen3-8B", ["6GB"])
    client.download(client.wait(job.id).artifact, "Qwen3-8B-6GB")
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from mint.client.download import Wanted, download
from mint.client.http import Connection, Record, RefusedError, SilentError, server_of, token_of
from mint.core.cache import cache_folder
from mint.core.errors import MintError
from mint.core.progress import OnProgress, Progress, Share, ignore

FINAL = ("done", "failed", "cancelled")
BLOCKED = "blocked"
NOT_FETCHED = "not_fetched"  # why a model of the hub is refused that the service does not have
FETCH_PAUSE = 0.5  # seconds between looks at a fetch
BUSY = (429, 503)  # HTTP's words for who may be better soon
PATIENCE = 600.0  # seconds without an answer, until who follows a job gives up
ANALYSIS = "analysis.mint"  # its name in an artifact
LONGEST_PAUSE = 10.0  # seconds between looks at a service that does not answer


@dataclass(frozen=True, slots=True)
class ServedJob:
    """A job of the service as it stood when asked. Times are seconds since 1970, sizes bytes."""

    id: str
    model: str
    identity: str
    budget: str  # empty: an analysis
    options: Mapping[str, Any]
    state: str
    reason: str
    owner: str
    watchers: tuple[str, ...]
    attempts: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    host: str
    artifact: str  # digest of what it made
    result: Mapping[str, Any]

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of a job: `kind` is state, progress or note."""

    seq: int
    kind: str
    body: Mapping[str, Any]


class Client:
    """The service at `server`, or at the address in MINT_SERVER; `token`, or that in MINT_TOKEN.

    `ca` is a file of the authorities that vouch for it; `insecure` sends the token over plain HTTP.
    """

    def __init__(self, server: str = "", token: str = "", *, ca: Path | None = None, insecure: bool = False) -> None:
        self._connection = Connection(server_of(server), token or token_of(None), ca=ca, insecure=insecure)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.__exit__()

    def submit(
        self,
        model: str,
        budgets: Sequence[str] = (),
        *,
        options: Mapping[str, Any] | None = None,
        priority: int = 0,
        on_progress: OnProgress = ignore,
    ) -> tuple[ServedJob, ...]:
        """Ask for a model within every one of the budgets, or without any for its analysis; a job each.

        Who asks for what is there already, or on its way, gets that job. `options` are those of `mint quantize`:
        rounding, objective, probe, dtype, veto_db and others. A model of the hub that the service allows and does not
        have is fetched first. Raises `RefusedError` with the service's reason.
        """
        asked = {"model": model, "budgets": list(budgets), "options": dict(options or {}), "priority": priority}
        try:
            answer = self._connection.ask("POST", "/v1/jobs", json=asked)
        except RefusedError as error:
            if error.code != NOT_FETCHED:
                raise
            self.fetch(model, on_progress)
            answer = self._connection.ask("POST", "/v1/jobs", json=asked)
        return tuple(map(_job, answer["jobs"]))

    def fetch(self, model: str, on_progress: OnProgress = ignore) -> None:
        """Let the service bring a model of the hub to its machine, and wait until it has; one on its way is joined.

        Raises `MintError` with the reason where that fails; asked again it goes on. A service that answered may be
        away for `PATIENCE` seconds.
        """
        fetched = self._begin_fetch(model)
        heard = time.monotonic()
        while fetched["state"] in ("waiting", "running"):
            on_progress(Progress("download", fetched["done_bytes"], fetched["total_bytes"], model))
            time.sleep(FETCH_PAUSE)
            try:
                fetched = self._connection.ask("GET", f"/v1/fetches/{_plain(fetched['id'])}")
                heard = time.monotonic()
            except RefusedError as error:
                if error.status == 404:
                    fetched = self._begin_fetch(model)  # the service was started anew
                elif error.status not in BUSY or time.monotonic() - heard > PATIENCE:
                    raise
            except SilentError:
                if time.monotonic() - heard > PATIENCE:
                    raise
        if fetched["state"] != "done":
            raise MintError(f"{self._connection.url}: {fetched['reason']}")

    def _begin_fetch(self, model: str) -> Record:
        return self._connection.ask("POST", "/v1/fetches", json={"model": model})

    def jobs(self, *, state: str = "", mine: bool = False, limit: int = 50) -> tuple[ServedJob, ...]:
        """The newest jobs first."""
        params = {"limit": limit, **({"state": state} if state else {}), **({"mine": "true"} if mine else {})}
        return tuple(map(_job, self._connection.ask("GET", "/v1/jobs", params=params)["jobs"]))

    def job(self, id: str) -> ServedJob:
        """One job as it stands."""
        return _job(self._connection.ask("GET", f"/v1/jobs/{_plain(id)}"))

    def cancel(self, id: str) -> ServedJob:
        """Want it no more; it ends when nobody else does."""
        return _job(self._connection.ask("DELETE", f"/v1/jobs/{_plain(id)}"))

    def events(self, id: str, after: int = 0) -> Iterator[Happened]:
        """What happens to a job, from the event behind `after` to its end; a broken connection is made again.

        A service that answered once may be away for `PATIENCE` seconds: it is started again, and the job goes on.
        """
        from httpx_sse import EventSource

        pause, heard = 0.5, -PATIENCE
        while True:
            last: Happened | None = None
            try:
                headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
                with self._connection.stream(f"/v1/jobs/{_plain(id)}/events", headers) as response:
                    heard = time.monotonic()
                    for event in EventSource(response).iter_sse():
                        if not event.id or not event.data:
                            continue  # how long to wait before coming again, or a sign of life
                        last = Happened(int(event.id), event.event, json.loads(event.data))
                        after, pause, heard = last.seq, 0.5, time.monotonic()
                        yield last
            except (SilentError, RefusedError) as error:
                is_over = isinstance(error, RefusedError) and error.status not in BUSY
                if is_over or time.monotonic() - heard > PATIENCE:
                    raise
            if last and last.kind == "state" and last.body.get("state") in FINAL:
                return
            with suppress(SilentError):
                if last is None and self.job(id).is_final:
                    return
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def wait(
        self, id: str, on_progress: OnProgress = ignore, on_note: Callable[[str], object] = lambda text: None
    ) -> ServedJob:
        """The job when it is done; raises `MintError` with the reason when it fails or is cancelled.

        `on_note` is told its states, and why it waits where it does.
        """
        for event in self.events(id):
            body = event.body
            if event.kind == "state":
                on_note(f"job {id}: {body['state']}" + (f", {body['reason']}" if body["state"] == BLOCKED else ""))
            elif event.kind == "note":
                on_note(f"job {id}: {body['message']}")
            elif event.kind == "progress":
                on_progress(_progress(body))
        job = self.job(id)
        if job.state != "done":
            raise MintError(f"job {job.id} of {job.model} is {job.state}" + (f": {job.reason}" if job.reason else ""))
        return job

    def download(self, artifact: str, output: Path | str, on_progress: OnProgress = ignore) -> tuple[Wanted, ...]:
        """Bring what a job made into the new folder `output`; its files. Killed, the same call goes on."""
        return download(self._connection, _plain(artifact), Path(output), on_progress)

    def analysis(
        self, model: str, *, options: Mapping[str, Any] | None = None, on_progress: OnProgress = ignore
    ) -> Path:
        """The analysis of a model of the service as a file here, its probes beside it; it is made if need be."""
        (job,) = self.submit(model, (), options=options, on_progress=on_progress)
        found = self.wait(job.id, on_progress)
        folder = cache_folder() / "served" / found.artifact
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            self.download(found.artifact, folder, on_progress)
        return folder / ANALYSIS

    def models(self) -> list[Record]:
        """The models that the service can take."""
        found: list[Record] = self._connection.ask("GET", "/v1/models")["models"]
        return found


def _job(record: Record) -> ServedJob:
    known = {field.name: record[field.name] for field in fields(ServedJob)}
    return ServedJob(**known | {"watchers": tuple(record["watchers"])})


def _progress(body: Mapping[str, Any]) -> Progress:
    shares = tuple(Share(each["host"], each["done"], each["bytes_per_second"]) for each in body.get("hosts", ()))
    return Progress(body["stage"], body["done"], body["total"], body.get("item", ""), shares)


def _plain(id: str) -> str:
    """An id or digest as a part of a path; raises `MintError` for anything else."""
    if not id or not id.isalnum() or not id.isascii():
        raise MintError(f"{id!r}: not the id of a job or artifact")
    return id
