"""Questions to `planning`: one process, started when it is needed and ended when nobody asks for a while."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mint.core.errors import MintError

_IDLE_SECONDS = 300.0
_ANSWER_SECONDS = 120.0
_END_SECONDS = 2.0  # for a process whose input has ended
_WAITING = 8  # questions, with the one that is worked on


class NotAnalyzedError(MintError):
    """No stored analysis fits the question."""


class ServiceBusyError(MintError):
    """Others are being answered."""

    retry_after = 5.0


class Planner:
    """Asks one question at a time, from any thread."""

    def __init__(self, *, idle_seconds: float = _IDLE_SECONDS, answer_seconds: float = _ANSWER_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._answer_seconds = answer_seconds
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_WAITING)
        self._process: subprocess.Popen[str] | None = None
        self._idle: threading.Timer | None = None

    def ask(self, verb: str, **asked: Any) -> dict[str, Any]:
        """The answer; raises `NotAnalyzedError`, `ServiceBusyError` or another `MintError` that the asker can mend."""
        if not self._places.acquire(blocking=False):
            raise ServiceBusyError("other plans are being made; come back in a few seconds")
        try:
            with self._lock:
                reply = self._ask({"verb": verb, **asked})
        finally:
            self._places.release()
        if "error" in reply:
            raise MintError(reply["error"])
        if "missing" in reply:
            raise NotAnalyzedError(reply["missing"])
        answer: dict[str, Any] = reply["answer"]
        return answer

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        if self._idle:
            self._idle.cancel()
        process = self._process = self._running()
        assert process.stdin and process.stdout
        deadline = threading.Timer(self._answer_seconds, process.kill)
        deadline.start()
        try:
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            deadline.cancel()
        if not line:
            code = self._end()
            if code > 0:
                raise RuntimeError(f"{asked['verb']}: the planning process ended with {code}")
            raise ServiceBusyError(
                f"the plan was given up after {self._answer_seconds:g} seconds, or for want of memory; ask for less"
            )
        self._idle = threading.Timer(self._idle_seconds, self.close)
        self._idle.daemon = True
        self._idle.start()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _running(self) -> subprocess.Popen[str]:
        if self._process and self._process.poll() is None:
            return self._process
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.service.offload.plan_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the service alone
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def _end(self) -> int:
        """End the process, if there is one; its exit code, below 0 if it was killed."""
        process, self._process = self._process, None
        if self._idle:
            self._idle.cancel()
        if process is None:
            return 0
        for stream in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):
                if stream:
                    stream.close()
        try:
            return process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
