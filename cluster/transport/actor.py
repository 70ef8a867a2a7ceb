"""Actors of Ray: workers, in which one thread works while others answer and lend, and lenders alone."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.copies.inventory import Inventory
from cluster.copies.lending import Answer, Lender, Piece, RefusedError
from cluster.settings import RESOURCE
from cluster.transport.survey import pinned_to
from cluster.transport.worker import Worker

LENDING_THREADS = 2
THREADS = {"work": 1, "answers": 1, "lends": LENDING_THREADS}
METHODS = {
    "work": ("hello", "outline", "ranges", "open", "run"),
    "answers": ("expect", "borrow_from", "skip", "ping"),
    "lends": ("piece",),
}
ANSWER_SECONDS = 40.0  # for a piece of a shard; as long as a cable may be out


def as_actor(kind: type[Worker]) -> Any:
    """A class of workers as Ray starts them: one per node, which has one `RESOURCE`."""
    for group, names in METHODS.items():
        for name in names:
            ray.method(concurrency_group=group)(getattr(kind, name))
    decorate = ray.remote(
        num_cpus=0,
        resources={RESOURCE: 1},
        max_restarts=0,
        concurrency_groups=THREADS,
        allow_out_of_order_execution=True,
    )
    return decorate(kind)


@dataclass(frozen=True, slots=True)
class RayPeer:
    """A lender behind an actor (a worker, or a `Lender` alone), and the names of the shards that it lends."""

    name: str
    actor: Any
    lent: tuple[str, ...] = ()

    def ask(self, shard: str, start: int, nbytes: int) -> Answer:
        """Begin to fetch a range."""
        reference = self.actor.piece.remote(shard, start, nbytes)

        def answer() -> Piece:
            try:
                piece: Piece = ray.get(reference, timeout=ANSWER_SECONDS)
            except RayTaskError as error:
                raise RefusedError(str(error.cause)) from error
            except RayError as error:
                raise RefusedError(f"no answer ({type(error).__name__})") from error
            return piece

        return answer


def start_lender(inventory: Inventory) -> list[RayPeer]:
    """Start a process of this machine that lends the shards of an inventory; none where there are none to lend."""
    lent = tuple(Lender(inventory).lent)
    if not lent:
        return []
    here = pinned_to(ray.get_runtime_context().get_node_id())
    kind = ray.remote(num_cpus=0, max_concurrency=LENDING_THREADS, scheduling_strategy=here)(Lender)
    return [RayPeer(inventory.node, kind.remote(inventory), lent)]
