"""The commands that ask a lab's service: a thin rim around `mint.client`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint.cli import options as opt
from mint.cli.screen import Screen
from mint.core.errors import MintError

if TYPE_CHECKING:
    from mint.client.client import ServedJob

Id = Annotated[str, typer.Argument(metavar="ID", help="Of a job; mint jobs lists them.")]


def submit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model of the service, as its page lists it, or where it allows them an id of the hub.",
        ),
    ],
    budget: opt.Budgets = opt.NONE,
    device: opt.Devices = opt.NONE,
    context: opt.Context = opt.ROOM.context,
    kv_bits: opt.KvBits = opt.ROOM.kv_bits,
    reserve: opt.Reserve = opt.ROOM.reserve,
    objective: opt.Objective = opt.RECIPE.objective,
    veto: opt.Veto = opt.RECIPE.veto_db,
    min_bits: opt.MinBits = opt.RECIPE.min_bits,
    max_bits: opt.MaxBits = opt.RECIPE.max_bits,
    formats: opt.Formats = opt.NONE,
    keep: opt.Keep = opt.NONE,
    set: opt.Set = opt.NONE,
    locks: opt.Locks = None,
    compat: opt.Compat = opt.RECIPE.compat,
    prefer_speed: opt.PreferSpeed = opt.RECIPE.prefer_speed,
    ignore_probe: opt.IgnoreProbe = opt.RECIPE.ignore_probe,
    max_shard_size: opt.MaxShardSize = opt.RECIPE.max_shard_size,
    server: opt.Server = "",
    token_file: opt.TokenFile = None,
    ca: opt.Authorities = None,
    insecure: opt.Insecure = False,
    dtype: opt.Dtype = opt.RECIPE.dtype,
    rounding: opt.Rounding = opt.RECIPE.rounding,
    probe: opt.Probe = opt.RECIPE.probe,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the jobs to their end.")] = False,
    download: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Wait, and bring every result into a folder MODEL-BUDGET below DIR."),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Ask the service for a model within every budget or device, or without any for its analysis alone.

    What somebody asked for before is there at once.

    Example: mint submit Qwen3-8B --budget 6GB --budget 8GB --download models
    """
    given = locals()
    recipe, budgets = opt.recipe_of(given), opt.budgets_of(given) if budget or device else []
    with Screen(as_json) as screen, opt.client_of(given) as client:
        jobs = client.submit(model, budgets, recipe, priority=priority, on_progress=screen.on_progress)
        for job in jobs:
            screen.note(f"job {job.id}: {job.model} {job.budget or 'analysis'}, {job.state}")
        if wait or download:
            jobs = tuple(client.wait(job.id, screen.on_progress, screen.note) for job in jobs)
        records = [job_record(job) for job in jobs]
        for job, record in zip(jobs, records, strict=True):
            if download:
                output = download / _folder_name(job)
                output.parent.mkdir(parents=True, exist_ok=True)
                client.download(job.artifact, output, screen.on_progress)
                record["output"] = str(output)
    screen.answer_all(records)


def jobs(
    server: opt.Server = "",
    token_file: opt.TokenFile = None,
    ca: opt.Authorities = None,
    insecure: opt.Insecure = False,
    id: Annotated[str, typer.Argument(metavar="[ID]", help="Of a job; default: the newest.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job ends.")] = False,
    state: Annotated[str, typer.Option(metavar="STATE", help="Only those in this state.")] = "",
    mine: Annotated[bool, typer.Option("--mine", help="Only mine.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = 20,
    as_json: opt.Json = False,
) -> None:
    """Show the jobs of the service, or one of them, or follow it to its end."""
    given = locals()
    if follow and not id:
        raise typer.BadParameter("needed: the id of the job to follow", param_hint="--follow")
    with Screen(as_json) as screen, opt.client_of(given) as client:
        if id and follow:
            client.wait(id, screen.on_progress, screen.note)
        found = [client.job(id)] if id else list(client.jobs(state=state, mine=mine, limit=limit))
    if id:
        screen.answer(job_record(found[0]))
    else:
        screen.answer({"count": len(found), "jobs": [_row(job) for job in found]})


def cancel(
    id: Id,
    server: opt.Server = "",
    token_file: opt.TokenFile = None,
    ca: opt.Authorities = None,
    insecure: opt.Insecure = False,
    as_json: opt.Json = False,
) -> None:
    """Want a job no more: it ends at once, unless somebody else asked for the same."""
    given = locals()
    with Screen(as_json) as screen, opt.client_of(given) as client:
        job = client.cancel(id)
        if not job.is_final:
            others = ", ".join(job.watchers)
            screen.note(f"it goes on for {others}" if others else "it is being ended")
    screen.answer(job_record(job))


def download(
    id: Id,
    server: opt.Server = "",
    token_file: opt.TokenFile = None,
    ca: opt.Authorities = None,
    insecure: opt.Insecure = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; must not exist. Default: MODEL-BUDGET.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Bring the result of a job here. Every byte is checked; killed or cut off, the same command goes on."""
    given = locals()
    with Screen(as_json) as screen, opt.client_of(given) as client:
        job = client.job(id)
        if job.state != "done":
            raise MintError(f"job {job.id} is {job.state}, there is nothing to download; mint jobs {id} --follow")
        path = output or Path(_folder_name(job))
        files = client.download(job.artifact, path, screen.on_progress)
    screen.answer(
        {"output": str(path), "nbytes": sum(file.nbytes for file in files), "files": [file.name for file in files]}
    )


def job_record(job: ServedJob) -> dict[str, Any]:
    """A job as the commands print it, its figures among the rest."""
    record: dict[str, Any] = {
        "id": job.id, "model": job.model, "budget": job.budget or "analysis", "options": dict(job.options),
        "state": job.state, "reason": job.reason, "owner": job.owner, "watchers": list(job.watchers),
        "attempts": job.attempts, "host": job.host, "created": _time(job.created_at), "started": _time(job.started_at),
        "finished": _time(job.finished_at), "artifact": job.artifact,
    }  # fmt: skip
    return record | {name: value for name, value in job.result.items() if name not in record}


def _time(seconds: float | None) -> str:
    """A time as ISO 8601 in UTC; empty for one that is still to come."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""


def _row(job: ServedJob) -> dict[str, Any]:
    return {
        "id": job.id, "model": job.model, "budget": job.budget or "analysis", "state": job.state,
        "owner": job.owner, "reason": job.reason,
    }  # fmt: skip


def _folder_name(job: ServedJob) -> str:
    return f"{Path(job.model).name}-{job.budget or 'analysis'}".replace(" ", "")
