"""Several servers of one database: what each tells of itself, and that they share one store."""

from pathlib import Path

import pytest

from cluster.service.data.database import connect
from cluster.service.data.hosts import GONE_SECONDS, Host, Hosts
from mint.core.errors import MintError
from tests.worlds.served import served
from tests.worlds.service_world import World

ALPHA, BETA = Host("alpha", 2, 10**12, 5, ""), Host("beta", 0, 7, 5, "10.0.0.1:6379")


def test_every_machine_tells_of_itself_and_is_forgotten_when_it_never_comes_back(world: World) -> None:
    hosts = Hosts(world.database, world.clock)
    began = world.clock.now
    hosts.beat(BETA)
    world.clock.now += 5
    hosts.beat(ALPHA)
    assert hosts.seen() == {ALPHA: began + 5, BETA: began}
    fuller = Host("beta", 0, 3, 9, "10.0.0.1:6379")
    hosts.beat(fuller)
    assert hosts.seen() == {ALPHA: began + 5, fuller: began + 5}
    world.clock.now += GONE_SECONDS + 1
    hosts.beat(ALPHA)
    assert hosts.seen() == {ALPHA: world.clock.now}


def test_the_api_tells_the_room_of_every_machine(tmp_path: Path, llama: Path) -> None:
    with served(tmp_path, roots=(llama.parent,)) as world:
        world.service.hosts.beat(BETA)
        world.submit("llama", "1GB")
        claim = world.claim()
        found = {host["name"]: host for host in world.client.get("/v1/hosts").json()["hosts"]}
    told = ("slots", "free_bytes", "store_bytes", "cluster", "is_here", "jobs")
    assert [found["beta"][name] for name in told] == [0, 7, 5, "10.0.0.1:6379", False, []]
    assert [found["elsewhere"][name] for name in told] == [None, None, None, None, False, [claim.job.id]]
    assert found["elsewhere"]["seen_at"] is None
    (here,) = (host for host in found.values() if host["is_here"])
    assert here["free_bytes"] > 0
    assert found["beta"]["seen_at"] <= here["seen_at"]


def test_a_service_tells_of_itself_as_long_as_it_runs(tmp_path: Path, database_url: str) -> None:
    with served(tmp_path, database=database_url, slots=0):
        pass  # it began, and ended as soon as it could
    database = connect(database_url)
    (host,) = Hosts(database).seen()
    database.close()
    assert host.slots == 0


def test_servers_of_one_database_share_one_store(tmp_path: Path, database_url: str) -> None:
    for _ in range(2):  # one after the other, or beside each other
        with served(tmp_path / "a", database=database_url), served(tmp_path / "a", database=database_url):
            pass
    with (
        pytest.raises(MintError, match="needed: one --data folder for all servers") as refused,
        served(tmp_path / "b", database=database_url),
    ):
        pass
    assert str(tmp_path / "a" / "store") in str(refused.value)
    (tmp_path / "a").rename(tmp_path / "moved")
    with served(tmp_path / "moved", database=database_url):
        pass
    id, _, file = str(refused.value).partition("echo ")[2].partition(" > ")  # as the message says
    Path(file).write_text(id + "\n")
    with served(tmp_path / "b", database=database_url):
        pass


def test_a_store_that_was_removed_is_no_trouble_where_the_database_lies_beside_it(tmp_path: Path) -> None:
    with served(tmp_path) as world:
        world.store("model", "0" * 64, a_bin=b"bytes")
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            path.unlink()
    with served(tmp_path) as world:
        world.service.store.sweep()
        assert world.service.ledger.find() == []
