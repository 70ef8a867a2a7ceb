"""The quotas of a person, and the time to retry."""

import pytest

from cluster.service.data.records import Forecast
from cluster.service.data.states import DONE
from cluster.service.errors import QuotaExceededError
from tests.worlds.service_world import ANN, BOB, World, check_laws, model_request, quota


def test_a_submission_beyond_the_quota_is_refused_with_a_time_to_retry(world: World) -> None:
    few = quota(ANN, queued=2)
    jobs = [world.submit(few, f"a{n}") for n in range(2)]
    with pytest.raises(QuotaExceededError, match="2 waiting or running jobs and may have 2") as refused:
        world.submit(few, "a2")
    assert refused.value.retry_after > 0
    assert world.submit(few, "a0").id == jobs[0].id  # an existing job is not counted twice
    world.queue.cancel(jobs[1].id, few)
    world.submit(few, "a2")
    assert [job.request.identity for job in world.queue.find()] == ["a2", "a1", "a0"]


def test_the_time_to_retry_is_the_estimated_end_of_the_first_job(world: World) -> None:
    few = quota(ANN, queued=1)
    world.submit(few, "a")
    claim = world.claim()
    world.clock.now += 15
    world.queue.renew(claim)
    world.clock.now += 15
    world.finish(claim)
    world.submit(few, "b")
    world.claim()
    world.clock.now += 12
    with pytest.raises(QuotaExceededError) as refused:
        world.submit(few, "c")
    assert refused.value.retry_after == 30 - 12


def test_a_shared_job_counts_for_every_watcher_so_that_it_can_change_its_owner(world: World) -> None:
    few = quota(BOB, queued=1)
    job = world.submit(ANN, "a")
    world.submit(few, "a")
    with pytest.raises(QuotaExceededError):
        world.submit(few, "b")
    world.queue.cancel(job.id, ANN)
    assert world.queue.get(job.id).owner == "bob"


def test_bytes_are_counted_from_the_budget_until_they_are_known(world: World) -> None:
    few = quota(ANN, nbytes=100)
    world.submit(few, "a", budget="60B")
    with pytest.raises(QuotaExceededError, match="60 B stored or expected"):
        world.submit(few, "b", budget="41B")
    world.finish(world.claim(), nbytes=30)
    world.submit(few, "b", budget="70B")
    with pytest.raises(QuotaExceededError):
        world.submit(few, "c", budget="1B")


def test_the_caller_may_give_a_better_upper_bound_than_the_budget(world: World) -> None:
    few = quota(ANN, nbytes=100)
    world.queue.submit([(model_request("a", "64GB"), Forecast(70))], few)
    with pytest.raises(QuotaExceededError):
        world.queue.submit([(model_request("b", "4bpw"), Forecast(31))], few)


def test_cancelling_a_finished_job_frees_its_quota(world: World) -> None:
    few = quota(ANN, nbytes=100)
    job = world.submit(few, "a", budget="90B")
    world.finish(world.claim(), nbytes=90)
    with pytest.raises(QuotaExceededError):
        world.submit(few, "b", budget="20B")
    assert world.queue.cancel(job.id, ANN).state == DONE
    world.submit(few, "b", budget="20B")


def test_a_stored_result_counts_for_every_watcher(world: World) -> None:
    world.submit(ANN, "a", budget="90B")
    world.finish(world.claim(), nbytes=90)
    with pytest.raises(QuotaExceededError):
        world.submit(quota(BOB, nbytes=80), "a", budget="90B")
    world.submit(quota(BOB, nbytes=90), "a", budget="90B")


def test_a_refused_submission_leaves_nothing_behind(world: World) -> None:
    world.submit(ANN)
    for _ in range(2):
        with pytest.raises(QuotaExceededError):
            world.submit(quota(BOB, queued=0))
    assert world.queue.find()[0].watchers == ("ann",)
    check_laws(world.database)
