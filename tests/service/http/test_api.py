"""The HTTP API in this process: what is asked and answered, and what is refused how."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.service.data.records import Quota
from cluster.service.http.schema_events import JobEnded
from cluster.service.http.schema_requests import Options
from cluster.service.request_options import DEFAULTS, budget_of, canonical
from cluster.service.work.notifier import report
from mint.analysis.analysis import read_analysis
from mint.analysis.analyze import analyze
from mint.client.client import Client
from mint.core.sizes import parse_budget
from mint.model.checkpoint.shards import identity, read_shards
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.curve import curve
from mint.plan.problem import Problem
from mint.plan.recipe import Recipe
from tests.worlds.served import Served, served

NOWHERE = "0" * 64

JSON = {"content-type": "application/json"}


@pytest.fixture
def world(tmp_path: Path, llama: Path) -> Iterator[Served]:
    with served(tmp_path / "data", roots=(llama.parent,)) as world:
        yield world


@pytest.fixture(scope="module")
def analysis(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("analysis") / "llama.mint"
    analyze(open_source(llama), path)
    return path


def _identity(model: Path) -> str:
    return identity(read_shards(model), (model / "config.json").read_bytes())


def _error(response: Any, status: int) -> str:
    """The code of an answer that is an error, which has the one form of all."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["message"]
    code: str = body["error"]["code"]
    return code


# jobs


def test_a_submission_makes_a_job_for_every_budget(world: Served, llama: Path) -> None:
    jobs = world.submit("llama", "90kB", "4 bpw", "m4-max-64", options={"rounding": "search", "context": "32k"})
    assert [job["budget"] for job in jobs] == ["90kB", "4bpw", "m4-max-64"]
    assert [job["options"] for job in jobs] == [{"rounding": "search"}] * 2 + [
        {"rounding": "search", "context": "32k"}  # a context matters to a device only
    ]
    for job in jobs:
        assert (job["state"], job["identity"], job["is_new"]) == ("queued", _identity(llama), True)
        assert world.client.get(f"/v1/jobs/{job['id']}").json() == {k: v for k, v in job.items() if k != "is_new"}


def test_without_a_budget_only_the_analysis_is_asked_for(world: Served) -> None:
    (job,) = world.submit("llama", options={"rounding": "search", "veto_db": 3.0})
    assert job["budget"] == ""
    assert job["options"] == {"rounding": "search"}


def test_people_who_ask_for_the_same_thing_share_a_job_and_cancelling_takes_off_who_cancels(world: Served) -> None:
    ann, bob = world.token("ann"), world.token("bob")
    (first,) = world.submit("llama", "4000MB", headers=ann)
    (again,) = world.submit("llama", "4 GB", options={"objective": "output"}, headers=bob, status=200)
    assert again["id"] == first["id"]
    assert again["watchers"] == ["ann", "bob"]
    assert not again["is_new"]
    left = world.client.delete(f"/v1/jobs/{first['id']}", headers=ann).json()
    assert (left["state"], left["watchers"], left["mine"]) == ("queued", ["bob"], False)
    eve = world.token("eve")
    assert _error(world.client.delete(f"/v1/jobs/{first['id']}", headers=eve), 403) == "forbidden"
    assert world.client.delete(f"/v1/jobs/{first['id']}", headers=bob).json()["state"] == "cancelled"


@pytest.mark.parametrize(
    "texts",
    [["4GB", "4000MB", "4 GB", "4.0gb", "4000000000B"], ["16GiB", "16384MiB"], ["4.5bpw", "4.50 bpw"], ["min"],
     ["0.001kB", "1B"], ["m4-max-64"]],
)  # fmt: skip
def test_a_budget_has_one_way_to_be_written_that_means_the_same(texts: list[str]) -> None:
    (written,) = {canonical(budget_of(text, {})) for text in texts}
    assert canonical(budget_of(written, {})) == written
    if written != "m4-max-64":
        assert {(parse_budget(text).number, parse_budget(text).unit) for text in [*texts, written]} == {
            (parse_budget(texts[0]).number, parse_budget(texts[0]).unit)
        }


def test_the_options_of_the_api_are_those_of_a_request() -> None:
    assert Options().model_dump() == DEFAULTS


def test_a_budget_that_can_never_fit_is_refused_before_it_waits(world: Served, llama: Path, analysis: Path) -> None:
    world.submit("llama", "1kB")  # nothing is known yet
    world.store("analysis", _identity(llama), analysis_mint=analysis.read_bytes())
    damaged = world.store("analysis", _identity(llama), analysis_mint=b"damaged")
    refused = world.client.post("/v1/jobs", json={"model": "llama", "budgets": ["1GB", "2kB"]})
    assert _error(refused, 422) == "unusable"
    assert "the smallest that works" in refused.json()["error"]["message"]
    world.submit("llama", "1GB", "min", "m1-8")
    assert world.client.get("/v1/jobs").json()["counts"]["queued"] == 4
    assert world.client.get(f"/v1/analyses/{_identity(llama)}").json()["digest"] != damaged.digest


def test_a_full_quota_says_when_to_come_back(world: Served) -> None:
    ann = world.token("ann", quota=Quota(queued=1))
    world.submit("llama", "1GB", headers=ann)
    refused = world.client.post("/v1/jobs", json={"model": "llama", "budgets": ["2GB"]}, headers=ann)
    assert _error(refused, 429) == "quota"
    assert int(refused.headers["retry-after"]) > 0
    world.submit("llama", "1GB", headers=ann, status=200)  # a shared job is not one more


def test_a_submission_is_taken_whole_or_not_at_all(world: Served) -> None:
    ann = world.token("ann", quota=Quota(queued=2))
    request = {"model": "llama", "budgets": ["1GB", "2GB", "3GB"]}
    assert _error(world.client.post("/v1/jobs", json=request, headers=ann), 429) == "quota"
    assert world.client.get("/v1/jobs", headers=ann).json()["jobs"] == []
    world.submit("llama", "1GB", "2GB", headers=ann)


@pytest.mark.parametrize("budget", ["0.5x", "max", "8bpw", "m1-8", "1TB"])
def test_a_quota_of_bytes_counts_a_budget_before_the_model_is_measured(world: Served, llama: Path, budget: str) -> None:
    source = sum(path.stat().st_size for path in llama.glob("*.safetensors"))
    ann = world.token("ann", quota=Quota(nbytes=source // 3))
    refused = world.client.post("/v1/jobs", json={"model": "llama", "budgets": [budget]}, headers=ann)
    assert _error(refused, 429) == "quota"
    bob = world.token("bob", quota=Quota(nbytes=4 * source))  # however large the budget, the model is not
    world.submit("llama", budget, headers=bob)
    world.submit("llama", headers=ann)  # an analysis is small


def test_a_database_that_cannot_be_written_is_no_missing_model(world: Served) -> None:
    with world.service.database.write() as connection:
        connection.exec_driver_sql("PRAGMA query_only = 1")
    try:
        assert world.client.get("/v1/models").json()["models"][0]["identity"]
        refused = world.client.post("/v1/jobs", json={"model": "llama"})
    finally:
        with world.service.database.read() as connection:
            connection.exec_driver_sql("PRAGMA query_only = 0")
    assert _error(refused, 503) == "unavailable"
    assert int(refused.headers["retry-after"]) > 0


def test_going_before_others_is_for_admins(world: Served) -> None:
    request = {"model": "llama", "budgets": ["1GB"], "priority": 1}
    ann, root = world.token("ann"), world.token("root", "admin")
    assert _error(world.client.post("/v1/jobs", json=request, headers=ann), 403) == "forbidden"
    assert world.client.post("/v1/jobs", json=request, headers=root).json()["jobs"][0]["priority"] == 1
    assert world.client.post("/v1/jobs", json=request | {"priority": -5, "budgets": ["2GB"]}, headers=ann).is_success


def test_a_model_that_is_not_there_is_not_found(world: Served) -> None:
    for name in ("nothing", "../llama", "/etc", "llama/../llama", "a" * 255):
        refused = world.client.post("/v1/jobs", json={"model": name, "budgets": ["1GB"]})
        assert _error(refused, 404) == "no_such_model", name


def test_jobs_are_found_by_state_watcher_and_model_page_by_page(world: Served) -> None:
    ann, bob = world.token("ann"), world.token("bob")
    ids = [world.submit("llama", f"{index + 1}GB", headers=ann)[0]["id"] for index in range(5)]
    world.client.delete(f"/v1/jobs/{ids[0]}", headers=ann)

    def ids_of(**params: Any) -> list[str]:
        return [job["id"] for job in world.client.get("/v1/jobs", params=params, headers=bob).json()["jobs"]]

    assert ids_of() == ids[::-1]
    assert ids_of(limit=2) == [ids[4], ids[3]]
    assert ids_of(limit=2, before=ids[3]) == [ids[2], ids[1]]
    assert ids_of(state="cancelled") == ids[:1]
    assert ids_of(mine=True) == []
    assert ids_of(model=NOWHERE) == []
    assert _error(world.client.get("/v1/jobs?state=lost", headers=bob), 422) == "invalid"


def test_however_many_jobs_there_are_those_that_run_can_be_seen(world: Served) -> None:
    sizes = [f"{1 + index}MB" for index in range(120)]
    first = world.submit("llama", *sizes[:60])[0]
    world.submit("llama", *sizes[60:])
    running = world.claim().job.id
    for job in world.service.queue.find(["queued"], sort="oldest", limit=30):
        world.client.delete(f"/v1/jobs/{job.id}")
    assert running == first["id"]

    def ask(**params: Any) -> dict[str, Any]:
        answer: dict[str, Any] = world.client.get("/v1/jobs", params=params).json()
        return answer

    assert [job["id"] for job in ask(state="running")["jobs"]] == [running]
    assert [job["id"] for job in ask(sort="live", limit=1)["jobs"]] == [running]
    assert len(ask(state=["waiting", "ended"], limit=500)["jobs"]) == 119
    for params in ({}, {"state": "running", "limit": 1}, {"search": "llama"}):
        counts = ask(**params)["counts"]
        assert (counts["inventory"], counts["queued"], counts["cancelled"]) == (1, 89, 30)
    assert set(ask(search="120MB")["counts"].values()) == {0, 1}


# models and plans


def test_models_are_listed_with_what_is_known_of_them(world: Served, llama: Path, analysis: Path) -> None:
    (row,) = world.client.get("/v1/models").json()["models"]
    nbytes = sum(path.stat().st_size for path in llama.glob("*.safetensors"))
    assert row == {"name": "llama", "identity": _identity(llama), "nbytes": nbytes, "analyzed": False, "reason": ""}
    (job,) = world.submit("llama", "1GB")
    stored = world.store("analysis", row["identity"], analysis_mint=analysis.read_bytes())
    assert world.client.get("/v1/models").json()["models"][0]["analyzed"]
    model = world.client.get(f"/v1/models/{row['identity']}").json()
    units = read_analysis(analysis).units
    assert (model["names"], model["analyzed"], model["model_type"]) == (["llama"], ["nearest"], "llama")
    assert sum(role["units"] for role in model["roles"]) == len(units)
    assert sum(role["weights"] for role in model["roles"]) == sum(unit.size for unit in units)
    assert [row["id"] for row in model["jobs"]] == [job["id"]]
    assert [row["digest"] for row in model["artifacts"]] == [stored.digest]
    settings = {"rounding": "nearest", "dtype": "", "loader": "mlx_lm", "probed": False}
    assert model["analyses"] == [{**settings, "artifact": stored.digest}]
    assert _error(world.client.get(f"/v1/models/{NOWHERE}"), 404) == "not_found"


def test_a_plan_of_a_stored_analysis_is_that_of_mint(world: Served, llama: Path, analysis: Path) -> None:
    world.store("analysis", _identity(llama), analysis_mint=analysis.read_bytes())
    for model in ("llama", _identity(llama)):
        request = {"model": model, "budget": "5bpw", "options": {"lock": ["*.v_proj=8/32"]}}
        answer = world.client.post("/v1/plans", json=request)
        assert answer.status_code == 200, answer.text
        plan = answer.json()
        expected = allocate(read_analysis(analysis), "5bpw", Recipe(lock=("*.v_proj=8/32",)))
        assert plan["planned_bytes"] == expected.planned_bytes <= plan["budget_bytes"]
        assert [(unit["path"], unit["format"]) for unit in plan["units"]] == [
            (choice.path, str(choice.format)) for choice in expected.choices
        ]
        assert expected.predicted_kl
        assert plan["predicted_kl"]["value"] == pytest.approx(expected.predicted_kl.value)
        assert plan["next"]["loss"] < plan["loss"]


def test_the_curve_of_a_stored_analysis_is_that_of_mint(world: Served, llama: Path, analysis: Path) -> None:
    world.store("analysis", _identity(llama), analysis_mint=analysis.read_bytes())
    answer = world.client.get(f"/v1/models/{_identity(llama)}/curve", params={"points": 20}).json()
    expected = curve(Problem(read_analysis(analysis)), points=20)
    assert [(point["budget_bytes"], point["loss"]) for point in answer["points"]] == [
        (point.budget_bytes, point.loss) for point in expected.points
    ]
    assert answer["knees"] == [point.budget_bytes for point in expected.knees]
    assert {device["verdict"] for device in answer["devices"]} == {"holds the largest plan"}


def test_what_no_plan_can_be_made_of_is_said(world: Served, llama: Path, analysis: Path) -> None:
    request = {"model": "llama", "budget": "1GB"}
    assert _error(world.client.post("/v1/plans", json=request), 409) == "not_analyzed"
    assert _error(world.client.get(f"/v1/models/{_identity(llama)}/curve"), 409) == "not_analyzed"
    assert _error(world.client.get(f"/v1/analyses/{_identity(llama)}"), 404) == "not_analyzed"
    stored = world.store("analysis", _identity(llama), analysis_mint=analysis.read_bytes())
    assert world.client.get(f"/v1/analyses/{_identity(llama)}").json()["digest"] == stored.digest
    assert _error(world.client.get(f"/v1/analyses/{_identity(llama)}?rounding=search"), 404) == "not_analyzed"
    other = request | {"options": {"rounding": "search"}}
    assert _error(world.client.post("/v1/plans", json=other), 409) == "not_analyzed"
    small = world.client.post("/v1/plans", json=request | {"budget": "1kB"})
    assert _error(small, 422) == "unusable"
    assert "the smallest that works" in small.json()["error"]["message"]
    nothing = world.client.post("/v1/plans", json=request | {"options": {"lock": ["nothing=4/64"]}})
    assert "matches no unit" in nothing.json()["error"]["message"]


# errors and what is about the service


def test_what_is_wrong_with_a_request_is_said_in_the_words_of_the_api(world: Served) -> None:
    def said(body: Any) -> str:
        answer = world.client.post(
            "/v1/jobs", **({"content": body, "headers": JSON} if body == "{" else {"json": body})
        )
        return str(answer.json()["error"]["message"])

    llama = {"model": "llama"}
    assert said("{") == "the body: needed JSON"
    assert said({}) == "model: needed a value"
    assert said({"model": 1}) == "model: found 1; needed a text"
    assert said(llama | {"more": "x"}) == "more: found 'x'; needed no field of this name"
    assert said(llama | {"priority": 99}) == "priority: found 99; needed at most 10"
    assert said(llama | {"budgets": "4GB"}) == "budgets: found '4GB'; needed a list"
    assert "rounding: found 'best'; needed 'nearest', " in said(llama | {"options": {"rounding": "best"}})
    assert said(llama | {"options": {"veto_db": "x"}}) == "options.veto_db: found 'x'; needed a number"
    assert "needed a size (24GB" in said(llama | {"budgets": ["4"]})


def test_a_forecast_is_that_of_the_job_and_submits_nothing(world: Served) -> None:
    body = {"model": "llama", "budgets": ["1GB", "4bpw"], "options": {"rounding": "search"}}
    forecasts = world.client.post("/v1/jobs/forecasts", json=body).json()["forecasts"]
    assert [forecast["budget"] for forecast in forecasts] == ["1GB", "4bpw"]
    assert not world.client.get("/v1/jobs").json()["jobs"]
    (job, _) = world.submit("llama", "1GB", "4bpw", options={"rounding": "search"})
    assert forecasts[0]["stages"] == job["expected_stages"]
    assert forecasts[0]["seconds"] == pytest.approx(sum(job["expected_stages"].values()))


def test_every_error_has_the_one_form(world: Served) -> None:
    client = world.client
    assert _error(client.get("/nothing"), 404) == "not_found"
    assert _error(client.get("/static/nothing"), 404) == "not_found"
    assert _error(client.get("/v1/jobs/0000000000000000"), 404) == "not_found"
    assert _error(client.get("/v1/jobs/..%2f..%2fetc"), 404) == "not_found"
    assert _error(client.get("/v1/jobs/nothing"), 422) == "invalid"
    wrong = client.put("/v1/jobs")
    assert _error(wrong, 405) == "method_not_allowed"
    assert wrong.headers["allow"] == "GET, POST"
    headers = {"content-type": "application/json"}
    for body in (b"", b"{", b"[]", b"null", b'{"model": "a", "more": 1}', b'{"model": 1}', b'{"model": "\\ud800"}',
                 b'{"model": "a", "budgets": ["4"]}', b'{"model": "a", "priority": 99}'):  # fmt: skip
        assert _error(client.post("/v1/jobs", content=body, headers=headers), 422) == "invalid", body
    assert _error(client.post("/v1/jobs", content=b"\xff", headers=headers), 400) == "bad_request"


def test_a_bug_is_an_error_like_others_and_tells_nothing(world: Served) -> None:
    @world.app.get("/broken")
    def broken() -> None:
        raise RuntimeError("secret inner state")

    answer = world.client.get("/broken")
    assert _error(answer, 500) == "bug"
    assert "secret" not in answer.text


def test_the_service_tells_how_it_is(world: Served) -> None:
    assert world.client.get("/healthz").json()["status"] == "ok"
    assert world.client.get("/readyz").json()["status"] == "ready"
    assert world.client.get("/v1/me").json() == {"name": "local", "scopes": ["admin"], "groups": []}
    assert len(world.client.get("/v1/devices").json()["devices"]) > 50
    world.submit("llama", "1GB")
    (here,) = world.client.get("/v1/hosts").json()["hosts"]
    assert here["is_here"]
    assert here["free_bytes"] > 0
    claim = world.claim()
    assert {host["name"]: host["jobs"] for host in world.client.get("/v1/hosts").json()["hosts"]}["elsewhere"] == [
        claim.job.id
    ]
    text = world.client.get("/metrics").text
    assert 'mint_jobs{state="inventory"} 1.0' in text
    assert "mint_leases 1.0" in text
    assert "mint_job_wait_seconds_count 0.0" in text
    assert 'mint_person_jobs{person="local",state="inventory"} 1.0' in text
    assert "mint_queue_oldest_seconds 0.0\n" in text
    world.service.queue.advance(claim, "failed", reason="broken")
    world.submit("llama", "2GB")
    text = world.client.get("/metrics").text
    assert 'mint_job_seconds_count{state="failed"} 1.0' in text
    assert "mint_job_wait_seconds_count 1.0" in text
    assert "mint_leases 0.0" in text
    assert "mint_queue_oldest_seconds 0.0\n" not in text
    assert 'mint_requests_total{method="POST",route="/v1/jobs",status="201"} 2.0' in text


def test_the_description_names_every_route_and_its_errors(world: Served) -> None:
    described = world.client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if path in ("/healthz", "/readyz"):
                continue
            assert {"400", "401", "403", "422", "429"} <= set(operation["responses"]), (method, path)
            assert operation["security"], (method, path)
            assert operation["summary"]
    assert "HTTPValidationError" not in json.dumps(described)


# operation: the method of the client that calls it
_CLIENT = {
    "submit_jobs": "submit", "list_jobs": "jobs", "show_job": "job", "cancel_job": "cancel", "change_job": "pause",
    "follow_job": "events", "list_events": "history", "list_models": "models", "show_model": "model",
    "show_curve": "curve", "make_plan": "plan", "find_analysis": "analysis", "fetch_model": "fetch",
    "show_fetch": "fetch", "list_artifacts": "artifacts", "show_artifact": "artifact", "download_file": "download",
    "list_devices": "devices", "list_hosts": "hosts", "show_me": "me",
    "forecast_jobs": "forecast",
    "read_log": "log", "requeue_job": "requeue", "change_host": "drain", "list_people": "people",
    "change_person": "change_person", "remove_artifact": "remove_artifact", "list_audit": "audit",
}  # fmt: skip
# of browsers, probes and Prometheus; `show_analysis` is `find_analysis` by another name
_NOT_OF_CLIENTS = {
    "make_ticket", "describe_file", "check_health", "check_readiness", "read_metrics", "show_analysis",
}  # fmt: skip


def test_every_operation_is_a_verb_and_the_client_has_them_all(world: Served) -> None:
    described = world.client.get("/openapi.json").json()
    operations = {operation["operationId"] for path in described["paths"].values() for operation in path.values()}
    assert operations == _CLIENT.keys() | _NOT_OF_CLIENTS
    assert all(callable(getattr(Client, method)) for method in _CLIENT.values())
    assert "job.ended" in described["webhooks"]
    assert {"StateEvent", "ProgressEvent", "NoteEvent"} <= described["components"]["schemas"].keys()


def test_what_a_webhook_gets_is_what_is_described(world: Served) -> None:
    world.submit("llama", "1GB")
    world.service.queue.advance(world.claim(), "failed", reason="broken")
    job = world.service.queue.take_notice()
    assert job and JobEnded.model_validate(report(job)).reason == "broken"


def test_the_history_of_a_job_has_typed_events(world: Served) -> None:
    (job,) = world.submit("llama", "1GB")
    claim = world.claim()
    share = {"host": "here", "done": 1, "bytes_per_second": 2}
    progress = {"stage": "analyze", "done": 1, "total": 2, "item": "a", "hosts": [share]}
    world.service.queue.emit(claim, "progress", progress)
    world.service.queue.emit(claim, "note", {"message": "hello"})
    events = world.client.get(f"/v1/jobs/{job['id']}/history").json()["events"]
    assert [event["kind"] for event in events] == ["state", "state", "progress", "note"]
    assert events[2]["body"] == progress
    later = world.client.get(f"/v1/jobs/{job['id']}/history", params={"after": 3}).json()["events"]
    assert [event["seq"] for event in later] == [4]
