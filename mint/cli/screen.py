"""Output of the commands: progress and tables on a terminal, or one JSON object.

`mint.render` turns results into the records of --json; `answer` prints such a record as JSON or as tables.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.table import Table

from mint.core.sizes import format_size

if TYPE_CHECKING:
    from mint.core.progress import Progress as Step

Record = dict[str, Any]
_MAX_ITEMS = 20  # of a dict in a table


class Screen:
    """Progress bars on stderr during the work, and the answer on stdout at its end."""

    def __init__(self, as_json: bool) -> None:
        from mint.cli.bars import Bars  # slow to import

        self.as_json = as_json
        self._stderr = Console(stderr=True)
        self._stdout = Console()
        self._bars = Bars(self._stderr)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def on_progress(self, step: Step) -> None:
        """Update the bar of a stage, and the bars of its nodes if there are several."""
        self._bars.show(step)

    def note(self, text: str) -> None:
        """Print a line on stderr."""
        self._stderr.print(text, highlight=False, markup=False, soft_wrap=True)

    def answer(self, *records: Record) -> None:
        """Print records: as JSON, several as the list `results` of one object, or one after the other as tables."""
        if self.as_json:
            import json

            print(json.dumps({"results": records} if len(records) > 1 else records[0], indent=2))
            return
        for record in records:
            self._show(record)
            if len(records) > 1:
                self._stdout.print()

    def _show(self, record: Record) -> None:
        """Print one table per list of records, then the other fields."""
        tables = {name: value for name, value in record.items() if _is_table(value)}
        for name, rows in tables.items():
            table = Table(title=name, title_justify="left", header_style="bold")
            for column, value in rows[0].items():
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                table.add_column(column, justify="right" if is_number else "left", overflow="fold")
            for row in rows:
                table.add_row(*(_text(column, value) for column, value in row.items()))
            self._stdout.print(table)
        width = max(len(name) for name in record)
        for name, value in record.items():
            if name not in tables:
                self._stdout.print(f"{name:<{width}}  {_text(name, value)}", highlight=False, soft_wrap=True)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _text(name: str, value: Any) -> str:
    """The text of a field in a table; a dash for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, int):
        return f"{value:,} ({format_size(value)})" if name.endswith("bytes") else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        items = [f"{key} {_text(key, item)}" for key, item in islice(value.items(), _MAX_ITEMS)]
        more = [f"and {len(value) - _MAX_ITEMS} more (--json lists all)"] if len(value) > _MAX_ITEMS else []
        return ", ".join(items + more) or "none"
    if isinstance(value, list):
        first = ", ".join(map(str, value[:3])) + (", ..." if len(value) > 3 else "")
        return f"{len(value)} ({first})" if value else "0"
    return str(value)
