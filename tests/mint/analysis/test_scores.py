"""Sensitivities of all units at once, by gradients: their values, and the models that have none."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.probes.probe import probed_units
from mint.analysis.probes.prober import SCORED, Prober
from mint.analysis.probes.scores import NoScoresError, changes_of, has_scores, scored, scoring_bytes, squared_scores
from mint.core.progress import ignore
from mint.model.hooks import hooked
from mint.model.passes.logits import logits_of
from mint.model.source import Source, open_source
from mint.quality.forward import open_wide
from tests.worlds.zoo import write_model

DRAWS = 512
LENGTH = 6
STEP = 0.05  # of a numeric derivative


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "gpt2", "mamba2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(write_model(request.param, tmp_path_factory.mktemp("model") / "model", tokenizer=True))


def test_half_the_squared_score_is_the_second_order_of_the_divergence_on_average(source: Source) -> None:
    """Against the definition: half the variance of the logits' derivative under the model's own probabilities."""
    units = probed_units(source.units, None)
    changes = dict(changes_of(source, units))
    model = open_wide(source.folder, source.loader)
    modules = dict(model.named_modules())
    sequence = np.random.default_rng(1).integers(0, source.vocabulary, (1, LENGTH), dtype=np.int32)
    squares = squared_scores(model, changes, np.repeat(sequence, DRAWS, axis=0), 0, ignore)
    for unit in units[:: max(1, len(units) // 6)]:
        change = changes[unit.path]

        def logits(share: mx.array, path: str = unit.path, change: object = change) -> mx.array:
            with hooked(modules, {path: partial(changes[path].moved, share)}):
                return logits_of(model, mx.array(sequence)).astype(mx.float32)

        value, forth, back = (np.asarray(logits(mx.array([share])), np.float64) for share in (0.0, STEP, -STEP))
        share = np.asarray(mx.softmax(mx.array(value), axis=-1), np.float64)
        derivative = (forth - back) / (2 * STEP)
        variances = (share * derivative**2).sum(axis=-1) - (share * derivative).sum(axis=-1) ** 2
        expected = variances.sum()
        values = np.array(squares[unit.path])
        assert values.mean() == pytest.approx(expected, abs=5 * values.std() / DRAWS**0.5), unit.path


def test_scored_probes_are_like_those_of_one_unit_after_the_other(tmp_path: Path) -> None:
    source = open_source(write_model("llama", tmp_path / "llama", tokenizer=True))
    units = probed_units(source.units, None)
    probes = scored(source, units, SCORED, ignore)
    assert [probe.path for probe in probes] == [unit.path for unit in units]
    assert {len(probe.kls) for probe in probes} == {SCORED.sequences}
    tokens = np.random.default_rng(0).integers(0, source.vocabulary, (32, SCORED.length), dtype=np.int32)
    prober = Prober(source, open_wide(source.folder, source.loader), tokens)
    changes = dict(changes_of(source, units))
    logs = [
        np.log(probe.kl / prober.divergence(unit, changes[unit.path].weight))
        for unit, probe in zip(units, probes, strict=True)
    ]
    assert abs(np.mean(logs)) < 0.3
    assert np.std(logs) < 0.5


def test_scored_probes_are_deterministic(tmp_path: Path) -> None:
    source = open_source(write_model("llama", tmp_path / "llama", tokenizer=True))
    units = probed_units(source.units, None)
    assert scored(source, units, SCORED, ignore) == scored(source, units, SCORED, ignore)


def test_a_mixture_has_no_scores_since_its_routers_jump(make_model: Callable[..., Path]) -> None:
    source = open_source(make_model("qwen3_moe"))
    assert not has_scores(source)
    with pytest.raises(NoScoresError):
        scored(source, probed_units(source.units, None), SCORED, ignore)


def test_the_memory_counts_the_model_twice(make_model: Callable[..., Path]) -> None:
    source = open_source(make_model("llama"))
    weights = sum(unit.size for unit in source.units)
    assert scoring_bytes(source, SCORED) > 2 * 4 * weights
