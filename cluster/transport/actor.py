"""The worker of a node as an actor of Ray: one thread does the work while others answer and lend."""

from typing import Any

import ray

from cluster.settings import RESOURCE
from cluster.transport.sharing import LENDING_THREADS
from cluster.transport.worker import Worker

THREADS = {"work": 1, "answers": 1, "lends": LENDING_THREADS}
METHODS = {
    "work": ("hello", "outline", "ranges", "open", "run"),
    "answers": ("expect", "borrow_from", "skip", "ping"),
    "lends": ("piece",),
}


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
