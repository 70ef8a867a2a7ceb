"""`tools.lab.show_cluster` reads the log of a run."""

import json
from collections.abc import Mapping

from tools.lab.show_cluster import RunLog


def _run_log(*records: Mapping[str, object]) -> RunLog:
    run_log = RunLog()
    for record in records:
        run_log.read(json.dumps(dict(record)))
    run_log.read("a line that is no record")
    return run_log


def _sent(worker: str, *units: str) -> Mapping[str, object]:
    return {"event": "batch.sent", "worker": worker, "units": list(units)}


def _arrived(worker: str, unit: str, accepted: bool) -> Mapping[str, object]:
    return {"event": "result.arrived", "worker": worker, "unit": unit, "accepted": accepted}


def test_work_that_moves_is_not_done_twice_but_a_copy_is() -> None:
    skipped = {"event": "batch.shortened", "worker": "host1/a", "units": ["moved"]}
    run_log = _run_log(
        _sent("host1/a", "moved", "copied"), skipped, _sent("host2/b", "moved"), _sent("host2/b", "copied")
    )
    assert run_log.again == ["copied"]


def test_the_first_result_counts_and_the_second_is_a_double() -> None:
    run_log = _run_log(_arrived("host1/a", "unit", True), _arrived("host2/b~2", "unit", False))
    assert run_log.doubled == ["unit"]
    assert run_log.arrived == {"host1": 1, "host2": 1}


def test_what_is_done_is_what_was_measured_or_written_wherever_it_was_packed() -> None:
    assert _run_log({"event": "unit.measured", "unit": "a"}, {"event": "unit.written", "unit": "b"}).done == {"a", "b"}


def test_workers_that_went_are_named_with_the_reason() -> None:
    gone = {"event": "worker.dismissed", "worker": "host3/c", "reason": "no answer for 30 s"}
    assert _run_log(gone).lost == {"host3/c": "no answer for 30 s"}
