"""Calls to Ray for the head: carries the coordinator's commands to actors and brings their events.

One actor a node, pinned to it, holding `mlx: 1`. Batches are streaming generators. Only Ray's `ActorDiedError` counts
as a death. Every other error (unavailable, lost objects, a broken connection) means that a stream broke, which makes
the worker suspect. A node whose worker was dismissed gets a new one as long as the node lives.

Every call has a deadline, because behind a pulled cable Ray waits for a minute or for ever. One wait serves all pending
calls, and a value is taken only when it is on this machine: Ray also reports values as ready that lie on a node that
cannot be reached. Actors take calls in the order of arrival: in the order of sending, one lost call would delay all
later ones, pings too.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from cluster.copies.inventory import Holder, Inventory
from cluster.copies.lending import Peers
from cluster.head.watch import Beside, HeadWatch
from cluster.schedule.commands import Command, Dismiss, Ping, Send, Skip
from cluster.schedule.events import Answered, Broken, Died, Ended, Event, Joined
from cluster.transport.actor import RayPeer, as_actor, start_lender
from cluster.transport.messages import Gathering, holder_from, unpack
from cluster.transport.survey import AGAIN_SECONDS, GET_SECONDS, Node, first_line, pinned_to, workable
from cluster.transport.worker import Worker
from mint.core.errors import MintError
from mint.core.log import log
from mint.model.checkpoint.shards import PATTERN
from mint.model.gguf.files import PACKAGE as GGUF_PACKAGE
from mint.model.gguf.files import is_conversion
from mint.run.device_kind import versions

CONVERSION_RATE = 20e6  # bytes per second of a GGUF model that a node converts before it describes itself, at least
START_SECONDS = 90.0  # for a worker to describe its node, or to get ready; longer after each restart
ASK_SECONDS = 60.0  # for an answer without which nothing can begin, per worker
LOOK_BYTES = (1, 512 << 10, 8 << 20)  # that a worker sends to show its link's rate; the first to make connections
LONG_SECONDS = 0.2  # enough to measure a rate
LOOK_SECONDS = 10.0  # a worker that takes longer for them counts as silent
GRACE_SECONDS = 15.0  # for the others, after the first answer
PING_SECONDS = 1.0  # until a ping that could not be delivered is sent again
# Messages that a stream may be ahead of the head. A node works on one batch at a time, and a message is at most a piece
# of a result and a parcel, so results take 50 MB of its object store (measured: six pieces) however much is assembled,
# and the head fetches one at a time. Far from `STORE_BYTES`, so Ray has nothing to spill.
PIECES = 4


@dataclass(slots=True)
class Link:
    """A worker on a node and its actor; `holder` is its description of itself, None until it comes."""

    worker: str
    node: Node
    actor: Any
    holder: Holder | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A pending call of a worker: a batch with its items, which answers many times, or a call with one answer."""

    link: Link
    then: Callable[[Link, Any], None]  # takes an answer
    lost: Callable[[Link, Exception], None]  # takes an error of Ray in its place, or `StopIteration` after a batch
    until: float = inf  # the deadline; pings and batches have none, the coordinator watches them
    may_raise: bool = False  # an error of the worker itself, which refuses the node; elsewhere it is a bug
    of_job: bool = True  # dropped with the job
    batch: int = 0
    items: tuple[str, ...] = ()


class Carrier:
    """The workers of a cluster that this process is connected to; `actor` is the result of `as_actor`."""

    def __init__(self, actor: Any = None, watch: HeadWatch | None = None) -> None:
        self._watch = watch
        self._actor = actor or as_actor(Worker)
        self.links: dict[str, Link] = {}
        self.refused: dict[str, str] = {}  # reasons why nodes cannot take part
        self.on_hello: Callable[[Link, Holder], None]  # for a worker that comes while work goes on
        self._model = ""
        self._share = False
        self._packages: tuple[str, ...] = ()  # beside those of every model, that need the versions of this machine
        self._start_seconds = START_SECONDS
        self._lenders: list[RayPeer] = []  # of this machine
        self._waiting: dict[Any, Call] = {}
        self._job = 1  # the number that all messages to workers carry
        self._pings: list[tuple[float, Link]] = []  # to be sent again, and when
        self._heard: list[Event] = []
        self._lives: dict[str, int] = {}
        self._nodes = Beside(ray.nodes, AGAIN_SECONDS)

    def meet(self, model: Path, *, share: bool = False) -> list[Link]:
        """The workers of all nodes, each with its inventory of `model`; started where there is none.

        A node with other versions is refused, because its results would not be those of this machine.
        With `share` they lend each other their shards. After the first answer the others have `GRACE_SECONDS`; a later
        one may still join the work.
        """
        self._model, self._share, self.on_hello = str(model), share, lambda link, holder: None
        self._packages, converting = (), 0.0
        if is_conversion(model):
            self._packages = (GGUF_PACKAGE,)
            converting = sum(file.stat().st_size for file in model.glob(PATTERN)) / CONVERSION_RATE
        self._start_seconds = START_SECONDS + converting
        self.refused.clear()
        for link in self.links.values():
            self._greet(link)
        self._start_missing(workable(ray.nodes()))
        deadline = time.monotonic() + self._start_seconds
        while self._waiting and time.monotonic() < deadline:
            self._wait(deadline - time.monotonic())
            if any(link.holder for link in self.links.values()):
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return [link for link in self.links.values() if link.holder]

    def require(self, packages: Sequence[str]) -> list[Link]:
        """The workers of nodes that have also these packages in the versions of this machine; others are refused."""
        self._packages = tuple(packages)
        links = [link for link in self.links.values() if link.holder]
        return [link for link in links if link.holder and self._has_versions(link, link.holder)]

    def open(self, link: Link, model: Any, job: Any, missing: Mapping[str, int], peers: Peers) -> None:
        """Let a worker get ready; it has joined when it is."""
        reference = link.actor.open.remote(self._job, model, job, peers)
        self._waiting[reference] = Call(
            link, self._hears(Joined(link.worker, missing)), self._lose, self._deadline(link), may_raise=True
        )

    def lend(self, inventory: Inventory) -> None:
        """Let this machine lend the shards of an inventory, until `stop_lending`."""
        self._lenders = start_lender(inventory)

    def stop_lending(self) -> None:
        """Lend nothing more from this machine."""
        while self._lenders:
            _kill(self._lenders.pop().actor)

    def peers(self) -> Peers:
        """The lenders of each shard, workers first."""
        workers = [RayPeer(link.worker, link.actor, link.holder.lent) for link in self.links.values() if link.holder]
        peers: dict[str, list[RayPeer]] = {}
        for peer in [*workers, *self._lenders]:
            for shard in peer.lent:
                peers.setdefault(shard, []).append(peer)
        return peers

    def tell_peers(self) -> None:
        """Let all workers borrow from the present lenders."""
        peers = self.peers()
        for link in self.links.values():
            link.actor.borrow_from.remote(peers)

    def refuse(self, link: Link, reason: str) -> None:
        """Do without a node."""
        self.refused[link.node.name] = reason
        log.warning("worker.refused", worker=link.worker, reason=reason)
        self._drop(link)

    def ask(self, links: Sequence[Link], method: str, *arguments: Any, seconds: float = ASK_SECONDS) -> Any:
        """The first answer in time of these workers, asked in this order; raises `MintError` when none answers."""
        for link in links:
            try:
                return unpack(ray.get(getattr(link.actor, method).remote(*arguments), timeout=seconds))
            except RayTaskError:
                raise
            except RayError as error:
                log.warning("call.failed", worker=link.worker, asked=method, reason=first_line(error))
        raise MintError(
            f"no answer from {', '.join(link.node.name for link in links) or 'any node'}, asked for its {method}; "
            "needed: a network to them (mint cluster status shows who answers)"
        )

    def rate_of(self, link: Link, seconds: float = LOOK_SECONDS) -> float:
        """Bytes per second of a worker that arrive here; 0 for a silent one, and for one that has no shard to send."""
        if not link.holder or not link.holder.inventory.shards:
            return 0.0
        shard, started, content = link.holder.inventory.shards[0].name, 0.0, b""
        try:
            for nbytes in LOOK_BYTES:
                started = time.perf_counter()
                (content,) = self.ask([link], "ranges", shard, [(0, nbytes)], seconds=seconds)
                if nbytes > 1 and time.perf_counter() - started > LONG_SECONDS:
                    break
        except MintError:
            return 0.0
        return len(content) / (time.perf_counter() - started)

    def carry(self, *commands: Command) -> None:
        """Do commands of the coordinator."""
        for command in commands:
            if (link := self.links.get(getattr(command, "worker", ""))) is None:
                continue
            match command:
                case Send(worker, batch, items):
                    self._send(link, batch, items)
                    log.debug("batch.sent", worker=worker, units=list(items))
                case Skip(worker, batch, items):
                    link.actor.skip.remote(self._job, batch, list(items))
                    log.debug("batch.shortened", worker=worker, units=list(items))
                case Ping():
                    self._ping(link)
                case Dismiss(worker, reason):
                    log.warning("worker.dismissed", worker=worker, reason=reason)
                    self._drop(link)

    def hear(self, seconds: float) -> list[Event]:
        """Events since the last call; waits for the first at most so long. Raises `MintError` when the head is gone."""
        if self._watch:
            self._watch.insist()
        now = time.monotonic()
        due = [link for moment, link in self._pings if moment <= now]
        self._pings = [(moment, link) for moment, link in self._pings if moment > now]
        for link in due:
            self._ping(link)
        for link in [call.link for call in self._waiting.values() if call.until <= now]:
            self._lose(link, TimeoutError("it does not get ready"))
        self._nodes.begin()
        self._start_missing(workable(self._nodes.take() or ()))
        self._wait(0.0 if self._heard else seconds)
        heard, self._heard = self._heard, []
        return heard

    def rest(self) -> None:
        """End the job: drop all its pending calls, so that no late result and no late worker passes for the next's."""
        for reference, call in list(self._waiting.items()):
            if call.items:
                call.link.actor.skip.remote(self._job, call.batch, list(call.items))
            if call.of_job:
                del self._waiting[reference]
        self._job += 1
        self._heard.clear()
        self._pings.clear()

    def quit(self) -> None:
        """End all workers, whatever they do. Those of a head that is gone end by themselves."""
        if self._watch and self._watch.is_gone:
            self.links.clear()
        for link in list(self.links.values()):
            self._drop(link)
        self._pings.clear()

    def _start_missing(self, nodes: Iterable[Node]) -> None:
        busy = {link.node.id for link in self.links.values()}
        for node in nodes:
            if node.name not in self.refused and node.id not in busy:
                lives = self._lives[node.name] = self._lives.get(node.name, 0) + 1
                worker = node.name if lives == 1 else f"{node.name}~{lives}"
                actor = self._actor.options(scheduling_strategy=pinned_to(node.id)).remote(node.name)
                self.links[worker] = Link(worker, node, actor)
                self._greet(self.links[worker])

    def _greet(self, link: Link) -> None:
        link.holder = None
        reference = link.actor.hello.remote(self._model, share=self._share)
        self._waiting[reference] = Call(link, self._welcome, self._lose, self._deadline(link), of_job=False)

    def _welcome(self, link: Link, description: bytes) -> None:
        link.holder = holder = holder_from(unpack(description))
        for shard, reason in holder.unlent.items():
            log.debug("shard.kept", shard=shard, worker=link.worker, reason=reason)
        if self._has_versions(link, holder):
            self.on_hello(link, holder)

    def _has_versions(self, link: Link, holder: Holder) -> bool:
        """True for a node with the versions of this machine; another one is refused."""
        for name, needed in versions(self._packages).items():
            if (version := holder.versions.get(name, "")) != needed:
                self.refuse(link, f"{name}: found {version or 'none'}, needed {needed} as on this machine")
                return False
        return True

    def _send(self, link: Link, batch: int, items: tuple[str, ...]) -> None:
        gathering = Gathering(link.worker)

        def streamed(link: Link, message: bytes) -> None:
            self._heard.extend(gathering.add(message))

        def ended(link: Link, error: Exception) -> None:
            if isinstance(error, ActorDiedError):
                self._heard.append(Died(link.worker, first_line(error)))
            else:
                kind = Ended if isinstance(error, StopIteration) else Broken
                self._heard.append(kind(link.worker, batch))

        link.actor.expect.remote(self._job, batch, list(items))
        run = link.actor.run.options(_generator_backpressure_num_objects=PIECES)
        stream = run.remote(self._job, batch, list(items))
        self._waiting[stream] = Call(link, streamed, ended, batch=batch, items=items)

    def _ping(self, link: Link) -> None:
        def lost(link: Link, error: Exception) -> None:
            if isinstance(error, ActorDiedError):
                self._heard.append(Died(link.worker, first_line(error)))
            else:
                self._pings.append((time.monotonic() + PING_SECONDS, link))

        if link.worker in self.links:
            self._waiting[link.actor.ping.remote()] = Call(link, self._hears(Answered(link.worker)), lost)

    def _hears(self, event: Event) -> Callable[[Link, Any], None]:
        return lambda link, answer: self._heard.append(event)

    def _deadline(self, link: Link) -> float:
        return time.monotonic() + self._start_seconds * self._lives[link.node.name]

    def _lose(self, link: Link, error: Exception) -> None:
        """Drop a worker; its node is asked for a new one."""
        log.warning("worker.lost", worker=link.worker, reason=first_line(error))
        self._drop(link)

    def _drop(self, link: Link) -> None:
        self.links.pop(link.worker, None)
        self._waiting = {reference: call for reference, call in self._waiting.items() if call.link is not link}
        _kill(link.actor)

    def _wait(self, seconds: float) -> None:
        """Pass on all answers that are here; wait for the first."""
        if not self._waiting:
            time.sleep(min(seconds, 0.1))
            return
        ready, _ = ray.wait(list(self._waiting), num_returns=1, timeout=max(seconds, 0.0))
        while ready:
            for reference in ready:
                if call := self._waiting.get(reference):  # none for a worker that was dropped meanwhile
                    self._take(reference, call)
            if len(self._heard) > 100 or not self._waiting:
                break
            ready, _ = ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)

    def _take(self, reference: Any, call: Call) -> None:
        """Pass on an answer of a call, or the error in its place."""
        if not call.items:
            del self._waiting[reference]
        try:
            answer = ray.get(next(reference) if call.items else reference, timeout=GET_SECONDS)
        except RayTaskError as error:
            if not call.may_raise:
                raise
            self.refuse(call.link, first_line(error.cause))
        except (StopIteration, RayError) as error:
            self._waiting.pop(reference, None)
            call.lost(call.link, error)
        else:
            call.then(call.link, answer)


def _kill(actor: Any) -> None:
    with suppress(RayError):
        ray.kill(actor, no_restart=True)
