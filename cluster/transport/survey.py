"""The nodes of a cluster: connects to it, lists the nodes that can work, and asks all of them one question."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.settings import RESOURCE, STORE_BYTES
from mint.core.errors import MintError

GET_SECONDS = 10.0  # for a value that Ray reports as ready
AGAIN_SECONDS = 2.0  # between lists of nodes


@dataclass(frozen=True, slots=True)
class Node:
    """A living node that a worker can run on."""

    name: str
    id: str
    address: str


def workable(nodes: Iterable[Mapping[str, Any]]) -> Iterator[Node]:
    """The nodes of `ray.nodes()` that can work."""
    for node in nodes:
        if node["Alive"] and node["Resources"].get(RESOURCE, 0) >= 1:
            name = f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}"
            yield Node(name, node["NodeID"], node["NodeManagerAddress"])


def pinned_to(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Lets Ray run something on this node and on no other."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a driver of the cluster at `address`, or of one that is started here for as long as this lasts."""
    alone = {"num_cpus": 0, "resources": {RESOURCE: 1}, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    # it prints errors of other nodes on stdout, which is for the answer alone, and no option of Ray 2.60 stops that
    ray._private.worker._worker_logs_enabled = False
    try:
        ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **({} if address else alone))
    except Exception as error:  # Ray raises a bare one for a node that does not start in time
        raise MintError(
            f"--cluster {address or 'local'}: no connection ({first_line(error)}); needed: a node of that cluster "
            "on this machine, the same Ray and Python, and its token"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def survey(question: Callable[[], bytes], seconds: float) -> dict[str, bytes]:
    """The answers of living nodes to a question that runs on each, by node id; without the late ones.

    It runs beside the worker of a node and takes nothing of it.
    """
    task, calls = ray.remote(num_cpus=0, max_retries=0)(question), {}
    for node in ray.nodes():
        if node["Alive"]:
            calls[task.options(scheduling_strategy=pinned_to(node["NodeID"])).remote()] = node["NodeID"]
    ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=seconds)
    answers: dict[str, bytes] = {}
    for reference in ready:
        with suppress(RayError):
            answers[calls[reference]] = ray.get(reference, timeout=GET_SECONDS)
    return answers


def first_line(error: BaseException) -> str:
    """The message of an error of Ray, without the stack of the other process."""
    return str(error).strip().split("\n")[0]
