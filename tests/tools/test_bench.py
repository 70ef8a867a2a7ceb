"""The benchmark of speed notices a regression, and the docs show its baseline."""

import json
from pathlib import Path

import pytest

from mint.analysis.analysis import read_analysis
from tools.bench.all import BASELINE, NOISE, PAGE, regressions, shown
from tools.bench.allocate import write_made


def test_the_page_shows_the_committed_baseline() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert shown(json.loads(BASELINE.read_text()), page) == page, "run python -m tools.bench.all --accept"


@pytest.mark.parametrize(("factor", "faults"), [(0.5, 0), (0.99 * NOISE, 0), (1.01 * NOISE, 1)])
def test_a_ratio_beyond_the_noise_of_its_baseline_is_a_regression(factor: float, faults: int) -> None:
    baseline = json.loads(BASELINE.read_text())
    work, ratio = next(iter(baseline["ratios"].items()))
    slower = {work: ratio | {"value": factor * ratio["value"]}, "new": ratio}
    sentences = regressions(baseline | {"ratios": slower}, baseline)
    assert len(sentences) == faults
    assert all(sentence.startswith(work) for sentence in sentences)


def test_a_made_analysis_is_one_that_can_be_read(tmp_path: Path) -> None:
    write_made(tmp_path / "made.mint", 40)
    assert len(read_analysis(tmp_path / "made.mint").units) == 40
