"""Routes about the service itself: devices, hosts, health, metrics, and the page."""

import socket
import time
from dataclasses import asdict
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse

from cluster.service.data.hosts import Host
from cluster.service.data.records import Person
from cluster.service.data.states import ACTIVE
from cluster.service.http.context import Here, Reader, Service, refusals
from cluster.service.http.metrics import CONTENT_TYPE
from cluster.service.http.schema import DevicesAnswer, HealthAnswer, HostAnswer, HostsAnswer, PersonAnswer
from mint.core.version import __version__
from mint.targets import devices as targets

router = APIRouter(tags=["about"])
_MOST_JOBS = 1000
WEB = Path(__file__).parent.parent / "web"


@router.get("/v1/devices")
def list_devices(person: Reader) -> DevicesAnswer:
    """The devices whose names can stand for a budget."""
    return DevicesAnswer.model_validate({"devices": [asdict(device) for device in targets.devices()]})


def host_now(service: Service) -> Host:
    """The state of this machine."""
    settings = service.settings
    free, stored = service.store.free_bytes(), service.catalog.nbytes()
    return Host(socket.gethostname(), settings.slots, free, stored, settings.cluster)


@router.get("/v1/hosts")
def list_hosts(service: Here, person: Reader) -> HostsAnswer:
    """The machines that serve or work for the queue, as each reported itself at `seen_at`, a few seconds ago."""
    return HostsAnswer(hosts=host_answers(service, person))


def host_answers(service: Service, viewer: Person) -> list[HostAnswer]:
    """Every machine that reported itself, runs a job, or is drained, with the jobs that the viewer sees."""
    here = host_now(service)
    last_seen = [*service.hosts.last_seen().items(), (here, time.time())]
    reports = {host.name: {**asdict(host), "seen_at": at} for host, at in last_seen}
    running: dict[str, list[str]] = {name: [] for name in reports}
    for job in service.queue.find(ACTIVE, viewer=viewer, limit=_MOST_JOBS):
        running.setdefault(job.host, []).append(job.id)
    drained = service.hosts.drained()
    for name in drained:
        running.setdefault(name, [])
    silent = dict.fromkeys(("slots", "free_bytes", "store_bytes", "cluster", "seen_at"))
    return [
        HostAnswer(
            **reports.get(name, {"name": name, **silent}),
            jobs=jobs,
            is_here=name == here.name,
            drained_by=drained.get(name, ""),
        )
        for name, jobs in running.items()
    ]


@router.get("/v1/me")
def show_me(person: Reader) -> PersonAnswer:
    """The person behind the request, and their scopes."""
    return PersonAnswer.model_validate(person)


@router.get("/healthz")
async def check_health() -> HealthAnswer:
    """200 if the process answers."""
    return HealthAnswer(status="ok", version=__version__)


@router.get("/readyz", responses=refusals())
def check_readiness(service: Here) -> HealthAnswer:
    """200 if the database answers too, 503 if it does not."""
    service.queue.counts()
    return HealthAnswer(status="ready", version=__version__)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **refusals()},
)
def read_metrics(service: Here, person: Reader) -> Response:
    """Metrics for Prometheus."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """The page."""
    return FileResponse(WEB / "index.html")
