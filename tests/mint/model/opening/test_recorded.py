"""mlx_lm's classes compute what those of transformers computed, or the user is told that they do not."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mint.model.module_tree import load_source
from mint.model.passes.logits import logits_of
from mint.model.source import open_source
from tools.models.recorded import TOKENS, sampled, write_recorded

ROWS: dict[str, Any] = json.loads((Path(__file__).parents[3] / "worlds" / "recorded.json").read_text())
SAME = 1e-3  # relative error of logits in float32; that of rounded positions is below 1e-4


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("name", ROWS)
def test_a_difference_from_the_logits_of_transformers_is_told_and_no_other_is(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    expected = write_recorded(row, tmp_path / "model")
    loader, told = row.get("loader", "mlx_lm"), row.get("told", "")
    notices = [
        notice
        for notice in open_source(tmp_path / "model", loader=loader).notices
        if "does not read" in notice or "another function" in notice
    ]
    model = load_source(tmp_path / "model", loader)
    logits = sampled(np.array(logits_of(model, mx.array(TOKENS)).astype(mx.float32)))
    error = np.sqrt(np.mean((logits - expected) ** 2)) / expected.std()
    if told:
        assert len(notices) == 1
        assert told in notices[0]
        assert error > SAME
    else:
        assert notices == []
        assert error < SAME
