"""The HTTP server: assembles the parts of the service, and serves them."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import Database, connect
from cluster.service.data.hosts import BEAT_SECONDS, Hosts
from cluster.service.data.tokens import Tokens
from cluster.service.errors import (
    ArtifactInUseError,
    DatabaseUnavailableError,
    NotFoundError,
    NotWatchingError,
    QuotaExceededError,
)
from cluster.service.http import routes_about, routes_artifacts, routes_fetches, routes_jobs, routes_models
from cluster.service.http.audit import Audit
from cluster.service.http.context import Limits, Service, refusals
from cluster.service.http.error_answers import CODES, ApiError, describe_invalid, retry_after
from cluster.service.http.head_deadline import DeadlineProtocol
from cluster.service.http.metrics import Metrics
from cluster.service.http.middleware import Guard, SecurityHeaders
from cluster.service.http.rate_limit import TokenBucket
from cluster.service.http.revocation import TokenCache
from cluster.service.http.security import need_safe, own_names
from cluster.service.http.sse import EventFanout
from cluster.service.http.tickets import Tickets
from cluster.service.offload.fetch_pool import Fetches
from cluster.service.offload.plan_pool import NotAnalyzedError, Planner, ServiceBusyError
from cluster.service.queue.queue import Queue
from cluster.service.settings import Settings
from cluster.service.store.model_roots import Roots
from cluster.service.store.store import Store
from mint.core.errors import MintError
from mint.core.log import log
from mint.core.version import __version__

_BURST_SECONDS = 4.0  # a burst is that many seconds' worth of the steady rate
_ADDRESS_FACTOR = 10.0  # many people may share an address
_STOP_SECONDS = 10  # for requests that are being answered
# error of the service: its status; any other `MintError` is 422
_STATUS: dict[type[MintError], int] = {
    NotFoundError: 404,
    NotWatchingError: 403,
    ArtifactInUseError: 409,
    NotAnalyzedError: 409,
}


def create_app(
    settings: Settings,
    *,
    clock: Callable[[], float] = time.time,
    limits: Limits = Limits(),  # noqa: B008, it is frozen
) -> FastAPI:
    """The service as an ASGI application; it opens the database now, and runs jobs while it is served.

    Raises `MintError` for a database or roots that cannot be used.
    """
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = connect(settings.database_url, _log_database)
    if settings.database:
        try:
            Hosts(database).require_store(settings.data / "store", socket.gethostname())
        except BaseException:
            database.close()
            raise
    service = _service(settings, limits, database, clock)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        with _working(service, database):
            ending = asyncio.Event()
            beating = asyncio.create_task(_beat(service, ending))
            yield
            service.fanout.close()
            ending.set()
            await beating

    app = FastAPI(
        title="MINT",
        version=__version__,
        summary="Give it a language model and a memory budget, get the best MLX model that fits.",
        lifespan=running,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    for part in (routes_jobs, routes_models, routes_fetches, routes_artifacts, routes_about):
        app.include_router(part.router, responses=refusals())
    if routes_about.WEB.is_dir():
        app.mount("/static", routes_about.Static(directory=routes_about.WEB))
    _answer_errors(app)
    app.add_middleware(
        Guard,
        names=own_names(settings),
        rates=service.addresses,
        on_answered=service.metrics.answered,
        body_seconds=limits.body_seconds,
    )
    app.add_middleware(SecurityHeaders)  # the outermost
    return app


def _service(settings: Settings, limits: Limits, database: Database, clock: Callable[[], float]) -> Service:
    queue, catalog = Queue(database, clock), Catalog(database, clock)
    rate = settings.requests_per_second
    tokens = Tokens(database, clock)
    service = Service(
        settings=settings,
        limits=limits,
        queue=queue,
        tokens=tokens,
        catalog=catalog,
        hosts=Hosts(database, clock),
        store=Store(settings.data / "store", catalog, settings.max_store_bytes),
        models=Roots(settings.roots, catalog, allow_hub=settings.allow_hub),
        fanout=EventFanout(queue, streams_per_person=settings.streams_each),
        planner=Planner(),
        fetches=Fetches(settings.data / "logs" / "fetches.log"),
        tickets=Tickets(),
        token_cache=TokenCache(tokens, seconds=limits.token_seconds),
        audit=Audit(settings.data / "audit.log"),
        metrics=Metrics(),
        addresses=TokenBucket(_ADDRESS_FACTOR * rate, _ADDRESS_FACTOR * rate * _BURST_SECONDS),
        people=TokenBucket(rate, rate * _BURST_SECONDS),
    )
    _add_gauges(service)
    return service


def _log_database(access: str, reason: str) -> None:
    """Log that the database can no longer be read or written, with the reason, or that it can again."""
    if reason:
        log.error("database.lost", cannot_be=access, reason=reason)
    else:
        log.warning("database.recovered", can_be=access)


async def _beat(service: Service, ending: asyncio.Event) -> None:
    """Report the state of this machine now and then, until the service ends."""
    while not ending.is_set():
        with contextlib.suppress(DatabaseUnavailableError, OSError):
            await asyncio.to_thread(lambda: service.hosts.report(routes_about.host_now(service)))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), BEAT_SECONDS)


def _add_gauges(service: Service) -> None:
    metrics = service.metrics
    metrics.add_gauges("mint_jobs", "Jobs in each state.", "state", lambda: dict(service.queue.counts()))
    metrics.add_gauge("mint_event_streams", "Streams of events that are open.", lambda: service.fanout.watchers)
    metrics.add_gauge("mint_fetches", "Models of the hub that are on their way.", service.fetches.running)
    metrics.add_gauge("mint_store_bytes", "Bytes of stored artifacts.", service.catalog.nbytes)
    metrics.add_gauge("mint_store_free_bytes", "Bytes that can still be stored.", service.store.free_bytes)


@contextlib.contextmanager
def _working(service: Service, database: Database) -> Iterator[None]:
    """Run jobs until the service stops; runners that are at work then continue."""
    supervisor = None
    if service.settings.slots > 0:
        from cluster.service.work.supervisor import Supervisor

        supervisor = Supervisor(service.queue, service.store, service.settings)
        supervisor.start()
    try:
        yield
    finally:
        if supervisor:
            supervisor.stop()
        service.fetches.close()
        service.planner.close()
        database.close()


def _answer_errors(app: FastAPI) -> None:
    """Answer every error in the form of `ApiError`."""

    def refused(refusal: ApiError) -> Response:
        app.state.service.metrics.refused(refusal.code)
        return JSONResponse(refusal.record, refusal.status, refusal.headers)

    @app.exception_handler(ApiError)
    async def _refusal(request: Request, error: ApiError) -> Response:
        return refused(error)

    @app.exception_handler(MintError)
    async def _mendable(request: Request, error: MintError) -> Response:
        if isinstance(error, (QuotaExceededError, ServiceBusyError)):
            code = "quota" if isinstance(error, QuotaExceededError) else "busy"
            return refused(ApiError(429, str(error), code=code, headers=retry_after(error.retry_after)))
        if isinstance(error, DatabaseUnavailableError):
            return refused(ApiError(503, "the database does not answer; come back", headers=retry_after(5)))
        status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 422)
        return refused(ApiError(status, str(error), code="unusable" if status == 422 else ""))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        message = "; ".join(map(describe_invalid, error.errors()[:5]))
        return refused(ApiError(422, message or "the request is not what the API describes"))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        code = CODES.get(error.status_code, "refused")
        headers, message = dict(error.headers or {}), str(error.detail)
        if error.status_code == 404:
            message = f"there is nothing at {request.url.path}; see /openapi.json"
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods(app, request.url.path)))
            message = f"{request.method} is not possible here; needed {headers['Allow']}"
        return refused(ApiError(error.status_code, message, code=code, headers=headers))


def _methods(app: FastAPI, path: str) -> set[str]:
    """The methods of a path in the description of the API."""
    return {
        method.upper()
        for template, operations in app.openapi()["paths"].items()
        if compile_path(template)[0].fullmatch(path)
        for method in operations
    } or {"GET", "HEAD"}


class _Server(uvicorn.Server):
    """A server that reports when it listens, and ends the event streams before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start, self._on_stop = on_start, on_stop

    async def startup(self, sockets: Any = None) -> None:
        """Start, and report it."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: Any = None) -> None:
        """End the streams, then the rest. Exit code 0: uvicorn would raise the signal again."""
        self._on_stop()
        await super().shutdown(sockets)
        self._captured_signals.clear()


def serve(settings: Settings, *, on_start: Callable[[str], None] = lambda url: None) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises `MintError` for an address that is in use or would let strangers in."""
    os.umask(0o077)
    app = create_app(settings)
    service: Service = app.state.service
    need_safe(settings, has_tokens=bool(service.tokens.valid_digests()))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=DeadlineProtocol,
        ws="none",
        proxy_headers=False,
        server_header=False,
        access_log=False,  # it would log queries, tickets among them
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_STOP_SECONDS,
        h11_max_incomplete_event_size=16 << 10,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    listener = _listen(config)
    url = replace(settings, port=listener.getsockname()[1]).url
    _Server(config, lambda: on_start(url), service.fanout.close).run([listener])


def _listen(config: uvicorn.Config) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise MintError(
            f"cannot listen on {config.host}:{config.port} ({error.strerror}); choose another --host or --port, or end "
            "what listens there"
        ) from error
    listener.set_inheritable(False)
    return listener
