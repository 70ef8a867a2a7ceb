"""What a job tells of its progress: at most two events a second, each with what every machine has done of the stage."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mint.core.progress import Progress
from mint.formats.units import Unit
from mint.model.source import Source
from mint.run.executor import Executor
from mint.run.job import Job

T = TypeVar("T")
EVERY_SECONDS = 0.5


class Telling:
    """Progress to events; it listens to `executor` for who did what. `host` is this machine's name."""

    def __init__(
        self, emit: Callable[[str, Mapping[str, Any]], object], host: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._emit = emit
        self._host = host
        self._clock = clock
        self._stage = ""
        self._ended = False
        self._told = self._began = clock()
        self._done: dict[str, int] = {}

    def on_progress(self, progress: Progress) -> None:
        """Tell of it, if it is the first or the last of its stage, or nothing was told for a while."""
        now = self._clock()
        is_new = progress.stage != self._stage
        if is_new:
            self._stage, self._began, self._ended = progress.stage, now, False
            self._done.clear()
        is_last = progress.done >= progress.total and not self._ended and not is_new
        if is_new or is_last or now - self._told >= EVERY_SECONDS:
            self._told = now
            self._ended = progress.done >= progress.total
            self._emit("progress", self._body(progress, now - self._began))

    def _body(self, progress: Progress, seconds: float) -> dict[str, Any]:
        hosts = [
            {"host": host, "done": done, "bytes_per_second": round(done / seconds) if seconds > 0 else 0}
            for host, done in sorted(self._done.items())
        ]
        return {
            "stage": progress.stage, "done": progress.done, "total": progress.total, "item": progress.item,
            "hosts": hosts,
        }  # fmt: skip

    def heard(self, executor: Executor) -> Executor:
        """The same executor; what it does is counted for whoever did it, in bytes of unquantized weights."""

        def count(unit: Unit) -> None:
            host = executor.made_by.get(unit.path, self._host)
            self._done[host] = self._done.get(host, 0) + unit.nbytes

        return _Heard(executor, count)


@dataclass(frozen=True, slots=True)
class _Heard:
    """An executor that hands every unit to `count` once it is done."""

    executor: Executor
    count: Callable[[Unit], None]

    @property
    def devices(self) -> Sequence[str]:
        return self.executor.devices

    @property
    def made_by(self) -> Mapping[str, str]:
        return self.executor.made_by

    def __call__(self, source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        for unit, result in self.executor(source, job, units):
            self.count(unit)
            yield unit, result
