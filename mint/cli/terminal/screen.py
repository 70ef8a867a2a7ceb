"""Output of the commands: progress on stderr, and on stdout the answer for people, or one JSON object.

`mint.render` turns results into the records of --json and into summaries. No text is read as markup, and foreign
characters that would act on the terminal are escaped.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from mint.cli.terminal.foreign import visible
from mint.cli.terminal.meter import Meter
from mint.cli.terminal.tables import Record as Record
from mint.cli.terminal.tables import field_lines, is_table, label, labelled, table_lines
from mint.core.progress import Progress
from mint.run.blas import RESTARTED

if TYPE_CHECKING:
    from mint.render.summary import Line

PROGRESS = ("auto", "bar", "plain", "json", "none")
_BOLD, _RED, _PLAIN = "\x1b[1m", "\x1b[1;31m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Answer:
    """A result: its record for --json and --verbose, and the lines for people."""

    record: Record
    summary: Sequence["Line"]


@dataclass(frozen=True, slots=True)
class Overview:
    """Several results: their answers for --json and --verbose, and for people one table of all with lines below it."""

    answers: Sequence[Answer]
    rows: Sequence[Record]
    lines: Sequence["Line"]


class _Indicator(Protocol):
    def start(self) -> None: ...
    def show(self) -> None: ...
    def stop(self) -> None: ...


class _Silent:
    def start(self) -> None: ...
    def show(self) -> None: ...
    def stop(self) -> None: ...


class Screen:
    """Shows progress while the work lasts, and the answer at its end."""

    def __init__(self, as_json: bool = False, *, progress: str = "auto", is_verbose: bool = False) -> None:
        self.as_json, self.is_verbose = as_json, is_verbose
        self.meter = Meter()
        self._kind = progress if progress != "auto" else "bar" if _is_drawable(sys.stderr) else "plain"
        self._indicator: _Indicator = _Silent()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._indicator.stop()
        self._indicator = _Silent()

    def begin(self, text: str) -> None:
        """Say on stderr what will be done, at once, and show progress from here on."""
        if self._kind not in ("none", "json") and not os.environ.pop(RESTARTED, ""):
            self.note(text)
        self._start()

    def on_progress(self, step: Progress) -> None:
        """Show a step of a stage."""
        self._start()
        self.meter.update(step)
        if self._kind != "none" and (text := self.meter.overrun()):
            self.note(text)
        self._indicator.show()

    def _start(self) -> None:
        if isinstance(self._indicator, _Silent) and self._kind != "none":
            self._indicator = self._made()
            self._indicator.start()

    def _made(self) -> _Indicator:
        from mint.cli.terminal.lines import JsonLines, PlainLines

        if self._kind == "bar":
            from mint.cli.terminal.bars import Bars  # slow to import

            return Bars(self.meter)
        return JsonLines(self.meter) if self._kind == "json" else PlainLines(self.meter)

    def note(self, text: str) -> None:
        """Print a line on stderr."""
        import json

        line = json.dumps({"note": text}) if self._kind == "json" else visible(text)
        print(line, file=sys.stderr, flush=True)

    def overview(self, overview: Overview) -> None:
        """Print several results for people as one table, and with --verbose all of each below it; JSON as `answer`."""
        if not self.as_json:
            self._show({"models": list(overview.rows)})
            self._summarize(overview.lines)
            if not self.is_verbose:
                return
            print()
        self.answer(*overview.answers)

    def answer(self, *answers: Record | Answer) -> None:
        """Print results: as JSON, several as the list `results` of one object, or one after the other for people."""
        records = [answer.record if isinstance(answer, Answer) else answer for answer in answers]
        if self.as_json:
            import json

            print(json.dumps({"results": records} if len(records) > 1 else records[0], indent=2))
            return
        for number, (answer, record) in enumerate(zip(answers, records, strict=True)):
            if number:
                print()
            if isinstance(answer, Answer) and not self.is_verbose:
                self._summarize(answer.summary)
            else:
                self._show(record)

    def _summarize(self, lines: Sequence["Line"]) -> None:
        width = _width()
        for line in lines:
            for text in labelled([(f"{line.label:<9}", visible(line.text))], width):
                print(_styled(text, _RED) if line.is_warning else text)

    def _show(self, record: Record) -> None:
        """Print one table per list of records, then the other fields."""
        width = _width()
        tables = {name: rows for name, rows in record.items() if is_table(rows)}
        for name, table in tables.items():
            head, *rows = table_lines(table, width)
            title = [f"{label(name)}:"] if len(tables) > 1 else []
            print(*title, _styled(head, _BOLD), *rows, "", sep="\n")
        if lines := field_lines(record, width):
            print("\n".join(lines))


def _is_drawable(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _width() -> int | None:
    """The columns of the terminal that stdout is; None for a file or a pipe, where nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _styled(text: str, style: str) -> str:
    return f"{style}{text}{_PLAIN}" if _is_drawable(sys.stdout) and not os.environ.get("NO_COLOR") else text
