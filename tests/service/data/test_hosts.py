"""Several servers of one database: each reports its capacity, and all share one store."""

from pathlib import Path

import pytest

from cluster.service.data.database import connect
from cluster.service.data.hosts import GONE_SECONDS, Host, Hosts
from mint.core.errors import MintError
from tests.worlds.served import served
from tests.worlds.service_world import World

ALPHA, BETA = Host("alpha", 2, 10**12, 5, ""), Host("beta", 0, 7, 5, "10.0.0.1:6379")


def test_every_machine_reports_and_is_removed_without_reports(world: World) -> None:
    hosts = Hosts(world.database, world.clock)
    began = world.clock.now
    hosts.report(BETA)
    world.clock.now += 5
    hosts.report(ALPHA)
    assert hosts.last_seen() == {ALPHA: began + 5, BETA: began}
    fuller = Host("beta", 0, 3, 9, "10.0.0.1:6379")
    hosts.report(fuller)
    assert hosts.last_seen() == {ALPHA: began + 5, fuller: began + 5}
    world.clock.now += GONE_SECONDS + 1
    hosts.report(ALPHA)
    assert hosts.last_seen() == {ALPHA: world.clock.now}


def test_the_api_lists_the_capacity_of_every_machine(tmp_path: Path, llama: Path) -> None:
    with served(tmp_path, roots=(llama.parent,)) as world:
        world.service.hosts.report(BETA)
        world.submit("llama", "1GB")
        claim = world.claim()
        hosts = {host["name"]: host for host in world.client.get("/v1/hosts").json()["hosts"]}
    keys = ("slots", "free_bytes", "store_bytes", "cluster", "is_here", "jobs")
    assert [hosts["beta"][name] for name in keys] == [0, 7, 5, "10.0.0.1:6379", False, []]
    assert [hosts["elsewhere"][name] for name in keys] == [None, None, None, None, False, [claim.job.id]]
    assert hosts["elsewhere"]["seen_at"] is None
    (here,) = (host for host in hosts.values() if host["is_here"])
    assert here["free_bytes"] > 0
    assert hosts["beta"]["seen_at"] <= here["seen_at"]


def test_a_running_service_reports(tmp_path: Path, database_url: str) -> None:
    with served(tmp_path, database=database_url, slots=0):
        pass  # a start and an immediate end
    database = connect(database_url)
    (host,) = Hosts(database).last_seen()
    database.close()
    assert host.slots == 0


def test_servers_of_one_database_share_one_store(tmp_path: Path, database_url: str) -> None:
    for _ in range(2):  # in sequence and in parallel
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
    id, _, file = str(refused.value).partition("echo ")[2].partition(" > ")  # the cure in the message
    Path(file).write_text(id + "\n")
    with served(tmp_path / "b", database=database_url):
        pass


def test_a_removed_store_beside_its_database_is_made_again(tmp_path: Path) -> None:
    with served(tmp_path) as world:
        world.store("model", "0" * 64, a_bin=b"bytes")
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            path.unlink()
    with served(tmp_path) as world:
        world.service.store.sweep()
        assert world.service.catalog.find() == []
