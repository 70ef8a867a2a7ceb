"""Progress of a job as events: at most two a second, each with the share of every machine in the stage."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mint.core.memory import PROCESSES_BYTES
from mint.core.progress import Progress
from mint.formats.units import Unit
from mint.model.source import Source
from mint.run.executor import Executor
from mint.run.job import Job

T = TypeVar("T")
EVERY_SECONDS = 0.5


@dataclass
class ProgressEvents:
    """Turns progress into events, with bytes by machine as `counting` sees them. `host` is this machine's name."""

    emit: Callable[[str, Mapping[str, Any]], object]
    host: str
    clock: Callable[[], float] = time.monotonic
    _stage: str = field(default="", init=False)
    _ended: bool = field(default=False, init=False)
    _done: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._sent = self._began = self.clock()

    def on_progress(self, progress: Progress) -> None:
        """Emit the first and the last progress of each stage, and between them one after every pause."""
        now = self.clock()
        is_new = progress.stage != self._stage
        if is_new:
            self._stage, self._began, self._ended = progress.stage, now, False
            self._done.clear()
        is_last = progress.done >= progress.total and not self._ended and not is_new
        if not is_new and not is_last and now - self._sent < EVERY_SECONDS:
            return
        self._sent, self._ended, seconds = now, progress.done >= progress.total, now - self._began
        hosts = [
            {"host": host, "done": done, "bytes_per_second": round(done / seconds) if seconds > 0 else 0}
            for host, done in sorted(self._done.items())
        ]
        figures = {"stage": progress.stage, "done": progress.done, "total": progress.total, "item": progress.item}
        self.emit("progress", {**figures, "hosts": hosts})

    def counting(self, executor: Executor, memory: int | None = None) -> Executor:
        """The same executor, with the unquantized bytes of its results counted by machine, in at most `memory`."""
        most = executor.model_memory
        if memory is not None:
            most = max(min(most, memory - PROCESSES_BYTES), 0)
        return _Counting(executor, executor.devices, executor.made_by, executor.lacking, most, self._done, self.host)


@dataclass(frozen=True, slots=True)
class _Counting:
    """An executor that adds the bytes of every finished unit to `done`, by the machine that made it or `host`."""

    executor: Executor
    devices: Sequence[str]
    made_by: Mapping[str, str]
    lacking: Sequence[str]
    model_memory: int
    done: dict[str, int]
    host: str

    def __call__(self, source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        for unit, result in self.executor(source, job, units):
            host = self.made_by.get(unit.path, self.host)
            self.done[host] = self.done.get(host, 0) + unit.nbytes
            yield unit, result
