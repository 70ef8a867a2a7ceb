"""Calls to Ray for the head: carries the coordinator's commands to actors and brings their events.

One actor a node, pinned to it, holding `mlx: 1`. Batches are streaming generators. Ray's own word on the life of
an actor is not final: only "died" is believed at once, everything else (unavailable, lost objects, a broken
connection) means that a stream broke, which makes the worker suspect. A node whose worker was dismissed is asked
for a new one as long as it is there.

No call here waits without a deadline, since behind a pulled cable Ray waits for a minute or for ever. One wait serves
all pending calls, and a value is taken only when it is on this machine: Ray also calls one ready that lies on a node
that cannot be reached. Actors take calls in the order of arrival: in the order of sending, one lost call would hold up
all later ones, pings too.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from cluster.copies.borrower import Peers
from cluster.copies.inventory import Inventory
from cluster.head.watch import HeadWatch
from cluster.schedule.events import Answered, Broken, Command, Died, Dismiss, Ended, Event, Joined, Ping, Send, Skip
from cluster.transport.actor import Actor, as_actor
from cluster.transport.messages import Gathering
from cluster.transport.sharing import HeadLender, RayPeer, peers_by_shard
from cluster.transport.survey import GET_SECONDS, Node, NodeSurvey, first_line, pinned_to
from cluster.transport.wire import inventory_from, unpack
from mint.core.errors import MintError
from mint.core.log import log

START_SECONDS = 90.0  # for the worker of a node to say what it holds, or to get ready; longer each time
ASK_SECONDS = 60.0  # for an answer without which nothing can begin, from each that can give it
LOOK_BYTES = (1, 512 << 10, 8 << 20)  # that a worker sends to show its link's rate; the first to make connections
LONG_SECONDS = 0.2  # that are enough to tell a rate from
LOOK_SECONDS = 10.0  # a worker that takes longer for them is as good as none
GRACE_SECONDS = 15.0  # for the others, once the first has
PING_SECONDS = 1.0  # until a ping that could not be delivered is sent again
# Messages that a stream may be ahead of the head. A node works on one batch at a time, and a message is at most a piece
# of `wire.PIECE_BYTES` and a parcel, so results take 50 MB of its object store (measured: six pieces) however much is
# assembled, and the head fetches one at a time. Far from `STORE_BYTES`, so Ray has nothing to spill.
PIECES = 4

_REMOTE = as_actor(Actor)
Heard = tuple[Event, list[bytes]]


@dataclass(slots=True)
class Link:
    """A worker on a node, its actor, and its description of itself."""

    worker: str
    node: str
    node_id: str
    actor: Any
    pid: int = 0
    device: str = ""
    memory_bytes: int = 0  # that it has for a model
    versions: dict[str, str] = field(default_factory=dict)
    inventory: Inventory | None = None
    address: str = ""
    lent: tuple[str, ...] = ()  # names of shards that it lends


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a worker whose answer is waited for."""

    link: Link
    then: Callable[[Any], None]  # what to do with its reference when the answer is here
    until: float = inf  # when the worker is done without; the coordinator decides this for pings and batches
    of_job: bool = True  # and of no use once that is over
    batch: int = 0
    items: tuple[str, ...] = ()


class Carrier:
    """The workers of a cluster that this process is connected to; `actor` is what `as_actor` made of their class."""

    def __init__(self, actor: Any = None, watch: HeadWatch | None = None) -> None:
        self._watch = watch
        self._actor = actor or _REMOTE
        self.links: dict[str, Link] = {}
        self.refused: dict[str, str] = {}  # nodes that cannot take part, and why
        self._model = ""
        self._share = False
        self._lender: HeadLender | None = None
        self._waiting: dict[Any, Call] = {}
        self._job = 1  # all that is told to workers names its job
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._heard: list[Heard] = []
        self._lives: dict[str, int] = {}
        self._gathering = Gathering()
        self._nodes = NodeSurvey()
        self._on_hello: Callable[[Link], None] = lambda link: None

    def meet(self, model: str, *, share: bool = False) -> list[Link]:
        """The workers of all nodes, each with its inventory of `model`; started where there is none.

        To `share` they lend each other the shards that they have. Once the first has answered the others have
        `GRACE_SECONDS`; one that is later may still join the work.
        """
        self._model, self._share = model, share
        self.refused.clear()
        for link in self.links.values():
            self._greet(link)
        self._start_missing(self._nodes.now())
        deadline = time.monotonic() + START_SECONDS
        while self._waiting and time.monotonic() < deadline:
            self._wait(deadline - time.monotonic())
            if any(link.inventory for link in self.links.values()):
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return [link for link in self.links.values() if link.inventory]

    def open(self, link: Link, model: Any, job: bytes, missing: Mapping[str, int], peers: Peers) -> None:
        """Let a worker get ready; it has joined when it is."""
        then = partial(self._opened, link, missing)
        self._waiting[link.actor.open.remote(self._job, model, job, peers)] = Call(link, then, self._patience(link))

    def lend(self, inventory: Inventory) -> None:
        """Let this machine lend the shards of an inventory, until `stop_lending`."""
        self._lender = HeadLender(inventory)

    def stop_lending(self) -> None:
        """Lend nothing more from this machine."""
        if self._lender:
            self._lender.close()
            self._lender = None

    def peers(self) -> Peers:
        """The lenders of each shard, workers first."""
        workers = [(RayPeer(link.worker, link.actor), link.lent) for link in self.links.values() if link.inventory]
        return peers_by_shard([*workers, *([(self._lender.peer, self._lender.lent)] if self._lender else [])])

    def tell_peers(self) -> None:
        """Let all workers borrow from those that lend now."""
        peers = self.peers()
        for link in self.links.values():
            link.actor.borrow_from.remote(peers)

    def refuse(self, link: Link, reason: str) -> None:
        """Do without a node."""
        self.refused[link.node] = reason
        log.warning("worker.refused", worker=link.worker, reason=reason)
        self._drop(link)

    def on_hello(self, welcome: Callable[[Link], None]) -> None:
        """What to do with a worker that comes while work goes on."""
        self._on_hello = welcome

    @property
    def own_address(self) -> str:
        """This machine's address, as its node has it."""
        address: str = ray.util.get_node_ip_address()
        return address

    def put(self, data: bytes) -> Any:
        """Bytes for many workers, stored once."""
        return ray.put(data)

    def ask(self, links: Sequence[Link], method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """What the first of these workers that answers in time says; raises `MintError` when none does."""
        for link in links:
            try:
                return unpack(ray.get(getattr(link.actor, method).remote(*arguments), timeout=seconds or ASK_SECONDS))
            except RayTaskError:
                raise
            except RayError as error:
                log.warning("call.failed", worker=link.worker, asked=method, reason=first_line(error))
        raise MintError(
            f"no answer from {', '.join(link.node for link in links) or 'any node'}, asked for its {method}; needed: a "
            "network to them (mint cluster status shows who answers)"
        )

    def rate_of(self, link: Link) -> float:
        """Bytes per second of a worker that arrive here; none of one that is silent, or has no shard to send of."""
        if not link.inventory or not link.inventory.shards:
            return 0.0
        shard, started, seen = link.inventory.shards[0].name, 0.0, b""
        try:
            for nbytes in LOOK_BYTES:
                started = time.perf_counter()
                (seen,) = self.ask([link], "ranges", shard, [(0, nbytes)], seconds=LOOK_SECONDS)
                if nbytes > 1 and time.perf_counter() - started > LONG_SECONDS:
                    break
        except MintError:
            return 0.0
        return len(seen) / (time.perf_counter() - started)

    def carry(self, command: Command) -> None:
        """Do what the coordinator says."""
        link = self.links.get(getattr(command, "worker", ""))
        if link is None:
            return
        match command:
            case Send(worker, batch, items):
                link.actor.expect.remote(self._job, batch, list(items))
                run = link.actor.run.options(_generator_backpressure_num_objects=PIECES)
                stream = run.remote(self._job, batch, list(items))
                self._waiting[stream] = Call(link, partial(self._streamed, link, batch), batch=batch, items=items)
            case Skip(_, batch, items):
                link.actor.skip.remote(self._job, batch, list(items))
            case Ping():
                self._ping(link)
            case Dismiss(worker, reason):
                log.warning("worker.dismissed", worker=worker, reason=reason)
                self._drop(link)

    def hear(self, seconds: float) -> list[Heard]:
        """Events since the last call; waits for the first at most so long. Raises `MintError` when the head is gone."""
        if self._watch:
            self._watch.insist()
        now = time.monotonic()
        due = [do for moment, do in self._later if moment <= now]
        self._later = [(moment, do) for moment, do in self._later if moment > now]
        for do in due:
            do()
        self._hurry(now)
        self._start_missing(self._nodes.poll())
        self._wait(0.0 if self._heard else seconds)
        heard, self._heard = self._heard, []
        return heard

    def rest(self) -> None:
        """The job is over: hear nothing more of it.

        Doubles of work that is done must not pass for the next, nor who gets ready late for who is ready then.
        """
        for reference, call in list(self._waiting.items()):
            if call.batch:
                call.link.actor.skip.remote(self._job, call.batch, list(call.items))
            if call.of_job:
                del self._waiting[reference]
        self._job += 1
        self._heard.clear()
        self._later.clear()
        self._gathering = Gathering()

    def quit(self) -> None:
        """End all workers: nothing that they still do is wanted. Those of a head that is gone end by themselves."""
        if self._watch and self._watch.is_gone:
            self.links.clear()
        for link in list(self.links.values()):
            self._drop(link)
        self._later.clear()

    def _start_missing(self, nodes: Iterable[Node]) -> None:
        busy = {link.node_id for link in self.links.values()}
        for node in nodes:
            if node.name not in self.refused and node.id not in busy:
                self._start(node)

    def _start(self, node: Node) -> None:
        lives = self._lives[node.name] = self._lives.get(node.name, 0) + 1
        worker = node.name if lives == 1 else f"{node.name}~{lives}"
        actor = self._actor.options(scheduling_strategy=pinned_to(node.id)).remote(node.name)
        self.links[worker] = Link(worker, node.name, node.id, actor, address=node.address)
        self._greet(self.links[worker])

    def _greet(self, link: Link) -> None:
        link.inventory = None
        then = partial(self._said_hello, link)
        said = link.actor.hello.remote(self._model, share=self._share)
        self._waiting[said] = Call(link, then, self._patience(link), of_job=False)

    def _patience(self, link: Link) -> float:
        return time.monotonic() + START_SECONDS * self._lives[link.node]

    def _hurry(self, now: float) -> None:
        """Do without workers that do not get ready; their nodes are asked for new ones."""
        for link in [call.link for call in self._waiting.values() if call.until <= now]:
            log.warning("worker.lost", worker=link.worker, reason="it does not get ready")
            self._drop(link)

    def _drop(self, link: Link) -> None:
        self.links.pop(link.worker, None)
        self._waiting = {reference: call for reference, call in self._waiting.items() if call.link is not link}
        with suppress(RayError):
            ray.kill(link.actor, no_restart=True)

    def _ping(self, link: Link) -> None:
        if link.worker in self.links:
            self._waiting[link.actor.ping.remote()] = Call(link, partial(self._answered, link))

    def _wait(self, seconds: float) -> None:
        """Hand everything that is here to whoever waits for it."""
        if not self._waiting:
            time.sleep(min(seconds, 0.1))
            return
        ready, _ = ray.wait(list(self._waiting), num_returns=1, timeout=max(seconds, 0.0))
        while ready:
            for reference in ready:
                if reference in self._waiting:  # a worker dropped meanwhile is not waited for
                    self._waiting[reference].then(reference)
            if len(self._heard) > 100 or not self._waiting:
                break
            ready, _ = ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)

    def _said_hello(self, link: Link, reference: Any) -> None:
        del self._waiting[reference]
        try:
            said = unpack(ray.get(reference, timeout=GET_SECONDS))
        except RayTaskError:
            raise
        except RayError as error:
            self._drop(link)
            log.warning("worker.lost", worker=link.worker, reason=first_line(error))
            return
        link.pid, link.device, link.versions = said["pid"], said["device"], said["versions"]
        link.memory_bytes = said["memory_bytes"]
        link.inventory, link.lent = inventory_from(said["inventory"]), tuple(said["lent"])
        for shard, reason in said["kept"].items():
            log.debug("shard.kept", shard=shard, worker=link.worker, reason=reason)
        self._on_hello(link)

    def _opened(self, link: Link, missing: Mapping[str, int], reference: Any) -> None:
        del self._waiting[reference]
        try:
            ray.get(reference, timeout=GET_SECONDS)
        except RayTaskError as error:
            self.refuse(link, first_line(error.cause))
        except RayError as error:
            log.warning("worker.lost", worker=link.worker, reason=first_line(error))
            self._drop(link)
        else:
            self._heard.append((Joined(link.worker, missing), []))

    def _streamed(self, link: Link, batch: int, stream: Any) -> None:
        try:
            message = ray.get(next(stream), timeout=GET_SECONDS)
        except StopIteration:
            self._over(link, batch, stream, Ended(link.worker, batch))
        except RayTaskError:
            raise
        except ActorDiedError as error:
            self._over(link, batch, stream, Died(link.worker, first_line(error)))
        except RayError:
            self._over(link, batch, stream, Broken(link.worker, batch))
        else:
            self._heard.extend(self._gathering.add(link.worker, batch, message))

    def _over(self, link: Link, batch: int, stream: Any, event: Event) -> None:
        del self._waiting[stream]
        self._gathering.forget(link.worker, batch)
        self._heard.append((event, []))

    def _answered(self, link: Link, reference: Any) -> None:
        del self._waiting[reference]
        try:
            ray.get(reference, timeout=GET_SECONDS)
        except ActorDiedError as error:
            self._heard.append((Died(link.worker, first_line(error)), []))
        except RayError:
            self._later.append((time.monotonic() + PING_SECONDS, partial(self._ping, link)))
        else:
            self._heard.append((Answered(link.worker), []))
