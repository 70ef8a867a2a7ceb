"""Measures the rates of this machine that decide how long a request takes, in about a second.

Every rate is the best of a few short calls on a small problem: other work on the machine spoils the rest. The cache
keeps them by processor, device and versions.
"""

# T rows of inputs, R rows, C columns, V vocabulary

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mint.core.cache import cached_path
from mint.core.files import write_whole
from mint.core.progress import OnProgress
from mint.formats.format import FORMATS, KEEP, parse_format
from mint.formats.rounding import ROUNDINGS
from mint.kernels.backend import backend
from mint.kernels.compensate import Curvature, factor, pack_compensated, second_moments
from mint.kernels.ready import ready_kernels
from mint.kernels.storage import raw
from mint.kernels.warmup import MEASURE, WRITE, processor
from mint.quality.divergence import differences, predictions
from mint.quality.sequences import CALIBRATION
from mint.run.blas import multiplies_slowly
from mint.run.device_kind import device_kind, versions

SCHEMA = 1
_SECONDS = 0.08  # of the calls for one rate
_ROWS, _COLUMNS = 512, 1536
_VOCABULARY = 1 << 15
_READ_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Rates:
    """Amounts per second: of weights, of floating-point operations, and of logits."""

    measured: float  # weights, in all formats
    packed: float  # weights
    compensated: float  # weights, without the products of whole blocks
    products: float  # operations in numpy's matrix products
    factored: float  # C^3 of second moments (C, C)
    forward: float  # operations of a model on many rows
    written: float  # operations on the few rows of a text that is written
    sampled: float  # logits
    compared: float  # logits of two models


def machine_rates(rounding: str, on_progress: OnProgress) -> Rates:
    """The rates of this machine for a rounding, from the cache or measured; compiles the kernels once."""
    chip = processor(), os.cpu_count(), device_kind(), multiplies_slowly()
    path = cached_path("rates", ".json", SCHEMA, rounding, *chip, versions())
    if path.exists():
        return Rates(**json.loads(path.read_text()))
    ready_kernels(rounding, on_progress, (MEASURE, WRITE), ("BF16",))
    rates = _measured(rounding)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(rates)).encode())
    return rates


def read_rate(path: Path) -> float:
    """Bytes per second that this machine reads from a file, by its first bytes; the system may have cached them."""
    with path.open("rb", buffering=0) as file:
        started = time.perf_counter()
        count = len(file.read(_READ_BYTES))
        return count / max(time.perf_counter() - started, 1e-6)


def _measured(rounding: str) -> Rates:
    how, random = ROUNDINGS[rounding], np.random.default_rng(0)
    weight = mx.random.normal((1, _ROWS, _COLUMNS), key=mx.random.key(0)).astype(mx.bfloat16)
    rows = random.standard_normal((_ROWS, _COLUMNS)).astype(np.float32)
    logits = random.standard_normal((1, 8, _VOCABULARY)).astype(np.float32)
    wide, tokens = mx.array(rows), np.zeros((1, 8), np.int32)
    table = mx.random.normal((_COLUMNS, _COLUMNS), key=mx.random.key(1))
    mx.eval(weight, wide, table)
    formats = [format for format in FORMATS if format != KEEP]
    curvature = Curvature.of(rows)
    packs = ROUNDINGS["search"] if how.sequential else how
    measures = ROUNDINGS[how.measured_as]
    expected = predictions(logits, tokens)

    def wrote() -> None:
        mx.eval(wide[: CALIBRATION.count] @ table.T)

    def compare() -> None:
        predictions(logits, tokens)
        differences(expected.log_probabilities, expected.top, logits, tokens)

    format = parse_format("4/64")
    products = 2 * _ROWS * _COLUMNS
    cores = os.cpu_count() or 1
    models, alone = (cores, 1) if backend().uses_blas else (0, 0)
    kernels = cores if backend().has_compiled_kernels else 0
    return Rates(
        measured=_rate(weight.size, kernels, lambda: backend().errors(weight, formats, measures)),
        packed=_rate(weight.size, kernels, lambda: backend().pack(weight, format, packs)),
        compensated=_rate(weight.size, cores, lambda: pack_compensated(raw(weight)[0], "BF16", format, curvature)),
        products=_rate(products * _COLUMNS, cores, lambda: rows.T @ rows),
        factored=_rate(_COLUMNS**3, cores, lambda: factor(second_moments(rows))),
        forward=_rate(products * _ROWS, models, lambda: mx.eval(wide @ wide.T)),
        written=_rate(2 * table.size * CALIBRATION.count, models, wrote),
        sampled=_rate(logits.size, alone, lambda: mx.eval(mx.random.categorical(mx.array(logits)))),
        compared=_rate(logits.size, 1, compare),
    )


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
