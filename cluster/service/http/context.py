"""The context of every route: the parts of the service, and the person behind a request.

A token comes in the `Authorization` header and nowhere else. Before the first token is made, and if only programs on
this machine can connect, every request is that of `local`, who may do everything. A request that a proxy passed on is
not from this machine, whatever its address.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from cluster.service.data.catalog import Catalog
from cluster.service.data.hosts import Hosts
from cluster.service.data.records import Person
from cluster.service.data.tokens import NOBODY, Tokens, digest_of
from cluster.service.http.audit import Audit
from cluster.service.http.downloads import CHUNK_BYTES
from cluster.service.http.error_answers import ApiError, retry_after
from cluster.service.http.metrics import Metrics
from cluster.service.http.middleware import BODY_SECONDS
from cluster.service.http.rate_limit import TokenBucket
from cluster.service.http.revocation import SECONDS, TokenCache
from cluster.service.http.schema import ErrorAnswer
from cluster.service.http.security import is_forwarded
from cluster.service.http.sse import EventFanout
from cluster.service.http.tickets import Tickets
from cluster.service.offload.fetch_pool import Fetches
from cluster.service.offload.plan_pool import Planner
from cluster.service.queue.queue import Queue
from cluster.service.settings import Settings
from cluster.service.store.model_roots import Roots
from cluster.service.store.store import Store
from mint.client.http import is_loopback

LOCAL = Person(NOBODY, ("admin",))
_FINE = 20.0  # requests that a wrong token costs


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes and times of the HTTP layer that no option sets."""

    body_seconds: float = BODY_SECONDS  # for the body of a request
    chunk_bytes: int = CHUNK_BYTES  # of a download in memory
    token_seconds: float = SECONDS  # from a revocation to the end of what the token opened


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a running service."""

    settings: Settings
    limits: Limits
    queue: Queue
    tokens: Tokens
    catalog: Catalog
    hosts: Hosts
    store: Store
    models: Roots
    fanout: EventFanout
    planner: Planner
    fetches: Fetches
    tickets: Tickets
    token_cache: TokenCache
    audit: Audit
    metrics: Metrics
    addresses: TokenBucket  # by address, of all requests
    people: TokenBucket  # by name

    def person(self, request: Request) -> Person:
        """The person behind a request; raises `ApiError`."""
        client = request.client.host if request.client else "unknown"
        text = _token(request)
        if text is None:
            if not self._is_open(client, request):
                raise _unauthorized(
                    "needed: a token, in the header Authorization: Bearer TOKEN; mint token create NAME"
                )
            return LOCAL
        person = self.tokens.verify(text) if text else None
        if person is None:
            self.addresses.fine(client, _FINE)
            self.audit.note("token.refused", person="", client=client, path=request.url.path)
            raise _unauthorized("the token is not known here, or was revoked; make one with mint token create NAME")
        if wait := self.people.take(person.name):
            raise ApiError(429, f"too many requests; come back in {wait:.1f} seconds", headers=retry_after(wait))
        return person

    def grant(self, request: Request) -> str:
        """The digest of a request's token, as `TokenCache` takes it; empty for a request without one."""
        text = _token(request)
        return digest_of(text) if text else ""

    def note(self, request: Request, person: Person, event: str, **context: Any) -> None:
        """Write a line into the audit log."""
        self.audit.note(event, person=person.name, client=request.client.host if request.client else "", **context)

    def _is_open(self, client: str, request: Request) -> bool:
        local = self.settings.is_local and is_loopback(client) and not is_forwarded(request.headers.keys())
        return local and not self.tokens.has_any()


def _token(request: Request) -> str | None:
    """The token in the header; empty for a header of another kind, None without one."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, text = header.partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


BEARER = HTTPBearer(auto_error=False, description="A token of `mint token create`.")


def _need(scope: str) -> Callable[..., Person]:
    def check(
        request: Request,
        service: Annotated[Service, Depends(service_of)],
        _: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
    ) -> Person:
        person = service.person(request)
        if not person.may(scope):
            service.note(request, person, "scope.refused", path=request.url.path, scope=scope)
            raise ApiError(403, f"{person.name}'s token does not allow this; needed the scope {scope!r}")
        return person

    return check


Here = Annotated[Service, Depends(service_of)]
Reader = Annotated[Person, Depends(_need("read"))]
Submitter = Annotated[Person, Depends(_need("submit"))]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of a route's errors: `statuses`, and those that every route has."""
    return {status: {"model": ErrorAnswer} for status in (*_EVERYWHERE, *statuses)}


_EVERYWHERE = (400, 401, 403, 422, 429, 503)
POSTED = (408, 413, 415)  # errors of a request with a body
