"""The queue of the service, on SQLite and on PostgreSQL: order, leases and shared jobs."""

import dataclasses

import pytest

from cluster.service.data.records import Lease
from cluster.service.data.states import ACTIVE, BLOCKED, CANCELLED, DONE, FAILED, QUEUED
from cluster.service.errors import LeaseLostError, NotFoundError, NotWatchingError
from cluster.service.queue.listing import SORTS
from cluster.service.queue.queue import ATTEMPTS, LEASE_SECONDS
from tests.worlds.service_world import ADMIN, ANN, BOB, EVE, World, check_laws, model_request, quota, submit


def _owners_served(world: World, many: int) -> list[str]:
    return [world.claim().job.owner for _ in range(many)]


# states of a job


def test_a_job_goes_from_queued_to_done_with_an_event_per_step(world: World) -> None:
    job, new = submit(world.queue, model_request(budget="24GB", options={"rounding": "diag", "probe": True}), ANN)
    assert (new, job.state, job.owner, job.watchers) == (True, QUEUED, "ann", ("ann",))
    claim = world.claim()
    assert claim.job.request == job.request
    world.queue.emit(claim, "progress", {"done": 1, "of": 2})
    made = world.finish(claim)
    done = world.queue.get(job.id)
    assert (done.state, done.artifact, done.host, done.attempts) == (DONE, made.digest, "here", 1)
    kinds = [event.body.get("state", event.kind) for event in world.queue.events(job.id)]
    assert kinds == ["queued", "inventory", "progress", "analyzing", "solving", "assembling", "verifying", "done"]
    check_laws(world.database)


def test_a_submission_sets_the_submitted_event(world: World) -> None:
    assert not world.queue.submitted.is_set()
    world.submit()
    assert world.queue.submitted.is_set()


def test_results_of_earlier_stages_stay(world: World) -> None:
    job = world.submit()
    claim = world.claim()
    world.queue.advance(claim, "analyzing", needed_bytes=5 * 10**12, result={"layers": 30})
    world.queue.advance(claim, "solving")
    world.queue.advance(claim, FAILED, reason="no plan fits", result={"smallest": 70})
    failed = world.queue.get(job.id)
    assert (failed.needed_bytes, failed.reason, failed.result) == (5 * 10**12, "no plan fits", {"smallest": 70})


@pytest.mark.parametrize("state", ["solving", "done", "inventory"])
def test_a_job_cannot_skip_or_repeat_a_stage(world: World, state: str) -> None:
    job = world.submit()
    claim = world.claim()
    with pytest.raises(ValueError, match=f"inventory: it cannot become {state}"):
        world.queue.advance(claim, state)
    assert world.queue.get(job.id).last_seq == 2


def test_queued_and_blocked_are_no_targets_of_advance(world: World) -> None:
    world.submit()
    claim = world.claim()
    for state in (QUEUED, BLOCKED):
        with pytest.raises(ValueError, match="not advanced"):
            world.queue.advance(claim, state)


def test_a_finished_job_accepts_no_writes(world: World) -> None:
    world.submit()
    claim = world.claim()
    world.finish(claim)
    assert world.queue.renew(claim) is Lease.LOST
    for write in (
        lambda: world.queue.emit(claim, "note", {}),
        lambda: world.queue.advance(claim, FAILED),
        lambda: world.queue.release(claim, ""),
        lambda: world.queue.block(claim, ""),
        lambda: world.queue.forfeit(claim, ""),
    ):
        with pytest.raises(LeaseLostError):
            write()
    check_laws(world.database)


def test_a_reason_may_be_any_text(world: World) -> None:
    job = world.submit()
    world.queue.advance(world.claim(), FAILED, reason="'\0\udc80\U0001f4a3 %s \"")
    assert world.queue.get(job.id).reason == "'\N{REPLACEMENT CHARACTER}?\U0001f4a3 %s \""


def test_nan_in_an_event_is_refused_without_a_change(world: World) -> None:
    job = world.submit()
    claim = world.claim()
    with pytest.raises(Exception, match="not JSON compliant"):
        world.queue.emit(claim, "progress", {"loss": float("nan")})
    assert world.queue.get(job.id).last_seq == 2
    check_laws(world.database)


# leases


def test_a_renewed_lease_stays_valid(world: World) -> None:
    world.submit()
    claim = world.claim()
    for _ in range(10):
        (held,) = world.queue.leases()
        world.clock.now += LEASE_SECONDS * 0.9
        assert world.queue.renew(claim) is Lease.HELD
        assert world.queue.take_back(held) is None
    world.queue.emit(claim, "note", {})


def test_a_lost_lease_cannot_write(world: World) -> None:
    job = world.submit()
    late = world.claim()
    assert [job.id for job in world.expire()] == [job.id]
    with pytest.raises(LeaseLostError):
        world.queue.emit(late, "note", {})
    current = world.claim()
    assert world.queue.renew(late) is Lease.LOST
    with pytest.raises(LeaseLostError):
        world.queue.advance(late, "analyzing")
    world.queue.advance(current, "analyzing")
    assert world.queue.get(job.id).last_seq == 5


def test_a_late_runner_whose_lease_nobody_took_back_goes_on(world: World) -> None:
    world.submit()
    late = world.claim()
    world.clock.now += 8 * 3600.0
    world.queue.emit(late, "note", {})
    assert world.queue.renew(late) is Lease.HELD
    world.finish(late)


def test_an_attempt_that_made_progress_does_not_count(world: World) -> None:
    job = world.submit()
    for done in range(1, 2 * ATTEMPTS):
        claim = world.claim()
        assert claim.job.attempts == 1
        world.queue.advance(claim, "analyzing")
        world.queue.emit(claim, "progress", {"done": done, "total": 10})
        (lost,) = world.expire()
        assert (lost.state, lost.attempts) == (QUEUED, 0)
        assert "it made progress and resumes" in lost.reason
    check_laws(world.database)
    for attempt in range(1, ATTEMPTS + 1):  # it comes as far as before, and breaks there
        claim = world.claim()
        assert claim.job.attempts == attempt
        world.queue.advance(claim, "analyzing")
        world.queue.emit(claim, "progress", {"done": done, "total": 10})
        world.expire()
    assert world.queue.get(job.id).state == FAILED
    check_laws(world.database)


def test_the_reason_of_a_lost_attempt_ends_with_the_first_stage_of_the_next(world: World) -> None:
    job = world.submit()
    world.claim()
    world.expire()
    claim = world.claim()
    assert "did not report" in claim.job.reason
    world.queue.advance(claim, "analyzing")
    assert world.queue.get(job.id).reason == ""


def test_after_three_attempts_a_job_fails_with_the_reason(world: World) -> None:
    job = world.submit()
    for attempt in range(1, ATTEMPTS + 1):
        assert world.claim().job.attempts == attempt
        (lost,) = world.expire()
        assert lost.reason.startswith("the runner on here was lost while inventory")
        assert f"attempt {attempt} of {ATTEMPTS}" in lost.reason
    assert lost.state == FAILED
    assert world.queue.claim("here") is None
    assert world.queue.get(job.id).finished_at == world.clock.now
    check_laws(world.database)


def test_the_job_of_a_dead_runner_returns_to_the_queue_at_once(world: World) -> None:
    world.submit()
    claim = world.claim()
    assert world.queue.forfeit(claim, "killed by signal 9").state == QUEUED
    assert "killed by signal 9" in world.claim().job.reason


def test_a_clean_stop_does_not_count_as_an_attempt(world: World) -> None:
    job = world.submit()
    for _ in range(ATTEMPTS + 1):
        world.queue.release(world.claim(), "the service is stopped")
    assert (world.queue.get(job.id).state, world.queue.get(job.id).attempts) == (QUEUED, 0)


def test_a_blocked_job_waits_until_it_is_unblocked(world: World) -> None:
    job = world.submit()
    world.queue.block(world.claim(), "disk: 5 GB are missing")
    assert world.queue.claim("here") is None
    assert world.queue.find([BLOCKED])[0].reason == "disk: 5 GB are missing"
    assert world.submit(BOB).id == job.id
    assert (world.queue.unblock(job.id).state, world.queue.unblock(job.id).reason) == (QUEUED, "")
    assert world.claim().job.attempts == 1
    check_laws(world.database)


# order


def test_owners_take_turns_whatever_the_number_of_their_jobs(world: World) -> None:
    for n in range(5):
        world.submit(ANN, f"a{n}")
    for n in range(2):
        world.submit(BOB, f"b{n}")
    world.submit(EVE, "e")
    assert _owners_served(world, 8) == ["ann", "bob", "eve", "ann", "bob", "ann", "ann", "ann"]


def test_a_higher_priority_comes_first_and_owners_take_turns_within_it(world: World) -> None:
    for n in range(2):
        world.submit(ANN, f"a{n}")
        world.submit(BOB, f"b{n}", priority=5)
        world.submit(EVE, f"e{n}", priority=5)
    assert _owners_served(world, 6) == ["bob", "eve", "bob", "eve", "ann", "ann"]


def test_the_jobs_of_one_owner_are_served_in_order(world: World) -> None:
    ids = [world.submit(ANN, f"a{n}").id for n in range(4)]
    assert [world.claim().job.id for _ in range(4)] == ids


def test_jobs_of_one_analysis_wait_for_each_other_but_not_other_jobs(world: World) -> None:
    first = world.submit(ANN, budget="1GB")
    second = world.submit(ANN, budget="2GB")
    other = world.submit(ANN, options={"rounding": "other"})
    claim = world.claim()
    assert claim.job.id == first.id
    assert world.claim().job.id == other.id
    assert world.queue.claim("here") is None
    world.finish(claim)
    assert world.claim().job.id == second.id
    check_laws(world.database)


def test_an_owner_at_the_quota_does_not_delay_others(world: World) -> None:
    few = quota(ANN, active=1)
    for n in range(2):
        world.submit(few, f"a{n}", priority=9)
    world.submit(BOB, "b")
    claim = world.claim()
    assert _owners_served(world, 1) == ["bob"]
    assert world.queue.claim("here") is None
    world.finish(claim)
    assert _owners_served(world, 1) == ["ann"]


# sharing


def test_equal_requests_share_one_job(world: World) -> None:
    job = world.submit(ANN)
    again, new = submit(world.queue, model_request(), BOB)
    assert (again.id, new, again.watchers) == (job.id, False, ("ann", "bob"))
    assert world.submit(ANN).watchers == ("ann", "bob")
    assert len(world.queue.find()) == 1


def test_another_name_of_the_same_model_is_the_same_request(world: World) -> None:
    job = world.submit(ANN)
    renamed = dataclasses.replace(model_request(), model="elsewhere/copy")
    assert submit(world.queue, renamed, BOB)[0].id == job.id


def test_a_cancel_removes_one_watcher_and_the_next_becomes_the_owner(world: World) -> None:
    job = world.submit(ANN)
    world.submit(BOB)
    left = world.queue.cancel(job.id, ANN)
    assert (left.state, left.owner, left.watchers) == (QUEUED, "bob", ("bob",))
    assert world.queue.cancel(job.id, ANN) == left
    ended = world.queue.cancel(job.id, BOB)
    assert (ended.state, ended.reason, ended.watchers) == (CANCELLED, "cancelled by bob", ())
    assert world.queue.claim("here") is None
    check_laws(world.database)


def test_a_running_job_stops_when_its_last_watcher_cancels(world: World) -> None:
    job = world.submit(ANN)
    world.submit(BOB)
    claim = world.claim()
    world.queue.cancel(job.id, ANN)
    assert world.queue.renew(claim) is Lease.HELD
    stopping = world.queue.cancel(job.id, BOB)
    assert (stopping.state in ACTIVE, stopping.cancel_wanted) == (True, True)
    assert world.queue.renew(claim) is Lease.CANCEL_WANTED
    world.queue.advance(claim, CANCELLED)
    assert (world.queue.get(job.id).state, world.queue.get(job.id).reason) == (CANCELLED, "cancelled by bob")


@pytest.mark.parametrize("end", ["expire", "release", "block", "forfeit"])
def test_a_cancelled_job_stays_cancelled_however_its_runner_ends(world: World, end: str) -> None:
    job = world.submit()
    claim = world.claim()
    world.queue.cancel(job.id, ANN)
    if end == "expire":
        world.expire()
    else:
        getattr(world.queue, end)(claim, "whatever")
    assert (world.queue.get(job.id).state, world.queue.get(job.id).reason) == (CANCELLED, "cancelled by ann")
    check_laws(world.database)


def test_a_request_like_a_job_being_cancelled_is_a_new_job_that_waits(world: World) -> None:
    job = world.submit()
    claim = world.claim()
    world.queue.cancel(job.id, ANN)
    again = world.submit(BOB)
    assert again.id != job.id
    assert world.queue.claim("here") is None  # the old job still works on the analysis
    world.queue.advance(claim, CANCELLED)
    assert world.claim().job.id == again.id
    check_laws(world.database)


def test_only_watchers_and_admins_can_cancel(world: World) -> None:
    job = world.submit(ANN)
    world.submit(BOB)
    with pytest.raises(NotWatchingError, match="eve"):
        world.queue.cancel(job.id, EVE)
    with pytest.raises(NotWatchingError, match="ann"):
        world.queue.cancel(job.id, ANN, everybody=True)
    assert world.queue.get(job.id).watchers == ("ann", "bob")
    assert world.queue.cancel(job.id, ADMIN).state == CANCELLED


def test_an_admin_who_watches_removes_only_themselves_by_default(world: World) -> None:
    job = world.submit(ANN)
    world.submit(ADMIN)
    for _ in range(2):
        assert world.queue.cancel(job.id, ADMIN).watchers == ("ann",)
    assert world.queue.cancel(job.id, ADMIN, everybody=True).state == CANCELLED


def test_a_job_has_the_highest_priority_of_its_current_watchers(world: World) -> None:
    job = world.submit(ANN, priority=1)
    assert world.submit(BOB, priority=7).priority == 7
    assert world.submit(ANN, priority=3).priority == 7
    assert world.queue.cancel(job.id, BOB).priority == 3


def test_a_stored_result_is_not_made_again(world: World) -> None:
    job = world.submit(ANN)
    made = world.finish(world.claim())
    same, new = submit(world.queue, model_request(), BOB)
    assert (same.id, same.state, same.watchers, new) == (job.id, DONE, ("ann", "bob"), False)
    world.catalog.remove(made.digest)
    remade, new = submit(world.queue, model_request(), BOB)
    assert (remade.id != job.id, remade.state, new) == (True, QUEUED, True)


def test_a_request_for_a_stored_result_counts_as_use(world: World) -> None:
    world.submit(ANN, "one")
    old = world.finish(world.claim())
    world.clock.now += 1
    world.submit(ANN, "two")
    new = world.finish(world.claim())
    world.clock.now += 1
    world.submit(BOB, "one")
    assert [artifact.digest for artifact in world.catalog.evictable(1)[0]] == [new.digest]
    assert old.digest != new.digest


@pytest.mark.parametrize("end", [FAILED, CANCELLED])
def test_a_failed_or_cancelled_request_can_be_submitted_again(world: World, end: str) -> None:
    job = world.submit()
    world.queue.advance(world.claim(), end, reason="so it goes")
    assert world.submit().id != job.id


# queries


def test_jobs_are_found_by_state_watcher_and_model_a_page_at_a_time(world: World) -> None:
    ids = [world.submit(ANN, f"a{n}").id for n in range(5)]
    bobs = world.submit(BOB, "a2", budget="1GB").id
    world.claim()
    assert [job.id for job in world.queue.find(watcher="ann", limit=2)] == ids[:2:-1]
    assert [job.id for job in world.queue.find(watcher="ann", before=ids[3], limit=2)] == ids[2:0:-1]
    assert [job.id for job in world.queue.find(["inventory"])] == ids[:1]
    assert [job.id for job in world.queue.find(model_identity="a2")] == [bobs, ids[2]]
    assert world.queue.find(watcher="eve") == []


def test_the_jobs_of_a_watcher_are_wanted_and_cancelled_ones(world: World) -> None:
    mine, shared = world.submit(ANN, "mine"), world.submit(ANN, "shared")
    world.submit(BOB, "shared")
    for job in (mine, shared):
        world.queue.cancel(job.id, ANN)
    assert [job.id for job in world.queue.find(watcher="ann")] == [mine.id]
    assert [job.id for job in world.queue.find(watcher="bob")] == [shared.id]


def test_a_missing_job_is_an_error(world: World) -> None:
    for ask in (world.queue.get, world.queue.events, world.queue.unblock, lambda id: world.queue.find(before=id)):
        with pytest.raises(NotFoundError, match="there is no job 'x'"):
            ask("x")
    with pytest.raises(NotFoundError):
        world.queue.cancel("x", ADMIN)


def test_what_runs_and_waits_comes_first_whatever_number_ended(world: World) -> None:
    ended = []
    for number in range(5):
        world.clock.now += 1
        ended.append(world.submit(ANN, f"e{number}").id)
        world.queue.cancel(ended[-1], ANN)
    waiting = [world.submit(ANN, f"w{number}").id for number in range(3)]
    urgent = world.submit(BOB, "urgent", priority=3).id
    running = world.claim().job.id
    assert running == urgent
    expected = [running, *waiting, *ended[::-1]]
    assert [job.id for job in world.queue.find(sort="live")] == expected
    for sort in SORTS:
        whole, pages, last = [job.id for job in world.queue.find(sort=sort)], [], None
        while page := world.queue.find(sort=sort, before=last, limit=2):
            pages += [job.id for job in page]
            last = pages[-1]
        assert pages == whole
        assert sorted(pages) == sorted(expected)
    assert [job.id for job in world.queue.find([CANCELLED], sort="ended", limit=2)] == ended[:2:-1]
    assert world.queue.counts(watcher="ann") | {"queued": 3, "cancelled": 5} == world.queue.counts(watcher="ann")


def test_a_search_finds_jobs_that_have_all_its_words(world: World) -> None:
    mine = world.submit(ANN, "Qwen3_8B", budget="6GB")
    other = world.submit(BOB, "Qwen3-32B", budget="16GB")
    for search, ids in (
        ("qwen3", {mine.id, other.id}), ("8b ANN", {mine.id}), ("3_8", {mine.id}), ("%", set()),
        (other.id[:6], {other.id}), ("16gb ann", set()),
    ):  # fmt: skip
        assert {job.id for job in world.queue.find(search=search)} == ids
        assert world.queue.counts(search=search)["queued"] == len(ids)


def test_every_state_is_counted(world: World) -> None:
    for n in range(3):
        world.submit(ANN, f"a{n}")
    world.finish(world.claim())
    counts = world.queue.counts()
    assert {state: many for state, many in counts.items() if many} == {QUEUED: 2, DONE: 1}
    assert len(counts) == 12
