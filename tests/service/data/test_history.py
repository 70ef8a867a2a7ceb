"""Events of jobs: their order, replacement and retention, on SQLite and on PostgreSQL."""

import os
import time
from pathlib import Path

from cluster.service.settings import Settings
from cluster.service.store.store import Store
from cluster.service.work.supervisor import FORGET_SECONDS, Supervisor
from tests.worlds.service_world import ANN, Clock, World, check_laws

RETENTION_SECONDS = 3 * 24 * 3600.0


def test_events_resume_after_the_last_seen_one(world: World) -> None:
    job = world.submit()
    claim = world.claim()
    for n in range(5):
        world.queue.emit(claim, "note", {"n": n})
    seen = world.queue.events(job.id, limit=3)
    rest = world.queue.events(job.id, after=seen[-1].seq)
    assert [event.seq for event in (*seen, *rest)] == list(range(1, 8))
    assert [event.body["n"] for event in rest] == [1, 2, 3, 4]
    assert world.queue.last_seqs([job.id, "missing"]) == {job.id: 7}


def test_progress_replaces_only_the_progress_directly_before_it(world: World) -> None:
    job = world.submit()
    claim = world.claim()
    emitted = [("progress", 1), ("progress", 2), ("note", 3), ("progress", 4), ("progress", 5), ("progress", 6)]
    for kind, n in emitted:
        seq = world.queue.emit(claim, kind, {"n": n}).seq
        assert world.queue.last_seqs([job.id]) == {job.id: seq}
        assert [event.body["n"] for event in world.queue.events(job.id, after=seq - 1)] == [n]
    world.queue.advance(claim, "analyzing")
    world.queue.emit(claim, "progress", {"n": 7})
    rows = [(event.seq, event.kind, event.body.get("n")) for event in world.queue.events(job.id, after=2)]
    assert rows == [(4, "progress", 2), (5, "note", 3), (8, "progress", 6), (9, "state", None), (10, "progress", 7)]
    check_laws(world.database)


def test_an_old_job_keeps_only_its_last_event(world: World) -> None:
    old, later, running = (world.submit(ANN, name) for name in ("old", "later", "running"))
    world.finish(world.claim())
    world.clock.now += 100
    world.finish(world.claim())
    world.claim()
    before = {job.id: world.queue.events(job.id) for job in (old, later, running)}
    assert world.queue.trim(world.clock.now - 50) == len(before[old.id]) - 1
    assert world.queue.trim(world.clock.now - 50) == 0
    assert world.queue.events(old.id) == world.queue.events(old.id, after=2) == before[old.id][-1:]
    assert world.queue.get(old.id).last_seq == before[old.id][-1].seq
    for job in (later, running):
        assert world.queue.events(job.id) == before[job.id]


def test_the_supervisor_removes_events_and_logs_of_any_number_of_old_jobs(world: World, tmp_path: Path) -> None:
    world.clock.now = time.time() - RETENTION_SECONDS - 100
    ended = [world.submit(ANN, f"m{n}") for n in range(105)]  # more than one transaction removes
    for _ in ended:
        world.finish(world.claim())
    world.clock.now = time.time()
    passes = Clock()
    store = Store(tmp_path / "store", world.catalog)
    supervisor = Supervisor(world.queue, store, Settings(tmp_path, slots=0, retention_days=3.0), clock=passes)
    waits = world.submit(ANN, "waits")
    old, new, unfinished = (tmp_path / "logs" / f"{name}.log" for name in ("old", "new", waits.id))
    for log in (old, new, unfinished):
        log.write_text("")
    for log in (old, unfinished):
        os.utime(log, (0, world.clock.now - RETENTION_SECONDS - 1))
    for _ in range(3):
        supervisor.step()
    assert {len(world.queue.events(job.id)) for job in ended} == {1}
    assert [log.exists() for log in (old, new, unfinished)] == [False, True, True]
    os.utime(new, (0, 0))
    supervisor.step()
    assert new.exists()  # it looked a moment ago
    passes.now += FORGET_SECONDS
    supervisor.step()
    assert not new.exists()
