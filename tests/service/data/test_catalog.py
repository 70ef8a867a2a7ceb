"""The catalog: finds artifacts by digest, holds them in use, and evicts them by last use."""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from cluster.service.data.database import Database
from cluster.service.data.records import Artifact
from cluster.service.errors import ArtifactInUseError, NotFoundError
from mint.client.download import ServedFile
from tests.worlds.service_world import World, artifact, clear


def _store(world: World, *artifacts: Artifact) -> None:
    """Put artifacts into the catalog, a second apart."""
    for stored in artifacts:
        world.clock.now += 1
        world.catalog.add(stored)


def _evictable(world: World, need: int) -> list[str]:
    return [stored.digest for stored in world.catalog.evictable(need)[0]]


def test_an_artifact_is_found_by_digest_kind_and_model(world: World) -> None:
    one, two = artifact("a", identity="m"), artifact("b", identity="n")
    analysis = Artifact("analysis", "m", (ServedFile("x", "c" * 64, 3 * 10**12),))
    _store(world, one, two, analysis)
    assert world.catalog.get(one.digest) == one
    assert world.catalog.find() == [analysis, two, one]
    assert world.catalog.find(identity="m") == [analysis, one]
    assert world.catalog.find(kind="model") == [two, one]
    assert world.catalog.find(limit=1) == [analysis]
    with pytest.raises(NotFoundError):
        world.catalog.get("0" * 64)


def test_the_same_artifact_is_stored_once(world: World) -> None:
    one = artifact("a")
    _store(world, one, one)
    assert world.catalog.find() == [one]
    assert world.catalog.nbytes() == one.nbytes


def test_a_file_that_several_share_is_counted_once(world: World) -> None:
    _store(world, artifact("a", nbytes=10, shared=100), artifact("b", nbytes=20, shared=100))
    assert world.catalog.nbytes() == 130
    assert world.catalog.has_file(artifact("b").files[0].digest)
    assert not world.catalog.has_file("0" * 64)


def test_the_least_recently_used_goes_first(world: World) -> None:
    one, two, three = (artifact(name) for name in "abc")
    _store(world, one, two, three)
    world.clock.now += 1
    world.catalog.hold(one.digest, "download", 0)
    assert _evictable(world, 11) == [two.digest, three.digest]
    world.clock.now += 1
    _store(world, two)  # adding counts as use
    assert _evictable(world, 10**9) == [three.digest, one.digest, two.digest]
    assert _evictable(world, 0) == []


def test_a_shared_file_is_freed_with_its_last_artifact(world: World) -> None:
    one, two = artifact("a", nbytes=10, shared=100), artifact("b", nbytes=10, shared=100)
    _store(world, one, two)
    assert _evictable(world, 10) == [one.digest]
    assert _evictable(world, 11) == [one.digest, two.digest]
    discarded: list[list[str]] = []
    for removed in (one, two):
        world.catalog.remove(removed.digest, lambda files: discarded.append([file.name for file in files]))
    assert discarded == [["own"], ["own", "shared"]]


def test_two_equal_files_of_an_artifact_are_one_file(world: World) -> None:
    twice = Artifact("model", "m", (ServedFile("x", "a" * 64, 10), ServedFile("y", "a" * 64, 10)))
    other = artifact("b", nbytes=5)
    _store(world, twice, other)
    assert world.catalog.nbytes() == 15
    assert _evictable(world, 11) == [twice.digest, other.digest]
    discarded: list[ServedFile] = []
    world.catalog.remove(twice.digest, discarded.extend)
    assert len(discarded) == 1


def test_an_artifact_held_by_a_job_or_a_download_is_not_evicted(world: World) -> None:
    one, two = artifact("a"), artifact("b")
    _store(world, one, two)
    world.catalog.hold(one.digest, "job 1", 60)
    world.catalog.hold(one.digest, "download 2", 30)
    assert _evictable(world, 10**9) == [two.digest]
    with pytest.raises(ArtifactInUseError, match="download 2, job 1"):
        world.catalog.remove(one.digest)
    world.catalog.drop("job 1")
    with pytest.raises(ArtifactInUseError):
        world.catalog.remove(one.digest)
    world.clock.now += 30
    assert one.digest in _evictable(world, 10**9)
    world.catalog.remove(one.digest)
    with pytest.raises(NotFoundError):
        world.catalog.hold(one.digest, "download 3", 30)


def test_a_hold_can_be_prolonged(world: World) -> None:
    one = artifact("a")
    _store(world, one)
    for _ in range(5):
        world.catalog.hold(one.digest, "download", 30)
        world.clock.now += 29
        assert _evictable(world, 1) == []


def test_a_hold_counts_as_use(world: World) -> None:
    one, two = artifact("a"), artifact("b")
    _store(world, one, two)
    world.clock.now += 1
    world.catalog.hold(one.digest, "download", 10)
    world.catalog.drop("download")
    assert _evictable(world, 10**9) == [two.digest, one.digest]


def test_an_artifact_whose_files_cannot_be_deleted_stays(world: World) -> None:
    one = artifact("a")
    _store(world, one)

    def fail(files: object) -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        world.catalog.remove(one.digest, fail)
    assert world.catalog.get(one.digest) == one


def test_an_artifact_without_its_files_is_not_added(world: World) -> None:
    def fail() -> None:
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        world.catalog.add(artifact("a"), fail)
    assert world.catalog.find() == []


def test_the_identity_of_a_path_is_valid_until_its_files_change(world: World) -> None:
    world.catalog.save_identity("lab/llama", "stamp 1", "m")
    world.catalog.save_identity("lab/copy", "stamp 9", "m")
    assert world.catalog.identity("lab/llama", "stamp 1") == "m"
    assert world.catalog.identity("lab/llama", "stamp 2") == ""
    world.catalog.save_identity("lab/llama", "stamp 2", "n")
    assert (world.catalog.identity("lab/llama", "stamp 2"), world.catalog.identity("lab/llama", "stamp 1")) == ("n", "")
    assert world.catalog.identity("lab/copy", "stamp 9") == "m"


FILES = st.sets(st.integers(0, 5), min_size=1, max_size=4)


@settings(
    max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck],
)  # fmt: skip
@given(contents=st.lists(FILES, min_size=1, max_size=5), downloads=st.sets(st.integers(0, 4)), need=st.integers(1, 70))
def test_evicted_artifacts_free_enough_bytes_and_no_more_than_needed(
    database: Database, contents: list[set[int]], downloads: set[int], need: int
) -> None:
    clear(database)
    world = World(database)
    artifacts = [
        Artifact("model", "m", tuple(ServedFile(f"{name}", f"{file:064}", 2**file) for name, file in enumerate(files)))
        for files in contents
    ]
    _store(world, *artifacts)
    for number, stored in enumerate(artifacts):
        if number in downloads:
            world.catalog.hold(stored.digest, "download", 60)
    (chosen, promised), before = world.catalog.evictable(need), world.catalog.nbytes()
    freed = [0]
    for evicted in chosen:
        world.catalog.remove(evicted.digest)
        freed.append(before - world.catalog.nbytes())
    assert all(nbytes < need for nbytes in freed[:-1])
    assert freed[-1] == promised
    if freed[-1] < need:  # only held artifacts stay
        left = {stored.digest for stored in world.catalog.find()}
        assert left == {stored.digest for n, stored in enumerate(artifacts) if n in downloads}
