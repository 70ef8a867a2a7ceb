"""Nodes that share a model: who lends which shard, behind actors of Ray."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.copies.borrower import Answer, Peers
from cluster.copies.inventory import Inventory
from cluster.copies.lender import Lender, Piece, RefusedError
from cluster.transport.survey import pinned_to

LENDING_THREADS = 2
ANSWER_SECONDS = 40.0  # for a piece of a shard; as long as a cable may be out


@dataclass(frozen=True, slots=True)
class RayPeer:
    """A lender behind an actor: a worker, or a `Lender` alone."""

    name: str
    actor: Any

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


class HeadLender:
    """A process of this machine that lends the shards of an inventory; none where there are none to lend."""

    def __init__(self, inventory: Inventory) -> None:
        self.lent = tuple(Lender(inventory).lent)
        here = pinned_to(ray.get_runtime_context().get_node_id())
        kind = ray.remote(num_cpus=0, max_concurrency=LENDING_THREADS, scheduling_strategy=here)(Lender)
        self.peer = RayPeer(inventory.node, kind.remote(inventory) if self.lent else None)

    def close(self) -> None:
        """End the process."""
        if self.lent:
            with suppress(RayError):
                ray.kill(self.peer.actor)


def peers_by_shard(lenders: Iterable[tuple[RayPeer, Iterable[str]]]) -> Peers:
    """The lenders of each shard, in the order of `lenders`, which come with the shards that they lend."""
    peers: dict[str, list[RayPeer]] = {}
    for peer, shards in lenders:
        for shard in shards:
            peers.setdefault(shard, []).append(peer)
    return peers
