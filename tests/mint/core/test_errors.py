"""An error speaks of options on the command line, and of arguments in Python."""

from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

import mint
from mint.cli.main import run_command
from mint.core.errors import OPTIONS, VALUES, MintError
from mint.formats.quality import QUALITIES
from mint.plan.recipe import Budget, Recipe, Room
from mint.quality.evaluate import evaluate_all


def test_python_reads_arguments_and_the_command_line_options(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MintError, match=r"with the veto of 9 dB \(veto_db\)"):
        mint.quantize(llama, "10kB", tmp_path / "out")
    assert run_command(["quantize", str(llama), "-b", "10kB", "-o", str(tmp_path / "out")]) == 1
    assert "with the veto of 9 dB (--veto)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "spoken"),
    [
        ("relax --keep, --set and --formats", "relax lock and formats"),
        ("the veto of 60 dB (--veto)", "the veto of 60 dB (veto_db)"),
        ("keep such units with --keep-nonfinite", "keep such units with keep_nonfinite"),
        ("make one with: mint analyze MODEL --output a.mint", "make one with: mint analyze MODEL --output a.mint"),
        ("7 MB with --quality fast. Raise", "7 MB with rounding nearest. Raise"),
        ("--quality good and --formats", "rounding compensate and formats"),
        ("--quality and --rounding differ", "rounding differ"),
        ("pip install --upgrade mlx-lm", "pip install --upgrade mlx-lm"),
        ("mint quantize M --budget 4GB, or --formats 4/64", "mint quantize M --budget 4GB, or formats 4/64"),
    ],
)
def test_options_become_arguments_and_commands_stay(typed: str, spoken: str) -> None:
    error = MintError(typed)
    assert (str(error), error.typed) == (spoken, typed)


def test_every_argument_that_an_error_names_exists() -> None:
    functions = (mint.quantize, mint.analyze, mint.probe, mint.assemble, mint.verify, evaluate_all, mint.open_source)
    known = {name for function in functions for name in signature(function).parameters}
    known |= {field.name for record in (Recipe, Room, Budget, mint.Probing) for field in fields(record)}
    assert {str(MintError(f"--{option}")) for option in OPTIONS} <= known


def test_the_values_of_arguments_are_those_of_the_options() -> None:
    assert {"quality": {row.name: row.rounding for row in QUALITIES.values()}} == VALUES


def test_the_command_line_names_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert run_command(["export-predicate", "p", "-o", str(tmp_path / "out")]) == 1
    assert "Choose another --output" in capsys.readouterr().err
