"""Progress bars on stderr: one for each stage, and one for each node of a stage that several nodes work on."""

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from mint.core.progress import Progress as Step
from mint.core.progress import Share
from mint.core.sizes import format_size


class _Remaining(TimeRemainingColumn):
    """The remaining time of a stage; empty for a node's share, which has no total."""

    def render(self, task: Task) -> Text:
        return Text("") if task.fields["is_share"] else super().render(task)


class Bars:
    """The bars of a command; a console that is no terminal shows none."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            _Remaining(),
            TextColumn("{task.fields[item]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )
        self.start, self.stop = self._bars.start, self._bars.stop
        self._stages: dict[str, TaskID] = {}  # bars by stage
        self._shares: dict[str, TaskID] = {}  # bars of the current stage by node

    def show(self, step: Step) -> None:
        """Update the bar of a stage, and the bars of its nodes if there are several."""
        text = format_size if step.stage in ("analyze", "assemble", "download") else str
        count = f"{text(step.done)} of {text(step.total)}"
        if step.stage not in self._stages:
            self._stages[step.stage] = self._bars.add_task(step.stage, count="", item="", is_share=False)
            self._show_shares(())
        self._bars.update(self._stages[step.stage], completed=step.done, total=step.total, count=count, item=step.item)
        if len(step.shares) > 1:
            self._show_shares(step.shares)

    def _show_shares(self, shares: tuple[Share, ...]) -> None:
        """A bar for each node, relative to the busiest node."""
        for node in self._shares.keys() - {share.node for share in shares}:
            self._bars.remove_task(self._shares.pop(node))
        most = max((share.nbytes for share in shares), default=0)
        for share in shares:
            if share.node not in self._shares:
                self._shares[share.node] = self._bars.add_task(f"  {share.node}", count="", item="", is_share=True)
            rate = f"{format_size(share.bytes_per_second)}/s" if share.bytes_per_second else ""
            self._bars.update(
                self._shares[share.node], completed=share.nbytes, total=most, count=format_size(share.nbytes), item=rate
            )
