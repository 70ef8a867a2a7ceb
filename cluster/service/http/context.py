"""The context of every route: the parts of the service, and the person behind a request.

A token comes in the `Authorization` header and nowhere else. Before the first token is made, and if only programs on
this machine can connect, every request is that of `local`, who may do everything. A request that a proxy passed on is
not from this machine, whatever its address.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import Database
from cluster.service.data.hosts import Hosts
from cluster.service.data.people import People
from cluster.service.data.records import Person
from cluster.service.data.tokens import NOBODY, Tokens, digest_of, hidden
from cluster.service.http.audit import Audit
from cluster.service.http.error_answers import ApiError
from cluster.service.http.grants import SIGNED_IN, Tickets, TokenCache
from cluster.service.http.metrics import Metrics
from cluster.service.http.middleware import client_of
from cluster.service.http.rate_limit import TokenBucket
from cluster.service.http.schema import ErrorAnswer
from cluster.service.http.security import is_forwarded
from cluster.service.http.sse import EventFanout
from cluster.service.queue.queue import Queue
from cluster.service.settings import Settings
from cluster.service.store.model_roots import Roots
from cluster.service.store.store import Store
from cluster.service.subprocesses.fetch_pool import Fetches
from cluster.service.subprocesses.plan_pool import Planner
from mint.client.http import is_loopback
from mint.core.log import log

LOCAL = Person(NOBODY, ("admin",))
_GUESS_FACTOR = 0.5  # wrong tokens of an address
_BURST_SECONDS = 4.0  # a burst is that many seconds' worth of the steady rate
_ADDRESS_FACTOR = 10.0  # many people may share an address


class Service:
    """The parts of a service over a database. It is running while the block of `working` lasts."""

    def __init__(self, settings: Settings, database: Database, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.database = database
        self.queue = Queue(database, clock, settings.lease_seconds)
        self.tokens = Tokens(database, clock)
        self.roster = People(database, clock)
        self.catalog = Catalog(database, clock)
        self.hosts = Hosts(database, clock)
        self.store = Store(settings.data / "store", self.catalog, settings.max_store_bytes)
        self.models = Roots(
            settings.roots,
            self.catalog,
            groups=settings.group_roots,
            cache=settings.cache_folder,
            allow_hub=settings.allow_hub,
        )
        self.fanout = EventFanout(self.queue, streams_per_person=settings.streams_each)
        self.planner = Planner()
        self.fetches = Fetches(settings.data / "logs" / "fetches.log", settings.cache_folder)
        self.tickets = Tickets()
        self.token_cache = TokenCache(self.tokens, seconds=settings.token_seconds)
        self.audit = Audit(settings.data / "audit.log", settings.audit_bytes)
        rate = settings.requests_per_second
        self.addresses = TokenBucket(_ADDRESS_FACTOR * rate, _ADDRESS_FACTOR * rate * _BURST_SECONDS)
        self.guesses = TokenBucket(_GUESS_FACTOR * rate, _GUESS_FACTOR * rate * _BURST_SECONDS)
        self.people = TokenBucket(rate, rate * _BURST_SECONDS)
        self.metrics = metrics = Metrics(self.queue.counts, self.queue.times)
        metrics.add_gauge("mint_event_streams", "Streams of events that are open.", lambda: self.fanout.watchers)
        metrics.add_gauge("mint_leases", "Jobs that a runner holds.", lambda: len(self.queue.leases()))
        metrics.add_gauge("mint_fetches", "Models that are downloaded or converted.", self.fetches.running)
        metrics.add_gauge("mint_store_bytes", "Bytes of stored artifacts.", self.catalog.nbytes)
        metrics.add_gauge("mint_store_free_bytes", "Bytes that can still be stored.", self.store.free_bytes)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run jobs during this block; runners that are at work then continue."""
        with ExitStack() as parts:
            for part in (self.database, self.planner, self.fetches):
                parts.callback(part.close)
            if self.settings.slots > 0:
                from cluster.service.work.supervisor import Supervisor

                supervisor = Supervisor(self.queue, self.store, self.settings)
                supervisor.start()
                parts.callback(supervisor.stop)
            if self.settings.webhook or self.settings.notify:
                from cluster.service.work.notifier import Notifier

                notifier = Notifier(self.queue, self.settings)
                notifier.start()
                parts.callback(notifier.stop)
            yield

    def person(self, request: Request, scope: str) -> Person:
        """The person behind a request, if the token has a scope; raises `ApiError`."""
        text, name = _token(request), self._user(request)
        if text is None and not name:
            if not self._is_open(client_of(request.scope), request):
                raise ApiError(
                    401, "needed: a token, in the header Authorization: Bearer TOKEN; mint token create NAME"
                )
            return LOCAL
        person = self.tokens.signed_in(name) if text is None else self._of_token(request, text)
        if person is None:
            self.audit.note("user.refused", person=name[:64], client=client_of(request.scope), path=request.url.path)
            raise ApiError(401, "the proxy's name of the person is no name here, or the person's token was revoked")
        self.people.need(person.name)
        if not person.may(scope):
            self.note(request, person, "scope.refused", path=request.url.path, scope=scope)
            raise ApiError(403, f"{person.name}'s token does not allow this; needed the scope {scope!r}")
        return person

    def _of_token(self, request: Request, text: str) -> Person:
        person = self.tokens.verify(text) if text else None
        if person is None:
            client = client_of(request.scope)
            self.guesses.need(client)  # delays guesses only: honest people may share the address
            self.audit.note("token.refused", person="", client=client, path=request.url.path)
            log.warning("token.refused", client=client, path=hidden(request.url.path))
            raise ApiError(401, "the token is not known here, or was revoked; make one with mint token create NAME")
        return person

    def grant(self, request: Request) -> str:
        """The digest of a request's token, as `TokenCache` takes it; for a person who signed in at the proxy, the name.

        Empty for a request without either.
        """
        if text := _token(request):
            return digest_of(text)
        name = self._user(request)
        return f"{SIGNED_IN}{name}" if name else ""

    def note(self, request: Request, person: Person, event: str, **context: Any) -> None:
        """Write a line into the audit log."""
        self.audit.note(event, person=person.name, client=client_of(request.scope), **context)

    def _user(self, request: Request) -> str:
        """The name of a person who signed in at the proxy; empty without one. `UserHeader` removed those of others."""
        header = self.settings.user_header
        names = request.headers.getlist(header) if header else []
        return names[0] if len(names) == 1 else ""

    def _is_open(self, client: str, request: Request) -> bool:
        is_direct = not self.settings.is_behind_proxy and not is_forwarded(request.headers.keys())
        return self.settings.is_local and is_loopback(client) and is_direct and not self.tokens.has_any()


def _token(request: Request) -> str | None:
    """The token in the header; empty for a header of another kind, None without one."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, text = header.partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


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
        return service.person(request, scope)

    return check


Here = Annotated[Service, Depends(service_of)]
Reader = Annotated[Person, Depends(_need("read"))]
Submitter = Annotated[Person, Depends(_need("submit"))]
Admin = Annotated[Person, Depends(_need("admin"))]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of a route's errors: `statuses`, and those that every route has."""
    return {status: {"model": ErrorAnswer} for status in (*_EVERYWHERE, *statuses)}


_EVERYWHERE = (400, 401, 403, 422, 429, 503)
POSTED = (408, 413, 415)  # errors of a request with a body
