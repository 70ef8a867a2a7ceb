"""The states of a job: every way that a job may take, and none besides."""

from itertools import product

import pytest

from cluster.service.data.states import ACTIVE, BLOCKED, FINAL, GROUPS, PAUSED, QUEUED, WAITING, can_become

STATES = (*WAITING, *ACTIVE, *FINAL)


def _ways(state: str) -> list[tuple[str, ...]]:
    """The ways from a state to `done` through active states alone."""
    if state == "done":
        return [(state,)]
    return [(state, *way) for to in (*ACTIVE, "done") if can_become(state, to) for way in _ways(to)]


def test_a_job_ends_with_an_analysis_or_with_a_verified_model_with_or_without_a_probe() -> None:
    written = "solving assembling verifying done"
    assert {" ".join(way) for way in _ways(QUEUED)} == {
        "queued inventory analyzing done",
        "queued inventory analyzing probing done",
        f"queued inventory analyzing {written}",
        f"queued inventory analyzing probing {written}",
    }


@pytest.mark.parametrize("state", ACTIVE)
def test_an_active_job_can_wait_fail_or_be_cancelled(state: str) -> None:
    assert {to for to in STATES if can_become(state, to)} - {*ACTIVE, "done"} == {
        "queued", "blocked", "paused", "failed", "cancelled",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("state", "others"), [(QUEUED, {"inventory", "paused"}), (BLOCKED, {"queued", "paused"}), (PAUSED, {"queued"})]
)
def test_a_waiting_job_begins_from_the_queue_alone(state: str, others: set[str]) -> None:
    assert {to for to in STATES if can_become(state, to)} == {*others, "failed", "cancelled"}


@pytest.mark.parametrize(("state", "to"), [*product((*FINAL, "unknown"), (*STATES, "unknown"))])
def test_no_state_follows_the_end(state: str, to: str) -> None:
    assert not can_become(state, to)


def test_every_state_is_in_one_group() -> None:
    assert GROUPS == {
        "running": ("inventory", "analyzing", "probing", "solving", "assembling", "verifying"),
        "waiting": ("queued", "blocked", "paused"),
        "ended": ("done", "failed", "cancelled"),
    }
    assert len(set(STATES)) == 12
