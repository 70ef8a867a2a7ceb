"""The end of a job is reported at least once, signed, and again after failures."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.service.queue.queue import NOTICE_PAUSE_SECONDS, NOTICE_SECONDS
from cluster.service.settings import Settings
from cluster.service.work.notifier import Notifier
from tests.worlds.service_world import ANN, World

SECRET = "0123456789abcdef"


class Receiver:
    """A webhook of loopback that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.status = 204


@contextmanager
def _receiving() -> Iterator[tuple[str, Receiver]]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(receiver.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _notifier(world: World, folder: Path, webhook: str = "", notify: str = "") -> Notifier:
    settings = Settings(folder, webhook=webhook, webhook_secret=SECRET, notify=notify)
    return Notifier(world.queue, settings, clock=world.clock)


def test_a_webhook_gets_every_end_once_with_a_signature_that_the_secret_proves(world: World, tmp_path: Path) -> None:
    done = world.submit(ANN, "a")
    world.finish(world.claim())
    cancelled = world.submit(ANN, "b")
    world.queue.cancel(cancelled.id, ANN)
    with _receiving() as (url, receiver):
        notifier = _notifier(world, tmp_path, webhook=url)
        assert notifier.step() == 2
        assert notifier.step() == 0
    for headers, body in receiver.requests:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{digest}"
    ends = [json.loads(body) for _, body in receiver.requests]
    assert [(end["job"], end["state"]) for end in ends] == [(done.id, "done"), (cancelled.id, "cancelled")]


def test_a_report_that_fails_is_repeated_with_the_same_id_after_pauses_that_double(
    world: World, tmp_path: Path
) -> None:
    world.submit()
    world.finish(world.claim())
    with _receiving() as (url, receiver):
        receiver.status = 503
        notifier = _notifier(world, tmp_path, webhook=url)
        assert notifier.step() == 1 and notifier.step() == 0
        world.clock.now += NOTICE_PAUSE_SECONDS
        assert notifier.step() == 1
        world.clock.now += NOTICE_PAUSE_SECONDS
        assert notifier.step() == 0
        receiver.status = 204
        world.clock.now += NOTICE_PAUSE_SECONDS
        assert notifier.step() == 1
        world.clock.now += NOTICE_SECONDS
        assert notifier.step() == 0
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1


def test_an_end_that_is_a_day_old_is_not_reported_to_a_new_webhook(world: World, tmp_path: Path) -> None:
    world.submit()
    world.finish(world.claim())
    world.clock.now += NOTICE_SECONDS + 1
    assert _notifier(world, tmp_path, notify="false").step() == 0


def test_a_command_gets_the_report_and_no_shell_reads_it(world: World, tmp_path: Path) -> None:
    world.submit(ANN, "$(touch pwned)")
    world.finish(world.claim())
    out = tmp_path / "out"
    assert _notifier(world, tmp_path, notify=f"tee {out}").step() == 1
    assert json.loads(out.read_text())["model"] == "models/$(touch pwned)"
    assert world.queue.take_notice() is None


@pytest.mark.parametrize("command", ["false", "no-such-command"])
def test_a_command_that_fails_is_repeated(command: str, world: World, tmp_path: Path) -> None:
    world.submit()
    world.finish(world.claim())
    assert _notifier(world, tmp_path, notify=command).step() == 1
    world.clock.now += NOTICE_PAUSE_SECONDS
    assert world.queue.take_notice()
