"""Measures the sensitivities of all units together, by gradients.

Let every weight move by a share t of its way to a coarse format. To second order the KL divergence of the output is
t^2 / 2 times the variance of the score d log p(y) / dt of predictions y drawn from the model itself (the Fisher
information). Scores of different tokens are uncorrelated, so half the squared score of a sequence estimates the sum
over its tokens at t = 1. One pass back gives the scores of all units.

The second order knows no jump, such as another choice of experts: a few units are moved in earnest and compared.
"""

# S sequences, L tokens, B sequences of a block

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import fsum, isfinite
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding

from mint.analysis.probes.own_text import own_text
from mint.analysis.probes.packed_base import model_bytes, needed_bytes, open_base
from mint.analysis.probes.packed_weight import PackedWeight
from mint.analysis.probes.probe_file import FULL, Probe
from mint.analysis.probes.prober import Prober, Probing, coarse_format, coarse_weight
from mint.core.errors import MintError
from mint.core.progress import OnProgress, Progress
from mint.formats.units import Unit
from mint.kernels.storage import numpy_view
from mint.model.hooks import Hook, hooked
from mint.model.passes.gradients import naming_no_gradient
from mint.model.passes.logits import logits_of
from mint.model.roles import TOWER
from mint.model.source import Source
from mint.quality.divergence import Tokens
from mint.quality.forward import fusing_nothing
from mint.quality.sequences import CALIBRATION, JUDGED, TextSize
from mint.run.executor import in_process, small_cache
from mint.run.job import BlockJob, Blocks

_BLOCK = 4  # sequences
_COMPARED = 4  # units that are moved in earnest
_AGREES = 2.5  # times more or less their divergence may be: both are estimates
_TEXT = TextSize(CALIBRATION.count + JUDGED, CALIBRATION.window)  # of a compensation, which needs it anyway
_BESIDE = 6  # values that a pass back keeps for each output of a unit
_LOGITS = 6
_JUMPS = ("router", "index")  # roles whose outputs choose


class NoScoresError(MintError):
    """The sensitivities of this model cannot be measured by gradients."""


def has_scores(source: Source) -> bool:
    """True if no unit is a stack of experts or chooses among tokens or experts, as far as roles tell."""
    units = [unit for unit in source.units if unit.role != TOWER]
    return all(len(unit.shape) == 2 and unit.role not in _JUMPS for unit in units)


def scoring_bytes(source: Source, probing: Probing) -> int:
    """Approximate memory: the model, its moved weights, what a pass back keeps, and the comparison."""
    tokens = _BLOCK * probing.length
    outputs = sum(unit.shape[-2] + unit.shape[-1] for unit in source.units if unit.layer >= 0)
    kept = 4 * tokens * (_BESIDE * outputs + _LOGITS * source.vocabulary)
    return max(2 * model_bytes(source, FULL) + kept, needed_bytes(source, FULL, tokens))


def scored(source: Source, units: Sequence[Unit], probing: Probing, on_progress: OnProgress) -> list[Probe]:
    """The probes of all `units`, whose divergences are estimates from gradients.

    Raises `NoScoresError` where a module answers in another order than it is asked, the model has no gradient, or
    units that are moved in earnest change the output otherwise.
    """
    tokens = own_text(source, _TEXT, probing.seed, FULL, on_progress)[: probing.sequences, : probing.length]
    model = open_base(source, FULL)
    mx.eval(model.parameters())
    changes = dict(changes_of(source, units))
    with fusing_nothing():
        squares = squared_scores(model, changes, tokens, probing.seed, on_progress)
        kls = {path: [float(square) / 2 / probing.length for square in values] for path, values in squares.items()}
        if not all(isfinite(kl) for values in kls.values() for kl in values):
            raise NoScoresError("gradients that are not finite")
        probes = [Probe(unit.path, tuple(kls[unit.path]), changes[unit.path].error) for unit in units]
        _insist_on_agreement(Prober(source, model, tokens[:_BLOCK]), changes, units, probes)
    return probes


@dataclass(frozen=True, slots=True)
class Change:
    """A coarse weight, and its squared relative error."""

    weight: PackedWeight
    error: float

    def moved(self, share: mx.array, method: Hook, module: Module, *arguments: Any, **options: Any) -> mx.array:
        """The hook of a module whose weight moves by a `share` (B,), of 0, for each sequence."""
        output: mx.array = method(module, *arguments, **options)
        if isinstance(module, Embedding) and output.ndim == 2:  # of positions, for all sequences at once
            output = mx.repeat(output[None], len(share), axis=0)
        if output.shape[:1] != share.shape:
            raise NoScoresError(f"a {type(module).__name__} does not answer sequence by sequence")
        change = mx.stop_gradient(self.weight.call_lazily(method, module, *arguments, **options) - output)
        return output + share.reshape(-1, *[1] * (output.ndim - 1)) * change


@dataclass(frozen=True, slots=True)
class _Coarse(BlockJob[Change]):
    """The change of a unit to its coarse format."""

    def of_blocks(self, unit: Unit, blocks: Blocks) -> Change:
        format = coarse_format(unit)
        assert format
        return Change(*coarse_weight(unit, blocks, format))


def changes_of(source: Source, units: Sequence[Unit]) -> Iterator[tuple[str, Change]]:
    with small_cache():
        for unit, change in in_process(source, _Coarse(), units):
            yield unit.path, change


def squared_scores(
    model: Module, changes: Mapping[str, Change], tokens: Tokens, seed: int, on_progress: OnProgress
) -> dict[str, list[float]]:
    """By path, the squared score of every sequence of `tokens` (S, L)."""
    modules: dict[str, Module] = dict(model.named_modules())
    squares: dict[str, list[float]] = {path: [] for path in changes}

    def loss(shares: dict[str, mx.array], block: mx.array, noise: mx.array) -> mx.array:
        moves = {path: partial(change.moved, shares[path]) for path, change in changes.items()}
        with hooked(modules, moves):
            logits = logits_of(model, block).astype(mx.float32)
        drawn = mx.argmax(mx.stop_gradient(logits) + noise, axis=-1, keepdims=True)
        chosen = mx.take_along_axis(logits, drawn, axis=-1)[..., 0]
        return (chosen - mx.logsumexp(logits, axis=-1)).sum()

    key = mx.random.key(seed)
    with naming_no_gradient():
        for start in range(0, len(tokens), _BLOCK):
            on_progress(Progress("probe", len(changes) * start // len(tokens), len(changes), ""))
            block = mx.array(tokens[start : start + _BLOCK])
            key, own = mx.random.split(key)
            shape = logits_of(model, block).shape  # lazy: only the shape is asked for
            shares = {path: mx.zeros(len(block)) for path in changes}
            scores = mx.grad(loss)(shares, block, mx.random.gumbel(shape, key=own))
            mx.eval(scores)
            for path, values in scores.items():
                squares[path] += np.square(numpy_view(values).astype(np.float64)).tolist()
    return squares


def _insist_on_agreement(
    prober: Prober, changes: Mapping[str, Change], units: Sequence[Unit], probes: Sequence[Probe]
) -> None:
    """Raise `NoScoresError` unless moving a few units in earnest diverges about as expected."""
    chosen = range(len(units) // (2 * _COMPARED), len(units), max(1, len(units) // _COMPARED))
    expected = fsum(probes[index].kl for index in chosen)
    measured = fsum(prober.divergence(units[index], changes[units[index].path].weight) for index in chosen)
    if not 1 / _AGREES <= (measured / expected if expected else 1.0) <= _AGREES:
        raise NoScoresError(f"gradients expect a divergence of {expected:.2g}, found {measured:.2g}")
