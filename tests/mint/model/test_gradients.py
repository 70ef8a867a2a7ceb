"""Gradients at the outputs of units are those of the loss, for every family that has any."""

# B sequences, L tokens, R values of an output

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mint.model.hooks import hooked
from mint.model.passes.gradients import output_gradients
from mint.model.passes.logits import logits_of
from mint.model.source import open_source
from mint.quality.forward import fusing_nothing, open_wide
from tests.worlds.zoo import ARCHITECTURES

TOKENS = np.random.default_rng(0).integers(3, 250, (2, 12)).astype(np.int32)
STEP = 1e-2


def loss_of(model: Any) -> float:
    logits = logits_of(model, mx.array(TOKENS))[:, :-1].astype(mx.float32)
    chosen = mx.take_along_axis(logits, mx.array(TOKENS)[:, 1:, None], axis=-1)[..., 0]
    return float((mx.logsumexp(logits, axis=-1) - chosen).sum())


def moved(change: mx.array, method: Any, module: Any, *arguments: Any, **options: Any) -> mx.array:
    output: mx.array = method(module, *arguments, **options)
    return output + change.reshape(output.shape)


def test_gradients_are_the_slopes_of_the_loss(llama: Path) -> None:
    """Along each token's gradient the loss rises by its length, against central differences."""
    model = open_wide(llama)
    modules = dict(model.named_modules())
    paths = [unit.path for unit in open_source(llama).units if unit.layer >= 0]
    with TemporaryFile() as file:
        gradients = output_gradients(model, paths, [TOKENS], file)
        for path in paths:
            rows = gradients.of(path)
            assert rows is not None and rows.shape == (TOKENS.size, modules[path]["weight"].shape[0])
            for token in (1, 7, TOKENS.size - 2):  # the first attends to itself alone
                other = np.random.default_rng(token).standard_normal(rows.shape[1]).astype(np.float32)
                slopes = []
                for direction in (rows[token], other):
                    change = np.zeros_like(rows)
                    change[token] = direction / np.linalg.norm(direction) * STEP
                    ends = []
                    for sign in (1, -1):
                        with hooked(modules, {path: partial(moved, mx.array(sign * change))}, ("__call__",)):
                            ends.append(loss_of(model))
                    slopes.append((ends[0] - ends[1]) / (2 * STEP))
                cosine = rows[token] @ other / np.linalg.norm(rows[token]) / np.linalg.norm(other)
                assert slopes[1] == pytest.approx(cosine * slopes[0], abs=0.05 * abs(slopes[0])), (path, token)
                assert slopes[0] > 0


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_family_has_gradients_at_nearly_all_units(name: str, make_model: Callable[..., Path]) -> None:
    source = open_source(make_model(name))
    paths = [unit.path for unit in source.units if unit.layer >= 0 and not unit.keep_reason]
    with TemporaryFile() as file, fusing_nothing():
        gradients = output_gradients(open_wide(source.folder), paths, [TOKENS[:1], TOKENS[1:]], file)
        rows = {path: gradients.of(path) for path in paths}
    known = [path for path, values in rows.items() if values is not None and values.any()]
    assert len(known) >= 0.6 * len(paths), sorted(set(paths) - set(known))
    for values in rows.values():
        assert values is None or np.isfinite(values).all()
