"""The progress of the current stage in words: the share that is done, its rate and the remaining time."""

from collections.abc import Callable, Mapping
from time import monotonic

from mint.cli.terminal.foreign import visible
from mint.core.progress import Progress
from mint.core.sizes import format_size

# by stage: the text of a bar; other stages go by their own names
_TITLES = {
    "compile": "compiling the kernels of this rounding, for its first run only", "start": "starting",
    "load": "loading the model", "upload": "uploading",
}  # fmt: skip
_OF_BYTES = ("analyze", "assemble", "download")  # the others count pieces
_SECONDS_OF_RATE = 1.0  # before that, a rate says nothing
_LATE, _LATE_SECONDS = 1.2, 5.0  # times a forecast, and more: the stage is late


class Meter:
    """The last step of a stage, and the time since its first step in this process."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.step = Progress("start", 0, 0, "")
        self._first, self._started = 0, clock()
        self._expected: dict[str, float] = {}

    def update(self, step: Progress) -> None:
        """Take the next step; a new stage, and the next pass of the same stage, start the clock again."""
        if step.stage != self.step.stage or step.done < self.step.done:
            self._first, self._started = step.done, self._clock()
        self.step = step

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Take the forecast: seconds by stage."""
        self._expected = dict(seconds)

    def overrun(self) -> str:
        """Says once for each stage that it takes longer than its forecast; else empty."""
        stage, seconds = self.step.stage, self.seconds
        expected = self._expected.get(stage)
        if expected is None or seconds < _LATE * expected + _LATE_SECONDS:
            return ""
        del self._expected[stage]
        return (
            f"{stage}: {clock_text(seconds)} so far, the forecast was {clock_text(expected)}: "
            "this machine does other work too, or was faster when it was measured"
        )

    @property
    def title(self) -> str:
        return _TITLES.get(self.step.stage, self.step.stage)

    @property
    def is_open(self) -> bool:
        """True for a stage without steps that a bar could show."""
        return self.step.stage in _TITLES

    @property
    def is_finished(self) -> bool:
        """True for a stage whose last step is done."""
        return 0 < self.step.total == self.step.done and not self.is_open

    @property
    def seconds(self) -> float:
        """Since the first step of the stage."""
        return self._clock() - self._started

    @property
    def count(self) -> str:
        """`64 MB of 326 MB`; empty for a stage without such steps."""
        return "" if self.is_open else f"{self._text(self.step.done)} of {self._text(self.step.total)}"

    @property
    def rate(self) -> str:
        """`12 MB/s`; empty until something is done. Earlier runs do not count."""
        if self.step.stage not in _OF_BYTES or not self._per_second:
            return ""
        return f"{format_size(round(self._per_second))}/s"

    @property
    def seconds_left(self) -> float | None:
        """None where it is unknown."""
        return (self.step.total - self.step.done) / self._per_second if self._per_second else None

    @property
    def remaining(self) -> str:
        """`0:21 left`; the elapsed time where the rest is unknown."""
        left = self.seconds_left
        return f"{clock_text(self.seconds)} so far" if left is None else f"{clock_text(left)} left"

    @property
    def line(self) -> str:
        """Everything in one line."""
        return visible(": ".join(filter(None, [self.title, ", ".join(filter(None, self._parts))])))

    @property
    def _parts(self) -> tuple[str, ...]:
        return self.count, self.rate, self.remaining

    @property
    def _per_second(self) -> float:
        done = self.step.done - self._first
        return done / self.seconds if done > 0 and self.seconds > _SECONDS_OF_RATE and not self.is_open else 0.0

    def _text(self, number: int) -> str:
        return format_size(number) if self.step.stage in _OF_BYTES else f"{number:,}"


def clock_text(seconds: float) -> str:
    """`0:21`, `12:03` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
