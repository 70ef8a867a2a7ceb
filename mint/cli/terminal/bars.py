"""A progress bar on a terminal: one for the current stage, and one for each node that works on it."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID
from rich.text import Text

from mint.cli.terminal.foreign import visible
from mint.cli.terminal.meter import Meter
from mint.core.progress import Share
from mint.core.sizes import format_size

_OTHER_COLUMNS = 60  # characters beside the bar
_ITEM_COLUMNS = 110  # a narrower terminal has no room for the item


class _Words(ProgressColumn):
    """The text of a task's field, asked for anew with every frame."""

    def __init__(self, field: str) -> None:
        self._field = field
        super().__init__()

    def render(self, task: Task) -> Text:
        words: Callable[[], str] = task.fields[self._field]
        return Text(visible(words()), no_wrap=True, overflow="ellipsis")


class Bars:
    """The bar of the current stage of a command, and those of its nodes below it."""

    def __init__(self, meter: Meter, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._meter, self._has_items = meter, console.width >= _ITEM_COLUMNS
        bar = BarColumn(max(8, min(40, console.width - _OTHER_COLUMNS)))
        columns = (SpinnerColumn(), _Words("title"), bar, _Words("count"), _Words("rest"))
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._stage = self._bars.add_task("", total=None, **self._words())
        self._shares: dict[str, TaskID] = {}  # by node
        self.start, self.stop = self._bars.start, self._bars.stop

    def show(self) -> None:
        """Draw the last step."""
        step = self._meter.step
        total = None if self._meter.is_open else step.total
        self._bars.update(self._stage, completed=step.done, total=total)
        if total is None:
            self._bars.reset(self._stage, total=None)
        self._show_shares(step.shares if len(step.shares) > 1 else ())

    def _words(self) -> dict[str, Any]:
        meter = self._meter

        def rest() -> str:
            item = meter.step.item if self._has_items else ""
            return "  ".join(filter(None, (meter.rate, meter.remaining, item)))

        return {"title": lambda: meter.title, "count": lambda: meter.count, "rest": rest}

    def _show_shares(self, shares: tuple[Share, ...]) -> None:
        """A bar for each node, relative to the busiest node."""
        for node in self._shares.keys() - {share.node for share in shares}:
            self._bars.remove_task(self._shares.pop(node))
        most = max((share.nbytes for share in shares), default=0)
        for share in shares:
            words = _words_of(share)
            if share.node not in self._shares:
                self._shares[share.node] = self._bars.add_task("", total=most, **words)
            self._bars.update(self._shares[share.node], completed=share.nbytes, total=most, **words)


def _words_of(share: Share) -> dict[str, Any]:
    rate = f"{format_size(share.bytes_per_second)}/s" if share.bytes_per_second else ""
    return {"title": lambda: f"  {share.node}", "count": lambda: format_size(share.nbytes), "rest": lambda: rate}
