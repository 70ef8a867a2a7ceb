"""The commands of a lab's service, over `mint.client`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mint.cli import options as opt
from mint.cli.options import argument, flag, option
from mint.cli.outputs import named
from mint.cli.terminal.screen import Answer, Record, Screen
from mint.core.errors import MintError
from mint.core.records import pick

if TYPE_CHECKING:
    from mint.client.client import ServedJob
    from mint.render.summary import Line

Id = Annotated[str, argument("ID", "Of a job; mint jobs lists them.")]


def submit(
    screen: Screen,
    model: Annotated[
        str,
        argument("MODEL", "A model that the service's page lists, or an id of the hub if the service allows it."),
    ],
    budgets: opt.AnyBudgets,
    recipe: opt.RecipeOptions,
    client: opt.Service,
    priority: Annotated[int, option("", "Jobs of higher priority go first.")] = 0,
    deadline: Annotated[float | None, option("HOURS", "Most hours of work; then the job fails.", min=0.01)] = None,
    group: Annotated[str, option("GROUP", "Only this group of yours sees the jobs.", "--group")] = "",
    wait: Annotated[bool, flag("Follow the jobs to their end.", "--wait")] = False,
    download: Annotated[Path | None, option("DIR", "Wait, and download each result to DIR/MODEL-BUDGET.")] = None,
) -> list[Answer]:
    """Ask the service for a model within every budget or device, or without any for its analysis alone.

    A request equal to an earlier one gets that result at once.

    Example: mint submit Qwen3-8B --budget 6GB --budget 8GB --download models
    """
    jobs = client.submit(
        model, budgets, recipe, priority=priority, group=group, deadline_hours=deadline, on_progress=screen.on_progress
    )
    if not (wait or download):
        return [Answer(job_record(job), [_line(job)]) for job in jobs]
    for job in jobs:
        screen.note(_line(job).text)
    answers = []
    for job in [client.wait(job.id, screen.on_progress, screen.note) for job in jobs]:
        record, folder = job_record(job), ""
        if download:
            output = download / _folder_name(job)
            output.parent.mkdir(parents=True, exist_ok=True)
            client.download(job.artifact, output, screen.on_progress)
            record["output"] = folder = str(output)
        answers.append(Answer(record, [_line(job, folder)]))
    return answers


def jobs(
    screen: Screen,
    client: opt.Service,
    id: Annotated[str, argument("[ID]", "Of a job; default: a list.")] = "",
    follow: Annotated[bool, flag("Stay until the job ends.", "--follow", "-f")] = False,
    state: Annotated[
        list[str],
        option("STATE", "Only running, waiting or ended jobs, or those of a state. May be repeated.", "--state"),
    ] = opt.NONE,
    mine: Annotated[bool, flag("Only my jobs.", "--mine")] = False,
    search: Annotated[str, option("WORDS", "Only jobs with these words: of model, budget, person, host, reason.")] = "",
    sort: Annotated[str, option("ORDER", "live, newest, oldest or ended.")] = "live",
    before: Annotated[str, option("ID", "The next page: the last job of this one.")] = "",
    limit: Annotated[int, option("", "Number of jobs.", min=1, max=500)] = 20,
) -> Record:
    """Show the jobs of the service, or one of them, or follow it to its end.

    First come the running jobs, then those that wait, in their order, then those that ended last. `states` counts all
    of them, on this page or not.
    """
    if follow and not id:
        raise typer.BadParameter("needed: the id of the job to follow", param_hint="--follow")
    if id and follow:
        client.wait(id, screen.on_progress, screen.note)
    if id:
        return job_record(client.job(id))
    rows = client.jobs(state=state, mine=mine, search=search, sort=sort, before=before, limit=limit)
    counts = client.job_counts(mine=mine, search=search)
    return {
        "count": len(rows),
        "states": {name: count for name, count in counts.items() if count},
        "jobs": [_brief(job, "id model budget state owner reason") for job in rows],
    }


def cancel(screen: Screen, id: Id, client: opt.Service) -> Record:
    """Withdraw from a job: it ends at once, unless another user asked for the same."""
    job = client.cancel(id)
    if not job.is_final:
        others = ", ".join(job.watchers)
        screen.note(f"it continues for {others}" if others else "it is being ended")
    return job_record(job)


def pause(screen: Screen, id: Id, client: opt.Service) -> Answer:
    """Pause a job, a running one after the unit at work; mint resume continues it, and so does the same request."""
    return _brief_answer(client.pause(id))


def resume(screen: Screen, id: Id, client: opt.Service) -> Answer:
    """Return a paused job to the queue; it resumes where it was."""
    return _brief_answer(client.resume(id))


def download(
    screen: Screen,
    id: Id,
    client: opt.Service,
    output: Annotated[Path | None, option("", "New folder; default: MODEL-BUDGET.", "--output", "-o")] = None,
) -> Record:
    """Download the result of a job and check every byte. Run it again to resume."""
    job = client.job(id)
    if job.state != "done":
        raise MintError(f"job {job.id} is {job.state}, there is nothing to download; mint jobs {id} --follow")
    path = output or Path(_folder_name(job))
    files = client.download(job.artifact, path, screen.on_progress)
    return {"output": str(path), "nbytes": sum(file.nbytes for file in files), "files": [file.name for file in files]}


def job_record(job: "ServedJob") -> Record:
    """A job as the commands print it, its figures among the rest."""
    record = _brief(job, "id model budget options state reason owner watchers attempts host")
    times = pick(job, "created_at started_at finished_at")
    record |= {name.removesuffix("_at"): _time(seconds) for name, seconds in times.items()}
    record |= {"watchers": list(job.watchers), "artifact": job.artifact}
    return record | {name: value for name, value in job.result.items() if name not in record}


def _brief_answer(job: "ServedJob") -> Answer:
    return Answer(job_record(job), [_line(job)])


def _line(job: "ServedJob", folder: str = "") -> "Line":
    """A job in one line: its id, its request, its state, and its place in the queue, or the folder of its model."""
    from mint.render.summary import Line

    state = f"{job.state}, number {job.position} in the queue" if job.position else job.state
    yielding = f" ({job.yields_to} after the unit at work)" if job.yields_to else ""
    path = f", in {folder}" if folder else ""
    return Line("job", f"{job.id}  {job.model} {job.budget or 'analysis'}, {state}{yielding}{path}")


def _brief(job: "ServedJob", names: str) -> Record:
    return {**pick(job, names), "budget": job.budget or "analysis"}


def _time(seconds: float | None) -> str:
    """A time as ISO 8601 in UTC; empty for one that is still to come."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""


def _folder_name(job: "ServedJob") -> str:
    return named(Path(job.model).name, job.budget or "analysis")
