"""What people and machines get to see: progress and tables on a terminal, or one JSON object.

`json_records.py` turns results into the records of --json; `answer` prints such a record, or the tables made of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mint.core.sizes import format_size

if TYPE_CHECKING:
    from mint.core.progress import Progress as Step
    from mint.core.progress import Share

Record = dict[str, Any]
_ROWS_SHOWN = 20


class _Remaining(TimeRemainingColumn):
    """The time that a stage still takes; a node's share of it has no end of its own."""

    def render(self, task: Task) -> Text:
        return Text("") if task.fields["is_share"] else super().render(task)


class Screen:
    """Progress bars on stderr while work goes on, and the answer on stdout when it is done."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._stderr = Console(stderr=True)
        self._stdout = Console()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            _Remaining(),
            TextColumn("{task.fields[item]}", style="dim"),
            console=self._stderr,
            disable=not self._stderr.is_terminal,
        )
        self._stages: dict[str, Any] = {}
        self._shares: dict[str, Any] = {}  # by node, of the stage that goes on

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def on_progress(self, step: Step) -> None:
        """Show how far a stage has come."""
        is_bytes = step.stage in ("analyze", "assemble", "download")
        count = f"{format_size(step.done)} of {format_size(step.total)}" if is_bytes else f"{step.done} of {step.total}"
        if step.stage not in self._stages:
            self._stages[step.stage] = self._bars.add_task(
                step.stage, total=step.total, count=count, item="", is_share=False
            )
            self._show_shares(())
        self._bars.update(self._stages[step.stage], completed=step.done, total=step.total, count=count, item=step.item)
        if len(step.shares) > 1:
            self._show_shares(step.shares)

    def _show_shares(self, shares: tuple[Share, ...]) -> None:
        """A bar for each node, beside that of the busiest."""
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

    def note(self, text: str) -> None:
        """A line for people, on stderr."""
        self._stderr.print(text, highlight=False, markup=False, soft_wrap=True)

    def answer(self, record: Record) -> None:
        """Print a record: as JSON, or as a table of its plain fields followed by one table per list."""
        if self._as_json:
            print(json.dumps(record, indent=2))
            return
        for name, value in record.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                self._table(name, value)
        width = max(len(name) for name in record)
        for name, value in record.items():
            if not (isinstance(value, list) and value and isinstance(value[0], dict)):
                self._stdout.print(f"{name:<{width}}  {_text(name, value)}", highlight=False, soft_wrap=True)

    def answer_all(self, records: list[Record]) -> None:
        """Print one record as it is, several one after another; as JSON, as the list `results` of one object."""
        if len(records) == 1:
            self.answer(records[0])
        elif self._as_json:
            print(json.dumps({"results": records}, indent=2))
        else:
            for record in records:
                self.answer(record)
                self._stdout.print()

    def _table(self, name: str, rows: list[Record]) -> None:
        table = Table(title=name, title_justify="left", header_style="bold")
        for column in rows[0]:
            numeric = isinstance(rows[0][column], int | float) and not isinstance(rows[0][column], bool)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_text(column, value) for column, value in row.items()))
        self._stdout.print(table)


def _text(name: str, value: Any) -> str:
    """A field as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, int) and (name.endswith("bytes") or name == "nbytes"):
        return f"{value:,} ({format_size(value)})"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        if not value:
            return "none"
        shown = [f"{key} {_text(key, item)}" for key, item in list(value.items())[:_ROWS_SHOWN]]
        more = [f"and {len(value) - _ROWS_SHOWN} more (--json lists all)"] if len(value) > _ROWS_SHOWN else []
        return ", ".join(shown + more)
    if isinstance(value, list):
        return f"{len(value)}" + (
            f" ({', '.join(map(str, value[:3]))}{', ...' if len(value) > 3 else ''})" if value else ""
        )
    return str(value)
