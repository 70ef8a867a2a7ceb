"""The first steps in Python: help, short texts of records, and errors that speak of arguments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mint
from mint import Budget, MintError, Recipe, allocate, analyze, assemble, explain, open_source, quantize, verify


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> tuple[Any, ...]:
    """A source, its analysis, a plan and the manifest of its model."""
    folder = tmp_path_factory.mktemp("python")
    source = open_source(llama)
    analysis = analyze(source, folder / "a.mint")
    plan = allocate(analysis, "400kB")
    return source, analysis, plan, assemble(plan, source, folder / "out")


def test_help_names_every_verb() -> None:
    assert mint.__doc__
    verbs = "quantize open_source analyze probe allocate curve explain diff assemble verify evaluate upload"
    assert not [verb for verb in verbs.split() if verb not in mint.__doc__]


def test_records_have_short_texts(records: tuple[Any, ...]) -> None:
    assert not [repr(record)[:200] for record in records if len(repr(record)) > 200]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda source, analysis, plan: allocate(analysis, "m4-16"), "m4-16 is a device; needed: device m4-16"),
        (lambda source, analysis, plan: allocate(analysis, 4.5), "4.5 is no budget"),  # type: ignore[arg-type]
        (lambda source, analysis, plan: allocate(analysis, "30%"), "Perhaps you mean 0.30x"),
        (lambda source, analysis, plan: Recipe(formats="4bit"), "formats is a text; needed: a list"),  # type: ignore[arg-type]
        (lambda source, analysis, plan: Recipe(lock="lm_head=4/64"), "lock is a text; needed: a list"),  # type: ignore[arg-type]
        (lambda source, analysis, plan: Budget(device="m4"), "not a known device"),
        (
            lambda source, analysis, plan: open_source(source.folder, dtype="fp16"),
            "dtype 'fp16'; needed one of: float16",
        ),
        (lambda source, analysis, plan: analyze("m", "a.mint"), "'m' is a path; needed: open_source('m')"),  # type: ignore[arg-type]
        (lambda source, analysis, plan: allocate("a.mint", "4GB"), "needed: read_analysis('a.mint')"),  # type: ignore[arg-type]
        (lambda source, analysis, plan: assemble("p.json", source, "o"), "needed: read_plan('p.json')"),  # type: ignore[arg-type]
        (lambda source, analysis, plan: verify("o", Path("m")), "needed: open_source('m')"),  # type: ignore[arg-type]
        (lambda source, analysis, plan: explain("p.json"), "needed: read_plan('p.json')"),  # type: ignore[arg-type]
        (lambda source, analysis, plan: open_source(""), "the name of the model is empty"),
        (lambda source, analysis, plan: assemble(plan, source, source.folder / "out"), "is inside"),
        (
            lambda source, analysis, plan: quantize(source, "400kB", source.folder / "out"),
            "needed: an output elsewhere",
        ),
    ],
)
def test_a_wrong_argument_is_named(act: Callable[[Any, Any, Any], Any], message: str, records: tuple[Any, ...]) -> None:
    with pytest.raises(MintError) as error:
        act(*records[:3])
    assert message in str(error.value)
    assert "--" not in str(error.value)
