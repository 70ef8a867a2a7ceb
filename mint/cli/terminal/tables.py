"""Records as text: a table fits the terminal, and has one line a row but for sentences; without one nothing is cut."""

from collections.abc import Sequence
from itertools import islice, zip_longest
from textwrap import wrap
from typing import Any

from mint.cli.terminal.foreign import visible
from mint.core.sizes import format_size

Record = dict[str, Any]
_MAX_ITEMS = 20  # of a dict in a field
_LEAST_WIDTH = 7  # of a column whose cells are cut
_WHOLE = ("id", "identity", "digest", "format", "command")  # columns that are copied or compared: never cut
_SENTENCES = ("detail", "cure", "in_words")  # columns that continue below instead of being cut
_ALARMING = ("passed", "verified")  # a no is a failure
_GAP = "  "
_LABELS = {  # of fields whose names are those of machines
    "parameters": "tensors beside units", "alpha": "sensitivity", "alpha_from": "sensitivity from",
    "alphas": "sensitivities from", "nbytes": "size", "gb_per_second": "GB/s", "kl": "KL", "sqnr_db": "SQNR dB",
}  # fmt: skip


def is_table(value: Any) -> bool:
    """True for a field that is printed as a table."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def table_lines(rows: Sequence[Record], width: int | None) -> list[str]:
    """The names of the columns, then every row; text in the middle of cells is cut to fit `width`, sentences wrap."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    heads = [label(name) for name in names]
    cells = [[cell(name, row.get(name, "")) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    if width:
        _shrink(widths, names, width - len(_GAP) * (len(names) - 1))
    right = [_is_number(name, rows) for name in names]
    lines = []
    for row in (heads, *cells):
        parts = [_fitted(*column) for column in zip(names, row, widths, strict=True)]
        for texts in zip_longest(*parts, fillvalue=""):
            columns = zip(texts, widths, right, strict=True)
            lines.append(_GAP.join(_padded(*column) for column in columns).rstrip())
    return lines


def field_lines(record: Record, width: int | None) -> list[str]:
    """A line for every field that is no table; long texts continue below their beginning on a terminal."""
    fields = {label(name): cell(name, value) for name, value in record.items() if not is_table(value)}
    return labelled(list(fields.items()), width)


def labelled(fields: Sequence[tuple[str, str]], width: int | None) -> list[str]:
    """Texts beside their labels, one below the other."""
    margin = max((len(name) for name, _ in fields), default=0) + len(_GAP)
    lines = []
    for name, text in fields:
        room = max(_LEAST_WIDTH, width - margin) if width else 0
        parts = wrap(text, room, break_long_words=False, break_on_hyphens=False) if room and text else [text]
        lines += [f"{name if not index else '':<{margin}}{part}".rstrip() for index, part in enumerate(parts)]
    return lines


def label(name: str) -> str:
    """The name of a field as people read it: sizes have units, so it need not say bytes."""
    return visible(_LABELS.get(name) or name.removesuffix("_bytes").replace("_", " "))


def cell(name: str, value: Any) -> str:
    """The text of a value; control characters in it are visible."""
    return visible(_text(name, value))


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO" if name in _ALARMING else "no"
    if isinstance(value, int):
        return format_size(value) if name.endswith("bytes") and value >= 0 else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        items = [f"{key} {_text(key, item)}" for key, item in islice(value.items(), _MAX_ITEMS)]
        more = [f"and {len(value) - _MAX_ITEMS} more (--json lists all)"] if len(value) > _MAX_ITEMS else []
        return ", ".join(items + more) or "none"
    if isinstance(value, list):
        first = ", ".join(map(str, value[:3])) + (", ..." if len(value) > 3 else "")
        return f"{len(value)} ({first})" if value else "none"
    return "–" if value is None else str(value)


def _is_number(name: str, rows: Sequence[Record]) -> bool:
    values = [row[name] for row in rows if row.get(name) not in (None, "")]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _shrink(widths: list[int], names: Sequence[str], room: int) -> None:
    """Take width from the widest columns until all fit, or none may lose more: a line never breaks within an id."""
    while sum(widths) > room:
        index = max(range(len(widths)), key=lambda i: 0 if names[i] in _WHOLE else widths[i])
        if names[index] in _WHOLE or widths[index] <= _LEAST_WIDTH:
            return
        widths[index] -= 1


def _fitted(name: str, text: str, width: int) -> list[str]:
    if name in _SENTENCES and len(text) > width:
        return wrap(text, width, break_on_hyphens=False)
    return [_cut(text, width)]


def _cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    tail = width // 2
    return f"{text[: width - tail - 1]}…{text[-tail:]}"


def _padded(text: str, width: int, at_right: bool) -> str:
    return text.rjust(width) if at_right else text.ljust(width)
