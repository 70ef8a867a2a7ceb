"""A client that openapi-python-client generates from the API's own description, used against the service."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("openapi_python_client", reason="pip install openapi-python-client")

from tests.worlds.served import Served, served

PACKAGE = "generated_mint_client"


@pytest.fixture
def world(tmp_path: Path, llama: Path) -> Iterator[Served]:
    with served(tmp_path, roots=(llama.parent,)) as world:
        yield world


@pytest.fixture
def generated(world: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the generated client."""
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(world.client.get("/openapi.json").json()))
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    command += ["--path", str(description), "--output-path", str(tmp_path / PACKAGE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Unable to parse" not in done.stdout and "WARNING" not in done.stdout, done.stdout
    monkeypatch.syspath_prepend(str(tmp_path))

    def module(name: str) -> ModuleType:
        return importlib.import_module(f"{PACKAGE}{name}")

    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_a_generated_client_submits_a_job_and_reads_it(world: Served, generated: Any) -> None:
    token = world.service.tokens.create("ada", ["read", "submit"])
    client = generated(".client").AuthenticatedClient(base_url=str(world.client.base_url), token=token)
    world.client.headers["Authorization"] = f"Bearer {token}"
    client.set_httpx_client(world.client)  # over ASGI instead of a socket
    submission = generated(".models").Submission(model="llama", budgets=["1GB", "4.5bpw"])
    (first, second) = generated(".api.jobs.submit_jobs").sync(client=client, body=submission).jobs
    assert (first.model, first.budget, first.owner, second.budget) == ("llama", "1GB", "ada", "4.5bpw")
    world.service.queue.advance(world.claim(), "failed", reason="broken")
    job = generated(".api.jobs.show_job").sync(first.id, client=client)
    assert (job.state, job.reason) == ("failed", "broken")
    page = generated(".api.jobs.list_jobs").sync(client=client, state=[generated(".models").ListJobsStateItem.ENDED])
    assert [job.id for job in page.jobs] == [first.id]
    history = generated(".api.jobs.list_events").sync(first.id, client=client)
    assert [event.body.state for event in history.events] == ["queued", "inventory", "failed"]
    missing = generated(".api.jobs.show_job").sync_detailed("0" * 16, client=client)
    assert missing.status_code == HTTPStatus.NOT_FOUND
    assert missing.parsed.error.code == "not_found"


def test_every_operation_of_the_description_is_generated(world: Served, generated: Any, tmp_path: Path) -> None:
    described = world.client.get("/openapi.json").json()["paths"]
    names = {operation["operationId"] for operations in described.values() for operation in operations.values()}
    assert {path.stem for path in (tmp_path / PACKAGE / "api").glob("*/[a-z]*.py")} == names
