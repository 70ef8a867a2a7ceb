"""What the nodes of a cluster are and hold, asked of each of them, beside whatever work goes on."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cluster.transport.wire import pack, unpack

if TYPE_CHECKING:
    from cluster.transport.handshake import Head  # not before Ray's environment is set: it imports Ray

ANSWER_SECONDS = 30.0  # a node that was not asked before has to import MLX first


def tell_node() -> bytes:
    """What this node is and holds; runs on the node."""
    from cluster.ops.machine import models, observe
    from cluster.transport.throughput import rates

    return pack({"machine": asdict(observe()), "models": [asdict(model) for model in models()], "rates": rates()})


def cluster_record(head: Head, told: dict[str, tuple[str, bytes]]) -> dict[str, Any]:
    """The record of `mint cluster status`: what the head knows and what the nodes `told`, by node id."""
    nodes, models, rates = [], [], []
    for node in sorted(head.living(), key=lambda node: (not node.is_head, node.address)):
        answer = told.get(node.node_id, ("", b""))[1]
        said = unpack(answer) if answer else {"machine": None, "models": [], "rates": {}}
        machine = said["machine"]
        nodes.append(
            {
                "node": node.address,
                "host": node.hostname,
                "head": node.is_head,
                "answers": machine is not None,
                "chip": machine["chip"] if machine else "",
                "gpu": bool(machine and machine["has_gpu"]),
                "memory_bytes": machine["memory_bytes"] if machine else 0,
                "disk_free_bytes": min(machine["disk_free_bytes"].values()) if machine else 0,
                "versions": dict(node.labels_of_versions()) | ({"python": machine["python"]} if machine else {}),
            }
        )
        models += [{"node": node.address, **_model(model)} for model in said["models"]]
        rates += [
            {"node": node.address, "job": job, "bytes_per_second": round(rate)} for job, rate in said["rates"].items()
        ]
    gone = [node.address for node in head.nodes if not node.is_alive]
    return {
        "nodes": nodes,
        "models": models,
        "rates": rates,
        "cluster": str(head.address),
        "ray": head.versions["ray"],
        "gone": gone,
    }


def _model(model: dict[str, Any]) -> dict[str, Any]:
    return {key: model[key] for key in ("name", "nbytes", "folder")} | {
        "shards": len(model["shards"]),
        "files": model["shards"],
    }
