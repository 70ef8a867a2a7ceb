"""Training moves scales and biases towards the original's predictions, in every family."""

# B sequences, L tokens, V vocabulary

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mint.model.passes.logits import logits_of
from mint.model.passes.tuning import Block, Grid, tuned
from mint.model.source import open_source
from mint.quality.forward import fusing_nothing, open_wide
from tests.worlds.zoo import ARCHITECTURES

TOKENS = np.random.default_rng(0).integers(3, 250, (8, 24)).astype(np.int32)


def log_probabilities(model: Any, tokens: np.ndarray) -> np.ndarray:
    logits = logits_of(model, mx.array(tokens))[:, :-1].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def coarse(folder: Path, bits: int) -> tuple[Any, dict[str, Grid]]:
    """A model, and the grids of all its units in few bits."""
    model = open_wide(folder)
    modules = dict(model.named_modules())
    grids = {}
    for unit in open_source(folder).units:
        weight = modules[unit.path]["weight"]
        if weight.shape[-1] % 32 == 0:
            grids[unit.path] = Grid.of(*mx.quantize(weight, group_size=32, bits=bits), bits)
    return model, grids


def test_a_grid_is_the_weight_that_mlx_dequantizes() -> None:
    weight = mx.random.normal((3, 8, 128), key=mx.random.key(0)).astype(mx.bfloat16)
    for bits in (2, 3, 4, 5, 6, 8):
        parts = mx.quantize(weight, group_size=64, bits=bits)
        wide = [part.astype(mx.float32) for part in parts[1:]]
        dequantize: Any = mx.dequantize
        expected = dequantize(parts[0], *wide, group_size=64, bits=bits)
        np.testing.assert_allclose(np.array(Grid.of(*parts, bits).weight()), np.array(expected), rtol=1e-6, atol=1e-6)


def test_predictions_come_closer_on_text_that_is_learned_from_in_blocks(llama: Path) -> None:
    expected = log_probabilities(open_wide(llama), TOKENS)
    model, grids = coarse(llama, 2)
    modules = dict(model.named_modules())

    def blocks() -> Iterator[Block]:
        for rows in (slice(0, 3), slice(3, 8)):
            yield TOKENS[rows], expected[rows].astype(np.float16)

    def kl(grids: dict[str, Grid]) -> float:
        for path, grid in grids.items():
            modules[path]["weight"] = grid.weight()
        found = log_probabilities(model, TOKENS)
        return float((np.exp(expected) * (expected - found)).sum(-1).mean())

    steps: list[int] = []
    with fusing_nothing():
        trained = tuned(model, grids, blocks, steps.append, steps=12)
        assert kl(trained) < 0.9 * kl(grids)
    assert steps == list(range(1, 13))
    for path, grid in trained.items():
        assert mx.array_equal(grid.codes, grids[path].codes)
        assert np.abs(np.array(grid.scales / grids[path].scales) - 1).max() < 0.1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_family_can_be_trained(name: str, make_model: Callable[..., Path]) -> None:
    folder = make_model(name)
    tokens = TOKENS[:4, :8]
    with fusing_nothing():
        expected = log_probabilities(open_wide(folder), tokens).astype(np.float16)
        model, grids = coarse(folder, 4)
        trained = tuned(model, grids, lambda: [(tokens, expected)], lambda step: None, steps=1)
        moved = [path for path in grids if not mx.array_equal(trained[path].scales, grids[path].scales)]
    assert len(moved) >= 0.6 * len(grids)
