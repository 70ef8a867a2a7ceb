"""The commands that ask a lab's service: a thin rim around `mint.client`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint.errors import MintError
from mint.options import Json, Server, takes
from mint.show import Screen

if TYPE_CHECKING:
    from mint.client import ServedJob

Id = Annotated[str, typer.Argument(metavar="ID", help="Of a job; mint jobs lists them.")]


@takes(Server)
def submit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of the service, as its page lists it.")],
    server: Server,
    budget: Annotated[
        list[str],
        typer.Option("--budget", "-b", metavar="SIZE", help="As of mint quantize; may be repeated: a job each."),
    ] = [],  # noqa: B006, typer copies it
    rounding: Annotated[str, typer.Option(metavar="NAME", help="nearest, search or compensate.")] = "nearest",
    probe: Annotated[bool, typer.Option("--probe", help="Measure sensitivities first.")] = False,
    option: Annotated[
        list[str], typer.Option("--option", metavar="NAME=VALUE", help="Any other option of the service.")
    ] = [],  # noqa: B006
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the jobs to their end.")] = False,
    download: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Wait, and bring every result into a folder MODEL-BUDGET below DIR."),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Ask the service for models within budgets. Without --budget only for the analysis.

    Example: mint submit Qwen3-8B --budget 6GB --budget 8GB --download models
    """
    options: dict[str, Any] = {"rounding": rounding, "probe": probe, **dict(map(_option, option))}
    with Screen(as_json) as screen, server.client() as client:
        jobs = client.submit(model, budget, options=options, priority=priority)
        for job in jobs:
            screen.note(f"job {job.id}: {job.model} {job.budget or 'analysis'}, {job.state}")
        if wait or download:
            jobs = tuple(client.wait(job.id, screen.on_progress) for job in jobs)
        records = [job_record(job) for job in jobs]
        for job, record in zip(jobs, records, strict=True):
            if download:
                output = download / f"{Path(job.model).name}-{job.budget or 'analysis'}"
                client.download(job.artifact, output, screen.on_progress)
                record["output"] = str(output)
    screen.answer_all(records)


@takes(Server)
def jobs(
    server: Server,
    id: Annotated[str, typer.Argument(metavar="[ID]", help="Of a job; default: the newest.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job ends.")] = False,
    state: Annotated[str, typer.Option(metavar="STATE", help="Only those in this state.")] = "",
    mine: Annotated[bool, typer.Option("--mine", help="Only mine.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = 20,
    as_json: Json = False,
) -> None:
    """Show the jobs of the service, or one of them, or follow it to its end."""
    if follow and not id:
        raise typer.BadParameter("needed: the id of the job to follow", param_hint="--follow")
    with Screen(as_json) as screen, server.client() as client:
        if id and follow:
            client.wait(id, screen.on_progress)
        found = [client.job(id)] if id else list(client.jobs(state=state, mine=mine, limit=limit))
    if id:
        screen.answer(job_record(found[0]))
    else:
        screen.answer({"count": len(found), "jobs": [_row(job) for job in found]})


@takes(Server)
def cancel(id: Id, server: Server, as_json: Json = False) -> None:
    """Want a job no more: it ends at once, unless somebody else asked for the same."""
    with Screen(as_json) as screen, server.client() as client:
        job = client.cancel(id)
        if not job.is_final:
            others = ", ".join(job.watchers)
            screen.note(f"it goes on for {others}" if others else "it is being ended")
    screen.answer(job_record(job))


@takes(Server)
def download(
    id: Id,
    server: Server,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; must not exist. Default: MODEL-BUDGET.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring the result of a job here. Every byte is checked; killed or cut off, the same command goes on."""
    with Screen(as_json) as screen, server.client() as client:
        job = client.job(id)
        if job.state != "done":
            raise MintError(f"job {job.id} is {job.state}, there is nothing to download; mint jobs {id} --follow")
        path = output or Path(f"{Path(job.model).name}-{job.budget or 'analysis'}")
        files = client.download(job.artifact, path, screen.on_progress)
    screen.answer(
        {"output": str(path), "nbytes": sum(file.nbytes for file in files), "files": [file.name for file in files]}
    )


def job_record(job: ServedJob) -> dict[str, Any]:
    """A job as the commands print it."""
    from dataclasses import asdict

    return {**asdict(job), "watchers": list(job.watchers)}


def _row(job: ServedJob) -> dict[str, Any]:
    return {
        "id": job.id, "model": job.model, "budget": job.budget or "analysis", "state": job.state,
        "owner": job.owner, "reason": job.reason,
    }  # fmt: skip


def _option(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value as JSON where it is JSON."""
    import json

    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"found {text!r}, needed NAME=VALUE", param_hint="--option")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
