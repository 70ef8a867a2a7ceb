"""The audit log: one JSON line for every request that changes something, hands out something, or is refused.

No line holds a token, a ticket or a query: people are named, secrets are not.
"""

import os
import threading
from pathlib import Path
from typing import Any

import structlog

from mint.core.log import log

_MAX_BYTES = 64 << 20


class Audit:
    """The audit log at `path`, which only its owner can read; beyond 64 MiB it moves to `path`.1, and begins anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._logger = structlog.wrap_logger(
            _Lines(self),
            processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()],
            wrapper_class=structlog.BoundLogger,
        )

    def note(self, event: str, *, person: str, client: str, **context: Any) -> None:
        """Write one line."""
        self._logger.info(event, person=person, client=client, **context)

    def write(self, line: str) -> None:
        """Append a line of JSON; on a full disk it goes to the log, and the service continues."""
        try:
            self._append(line)
        except OSError as error:
            log.error("audit.not_written", reason=error.strerror, line=line)

    def _append(self, line: str) -> None:
        with self._lock:
            if self._path.exists() and self._path.stat().st_size > _MAX_BYTES:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, f"{line}\n".encode())
            finally:
                os.close(file)


class _Lines:
    """The logger that structlog writes to."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def msg(self, line: str) -> None:
        self._audit.write(line)

    info = msg
