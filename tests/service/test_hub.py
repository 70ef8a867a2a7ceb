"""Models of the hub on a service that allows them: fetched on request, once, by any person who may submit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("fastapi")

import mint
from cluster.service.data.records import Quota
from mint.cli.main import run_command
from mint.core.progress import Progress
from mint.run.child import Child
from tests.conftest import own_cache
from tests.worlds.hub_world import FakeHub, fake_hub, know
from tests.worlds.served import Served, served
from tests.worlds.zoo import write_model

ID = "Owner/tiny"
WEIGHTS = "model.safetensors"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("qwen3", tmp_path_factory.mktemp("models") / "tiny", tokenizer=True)


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that this process and those that it starts know."""
    with fake_hub() as hub:
        hub.add(ID, model)
        know(hub, tmp_path / "hub", monkeypatch)
        for name, value in hub.environment(tmp_path / "hub").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")  # on a CPU it calls a C++ compiler
        yield hub


@pytest.fixture
def world(hub: FakeHub, tmp_path: Path, llama: Path) -> Iterator[Served]:
    with served(tmp_path / "data", roots=(llama.parent,), allow_hub=True) as world:
        yield world


def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def ask(world: Served, status: int, headers: dict[str, str] | None = None, model: str = ID) -> dict[str, Any]:
    response = world.client.post("/v1/fetches", json={"model": model}, headers=headers or {})
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ended(world: Served, id: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """A fetch that is over."""

    def look() -> dict[str, Any] | None:
        fetch: dict[str, Any] = world.client.get(f"/v1/fetches/{id}", headers=headers or {}).json()
        return fetch if fetch["state"] in ("done", "failed") else None

    fetch: dict[str, Any] = until(look)
    return fetch


def test_a_model_that_is_not_here_is_refused_fetched_and_taken(world: Served, hub: FakeHub) -> None:
    refused = world.client.post("/v1/jobs", json={"model": ID, "budgets": ["4.5bpw"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_fetched")
    planned = world.client.post("/v1/plans", json={"model": ID, "budget": "4.5bpw"})
    assert (planned.status_code, planned.json()["error"]["code"]) == (409, "not_fetched")
    done = ended(world, ask(world, 202)["id"])
    total = sum(map(len, hub.models[ID].values()))
    assert (done["state"], done["reason"], done["done_bytes"], done["total_bytes"]) == ("done", "", total, total)
    (job,) = world.submit(ID, "4.5bpw")
    (again,) = world.submit(f"{ID}@{hub.commit(ID)}", "4.5bpw", status=200)
    assert again["id"] == job["id"]


def test_a_file_that_the_cache_shares_between_repositories_is_the_model_s_own(world: Served, hub: FakeHub) -> None:
    ended(world, ask(world, 202)["id"])
    cache = Path(os.environ["HF_HUB_CACHE"])
    blob = next(cache.glob(f"models--Owner--tiny/snapshots/*/{WEIGHTS}")).readlink()
    blob = cache / "models--Owner--tiny" / "blobs" / blob.name
    (cache / "blobs").mkdir()
    blob.rename(cache / "blobs" / "shared")
    blob.symlink_to(cache / "blobs" / "shared")
    world.submit(ID, "4.5bpw")
    blob.unlink()
    (cache / "blobs" / "shared").rename(cache.parent / "elsewhere")
    blob.symlink_to(cache.parent / "elsewhere")
    refused = world.client.post("/v1/jobs", json={"model": ID, "budgets": ["4bpw"]})
    assert (refused.status_code, "leads out" in refused.text) == (404, True)


def test_without_allow_hub_nothing_of_the_hub_is_asked(hub: FakeHub, tmp_path: Path, llama: Path) -> None:
    with served(tmp_path / "data", roots=(llama.parent,)) as world:
        refused = world.client.post("/v1/jobs", json={"model": ID, "budgets": ["4.5bpw"]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_such_model")
        assert ask(world, 403)["error"]["code"] == "no_hub"
    assert not hub.tokens


@pytest.mark.parametrize(
    "name", ["llama", "https://a/b", "../a", "a/../b", "a/b/c", "/a/b", "a/b@../../c", "a--b/c", "a/b@x..y", "-a/b", ""]
)
def test_what_is_no_id_is_never_fetched(world: Served, hub: FakeHub, name: str) -> None:
    ask(world, 422, model=name)
    assert not hub.tokens


def test_two_people_who_ask_get_one_download(world: Served, hub: FakeHub) -> None:
    ann, bob, eve = world.token("ann"), world.token("bob"), world.token("eve", "read")
    hub.holds[WEIGHTS] = 1 << 15
    first = ask(world, 202, ann)
    assert hub.held.wait(PATIENCE)
    assert ask(world, 200, bob, model=f"{ID}@main")["id"] == first["id"]
    assert ask(world, 403, eve)["error"]["code"] == "forbidden"
    running = world.client.get(f"/v1/fetches/{first['id']}", headers=eve).json()
    assert (running["state"], running["model"]) == ("running", ID)
    hub.go.set()
    assert ended(world, first["id"], eve)["state"] == "done"
    assert len(hub.sent(WEIGHTS)) == 1
    audit = (world.service.settings.data / "audit.log").read_text().splitlines()
    requests = [line for line in map(json.loads, audit) if line["event"] == "fetch.asked"]
    assert [(line["person"], line["model"], line["is_new"]) for line in requests] == [
        ("ann", ID, True),
        ("bob", ID, False),
    ]


def _fetching() -> list[psutil.Process]:
    """The child processes of this one that fetch."""
    return [child for child in psutil.Process().children() if "fetch_child" in " ".join(child.cmdline())]


def test_a_fetch_that_is_killed_says_so_and_goes_on_when_it_is_asked_for_again(world: Served, hub: FakeHub) -> None:
    hub.holds[WEIGHTS] = 1 << 15
    first = ask(world, 202)
    assert hub.held.wait(PATIENCE)
    (process,) = _fetching()
    process.kill()
    killed = ended(world, first["id"])
    assert (killed["state"], "request it again, files that are whole are kept" in killed["reason"]) == ("failed", True)
    hub.holds = {}
    hub.go.set()
    hub.asked.clear()
    assert ended(world, ask(world, 202)["id"])["state"] == "done"
    assert {request.name for request in hub.sent("")} == {WEIGHTS}


def test_a_fetch_ends_with_the_service(hub: FakeHub, tmp_path: Path, llama: Path) -> None:
    hub.holds[WEIGHTS] = 1 << 15
    with served(tmp_path / "data", roots=(llama.parent,), allow_hub=True) as world:
        fetched = ask(world, 202)
        assert hub.held.wait(PATIENCE)
        (process,) = _fetching()
    assert not process.is_running()
    assert "ended with code -9" in world.service.fetches.get(fetched["id"]).reason


def test_a_fetch_ends_with_a_service_that_was_killed(hub: FakeHub) -> None:
    hub.holds[WEIGHTS] = 1 << 15
    child = Child("cluster.service.subprocesses.fetch_child:main", ID, "0")
    assert hub.held.wait(PATIENCE)
    assert child.close() == -signal.SIGKILL  # its input ends, as the kernel ends it for a parent that is killed


def test_what_the_hub_refuses_is_the_reason_of_the_fetch(world: Served, hub: FakeHub) -> None:
    hub.refused[ID] = (404, "RepoNotFound")
    failed = ended(world, ask(world, 202)["id"])
    assert failed["state"] == "failed"
    assert f"knows no model {ID}" in failed["reason"]


def test_a_model_with_code_of_its_own_is_refused_before_its_weights_come(world: Served, hub: FakeHub) -> None:
    config = json.loads(hub.models[ID]["config.json"])
    hub.models[ID]["config.json"] = json.dumps(config | {"model_file": "evil.py"}).encode()
    failed = ended(world, ask(world, 202)["id"])
    assert "brings its own code" in failed["reason"]
    assert not hub.sent(WEIGHTS)


def test_one_person_has_few_on_their_way_and_others_may_still_ask(world: Served, hub: FakeHub) -> None:
    ann, bob = world.token("ann", quota=Quota(queued=1)), world.token("bob")
    hub.holds[WEIGHTS] = 1 << 15
    first = ask(world, 202, ann)
    assert hub.held.wait(PATIENCE)
    refused = world.client.post("/v1/fetches", json={"model": "Owner/other"}, headers=ann)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota")
    assert refused.headers["retry-after"] == "60"
    second = ask(world, 202, bob, model="Owner/other")
    assert ended(world, second["id"], bob)["state"] == "failed"
    hub.go.set()
    done = ended(world, first["id"], ann)
    assert (done["state"], done["reason"]) == ("done", "")
    assert world.client.get("/v1/fetches/0123456789abcdef", headers=ann).status_code == 404


def test_submit_lets_the_service_fetch_and_then_work(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_cache(tmp_path / "data" / "cache")
    command = [sys.executable, "-m", "mint", "serve", "--allow-hub", "--port", "0"]
    service = subprocess.Popen([*command, "--data", str(tmp_path / "data")], stdout=subprocess.PIPE, text=True)
    assert service.stdout
    address = service.stdout.readline().split()[3].rstrip("/").removeprefix("http://")
    try:
        arguments = ["submit", ID, "--server", address, "--wait", "--json"]
        assert run_command(arguments) == 0, capsys.readouterr().err
        answer = json.loads(capsys.readouterr().out)
        assert (answer["model"], answer["state"]) == (ID, "done")
        steps: list[Progress] = []
        with mint.Client(address) as client:
            (job,) = client.submit(ID, on_progress=steps.append)
            assert (job.state, steps) == ("done", [])
            with pytest.raises(mint.MintError, match="knows no model Owner/nothing"):
                client.submit("Owner/nothing")
    finally:
        service.terminate()
        service.communicate(timeout=60)
    assert len(hub.sent(WEIGHTS)) == 1
