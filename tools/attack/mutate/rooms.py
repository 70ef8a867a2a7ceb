"""The modules that are mutated, with the fast tests that must notice, and the mutants that no test can notice."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
_EQUIVALENT = Path(__file__).with_name("equivalent.toml")


@dataclass(frozen=True, slots=True)
class Room:
    """Files that are mutated, and the tests that are run for each mutant."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


_FORMATS = "tests/mint/formats"
_KNAPSACK = ("bundles", "merge", "relaxation", "search", "solve")
ROOMS = {
    "formats": Room(
        ("mint/formats/format.py", "mint/formats/scheme.py"),
        tuple(f"{_FORMATS}/test_{name}.py" for name in ("formats", "scheme", "sizes")),
    ),
    "layout": Room(("mint/formats/layout.py",), (f"{_FORMATS}/test_layout.py", f"{_FORMATS}/test_sizes.py")),
    "journal": Room(("mint/core/journal.py",), ("tests/mint/core/test_journal.py",)),
    "states": Room(("cluster/service/data/states.py",), ("tests/service/data/test_states.py",)),
    "coordinator": Room(
        ("cluster/schedule/coordinator.py", "cluster/schedule/backlog.py"),
        tuple(f"tests/cluster/schedule/test_{name}.py" for name in ("coordinator", "roster", "workers")),
    ),
    "knapsack": Room(
        tuple(f"mint/plan/knapsack/{name}.py" for name in _KNAPSACK),
        ("tests/mint/plan/test_knapsack.py", "tests/mint/plan/test_knapsack_stages.py"),
    ),
}


@dataclass(frozen=True, slots=True)
class Equivalent:
    """A mutant that changes nothing that is promised, and the reason."""

    file: str
    name: str
    reason: str


def equivalents() -> Iterator[Equivalent]:
    """All mutants that are known to change nothing that is promised."""
    for group in tomllib.loads(_EQUIVALENT.read_text())["group"]:
        yield from (Equivalent(group["file"], name, group["reason"]) for name in group["mutants"])
