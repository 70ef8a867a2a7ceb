"""The mutants of a file, and the tests that notice them."""

import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest

from tools.attack.mutate.mutants import code_of, mutants_of
from tools.attack.mutate.rooms import ROOMS, ROOT, equivalents

SOURCE = '''
"""A module."""
from math import inf

LIMIT = 3

def clamp(value: float, least: float = 0) -> float:
    """A number between two others."""
    if value < least or value != value:
        raise ValueError(f"{value} is small")
    return min(value, LIMIT + 1)
'''


def test_the_mutants_of_a_file_are_its_small_changes() -> None:
    assert [mutant.name for mutant in mutants_of(SOURCE)] == [
        "module: 3 -> 4",
        "clamp: 0 -> 1",
        "clamp: value < least or value != value -> value < least and value != value",
        "clamp: value < least or value != value -> not (value < least or value != value)",
        "clamp: value < least -> value <= least",
        "clamp: value < least -> value >= least",
        "clamp: value != value -> value == value",
        "clamp: raise ValueError(f'{value} is small') -> pass",
        "clamp: return min(value, LIMIT + 1) -> return None",
        "clamp: min -> max",
        "clamp: LIMIT + 1 -> LIMIT - 1",
        "clamp: 1 -> 2",
    ]


def test_a_mutant_is_the_file_with_one_change() -> None:
    results: dict[str, list[object]] = {}
    for mutant in mutants_of(SOURCE):
        module: dict[str, Any] = {}
        exec(code_of(SOURCE, "file", mutant), module)
        with suppress(ValueError):
            results[mutant.name] = [module["clamp"](2), module["clamp"](9)]
    assert results["module: 3 -> 4"] == [2, 5]
    assert results["clamp: min -> max"] == [4, 9]
    assert results["clamp: LIMIT + 1 -> LIMIT - 1"] == [2, 2]
    assert results["clamp: return min(value, LIMIT + 1) -> return None"] == [None, None]


def test_every_file_has_mutants_with_names_of_their_own_and_all_compile() -> None:
    for room in ROOMS.values():
        for file in room.files:
            source = (ROOT / file).read_text()
            mutants = mutants_of(source)
            assert len({mutant.name for mutant in mutants}) == len(mutants) > 10
            for mutant in mutants[::10]:
                code_of(source, file, mutant)


def test_every_equivalent_is_a_mutant_of_a_room() -> None:
    names = {
        file: {mutant.name for mutant in mutants_of((ROOT / file).read_text())}
        for room in ROOMS.values()
        for file in room.files
    }
    for equivalent in equivalents():
        assert equivalent.name in names[equivalent.file], equivalent
        assert equivalent.reason


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and pidfd")
@pytest.mark.parametrize(("words", "line"), [
    (["states", "--every", "9"], "0 equivalent,    3 killed: 100.0%"),
    (["layout", "--equivalent"], "0 killed"),
])  # fmt: skip
def test_what_changes_a_promise_dies_and_what_changes_none_survives(words: list[str], line: str) -> None:
    command = [sys.executable, "-m", "tools.attack.mutate", *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert line in result.stdout
