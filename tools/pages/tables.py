"""Tables of the pages, from the program's own tables. A page marks their places:

<!-- table: NAME -->
(written by `python -m tools.pages`)
<!-- end -->
"""

import re
from collections.abc import Callable, Sequence

from mint.cli.settings import VARIABLES
from mint.formats.quality import DEFAULT_QUALITY, QUALITIES
from mint.plan.objectives import OBJECTIVES
from mint.quality.verdict import KL_WORDS, RUINED_KL
from mint.targets.loaders import loaders

_PLACE = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(text: str) -> str:
    """The page with every marked table as it is now. Raises KeyError for a table that does not exist."""
    return _PLACE.sub(lambda place: f"<!-- table: {place[1]} -->\n{TABLES[place[1]]()}\n<!-- end -->", text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _qualities() -> str:
    rows = [
        [f"`{q.name}`" + (" (default)" if q.name == DEFAULT_QUALITY else ""), q.title, q.rounding, f"{q.seconds} s",
         q.memory, q.kl]
        for q in QUALITIES.values()
    ]  # fmt: skip
    return table(["`--quality`", "method", "rounding", "time", "memory", "KL, against uniform 4-bit"], rows)


def _variables() -> str:
    return table(["variable", "meaning", "default"], [[f"`{v.name}`", v.meaning, v.default] for v in VARIABLES])


def _objectives() -> str:
    return table(["`--objective`", "minimizes"], [[f"`{o.name}`", o.summary] for o in OBJECTIVES.values()])


def _words() -> str:
    rows = [[f"up to {limit:g}", words] for limit, words in KL_WORDS]
    return table(["KL, nats per token", "in words"], [*rows, [f"above {RUINED_KL:g}", "the model is ruined"]])


def _loaders() -> str:
    rows = [
        [f"`{loader.name}`", loader.released, " ".join(dict.fromkeys(str(f).partition("/")[0] for f in loader.formats)),
         "yes" if loader.mixed else "no"]
        for loader in loaders()
    ]  # fmt: skip
    return table(["`--compat`", "released", "bits and formats", "mixed formats"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "qualities": _qualities,
    "variables": _variables,
    "objectives": _objectives,
    "words": _words,
    "loaders": _loaders,
}
