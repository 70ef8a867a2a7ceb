"""Collects the record of `mint cluster status` from all nodes, also while they work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.transport.messages import pack, unpack

if TYPE_CHECKING:
    from cluster.head.handshake import Head, Node  # imports Ray, which must not happen before its environment is set

ANSWER_SECONDS = 30.0  # the first request to a node imports MLX


def pack_node() -> bytes:
    """The machine, models and rates of this node, as msgpack; runs on the node."""
    from cluster.ops.machine import models, observe
    from cluster.transport.throughput import rates

    return pack({"machine": observe(), "models": list(models()), "rates": rates()})


def cluster_record(head: Head, answers: dict[str, bytes]) -> dict[str, Any]:
    """The record of `mint cluster status`, from the head and the answers of `pack_node`, by node id."""
    nodes, models, rates = [], [], []
    for node in sorted(head.living(), key=lambda node: (not node.is_head, node.address)):
        answer = answers.get(node.node_id)
        record = unpack(answer) if answer else {"machine": {}, "models": [], "rates": {}}
        nodes.append(_node(node, record["machine"]))
        models += [{"node": node.address, **model} for model in record["models"]]
        for job, rate in record["rates"].items():
            rates.append({"node": node.address, "job": job, "bytes_per_second": round(rate)})
    return {
        "nodes": nodes,
        "models": models,
        "rates": rates,
        "cluster": str(head.address),
        "ray": head.versions["ray"],
        "gone": [node.address for node in head.nodes if not node.is_alive],
    }


def _node(node: Node, machine: dict[str, Any]) -> dict[str, Any]:
    return {
        "node": node.address,
        "host": node.hostname,
        "head": node.is_head,
        "answers": bool(machine),
        # unknown, not zero, where a node did not answer in time
        "chip": machine.get("chip"),
        "gpu": machine.get("has_gpu"),
        "memory_bytes": machine.get("memory_bytes"),
        "disk_free_bytes": min(machine["disk_free_bytes"].values()) if machine else None,
        "versions": {**node.versions, **({"python": machine["python"]} if machine else {})},
    }
