"""The record of `mint cluster status`."""

from cluster.head.handshake import Head, Node
from cluster.ops.status import cluster_record
from cluster.settings import Address


def test_a_node_that_is_slow_to_answer_has_unknown_figures_and_no_zeros() -> None:
    node = Node("id", "10.0.0.2", 6380, "studio", is_alive=True, is_head=True, versions={})
    record = cluster_record(Head(Address("10.0.0.2", 6380), {"ray": "2"}, (node,)), {})
    (row,) = record["nodes"]
    assert not row["answers"]
    assert [row[name] for name in ("chip", "gpu", "memory_bytes", "disk_free_bytes")] == [None] * 4
