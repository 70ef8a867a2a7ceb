"""Shared by tests of the HTTP API: a service over an empty folder, a model that is stored as analyzed, artifacts."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from cluster.service.data.records import Artifact, Claim, Quota
from cluster.service.data.states import DONE
from cluster.service.http.context import Service
from cluster.service.http.server import create_app
from cluster.service.settings import Settings
from mint.client.download import ServedFile

WAY = ("analyzing", "solving", "assembling", "verifying")  # the shortest to done


@dataclass(frozen=True, slots=True)
class Served:
    """A service in this process, and a client of it without a token."""

    app: FastAPI
    client: TestClient

    @property
    def service(self) -> Service:
        """Its parts."""
        service: Service = self.app.state.service
        return service

    def token(
        self,
        name: str,
        *scopes: str,
        quota: Quota = Quota(),  # noqa: B008, it is frozen
        groups: Sequence[str] = (),
    ) -> dict[str, str]:
        """The header that proves to be someone new."""
        text = self.service.tokens.create(name, scopes or ("read", "submit"), quota, groups=groups)
        return {"Authorization": f"Bearer {text}"}

    def submit(self, model: str, *budgets: str, status: int = 201, **more: Any) -> list[dict[str, Any]]:
        """The jobs for some budgets."""
        headers = more.pop("headers", {})
        response = self.client.post(
            "/v1/jobs", json={"model": model, "budgets": list(budgets), **more}, headers=headers
        )
        assert response.status_code == status, response.text
        jobs: list[dict[str, Any]] = response.json()["jobs"]
        return jobs

    def claim(self) -> Claim:
        """Work on the next job."""
        claim = self.service.queue.claim("elsewhere")
        assert claim is not None
        return claim

    def finish(self, claim: Claim, artifact: Artifact) -> None:
        """Bring a job to its end."""
        for state in WAY:
            self.service.queue.advance(claim, state)
        self.service.queue.advance(claim, DONE, artifact=artifact.digest)

    def store(self, kind: str, identity: str, **files: bytes) -> Artifact:
        """Store an artifact of these files; `_` in a name is a dot."""
        placed = []
        for name, text in files.items():
            file = stored(text, name.replace("_", "."))
            path = self.service.store.path(file.digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
            placed.append(file)
        artifact = Artifact(kind, identity, tuple(placed))
        self.service.catalog.add(artifact)
        return artifact


def stored(text: bytes, name: str = "a.bin") -> ServedFile:
    """The store's record of a file of these bytes."""
    return ServedFile(name, hashlib.sha256(text).hexdigest(), len(text))


@contextmanager
def served(data: Path, **settings: Any) -> Iterator[Served]:
    """A service over `data` that works on no jobs."""
    app = create_app(Settings(data, **({"slots": 0} | settings)))
    with TestClient(app, base_url="http://127.0.0.1:8420", client=("127.0.0.1", 50_000)) as client:
        yield Served(app, client)
