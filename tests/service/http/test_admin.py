"""Work of administrators: people and quotas, drained machines, requeued jobs, logs, the disk, the audit log."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.service.data.records import Quota
from tests.worlds.served import Served, served


@pytest.fixture
def world(tmp_path: Path, llama: Path) -> Iterator[Served]:
    with served(tmp_path, roots=(llama.parent,)) as world:
        yield world


@pytest.fixture
def root(world: Served) -> dict[str, str]:
    return world.token("root", "admin")


ADMIN_ONLY: tuple[tuple[str, str, dict[str, Any] | None], ...] = (
    ("GET", "/v1/people", None),
    ("PATCH", "/v1/people/ada", {"quota": {}}),
    ("PATCH", "/v1/hosts/elsewhere", {"drained": True}),
    ("GET", "/v1/audit", None),
    ("POST", f"/v1/jobs/{'0' * 16}/requeue", {}),
    ("DELETE", f"/v1/artifacts/{'0' * 64}", None),
)


@pytest.mark.parametrize(("method", "path", "body"), ADMIN_ONLY)
def test_only_admins_do_the_work_of_admins(
    world: Served, root: dict[str, str], method: str, path: str, body: dict[str, Any] | None
) -> None:
    ada = world.token("ada")
    refused = world.client.request(method, path, json=body, headers=ada)
    assert refused.status_code == 403
    assert "needed the scope 'admin'" in refused.json()["error"]["message"]
    assert world.client.request(method, path, json=body, headers=root).status_code != 403


def test_people_are_listed_with_their_quota_and_their_use(world: Served, root: dict[str, str]) -> None:
    ada = world.token("ada", quota=Quota(queued=5))
    world.submit("llama", "1GB", headers=ada)
    world.submit("llama", "2GB", headers=ada)
    world.claim()
    people = {person["name"]: person for person in world.client.get("/v1/people", headers=root).json()["people"]}
    assert people.keys() == {"ada", "root"}
    assert people["ada"]["scopes"] == ["read", "submit"]
    assert people["ada"]["quota"] == {"active": None, "queued": 5, "nbytes": None}
    assert [people["ada"][name] for name in ("waiting", "running", "ended")] == [1, 1, 0]
    assert people["ada"]["used_bytes"] > 0
    world.service.tokens.revoke("ada")
    people = {person["name"]: person for person in world.client.get("/v1/people", headers=root).json()["people"]}
    assert (people["ada"]["scopes"], people["ada"]["created_at"]) == ([], None)


def test_a_changed_quota_holds_at_once_and_for_later_submissions(world: Served, root: dict[str, str]) -> None:
    ada = world.token("ada")
    world.submit("llama", "1GB", headers=ada)
    changed = world.client.patch("/v1/people/ada", json={"quota": {"queued": 1}}, headers=root)
    assert changed.json()["quota"] == {"active": None, "queued": 1, "nbytes": None}
    for _ in range(2):  # a refused submission does not bring the old quota back
        body = {"model": "llama", "budgets": ["2GB"]}
        assert world.client.post("/v1/jobs", json=body, headers=ada).status_code == 429
    assert world.client.patch("/v1/people/nobody", json={"quota": {}}, headers=root).status_code == 404


def test_groups_are_changed_beside_the_quota(world: Served, root: dict[str, str]) -> None:
    ada = world.token("ada", quota=Quota(queued=5))
    changed = world.client.patch("/v1/people/ada", json={"groups": ["vision", "speech"]}, headers=root).json()
    assert (changed["groups"], changed["quota"]["queued"]) == (["speech", "vision"], 5)
    assert world.client.get("/v1/me", headers=ada).json()["groups"] == ["speech", "vision"]


def test_a_drained_machine_finishes_its_job_and_begins_none(world: Served, root: dict[str, str]) -> None:
    world.submit("llama", "1GB", headers=root)
    running = world.claim()
    answer = world.client.patch("/v1/hosts/elsewhere", json={"drained": True}, headers=root).json()
    assert answer["drained_by"] == "root"
    world.submit("llama", "1GB", options={"dtype": "float32"}, headers=root)
    assert world.service.queue.claim("elsewhere") is None
    assert world.service.queue.renew(running).value == "held"
    world.service.queue.advance(running, "failed", reason="broken")
    hosts = {host["name"]: host for host in world.client.get("/v1/hosts", headers=root).json()["hosts"]}
    assert hosts["elsewhere"]["drained_by"] == "root"  # although it runs nothing any more
    assert hosts[socket.gethostname()]["drained_by"] == ""
    world.client.patch("/v1/hosts/elsewhere", json={"drained": False}, headers=root)
    assert world.claim()
    assert world.client.patch("/v1/hosts/nowhere", json={"drained": True}, headers=root).status_code == 404


def test_a_failed_job_is_requeued_for_all_who_wanted_it(world: Served, root: dict[str, str]) -> None:
    ada, bob = world.token("ada"), world.token("bob")
    (job,) = world.submit("llama", "1GB", headers=ada)
    world.submit("llama", "1GB", status=200, headers=bob)
    world.service.queue.advance(world.claim(), "failed", reason="broken")
    again = world.client.post(f"/v1/jobs/{job['id']}/requeue", json={}, headers=root).json()
    assert again["id"] != job["id"]
    assert (again["state"], again["owner"], again["watchers"]) == ("queued", "ada", ["ada", "bob"])
    assert (again["model"], again["budget"], again["source_bytes"]) == ("llama", "1GB", job["source_bytes"])
    twice = world.client.post(f"/v1/jobs/{job['id']}/requeue", json={}, headers=root).json()
    assert twice["id"] == again["id"]  # one job for a request


def test_a_cancelled_job_is_requeued_for_its_owner(world: Served, root: dict[str, str]) -> None:
    ada = world.token("ada")
    (job,) = world.submit("llama", "1GB", headers=ada)
    world.client.delete(f"/v1/jobs/{job['id']}", headers=ada)
    assert world.client.post(f"/v1/jobs/{job['id']}/requeue", json={}, headers=root).json()["owner"] == "ada"


def test_a_running_job_is_requeued_after_the_unit_at_work(world: Served, root: dict[str, str]) -> None:
    (job,) = world.submit("llama", "1GB", headers=root)
    claim = world.claim()
    assert world.client.post(f"/v1/jobs/{job['id']}/requeue", json={}, headers=root).json()["yields_to"] == "queued"
    assert world.service.queue.renew(claim).value == "yield wanted"
    world.service.queue.release(claim, "")
    assert world.service.queue.get(job["id"]).state == "queued"


def test_the_log_of_a_job_is_for_those_who_want_it_and_for_admins(world: Served, root: dict[str, str]) -> None:
    ada, bob = world.token("ada"), world.token("bob")
    (job,) = world.submit("llama", "1GB", headers=ada)
    path = f"/v1/jobs/{job['id']}/log"
    assert world.client.get(path, headers=ada).text == ""  # before it has begun
    file = world.service.settings.log_path(job["id"])
    file.parent.mkdir(exist_ok=True)
    file.write_bytes("first\nsecond \N{SNOWMAN}\nlast \xff\n".encode("latin-1", "replace"))
    assert world.client.get(path, headers=root).text.splitlines()[-1].startswith("last ")
    assert world.client.get(path, params={"nbytes": 12}, headers=ada).text.count("\n") == 1  # whole lines only
    assert world.client.get(path, headers=bob).status_code == 403


def test_an_artifact_is_removed_from_the_disk_unless_it_is_in_use(world: Served, root: dict[str, str]) -> None:
    artifact = world.store("model", "0" * 64, a_bin=b"bytes")
    world.service.catalog.hold(artifact.digest, "somebody", 60.0)
    assert world.client.delete(f"/v1/artifacts/{artifact.digest}", headers=root).status_code == 409
    world.service.catalog.drop("somebody")
    assert world.client.delete(f"/v1/artifacts/{artifact.digest}", headers=root).json()["nbytes"] == 5
    assert not world.service.store.path(artifact.files[0].digest).exists()
    assert world.client.delete(f"/v1/artifacts/{artifact.digest}", headers=root).status_code == 404


def test_the_audit_log_is_read_newest_first_and_searched(world: Served, root: dict[str, str]) -> None:
    ada = world.token("ada")
    world.submit("llama", "1GB", headers=ada)
    world.client.patch("/v1/people/ada", json={"quota": {"active": 1}}, headers=root)
    entries = world.client.get("/v1/audit", headers=root).json()["entries"]
    assert [entry["event"] for entry in entries[:2]] == ["person.changed", "job.submitted"]
    assert entries[0]["of"] == "ada"
    (entry,) = world.client.get("/v1/audit", params={"search": "submitted ADA"}, headers=root).json()["entries"]
    assert entry["person"] == "ada"
    world.service.audit.path.rename(world.service.audit.path.with_name("audit.log.1"))  # a rotation
    assert len(world.client.get("/v1/audit", params={"limit": 2}, headers=root).json()["entries"]) == 2
