"""The HTTP server: assembles the parts of the service, and serves them."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.staticfiles import StaticFiles
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cluster.service.data.database import connect
from cluster.service.data.hosts import BEAT_SECONDS, Hosts
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.http import (
    routes_about,
    routes_admin,
    routes_artifacts,
    routes_fetches,
    routes_jobs,
    routes_models,
)
from cluster.service.http.context import Service, refusals, service_of
from cluster.service.http.error_answers import CODES, ApiError, describe_invalid
from cluster.service.http.head_deadline import DeadlineProtocol
from cluster.service.http.middleware import Guard
from cluster.service.http.security import need_safe, own_names
from cluster.service.http.user_header import UserHeader
from cluster.service.settings import Settings
from cluster.service.work.folder_lock import noted
from mint.core.errors import MintError
from mint.core.log import log
from mint.core.version import __version__

_STOP_SECONDS = 10  # for requests that are being answered


def create_app(
    settings: Settings, *, clock: Callable[[], float] = time.time, on_start: Callable[[], None] = lambda: None
) -> FastAPI:
    """The service as an ASGI application; it opens the database now, and runs jobs while it is served.

    Raises `MintError` for a database or roots that cannot be used.
    """
    try:
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise MintError(
            f"--data {settings.data}: {error.strerror}; needed: a folder that can be written, or a path for a new one"
        ) from error
    database = connect(settings.database_url, _log_database)
    try:
        if settings.database:  # before the store looks for files that are gone
            Hosts(database).require_store(settings.data / "store", socket.gethostname())
        service = Service(settings, database, clock)
    except BaseException:
        database.close()
        raise

    @contextlib.asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        with service.working():
            ending = asyncio.Event()
            beating = asyncio.create_task(_beat(service, ending))
            on_start()
            yield
            service.fanout.close()
            ending.set()
            await beating

    app = FastAPI(
        title="MINT",
        version=__version__,
        summary="Give it a language model and a memory budget, get the best MLX model that fits.",
        lifespan=running,
        generate_unique_id_function=lambda route: route.name,  # the names of the routes are verbs
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        exception_handlers=dict.fromkeys((ApiError, MintError, RequestValidationError, HTTPException), _refuse),
    )
    app.state.service = service
    refused: dict[int | str, dict[str, Any]] = {422: {"description": "Any status but 2xx: the report is repeated."}}
    app.webhooks.add_api_route("job.ended", routes_jobs.job_ended, methods=["POST"], responses=refused)
    for part in (routes_jobs, routes_models, routes_fetches, routes_artifacts, routes_about, routes_admin):
        app.include_router(part.router, responses=refusals())
    if routes_about.WEB.is_dir():
        app.mount("/static", StaticFiles(directory=routes_about.WEB))
    app.add_middleware(
        Guard,
        names=own_names(settings),
        rates=service.addresses,
        on_answered=service.metrics.answered,
        body_seconds=settings.body_seconds,
        root_path=settings.root_path,
        is_behind_proxy=settings.is_behind_proxy,
    )
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(settings.trusted_proxies))
    if settings.user_header:  # the outermost layer: it needs the address of the connection
        app.add_middleware(UserHeader, header=settings.user_header, proxies=settings.trusted_proxies)
    return app


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


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer any error of a route in the form of `ApiError`."""
    refusal = _refusal(request, error)
    service_of(request).metrics.refused.labels(refusal.code).inc()
    return refusal.response


def _refusal(request: Request, error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MintError):
        return ApiError.of(error)
    if isinstance(error, RequestValidationError):
        message = "; ".join(map(describe_invalid, error.errors()[:5]))
        return ApiError(422, message or "the request is not what the API describes")
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "refused")
    headers, message = dict(error.headers or {}), str(error.detail)
    if error.status_code == 404:
        message = f"there is nothing at {request.url.path}; see /openapi.json"
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods(request.app, request.url.path)))
        message = f"{request.method} is not possible here; needed {headers['Allow']}"
    return ApiError(error.status_code, message, code=code, headers=headers)


def _methods(app: FastAPI, path: str) -> set[str]:
    """The methods of a path in the description of the API."""
    return {
        method.upper()
        for template, operations in app.openapi()["paths"].items()
        if compile_path(template)[0].fullmatch(path)
        for method in operations
    } or {"GET", "HEAD"}


class _Server(uvicorn.Server):
    """A server that ends the event streams before it waits for connections to close."""

    async def shutdown(self, sockets: Any = None) -> None:
        """End the streams, then the rest. Exit code 0: uvicorn would raise the signal again."""
        self.config.app.state.service.fanout.close()  # type: ignore[union-attr]
        await super().shutdown(sockets)
        self._captured_signals.clear()


def serve(settings: Settings, *, on_start: Callable[[str], None] = lambda url: None) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises `MintError` for an address that is in use or would let strangers in."""
    os.umask(0o077)
    app = create_app(settings, on_start=lambda: on_start(replace(settings, port=listener.getsockname()[1]).url))
    need_safe(settings, has_tokens=bool(app.state.service.tokens.valid_digests()))
    listener = _listen(settings.host, settings.port)
    config = uvicorn.Config(
        app,
        http=DeadlineProtocol,
        ws="none",
        proxy_headers=False,  # the middleware of `create_app` does that
        server_header=False,
        access_log=False,  # it would log queries, tickets among them
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_STOP_SECONDS,
        h11_max_incomplete_event_size=16 << 10,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    with noted(settings.data / "server.lock") as other:
        if other and not settings.database:
            log.warning(
                "data.shared",
                data=str(settings.data),
                pid=other,
                effect="two servers work for one queue, and the jobs of both count as those of this machine; "
                "if that is not wanted, end one of them",
            )
        _Server(config).run([listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=family == socket.AF_INET6)
    except OSError as error:
        raise MintError(
            f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}); choose another --host or --port, or "
            "end what listens there"
        ) from error
