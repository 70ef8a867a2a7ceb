"""The worker of a node as an actor of Ray: which thread does what."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from cluster.copies.borrower import Peers
from cluster.copies.lender import Piece
from cluster.copies.sparse_copy import Range
from cluster.settings import RESOURCE
from cluster.transport.sharing import LENDING_THREADS
from cluster.transport.worker import Worker

F = TypeVar("F", bound=Callable[..., Any])


def in_thread(group: str) -> Callable[[F], F]:
    """The thread of the actor that a method runs in."""
    decorate: Callable[[F], F] = ray.method(concurrency_group=group)
    return decorate


class Actor(Worker):
    """A worker whose work is done by one thread while another answers."""

    @in_thread("work")
    def hello(self, model: str, *, share: bool = False) -> bytes:
        return super().hello(model, share=share)

    @in_thread("work")
    def outline(self, shard: str) -> bytes:
        return super().outline(shard)

    @in_thread("work")
    def ranges(self, shard: str, ranges: Sequence[Range]) -> bytes:
        return super().ranges(shard, ranges)

    @in_thread("work")
    def open(self, number: int, model: bytes, job: bytes, peers: Peers) -> None:
        super().open(number, model, job, peers)

    @in_thread("work")
    def run(self, number: int, batch: int, names: Sequence[str]) -> Iterator[bytes]:
        yield from super().run(number, batch, names)

    @in_thread("lends")
    def piece(self, shard: str, start: int, nbytes: int) -> Piece:
        return super().piece(shard, start, nbytes)

    @in_thread("answers")
    def expect(self, number: int, batch: int, names: Sequence[str]) -> None:
        super().expect(number, batch, names)

    @in_thread("answers")
    def borrow_from(self, peers: Peers) -> None:
        super().borrow_from(peers)

    @in_thread("answers")
    def skip(self, number: int, batch: int, names: Sequence[str]) -> None:
        super().skip(number, batch, names)

    @in_thread("answers")
    def ping(self) -> bool:
        return super().ping()


def as_actor(kind: type[Actor]) -> Any:
    """A class of workers as Ray starts them: one a node, for it has one `RESOURCE`."""
    decorate = ray.remote(
        num_cpus=0,
        resources={RESOURCE: 1},
        max_restarts=0,
        concurrency_groups={"work": 1, "answers": 1, "lends": LENDING_THREADS},
        allow_out_of_order_execution=True,
    )
    return decorate(kind)
