"""The distance from the original that compensation measures: that of the written folder, on text that took no part."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.analyze import analyze
from mint.analysis.probes.own_text import SEED, own_text
from mint.analysis.probes.probe_file import FULL
from mint.assembly.assemble import assemble
from mint.core.progress import ignore
from mint.model.checkpoint.manifest import read_manifest
from mint.model.passes.logits import logits_of
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.plan import converted
from mint.plan.recipe import Recipe
from mint.quality.closeness import Closeness, Expected, closeness
from mint.quality.forward import open_wide
from mint.quality.sequences import JUDGED, TextSize

SIZE = TextSize(4, 16)


def _log_softmax(logits: mx.array) -> np.ndarray:
    return np.asarray(logits - mx.logsumexp(logits, axis=-1, keepdims=True), np.float64)


# layers see a tied embedding in its searched form: it is compensated last, as a head, and then all is measured
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma2"])
def test_the_measured_closeness_is_that_of_the_written_folder(
    name: str, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    source = open_source(make_model(name))
    analysis = analyze(source, tmp_path / "a.mint", rounding="compensate")
    plan = allocate(analysis, "5bpw", Recipe(rounding="compensate", veto_db=-20.0))
    manifest = assemble(plan, source, tmp_path / "out", text=SIZE)
    assert manifest.closeness is not None
    assert read_manifest(tmp_path / "out") == manifest
    measured = Closeness.from_dict(manifest.closeness)

    judged = mx.array(own_text(source, TextSize(SIZE.count + JUDGED, SIZE.window), SEED, FULL, ignore)[SIZE.count :])
    original = _log_softmax(logits_of(open_wide(source.folder), judged)[:, :-1])
    result = _log_softmax(logits_of(open_wide(tmp_path / "out"), judged)[:, :-1])
    kl = (np.exp(original) * (original - result)).sum(-1)
    assert measured.kl.value == pytest.approx(kl.mean(), rel=1e-3)
    assert measured.kl.low < measured.kl.value < measured.kl.high
    assert measured.top1.value == pytest.approx((original.argmax(-1) == result.argmax(-1)).mean(), abs=0.01)
    assert (measured.sequences, measured.tokens) == (JUDGED, JUDGED * SIZE.window)
    assert "KL divergence from the original" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma2"])
def test_uniform_4_bit_is_measured_beside_as_it_would_be_written(
    name: str, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    source = open_source(make_model(name))
    analysis = analyze(source, tmp_path / "a.mint", rounding="compensate")
    plan = allocate(analysis, "5bpw", Recipe(rounding="compensate", veto_db=-20.0))
    manifest = assemble(plan, source, tmp_path / "out", text=SIZE)
    assert manifest.uniform is not None
    fields = dict(manifest.uniform)
    plain = converted(plan)
    assert fields.pop("weight_bytes") == plain.planned_bytes
    measured = Closeness.from_dict(fields)

    written = assemble(plain, source, tmp_path / "uniform")
    assert written.weight_bytes == plain.planned_bytes
    judged = mx.array(own_text(source, TextSize(SIZE.count + JUDGED, SIZE.window), SEED, FULL, ignore)[SIZE.count :])
    original = _log_softmax(logits_of(open_wide(source.folder), judged)[:, :-1])
    result = _log_softmax(logits_of(open_wide(tmp_path / "uniform"), judged)[:, :-1])
    kl = (np.exp(original) * (original - result)).sum(-1)
    assert measured.kl.value == pytest.approx(kl.mean(), rel=1e-3)
    assert (measured.sequences, measured.tokens) == (JUDGED, JUDGED * SIZE.window)


def test_blocks_of_sequences_change_nothing(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 50, (5, 8)).astype(np.int32)
    original, candidate = (mx.random.normal((5, 8, 50), key=mx.random.key(seed)) for seed in (0, 1))

    def measured(*sizes: int) -> Closeness:
        starts = np.cumsum((0, *sizes)).tolist()
        parts = [slice(*pair) for pair in pairwise(starts)]
        with (tmp_path / "expected").open("w+b") as file:
            expected = Expected((original[part] for part in parts), tokens, file)
            return closeness(expected, (candidate[part] for part in parts), "of nobody")

    assert measured(5) == measured(2, 2, 1) == measured(1, 1, 1, 1, 1)
    assert measured(5).kl.value > 0.5


def test_nothing_is_claimed_where_nothing_was_measured(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    plan = allocate(analyze(source, tmp_path / "a.mint", rounding="nearest"), "5bpw")
    manifest = assemble(plan, source, tmp_path / "out")
    assert (manifest.closeness, manifest.uniform) == (None, None)
    assert "KL divergence" not in (tmp_path / "out" / "README.md").read_text()


def test_a_candidate_may_run_on_the_tokens_of_one_block_after_the_other(tmp_path: Path) -> None:
    """The blocks of the original are read from one file meanwhile."""
    tokens = np.random.default_rng(0).integers(0, 50, (5, 8)).astype(np.int32)
    original, candidate = (mx.random.normal((5, 8, 50), key=mx.random.key(seed)) for seed in (0, 1))
    with (tmp_path / "expected").open("w+b") as file:
        expected = Expected((original[:2], original[2:4], original[4:]), tokens, file)
        whole = closeness(expected, (candidate[:2], candidate[2:4], candidate[4:]), "")
        rows = [len(block) for block in expected.token_blocks()]
        starts = np.cumsum([0, *rows[:-1]])
        lazily = (
            candidate[start : start + len(block)] for start, block in zip(starts, expected.token_blocks(), strict=True)
        )
        assert closeness(expected, lazily, "") == whole
        joined = np.concatenate([block for block, _ in expected.with_tokens()])
    assert rows == [2, 2, 1]
    np.testing.assert_array_equal(joined, tokens)
