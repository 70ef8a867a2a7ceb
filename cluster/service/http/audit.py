"""The audit log: one JSON line for every request that changes something, hands out something, or is refused.

No line holds a token, a ticket or a query: people are named, secrets are not.
"""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mint.core.log import log

_MAX_BYTES = 64 << 20


class Audit:
    """The audit log at `path`, which only its owner can read; beyond 64 MiB it moves to `path`.1, and begins anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def note(self, event: str, *, person: str, client: str, **context: Any) -> None:
        """Write one line; on a full disk it goes to the log, and the service continues."""
        timestamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        line = json.dumps({"person": person, "client": client, **context, "event": event, "timestamp": timestamp})
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
