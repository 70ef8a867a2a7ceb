"""Asks `plan_child`: one process, started when it is needed and ended when it is idle for a while."""

import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

from cluster.service.errors import ServiceBusyError
from mint.core.errors import MintError
from mint.run.child import Child

_IDLE_SECONDS = 300.0
_ANSWER_SECONDS = 120.0
_WAITING = 8  # questions, with the one that is worked on


class Planner:
    """Asks one question at a time, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seats = threading.BoundedSemaphore(_WAITING)
        self._child: Child | None = None
        self._idle: threading.Timer | None = None

    def ask(self, verb: str, **question: Any) -> dict[str, Any]:
        """The answer; raises `ServiceBusyError` or another `MintError` that the caller can fix."""
        if not self._seats.acquire(blocking=False):
            raise ServiceBusyError("other plans are being made; come back in a few seconds")
        try:
            with self._lock:
                reply = self._ask({"verb": verb, **question})
        finally:
            self._seats.release()
        if "error" in reply:
            raise MintError(reply["error"])
        return dict(reply["answer"])

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if self._idle:
            self._idle.cancel()
        if not self._child or self._child.exit_code is not None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._child = Child(
                "cluster.service.subprocesses.plan_child:main", environment=environment, stderr=sys.stderr
            )
        child = self._child
        deadline = threading.Timer(_ANSWER_SECONDS, child.kill)
        deadline.start()
        try:
            child.ask(question)
            reply = child.answer()
        finally:
            deadline.cancel()
        if reply is None:
            if self._end() > 0:
                raise RuntimeError(f"{question['verb']}: the planning process {child.exit_message()}")
            raise ServiceBusyError(
                f"the plan was given up after {_ANSWER_SECONDS:g} seconds, or for want of memory; ask for less"
            )
        self._idle = threading.Timer(_IDLE_SECONDS, self.close)
        self._idle.daemon = True
        self._idle.start()
        return reply

    def _end(self) -> int:
        """End the process, if there is one; its exit code, below 0 if it was killed."""
        child, self._child = self._child, None
        if self._idle:
            self._idle.cancel()
        return child.close() if child else 0
