"""A disk on which not a byte is left: what the service has is still served, and no job is lost."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from cluster.service.data.catalog import Catalog
from cluster.service.data.records import Claim
from cluster.service.data.states import BLOCKED
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.settings import Settings
from cluster.service.work.lease import LeaseKeeper
from cluster.service.work.supervisor import Supervisor
from tests.worlds.served import Served, served

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def world(tmp_path: Path, llama: Path) -> Iterator[Served]:
    with served(tmp_path / "data", roots=(llama.parent,)) as world:
        yield world


def test_what_is_stored_is_downloaded_although_nothing_can_be_written_down(
    world: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    artifact = world.store("model", "0" * 64, a_bin=b"bytes")
    opened = os.open

    def full(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if str(path).endswith("audit.log"):
            raise FULL
        return opened(path, flags, *more, **others)

    class FullCatalog(Catalog):
        def hold(self, *_: object) -> None:
            raise DatabaseUnavailableError("the database or disk is full")

        def drop(self, *_: object) -> None:
            raise DatabaseUnavailableError("the database or disk is full")

    monkeypatch.setattr(os, "open", full)
    world.service.catalog = FullCatalog(world.service.database)
    assert world.client.get(f"/v1/artifacts/{artifact.digest}/files/a.bin").content == b"bytes"
    assert "file.sent" in capfd.readouterr().err  # the line is not lost


class FullDisk(type(Path())):  # type: ignore[misc]
    """A path below which no log can be opened."""

    def open(self, *arguments: Any, **options: Any) -> Any:
        if self.suffix == ".log":
            raise FULL
        return super().open(*arguments, **options)


def test_a_job_whose_log_cannot_be_opened_waits_for_room(world: Served, llama: Path) -> None:
    (job,) = world.submit("llama", "1GB")
    settings = Settings(FullDisk(world.service.settings.data), roots=(llama.parent,))
    Supervisor(world.service.queue, world.service.store, settings).step()
    blocked = world.service.queue.get(job["id"])
    assert (blocked.state, blocked.attempts) == (BLOCKED, 0)
    assert blocked.reason.startswith("disk: No space left")


def test_a_runner_that_can_neither_renew_nor_say_so_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Event()

    class Away:
        def renew(self, claim: Claim) -> None:
            raise DatabaseUnavailableError("full")

    class FullFile(StringIO):
        def write(self, text: str) -> int:
            raise FULL

    monkeypatch.setattr(sys, "stderr", FullFile())
    queue: Any = Away()
    claim: Any = type("Claimed", (), {"job": type("Named", (), {"id": "0" * 16})})
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        with LeaseKeeper(queue, claim, ended.set, renew_seconds=0.001, patience_seconds=0.01):
            assert ended.wait(60)
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
            signal.signal(number, handler)
