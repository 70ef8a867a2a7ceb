"""Progress as lines on stderr: for people without a terminal every few seconds, for programs as JSON."""

import json
import sys
from threading import Event, Thread
from time import monotonic

from mint.cli.terminal.meter import Meter
from mint.core.progress import Progress

EVERY_SECONDS = 5.0
_STEP_SECONDS = 0.1  # between two lines of JSON within a stage


class PlainLines:
    """A line every few seconds from a thread of its own: work that takes long between two steps is seen too."""

    def __init__(self, meter: Meter, seconds: float = EVERY_SECONDS) -> None:
        self._meter, self._seconds = meter, seconds
        self._finished: Progress | None = None  # step whose last line is printed
        self._ended = Event()
        self._thread = Thread(target=self._tick, daemon=True)
        self.start = self._thread.start

    def show(self) -> None:
        """The thread shows it when it is time."""

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _tick(self) -> None:
        while not self._ended.wait(self._seconds):
            step = self._meter.step
            if self._meter.is_finished and step == self._finished:
                continue
            self._finished = step
            print(self._meter.line, file=sys.stderr, flush=True)


class JsonLines:
    """An object a line; within a stage at most ten a second, and its last step always."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._shown, self._stage = 0.0, ""

    def start(self) -> None:
        self.show()

    def stop(self) -> None: ...

    def show(self) -> None:
        step, now = self._meter.step, monotonic()
        if step.stage == self._stage and step.done < step.total and now - self._shown < _STEP_SECONDS:
            return
        self._shown, self._stage = now, step.stage
        left = self._meter.seconds_left
        record = {"stage": step.stage, "done": step.done, "total": step.total, "item": step.item}
        record |= {"seconds_left": None if left is None else round(left, 1)}
        print(json.dumps(record), file=sys.stderr, flush=True)
