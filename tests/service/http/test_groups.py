"""Models and jobs of groups: for others they are as if they were not there, on every route."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.service.commands.serve import serve
from mint.core.errors import MintError
from tests.worlds.served import Served, served
from tests.worlds.zoo import write_model

SECRET = "@vision/secret"


@dataclass(frozen=True)
class Lab:
    """A service with a model of everybody and one of the group vision; ada is of the group, eve is not."""

    world: Served
    ada: dict[str, str]
    eve: dict[str, str]
    root: dict[str, str]

    def get(self, path: str, headers: dict[str, str], **params: Any) -> Any:
        return self.world.client.get(path, headers=headers, params=params)

    def finished(self, model: str = SECRET, **more: Any) -> tuple[dict[str, Any], str]:
        """A job of ada that is done, and the digest of its artifact."""
        (job,) = self.world.submit(model, "1GB", headers=self.ada, **more)
        artifact = self.world.store("model", job["identity"], a_bin=model.encode())
        self.world.finish(self.world.claim(), artifact)
        return job, artifact.digest


@pytest.fixture
def lab(tmp_path: Path, llama: Path) -> Iterator[Lab]:
    write_model("qwen3", tmp_path / "vision" / "secret")
    with served(
        tmp_path / "data", roots=(llama.parent,), group_roots=(("vision", tmp_path / "vision"),), slots=0
    ) as world:
        ada, eve = world.token("ada", groups=["vision"]), world.token("eve", groups=["speech"])
        yield Lab(world, ada, eve, world.token("root", "admin"))


def _names(answer: Any) -> list[str]:
    return [model["name"] for model in answer.json()["models"]]


def test_a_model_of_a_group_is_listed_and_taken_for_the_group_and_for_admins_alone(lab: Lab) -> None:
    assert _names(lab.get("/v1/models", lab.ada)) == _names(lab.get("/v1/models", lab.root)) == [SECRET, "llama"]
    assert _names(lab.get("/v1/models", lab.eve)) == ["llama"]
    missing = lab.world.client.post("/v1/jobs", json={"model": "@vision/none"}, headers=lab.ada)
    assert SECRET in missing.json()["error"]["message"]
    for name in (SECRET, "@vision/none", "secret", "none"):
        refused = lab.world.client.post("/v1/jobs", json={"model": name}, headers=lab.eve)
        assert refused.status_code == 404
        assert "secret" not in refused.json()["error"]["message"].replace(name, "")
    body = {"model": "@vision/x.gguf"}
    assert lab.world.client.post("/v1/fetches", json=body, headers=lab.eve).status_code == 404


def test_jobs_and_results_of_a_group_are_as_if_they_were_not_there(lab: Lab) -> None:
    job, digest = lab.finished()
    assert job["group"] == "vision"
    identity, id = job["identity"], job["id"]
    lab.world.store("analysis", identity, analysis_mint=b"x")
    paths = [f"/v1/jobs/{id}", f"/v1/jobs/{id}/history", f"/v1/jobs/{id}/events", f"/v1/jobs/{id}/log",
             f"/v1/models/{identity}", f"/v1/models/{identity}/curve", f"/v1/analyses/{identity}",
             f"/v1/artifacts/{digest}", f"/v1/artifacts/{digest}/files/a.bin"]  # fmt: skip
    for path in paths:
        unknown = path.replace(id, "0" * 16).replace(identity, "0" * 64).replace(digest, "0" * 64)
        hidden, missing = lab.get(path, lab.eve), lab.get(unknown, lab.eve)
        assert hidden.status_code == missing.status_code, path
        assert hidden.json()["error"]["code"] == missing.json()["error"]["code"]
        assert lab.get(path, lab.ada).status_code != 404 or "analyzed" in lab.get(path, lab.ada).text, path
    for path, key in (("/v1/jobs", "jobs"), ("/v1/artifacts", "artifacts")):
        assert lab.get(path, lab.ada).json()[key] and lab.get(path, lab.root).json()[key]
        assert lab.get(path, lab.eve).json()[key] == []
    assert sum(lab.get("/v1/jobs", lab.eve).json()["counts"].values()) == 0
    assert lab.world.client.delete(f"/v1/jobs/{id}", headers=lab.eve).status_code == 404
    assert lab.world.client.patch(f"/v1/jobs/{id}", json={"paused": True}, headers=lab.eve).status_code == 404
    body = {"name": "a.bin"}
    ticket = f"/v1/artifacts/{digest}/tickets"
    assert lab.world.client.post(ticket, json=body, headers=lab.eve).status_code == 404
    url = lab.world.client.post(ticket, json=body, headers=lab.ada).json()["url"]
    assert lab.world.client.get(url).content == SECRET.encode()
    for of in (identity, "0" * 64):  # as of a model that nobody knows
        plan = {"model": of, "budget": "1GB"}
        assert lab.world.client.post("/v1/plans", json=plan, headers=lab.eve).json()["error"]["code"] == "not_analyzed"


def test_a_running_job_of_a_group_is_on_no_list_of_others(lab: Lab) -> None:
    (job,) = lab.world.submit(SECRET, "1GB", headers=lab.ada)
    lab.world.claim()
    on_hosts = {name: [id for host in lab.get("/v1/hosts", who).json()["hosts"] for id in host["jobs"]]
                for name, who in (("ada", lab.ada), ("eve", lab.eve))}  # fmt: skip
    assert on_hosts == {"ada": [job["id"]], "eve": []}


def test_a_job_for_a_group_of_a_model_of_everybody_is_not_shared_with_others(lab: Lab) -> None:
    own, _ = lab.finished("llama", group="vision")
    (public,) = lab.world.submit("llama", "1GB", headers=lab.eve)
    assert public["id"] != own["id"]
    assert [job["id"] for job in lab.get("/v1/jobs", lab.eve).json()["jobs"]] == [public["id"]]
    assert lab.get(f"/v1/models/{own['identity']}", lab.eve).status_code == 200
    refused = lab.world.client.post("/v1/jobs", json={"model": "llama", "group": "vision"}, headers=lab.eve)
    assert refused.status_code == 403
    both = lab.world.client.post("/v1/jobs", json={"model": SECRET, "group": "speech"}, headers=lab.root)
    assert both.status_code == 422


def test_a_result_that_a_job_of_everybody_made_too_is_everybodys(lab: Lab) -> None:
    _, digest = lab.finished("llama", group="vision")
    assert lab.get(f"/v1/artifacts/{digest}", lab.eve).status_code == 404
    lab.world.submit("llama", "1GB", headers=lab.eve)
    lab.world.finish(lab.world.claim(), lab.world.service.catalog.get(digest))
    assert lab.get(f"/v1/artifacts/{digest}", lab.eve).status_code == 200


def test_who_leaves_a_group_sees_its_jobs_no_more_but_those_of_their_own(lab: Lab) -> None:
    own, _ = lab.finished()
    bob = lab.world.token("bob", groups=["vision"])
    assert lab.get(f"/v1/jobs/{own['id']}", bob).status_code == 200
    for name in ("ada", "bob"):
        lab.world.client.patch(f"/v1/people/{name}", json={"groups": []}, headers=lab.root)
    assert lab.get(f"/v1/jobs/{own['id']}", bob).status_code == 404
    assert lab.get(f"/v1/jobs/{own['id']}", lab.ada).status_code == 200
    assert _names(lab.get("/v1/models", lab.ada)) == ["llama"]


def test_the_folder_of_a_group_is_not_below_one_that_others_see(tmp_path: Path) -> None:
    (tmp_path / "models" / "vision").mkdir(parents=True)
    roots = {"roots": (tmp_path / "models",), "group_roots": (("vision", tmp_path / "models" / "vision"),)}
    with pytest.raises(MintError, match="whose models others see"), served(tmp_path / "data", **roots):
        pass
    outside = {"roots": (tmp_path / "models" / "vision",), "group_roots": (("vision", tmp_path / "models"),)}
    with pytest.raises(MintError, match="whose models others see"), served(tmp_path / "data", **outside):
        pass


@pytest.mark.parametrize("text", ["vision", "vision=", "=/tmp", "vision=models", "a/b=/tmp", "vision=/nowhere"])
def test_a_root_of_a_group_names_both(tmp_path: Path, text: str) -> None:
    with pytest.raises(MintError, match="needed: GROUP=DIR"):
        serve(data=tmp_path, group_roots=[text])
