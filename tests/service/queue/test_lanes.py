"""Lanes: long jobs let short ones pass, one at a time, and still come to their end. Pausing uses the same way back."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster.service.data.records import Claim, Forecast, Job, Lease, Person
from cluster.service.data.states import DONE, PAUSED, PROBING, QUEUED
from cluster.service.errors import NotWatchingError
from cluster.service.queue.fairness import LONG_SECONDS, PATIENCE_SECONDS, TURN_SECONDS
from cluster.service.queue.forecast import expected_stages
from cluster.service.settings import Settings
from cluster.service.store.store import Store
from cluster.service.work.supervisor import YIELD_SECONDS, Supervisor
from tests.worlds.service_world import ADMIN, ANN, BOB, WAY, World, check_laws, model_request


def _submit(world: World, name: str, seconds: float, by: Person = ANN, priority: int = 0) -> Job:
    forecast = Forecast(stages={"analyzing": seconds})
    return world.queue.submit([(model_request(name), forecast)], by, priority)[0][0]


def test_a_short_job_goes_before_a_long_one_that_was_submitted_earlier(world: World) -> None:
    long, short = _submit(world, "long", LONG_SECONDS), _submit(world, "short", 1.0, BOB)
    assert [world.queue.get(job.id).position for job in (long, short)] == [2, 1]
    assert world.claim().job.id == short.id


def test_a_long_job_that_waited_long_takes_its_turn_among_the_short_ones(world: World) -> None:
    long = _submit(world, "long", LONG_SECONDS)
    world.clock.now += PATIENCE_SECONDS
    _submit(world, "short", 1.0, BOB)
    assert world.claim().job.id == long.id


def test_a_higher_priority_goes_before_every_lane(world: World) -> None:
    _submit(world, "short", 1.0)
    long = _submit(world, "long", LONG_SECONDS, ADMIN, priority=1)
    assert world.claim().job.id == long.id


def test_a_long_job_yields_after_its_turn_and_the_attempt_does_not_count(world: World) -> None:
    long = _submit(world, "long", LONG_SECONDS)
    claim = world.claim()
    short = _submit(world, "short", 1.0, BOB)
    assert world.queue.preempt("here") is None, "its turn is not over"
    world.clock.now += TURN_SECONDS
    assert world.queue.preempt("elsewhere") is None
    preempted = world.queue.preempt("here")
    assert preempted and preempted.id == long.id
    assert world.queue.renew(claim) is Lease.YIELD_WANTED
    world.queue.release(claim, "it stopped after a unit")
    job = world.queue.get(long.id)
    assert (job.state, job.attempts, job.worked_seconds, job.position) == (QUEUED, 0, TURN_SECONDS, 2)
    assert "made way" in job.reason
    assert world.claim().job.id == short.id
    check_laws(world.database)


def test_one_job_yields_at_a_time_and_none_without_need(world: World) -> None:
    for name in ("a", "b"):
        _submit(world, name, LONG_SECONDS)
        world.claim()
    world.clock.now += TURN_SECONDS
    assert world.queue.preempt("here") is None, "nobody waits"
    _submit(world, "c", LONG_SECONDS)
    assert world.queue.preempt("here") is None, "only a long job waits"
    _submit(world, "short", 1.0)
    assert world.queue.preempt("here") and world.queue.preempt("here") is None


def test_a_job_without_a_forecast_is_long_once_it_has_run_long(world: World) -> None:
    first = _submit(world, "unknown", 0.0)
    world.claim()
    _submit(world, "short", 1.0)
    world.clock.now += TURN_SECONDS
    assert world.queue.preempt("here") is None
    world.clock.now += LONG_SECONDS
    preempted = world.queue.preempt("here")
    assert preempted and preempted.id == first.id


def test_positions_are_the_order_in_which_jobs_are_claimed(world: World) -> None:
    for number, (by, seconds) in enumerate([(ANN, 1), (ANN, 1), (ANN, 400), (BOB, 1), (BOB, 1), (BOB, 500), (ANN, 1)]):
        _submit(world, f"m{number}", float(seconds), by)
    expected = [job.id for job in sorted(world.queue.find(), key=lambda job: job.position)]
    claimed = []
    while claim := world.queue.claim("here"):
        claimed.append(claim.job.id)
    assert claimed == expected


def test_a_paused_job_waits_until_it_is_resumed(world: World) -> None:
    job = world.submit()
    assert world.queue.pause(job.id, ANN).state == PAUSED
    assert world.queue.claim("here") is None
    assert world.queue.resume(job.id, ANN).state == QUEUED
    claim = world.claim()
    assert world.queue.pause(job.id, ANN).state == "inventory"
    assert world.queue.renew(claim) is Lease.YIELD_WANTED
    world.queue.release(claim, "it stopped after a unit")
    paused = world.queue.get(job.id)
    assert (paused.state, paused.reason, paused.attempts) == (PAUSED, "paused by ann", 0)
    check_laws(world.database)


def test_a_request_for_a_paused_job_resumes_it(world: World) -> None:
    job = world.submit()
    world.queue.pause(job.id, ANN)
    again = world.submit(BOB)
    assert (again.id, again.state) == (job.id, QUEUED)


def test_a_runner_that_dies_on_the_way_to_a_pause_leaves_a_paused_job(world: World) -> None:
    job = world.submit()
    world.claim()
    world.queue.pause(job.id, ANN)
    (lost,) = world.expire()
    assert lost.state == PAUSED
    assert world.queue.cancel(job.id, ANN).state == "cancelled"


def test_nobody_pauses_a_job_that_others_want_too_but_an_admin(world: World) -> None:
    job = world.submit()
    world.submit(BOB)
    with pytest.raises(NotWatchingError, match="cannot pause this job for others"):
        world.queue.pause(job.id, ANN)
    assert world.queue.pause(job.id, ADMIN).state == PAUSED


def test_the_forecast_of_a_job_is_what_its_kind_took_for_each_byte(world: World) -> None:
    for seconds, nbytes in ((10.0, 100), (30.0, 200), (90.0, 300)):
        forecast = Forecast(source_bytes=nbytes)
        world.queue.submit([(model_request(str(nbytes), "4bpw"), forecast)], ANN)
        claim = world.claim()
        for state in WAY:
            world.queue.advance(claim, state)
        world.queue.advance(claim, DONE, result={"stage_seconds": dict.fromkeys(WAY, seconds)})
    stages = expected_stages(world.database, {}, 1000, stored=(), only_analysis=False)
    assert stages == {"analyzing": 300.0, "solving": 150.0, "assembling": 150.0, "verifying": 150.0}
    stored = expected_stages(world.database, {}, 1000, stored={"analyzing"}, only_analysis=False)
    assert stored == {"solving": 150.0, "assembling": 150.0, "verifying": 150.0}
    assert expected_stages(world.database, {"rounding": "search"}, 1000, stored=(), only_analysis=True) == {
        "analyzing": 0.0
    }


def test_the_forecast_counts_the_probes_that_nobody_asked_for(world: World) -> None:
    def probes(options: Mapping[str, object], *, stored: tuple[str, ...] = (), only_analysis: bool = False) -> bool:
        return PROBING in expected_stages(world.database, options, 10**9, stored=stored, only_analysis=only_analysis)

    compensate = {"rounding": "compensate"}
    assert probes(compensate)
    assert not probes(compensate, stored=(PROBING,))
    assert not probes(compensate, only_analysis=True)
    assert not probes(compensate | {"ignore_probe": True})
    assert not probes({"rounding": "search"})
    assert probes({"rounding": "search", "probe": True})


def test_a_job_that_is_resumed_before_it_stopped_goes_on(world: World) -> None:
    job = world.submit()
    claim = world.claim()
    world.queue.pause(job.id, ANN)
    world.queue.resume(job.id, ANN)
    assert world.queue.renew(claim) is Lease.HELD
    assert (world.queue.get(job.id).yields_to, world.queue.get(job.id).reason) == ("", "")


def test_a_short_job_runs_beside_a_long_one_whose_unit_takes_long_and_no_other_job_does(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    now = 0.0
    settings = Settings(tmp_path)
    store = Store(tmp_path / "store", world.catalog)
    supervisor = Supervisor(world.queue, store, settings, clock=lambda: now)
    monkeypatch.setattr(supervisor, "_host", "here")
    monkeypatch.setattr(supervisor, "_spawn", lambda claim: begun.append(claim.job.id))
    long = _submit(world, "long", LONG_SECONDS)
    supervisor.step()
    other, first, second = _submit(world, "b", LONG_SECONDS), _submit(world, "c", 1.0), _submit(world, "d", 1.0)
    world.clock.now += TURN_SECONDS
    supervisor.step()
    assert world.queue.get(long.id).yields_to == QUEUED
    supervisor.step()
    assert begun == [long.id], "its unit has time"
    now += YIELD_SECONDS
    for _ in range(3):
        supervisor.step()
    assert begun == [long.id, first.id], "one beside it"
    world.finish(
        Claim(world.queue.get(first.id), next(held.lease for held in world.queue.leases() if held.job == first.id))
    )
    for _ in range(3):
        supervisor.step()
    assert begun == [long.id, first.id, second.id] and world.queue.get(other.id).state == QUEUED
