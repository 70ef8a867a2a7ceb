"""The worker of a node as an actor of Ray: which thread does what."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from cluster.copies.sparse_copy import Range
from cluster.settings import RESOURCE
from cluster.transport.worker import Worker

F = TypeVar("F", bound=Callable[..., Any])


def in_thread(group: str) -> Callable[[F], F]:
    """The thread of the actor that a method runs in."""
    decorate: Callable[[F], F] = ray.method(concurrency_group=group)
    return decorate


class Actor(Worker):
    """A worker whose work is done by one thread while another answers."""

    @in_thread("work")
    def hello(self, model: str, run: bytes, address: str) -> bytes:
        return super().hello(model, run, address)

    @in_thread("work")
    def outline(self, shard: str) -> bytes:
        return super().outline(shard)

    @in_thread("work")
    def ranges(self, shard: str, ranges: Sequence[Range]) -> bytes:
        return super().ranges(shard, ranges)

    @in_thread("work")
    def open(self, number: int, model: bytes, job: bytes, lenders: bytes) -> None:
        super().open(number, model, job, lenders)

    @in_thread("work")
    def run(self, number: int, batch: int, names: Sequence[str]) -> Iterator[bytes]:
        yield from super().run(number, batch, names)

    @in_thread("answers")
    def expect(self, number: int, batch: int, names: Sequence[str]) -> None:
        super().expect(number, batch, names)

    @in_thread("answers")
    def lenders(self, lenders: bytes) -> None:
        super().lenders(lenders)

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
        concurrency_groups={"work": 1, "answers": 1},
        allow_out_of_order_execution=True,
    )
    return decorate(kind)
