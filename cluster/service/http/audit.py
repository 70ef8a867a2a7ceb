"""The audit log: one JSON line for every request that changes something, hands out something, or is refused.

No line holds a token, a ticket or a query: people are named, secrets are not.
"""

import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.service.data.tokens import hidden
from mint.core.cache import recall
from mint.core.log import log

_FILES = 5


@dataclass
class Audit:
    """The audit log at `path`, which only its owner can read.

    Beyond `most_bytes` it moves to `path`.1, that to `path`.2, and so on; the fifth file is the last.
    """

    path: Path
    most_bytes: int
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def note(self, event: str, *, person: str, client: str, **context: Any) -> None:
        """Write one line; on a full disk it goes to the log, and the service continues."""
        timestamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        entry = {"person": person, "client": client, **context, "event": event, "timestamp": timestamp}
        line = hidden(json.dumps(entry))
        try:
            with self._lock:
                if self.path.exists() and self.path.stat().st_size >= self.most_bytes:
                    self._rotate()
                with open(self.path, "ab", buffering=0, opener=partial(os.open, mode=0o600)) as file:
                    file.write(f"{line}\n".encode())
        except OSError as error:
            log.error("audit.not_written", reason=error.strerror, line=line)

    def latest(self, search: str, limit: int) -> list[dict[str, Any]]:
        """The newest entries first, of those with all words of a search; of this file and the one before it."""
        words = search.lower().split()
        entries: list[dict[str, Any]] = []
        for path in (self.path, self.path.with_name(f"{self.path.name}.1")):
            lines = recall(path, lambda text: text.decode(errors="replace").split("\n")) or []
            for line in reversed(lines):
                if len(entries) == limit:
                    return entries
                if all(word in line.lower() for word in words):
                    entries += _entries(line)
        return entries

    def _rotate(self) -> None:
        names = [self.path, *(self.path.with_name(f"{self.path.name}.{number}") for number in range(1, _FILES))]
        for older, newer in pairwise(reversed(names)):
            if newer.exists():
                newer.replace(older)


def _entries(line: str) -> list[dict[str, Any]]:
    """The entry of a line; none of a line that a full disk cut, or that is damaged."""
    with suppress(ValueError, RecursionError):
        entry = json.loads(line)
        return [entry] if isinstance(entry, dict) else []
    return []
