"""Reports the end of jobs: to a webhook, signed, and to a command.

Rules. The database holds what is to be reported, so a restart loses nothing, and one of several servers reports each
end. A report that fails is repeated with growing pauses for a day, so it may arrive twice: `webhook-id` is the same.
The signature is that of https://www.standardwebhooks.com: HMAC-SHA256 of `ID.TIMESTAMP.BODY` with the secret, in
base64. A receiver compares it in constant time, and refuses timestamps that are minutes away.
"""

import base64
import hashlib
import hmac
import json
import shlex
import subprocess
import threading
import time
from collections.abc import Callable

from cluster.service.data.records import Job
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.queue.queue import Queue
from cluster.service.settings import Settings
from mint.core.log import log

LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 10.0
_COMMAND_SECONDS = 60.0


def signed_headers(id: str, body: bytes, secret: str, now: float) -> dict[str, str]:
    """The headers of a webhook, with its signature."""
    timestamp = str(int(now))
    digest = hmac.new(secret.encode(), f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {
        "content-type": "application/json", "webhook-id": id, "webhook-timestamp": timestamp,
        "webhook-signature": signature,
    }  # fmt: skip


def report(job: Job) -> dict[str, object]:
    """The end of a job as it is reported."""
    result = {name: value for name, value in job.result.items() if isinstance(value, int | float | str | bool)}
    return {
        "type": "job.ended", "job": job.id, "state": job.state, "model": job.request.model,
        "budget": job.request.budget, "owner": job.owner, "watchers": list(job.watchers), "reason": job.reason,
        "finished_at": job.finished_at, "worked_seconds": job.worked_seconds, "artifact": job.artifact,
        "result": result,
    }  # fmt: skip


class Notifier:
    """A thread that reports the ends of jobs."""

    def __init__(self, queue: Queue, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._queue, self._settings, self._clock = queue, settings, clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="notifier", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the report at work."""
        self._stopping.set()
        self._thread.join(_ANSWER_SECONDS)

    def step(self) -> int:
        """Report all ends that are due, and return their number."""
        count = 0
        while not self._stopping.is_set() and (job := self._queue.take_notice()):
            count += 1
            failure = self._report(job)
            if failure:
                log.warning("notice.failed", job=job.id, reason=failure)
            else:
                self._queue.end_notice(job.id)
        return count

    def _work(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.step()
            except DatabaseUnavailableError:
                continue  # it logs that itself

    def _report(self, job: Job) -> str:
        """Report one end to the webhook and the command; the reason if one of them did not take it."""
        body = json.dumps(report(job), allow_nan=False).encode()
        failures = [self._post(job.id, body)] if self._settings.webhook else []
        failures += [self._run(body)] if self._settings.notify else []
        return "; ".join(filter(None, failures))

    def _post(self, id: str, body: bytes) -> str:
        import httpx

        headers = signed_headers(id, body, self._settings.webhook_secret, self._clock())
        try:
            answer = httpx.post(self._settings.webhook, content=body, headers=headers, timeout=_ANSWER_SECONDS)
        except httpx.HTTPError as error:
            return f"the webhook cannot be reached ({error or type(error).__name__})"
        return "" if answer.is_success else f"the webhook answered {answer.status_code}"

    def _run(self, body: bytes) -> str:
        """Run the command; it is no shell's, so that no name of a model is one."""
        command = shlex.split(self._settings.notify)
        try:
            done = subprocess.run(command, input=body, capture_output=True, timeout=_COMMAND_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the command failed ({error})"
        return f"the command ended with code {done.returncode}" if done.returncode else ""
