"""Measures the rates of this machine on small problems, in a second or two.

Every rate is that of the fastest of a few short calls: other work on the machine spoils the rest.
"""

# T rows of inputs, R rows, C columns, V vocabulary

import os
import time
from collections.abc import Callable
from math import inf
from typing import Any

import mlx.core as mx
import numpy as np

from mint.forecast.rates import COLUMNS, Rates
from mint.formats.format import FORMATS, KEEP, parse_format
from mint.formats.rounding import ROUNDINGS, Rounding
from mint.kernels.backend import backend
from mint.kernels.compensate import Curvature, factor, second_moments
from mint.kernels.compensation import compensator
from mint.kernels.coupling import Coupling, pack_coupled
from mint.kernels.storage import raw
from mint.quality.divergence import differences, predictions
from mint.quality.sequences import CALIBRATION

_SECONDS = 0.08  # of the calls for one rate
_ROWS = 512
_VOCABULARY = 1 << 15
_WIDER = 8  # times so many rows occupy a GPU
_FORMAT = parse_format("4/64")


def measured_rates(rounding: str) -> Rates:
    """The rates of this machine for a rounding, whose kernels are compiled."""
    how, random = ROUNDINGS[rounding], np.random.default_rng(0)
    weight = mx.random.normal((1, _ROWS, COLUMNS), key=mx.random.key(0)).astype(mx.bfloat16)
    rows = random.standard_normal((_ROWS, COLUMNS)).astype(np.float32)
    logits = random.standard_normal((1, 8, _VOCABULARY)).astype(np.float32)
    wide, tokens = mx.array(rows), np.zeros((1, 8), np.int32)
    table = mx.random.normal((COLUMNS, COLUMNS), key=mx.random.key(1))
    mx.eval(weight, wide, table)
    formats = [format for format in FORMATS if format != KEEP]
    packs = ROUNDINGS["search"] if how.sequential else how
    measures = ROUNDINGS[how.measured_as]
    expected = predictions(logits, tokens)

    def wrote() -> None:
        mx.eval(wide[: CALIBRATION.count] @ table.T)

    def compare() -> None:
        predictions(logits, tokens)
        differences(expected.log_probabilities, expected.top, logits, tokens)

    products = 2 * _ROWS * COLUMNS
    cores = os.cpu_count() or 1
    models, alone = (cores, 1) if backend().uses_blas else (0, 0)
    kernels = cores if backend().has_compiled_kernels else 0
    return Rates(
        measured=_rate(weight.size, kernels, lambda: backend().errors(weight, formats, measures)),
        packed=_rate(weight.size, kernels, lambda: backend().pack(weight, _FORMAT, packs)),
        compensated=_compensated(raw(weight)[0], rows, how) if how.sequential else inf,
        products=_rate(products * COLUMNS, cores, lambda: rows.T @ rows),
        factored=_factored(rows, how),
        forward=_rate(products * _ROWS, models, lambda: mx.eval(wide @ wide.T)),
        written=_rate(2 * table.size * CALIBRATION.count, models, wrote),
        sampled=_rate(logits.size, alone, lambda: mx.eval(mx.random.categorical(mx.array(logits)))),
        compared=_rate(logits.size, 1, compare),
    )


def _compensated(weight: Any, rows: Any, how: Rounding) -> float:
    """Raw weights per second; other roundings do not ask, since their kernels would be compiled in this process."""
    if how.needs_gradients:
        curvature, coupling = Curvature.of(rows), Coupling.of(rows[:, : len(weight)])
        return _rate(
            weight.size, os.cpu_count() or 1, lambda: pack_coupled(weight, "BF16", _FORMAT, curvature, coupling)
        )
    if backend().fused_rounding:
        weight = np.concatenate([weight] * _WIDER)
    device = compensator()
    own = device.curvature_of(rows)
    cores = 0 if backend().fused_rounding else os.cpu_count() or 1
    return _rate(weight.size, cores, lambda: device.pack(weight, "BF16", _FORMAT, own))


def _factored(rows: Any, how: Rounding) -> float:
    """The cube of columns per second."""
    if backend().fused_rounding and not how.needs_gradients:
        return _rate(COLUMNS**3, 0, lambda: compensator().curvature_of(rows))
    return _rate(COLUMNS**3, os.cpu_count() or 1, lambda: factor(second_moments(rows)))


def _rate(amount: int, threads: int, call: Callable[[], Any]) -> float:
    """Amount per second of the fastest call; what `threads` of this process computed tells it on a busy machine too.

    0 threads: another device computes, and the time that passes counts.
    """
    call()
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < _SECONDS:
        started, computed = time.perf_counter(), time.process_time()
        call()
        seconds = time.perf_counter() - started
        if threads:
            seconds = min(seconds, (time.process_time() - computed) / threads)
        best = min(best, seconds)
    return amount / best
