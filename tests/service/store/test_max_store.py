"""--max-store holds with concurrent jobs and downloads: a job that does not fit waits."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from cluster.service.data.records import Artifact, Claim
from cluster.service.data.states import BLOCKED, DONE, QUEUED
from cluster.service.queue.queue import Queue
from cluster.service.settings import Settings
from cluster.service.store.store import RESERVE_BYTES, Store, reserve_space
from cluster.service.work.runner import DISK
from cluster.service.work.supervisor import Supervisor
from mint.core.errors import DiskFullError, MintError
from tests.service.work.test_runner import Lab
from tests.worlds.service_world import ANN, World
from tests.worlds.zoo import write_model

LIMIT = 100


@pytest.fixture
def store(world: World, tmp_path: Path) -> Store:
    return Store(tmp_path / "store", world.catalog, LIMIT)


def _begin(world: World, name: str, needed_bytes: int = 0) -> Claim:
    """Claim a job up to the stage before it writes."""
    world.submit(ANN, name)
    claim = world.claim()
    for state in ("analyzing", "solving"):
        world.queue.advance(claim, state)
    world.queue.advance(claim, "assembling", needed_bytes=needed_bytes)
    return claim


def _reserve(world: World, store: Store, claim: Claim, need: int) -> None:
    reserve_space(world.queue, claim, store, need, store.folder, written=0)


def _finish(world: World, store: Store, claim: Claim, nbytes: int) -> Artifact:
    file = store.folder.parent / claim.job.id
    file.write_bytes(claim.job.id.encode().ljust(nbytes)[:nbytes])
    result = store.put("model", claim.job.request.identity, {"file": file})
    world.queue.advance(claim, "verifying")
    world.queue.advance(claim, DONE, artifact=result.digest)
    return result


def test_of_two_jobs_that_do_not_fit_together_the_second_waits(world: World, store: Store) -> None:
    first, second = _begin(world, "one"), _begin(world, "two")
    _reserve(world, store, first, 60)
    with pytest.raises(
        DiskFullError, match="needs 60 B, 40 B free below the limit of the store, 60 B reserved for running jobs"
    ):
        _reserve(world, store, second, 60)
    _reserve(world, store, second, 40)
    assert world.queue.reserved_bytes() == LIMIT
    _finish(world, store, second, 40)
    made = _finish(world, store, first, 60)
    assert (store.catalog.nbytes(), world.queue.reserved_bytes()) == (LIMIT, 0)
    third = _begin(world, "three")
    _reserve(world, store, third, 60)  # evicts only the least recently used
    assert store.catalog.nbytes() + 60 <= LIMIT
    with pytest.raises(MintError, match="no artifact"):
        world.catalog.hold(made.digest, "a download", 60)


def test_a_new_artifact_is_not_evicted_before_its_job_is_done(world: World, store: Store) -> None:
    first, second = _begin(world, "one"), _begin(world, "two")
    _reserve(world, store, first, 60)
    file = store.folder / "made"
    file.write_bytes(bytes(60))
    made = store.put("model", first.job.request.identity, {"file": file}, holder=first.holder)
    with pytest.raises(DiskFullError, match="needs 40 B"):  # the space of the first counts twice for a moment
        _reserve(world, store, second, 40)
    world.queue.advance(first, "verifying")
    world.queue.advance(first, DONE, artifact=made.digest)
    world.catalog.drop(first.holder)
    _reserve(world, store, second, 40)
    assert store.catalog.find() == [made]


def test_an_artifact_held_by_a_download_is_not_evicted(world: World, store: Store) -> None:
    made = _finish(world, store, _begin(world, "one"), 60)
    world.catalog.hold(made.digest, "a download", 60)
    claim = _begin(world, "two")
    with pytest.raises(DiskFullError, match=r"needs 60 B, 40 B free below the limit of the store$"):
        _reserve(world, store, claim, 60)
    world.catalog.drop("a download")
    _reserve(world, store, claim, 60)


class DownloadedStore(Store):
    """A store from which somebody downloads as soon as it evicts."""

    def evict(self, need: int = 0) -> int:
        for artifact in self.catalog.find():
            self.catalog.hold(artifact.digest, "a download", 60)
        return super().evict(need)


def test_a_download_that_begins_during_the_reservation_makes_the_job_wait(world: World, tmp_path: Path) -> None:
    store = DownloadedStore(tmp_path / "store", world.catalog, LIMIT)
    _finish(world, store, _begin(world, "one"), 60)
    claim = _begin(world, "two")
    with pytest.raises(DiskFullError, match="needs 60 B, 40 B free"):
        _reserve(world, store, claim, 60)
    world.queue.block(claim, "disk: no room")
    assert world.queue.reserved_bytes() == 0


def test_concurrent_reservations_never_exceed_the_limit(world: World, store: Store) -> None:
    chance = Random(0)
    claims = [(_begin(world, f"m{n}"), chance.randrange(10, 60)) for n in range(10)]

    def reserve(request: tuple[Claim, int]) -> int:
        try:
            _reserve(world, store, *request)
        except DiskFullError:
            return 0
        return request[1]

    with ThreadPoolExecutor(10) as pool:
        sizes = list(pool.map(reserve, claims))
    assert sum(sizes) == world.queue.reserved_bytes() <= LIMIT
    assert all(sum(sizes) + need > LIMIT for (_, need), size in zip(claims, sizes, strict=True) if not size)


def test_as_many_blocked_jobs_return_to_the_queue_as_fit(world: World, store: Store, tmp_path: Path) -> None:
    supervisor = Supervisor(world.queue, store, Settings(tmp_path / "data", slots=0))

    def states() -> list[str]:
        supervisor.step()
        return [world.queue.get(claim.job.id).state for claim in (*waiting, large)]

    busy = _begin(world, "busy", 60)
    _reserve(world, store, busy, 60)
    waiting = [_begin(world, name, 45) for name in ("one", "two", "three")]
    large = _begin(world, "large", 99)
    for claim in (*waiting, large):
        world.queue.block(claim, f"{DISK}no room")
    assert states() == [BLOCKED] * 4
    _finish(world, store, busy, 60)
    assert states() == [QUEUED, QUEUED, BLOCKED, BLOCKED]
    assert states() == [QUEUED, QUEUED, BLOCKED, BLOCKED]
    for claim in waiting[:2]:
        world.queue.cancel(claim.job.id, ANN)
    assert states()[2:] == [QUEUED, BLOCKED]
    world.queue.cancel(waiting[2].job.id, ANN)
    assert states()[3] == QUEUED  # 99 of 100 bytes fit


def test_earlier_results_in_the_folder_of_a_job_do_not_count_as_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store", world.catalog)
    supervisor = Supervisor(world.queue, store, Settings(tmp_path / "data", slots=0))
    waits = _begin(world, "one", needed := 1 << 20)
    folder = tmp_path / "data" / "work" / waits.job.id / "0123456789ab"
    for name in ("earlier/a", "model.partial"):  # a view for reuse, and a partial model
        (folder / name).mkdir(parents=True)
    (folder / "earlier" / "a" / "model.safetensors").write_bytes(bytes(4 * needed))
    usage = shutil.disk_usage(tmp_path)
    full = RESERVE_BYTES + RESERVE_BYTES // 4 + needed // 20
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type(usage)(usage.total, usage.total - full, full))
    world.queue.block(waits, f"{DISK}no room")
    supervisor.step()
    assert world.queue.get(waits.job.id).state == BLOCKED
    (folder / "model.partial" / "model.safetensors").write_bytes(bytes(needed))
    supervisor.step()
    assert world.queue.get(waits.job.id).state == QUEUED


def test_a_runner_reserves_space_before_it_writes_and_waits_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")
    write_model("llama", tmp_path / "models" / "llama", tokenizer=True)
    lab = Lab(tmp_path / "data", tmp_path / "models", f"sqlite:///{tmp_path / 'service.db'}")
    limit = 4 << 20
    lab.settings = replace(lab.settings, max_store_bytes=limit)
    lab.store = Store(lab.data / "store", lab.catalog, limit)
    world = World(lab.database)
    world.queue = Queue(lab.database, lease_seconds=3600.0)  # nobody renews it
    other = _begin(world, "another model", limit - 1000)
    _reserve(world, lab.store, other, limit - 1000)
    lab.submit("llama", "4bpw")
    waits, _ = lab.work()
    assert (waits.state, waits.attempts) == (BLOCKED, 0)
    assert waits.needed_bytes > 1000
    assert "reserved for running jobs" in waits.reason
    supervisor = Supervisor(lab.queue, lab.store, replace(lab.settings, slots=0))
    supervisor.step()
    assert lab.queue.get(waits.id).state == BLOCKED
    world.queue.advance(other, "failed")
    supervisor.step()
    assert lab.queue.get(waits.id).state == QUEUED
    lab.database.close()
