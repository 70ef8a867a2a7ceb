"""Collects the record of `mint cluster status` from all nodes, also while they work."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cluster.transport.wire import pack, unpack

if TYPE_CHECKING:
    from cluster.head.handshake import Head  # imports Ray, which must not happen before its environment is set

ANSWER_SECONDS = 30.0  # the first request to a node imports MLX


def pack_node() -> bytes:
    """The machine, models and rates of this node, as msgpack; runs on the node."""
    from cluster.ops.machine import models, observe
    from cluster.transport.throughput import rates

    return pack({"machine": asdict(observe()), "models": [asdict(model) for model in models()], "rates": rates()})


def cluster_record(head: Head, answers: dict[str, tuple[str, bytes]]) -> dict[str, Any]:
    """The record of `mint cluster status`, from the head and the answers of `pack_node`, by node id."""
    nodes, models, rates = [], [], []
    for node in sorted(head.living(), key=lambda node: (not node.is_head, node.address)):
        answer = answers.get(node.node_id, ("", b""))[1]
        record = unpack(answer) if answer else {"machine": None, "models": [], "rates": {}}
        machine = record["machine"]
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
        models += [{"node": node.address, **_model(model)} for model in record["models"]]
        rates += [
            {"node": node.address, "job": job, "bytes_per_second": round(rate)} for job, rate in record["rates"].items()
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
