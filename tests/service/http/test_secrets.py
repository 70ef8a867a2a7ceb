"""Tokens and tickets, valid or not, stand in no log, wherever a request has them."""

import logging
from pathlib import Path

import pytest

from mint.core import log
from tests.service.conftest import secrets_in
from tests.worlds.served import served


@pytest.fixture
def every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_level", logging.DEBUG)
    monkeypatch.setattr(log, "_format", "json")


@pytest.mark.usefixtures("every_event")
def test_no_secret_of_a_request_is_logged(tmp_path: Path, llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(tmp_path, roots=(llama.parent,)) as world:
        artifact = world.store("model", "0" * 64, a_bin=b"abc")
        ann = world.token("ann", "read", "submit", "admin")
        bearer = ann["Authorization"].removeprefix("Bearer ")
        wrong = bearer[:-3] + ("aaa" if not bearer.endswith("aaa") else "bbb")
        assert secrets_in(f"{bearer} {wrong}") == [bearer, wrong]
        answer = world.client.post(f"/v1/artifacts/{artifact.digest}/tickets", json={"name": "a.bin"}, headers=ann)
        for path in (f"/v1/jobs?token={bearer}", f"/v1/jobs/{bearer}", f"/v1/nothing?ticket={bearer[5:]}"):
            for headers in (ann, {"Authorization": f"Bearer {wrong}"}, {"Authorization": bearer}, {}):
                world.client.get(path, headers=headers)
        world.client.post("/v1/jobs", json={"model": bearer, "budgets": [bearer]}, headers=ann)
        world.client.post("/v1/jobs", content=bearer, headers=ann)
        assert world.client.get(answer.json()["url"]).content == b"abc"
        assert world.client.get(answer.json()["url"]).status_code == 401
    printed = "".join(capfd.readouterr())
    audited = "".join(path.read_text() for path in tmp_path.rglob("audit*"))
    assert audited
    assert not [line for line in (printed + audited).splitlines() if secrets_in(line)]
