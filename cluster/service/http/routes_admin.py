"""Routes of administrators: people and their quotas, machines that begin no job, and the audit log."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from cluster.service.data.people import Usage
from cluster.service.data.records import Quota
from cluster.service.errors import NotFoundError
from cluster.service.http.context import POSTED, Admin, Here, refusals
from cluster.service.http.routes_about import host_answers
from cluster.service.http.schema import AuditAnswer, AuditEntry, HostAnswer, PeopleAnswer, QuotaAnswer, UsageAnswer
from cluster.service.http.schema_requests import HostChange, PersonChange

router = APIRouter(prefix="/v1", tags=["admin"])
Name = Annotated[str, Path(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f/]+$")]


@router.get("/people")
def list_people(service: Here, person: Admin) -> PeopleAnswer:
    """Everybody with a token or a job: their token, quota, jobs, and work."""
    return PeopleAnswer(people=list(map(_usage_answer, service.roster.usage())))


def _usage_answer(usage: Usage) -> UsageAnswer:
    grant = usage.grant
    return UsageAnswer(
        name=usage.name,
        scopes=list(grant.person.scopes) if grant else [],
        created_at=grant.created_at if grant else None,
        used_at=grant.used_at if grant else None,
        expires_at=grant.expires_at if grant else None,
        groups=list(usage.groups),
        quota=QuotaAnswer(**asdict(usage.quota)),
        waiting=usage.waiting,
        running=usage.running,
        ended=usage.ended,
        worked_seconds=usage.worked_seconds,
        used_bytes=usage.used_bytes,
    )


@router.patch("/people/{name}", responses=refusals(404, *POSTED))
def change_person(request: Request, name: Name, body: PersonChange, service: Here, person: Admin) -> UsageAnswer:
    """Replace the quota or the groups of a person; a limit that is left out or null is none."""
    quota = Quota(**body.quota.model_dump()) if body.quota else None
    service.roster.change(name, quota, body.groups)
    service.note(request, person, "person.changed", of=name, **body.model_dump(exclude_none=True))
    return next(_usage_answer(usage) for usage in service.roster.usage() if usage.name == name)


@router.patch("/hosts/{name}", responses=refusals(404, *POSTED))
def change_host(request: Request, name: Name, body: HostChange, service: Here, person: Admin) -> HostAnswer:
    """Drain a machine, which then begins no job and finishes those that it runs; or let it begin jobs again."""
    if name not in (host.name for host in host_answers(service, person)):
        raise NotFoundError(f"there is no host {name!r}; needed: a name from GET /v1/hosts")
    if body.drained:
        service.hosts.drain(name, person.name)
    else:
        service.hosts.end_drain(name)
        service.queue.submitted.set()
    service.note(request, person, "host.drained" if body.drained else "host.opened", host=name)
    return next(host for host in host_answers(service, person) if host.name == name)


@router.get("/audit")
def list_audit(
    service: Here,
    person: Admin,
    search: Annotated[str, Query(max_length=200, description="Words of an entry, such as a name or an event.")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditAnswer:
    """The latest entries of the audit log of this machine, the newest first."""
    entries = [AuditEntry.model_validate(entry) for entry in service.audit.latest(search, limit)]
    return AuditAnswer(entries=entries)
