"""The whole way on the real SmolLM2-135M, off its grid."""

from pathlib import Path

import pytest

from mint.assembly.verify import verify
from mint.model.source import open_source
from mint.pipeline import quantize
from tests.worlds.real_models import smollm2


@pytest.mark.parametrize("budget", [60_000_000, 80_000_000, 120_000_000])
def test_smollm2_fits_any_budget_and_holds_what_was_planned(budget: int, tmp_path: Path) -> None:
    folder = smollm2()
    result = quantize(folder, budget, tmp_path / "out", analysis=tmp_path / "a.mint")
    assert 0.999 * budget <= result.manifest.weight_bytes <= budget
    assert result.plan.gap == 0
    verification = verify(tmp_path / "out", open_source(folder))
    assert verification.passed, verification.checks
