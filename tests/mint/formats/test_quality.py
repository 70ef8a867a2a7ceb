"""The qualities: a word that decides what is not said, and the user's own default."""

import subprocess
import sys
from pathlib import Path

import pytest

from mint.analysis.unit_jobs import Measure
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.formats.quality import DEFAULT_QUALITY, ENVIRONMENT, QUALITIES, parse_quality
from mint.formats.rounding import ROUNDINGS, SEARCHED_SHARE
from mint.model.source import open_source
from mint.run.executor import in_process


def test_every_quality_stands_for_a_rounding() -> None:
    assert {quality.rounding for quality in QUALITIES.values()} <= set(ROUNDINGS)
    assert QUALITIES[DEFAULT_QUALITY].rounding == "compensate"


def test_a_word_beats_the_users_default_which_beats_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "fast")
    assert parse_quality("good").name == "good"
    assert parse_quality("").name == "fast"
    monkeypatch.delenv(ENVIRONMENT)
    assert parse_quality("").name == DEFAULT_QUALITY
    monkeypatch.setenv(ENVIRONMENT, "nonsense")
    with pytest.raises(MintError, match="'nonsense' is not a quality; needed one of: fast, good, best"):
        parse_quality("")


def test_python_has_the_default_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT)
    code = "from mint.plan.recipe import Recipe; print(Recipe().rounding)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "compensate"
    monkeypatch.setenv(ENVIRONMENT, "nonsense")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "compensate"
    assert "quality.unknown" in result.stderr
    assert "nonsense" in result.stderr


def test_the_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["recipes"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in QUALITIES)


def test_an_analysis_for_compensation_estimates_searched_errors_from_those_of_nearest(llama: Path) -> None:
    source = open_source(llama)
    unit = next(unit for unit in source.units if unit.formats)
    measured = {
        name: next(result for _, result in in_process(source, Measure(name), [unit]))
        for name in ("nearest", "compensate", "search")
    }
    nearest, estimate, search = (dict(zip(m.formats, m.errors, strict=True)) for m in measured.values())
    for format, error in nearest.items():
        assert estimate[format] == pytest.approx(error * SEARCHED_SHARE.get(str(format), 1.0), rel=1e-6)
        if str(format) in SEARCHED_SHARE and "128" not in str(format):
            assert estimate[format] == pytest.approx(search[format], rel=0.25)
