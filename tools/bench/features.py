"""Cost of features beside measuring the distortion, and accuracy of the sampled spectrum against the SVD.

    python -m tools.bench.features [MODEL]       normal weights of some shapes, and every unit of MODEL

The two take turns. Figures are the least CPU time of all threads over some runs, since machines are shared. Keep BLAS
to one thread (OPENBLAS_NUM_THREADS=1) on a busy machine: its idle threads spin, which is CPU time too.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from scipy.stats import spearmanr

from mint.analysis.features.features import NAMES, Sample, features, group_size_of, sample_of
from mint.analysis.features.norms import norm_gains
from mint.analysis.unit_jobs import Measure
from mint.formats.units import Unit
from mint.kernels.storage import raw
from mint.model.source import open_source
from mint.run.executor import in_process

SHAPES = ((576, 576), (1536, 576), (2048, 2048), (4096, 4096), (12288, 4096))
SPECTRAL = 3  # the first features


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="folder of a full-precision model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--exact", action="store_true", help="also every unit's SVD (none of over 10,000 rows)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    for row in (*made(options.runs), *(of_model(options.model, options.runs, options.exact) if options.model else ())):
        print(json.dumps(row) if options.json else "  ".join(f"{name} {value}" for name, value in row.items()))


def made(runs: int) -> Iterator[dict[str, Any]]:
    """Cost on normal bf16 weights of some shapes."""
    for rows, columns in SHAPES:
        values = np.random.default_rng(0).standard_normal((rows, columns), np.float32) * 0.02
        weight = mx.array(values).astype(mx.bfloat16)
        unit = Unit("made", (rows, columns), "BF16", "up", 0, ())
        yield _row(f"{rows} x {columns}", *_milliseconds(unit, weight, None, runs))


def of_model(folder: Path, runs: int, exact: bool) -> Iterator[dict[str, Any]]:
    """Cost on all units of a model together, and accuracy of the sampled spectrum against the SVD."""
    source = open_source(folder)
    gains = norm_gains(source)
    units = [unit for unit in source.units if group_size_of(unit.shape[-1])]
    totals = np.zeros(2)
    sampled, true = [], []
    for unit, weight in in_process(source, lambda unit, weight: weight, units):
        totals += _milliseconds(unit, weight, gains.get(unit.path), runs)
        if exact and unit.slices == 1 and unit.shape[0] < 10_000:
            stack = _stack(unit, weight)
            whole = Sample(unit.shape[0], unit.shape[1], sample_of(*unit.shape).rank)
            svd = _of_svd(np.array(weight.astype(mx.float32)), whole.rank)
            rest = astuple(features([stack], stack.shape, unit.dtype, unit.path, gains.get(unit.path), sample=whole))[
                SPECTRAL:
            ]
            true.append((*svd, *rest))
            sampled.append(astuple(features([stack], stack.shape, unit.dtype, unit.path, gains.get(unit.path))))
    yield _row(folder.name, *totals)
    for index, name in enumerate(NAMES if exact else ()):
        ratios = np.array([a[index] / b[index] for a, b in zip(sampled, true, strict=True)])
        rank = spearmanr([a[index] for a in sampled], [b[index] for b in true])[0]
        yield {"feature": name, "median_of_seen_over_true": round(float(np.median(ratios)), 3),
               "rank_correlation": round(float(rank), 3)}  # fmt: skip


def _row(name: str, distortion: float, featured: float) -> dict[str, Any]:
    return {
        "weights": name,
        "distortion_cpu_ms": round(distortion, 2),
        "features_cpu_ms": round(featured, 2),
        "ratio": round(featured / distortion, 2),
    }


def _milliseconds(unit: Unit, weight: mx.array, gain: Any, runs: int) -> tuple[float, float]:
    mx.eval(weight)
    stack = _stack(unit, weight)
    jobs: tuple[Callable[[], object], ...] = (
        lambda: Measure()(unit, weight),
        lambda: features([stack], stack.shape, unit.dtype, unit.path, gain),
    )
    least = [float("inf")] * len(jobs)
    for run in range(runs + 1):
        for index, job in enumerate(jobs):
            started = time.process_time()
            job()
            if run:  # the first one compiles
                least[index] = min(least[index], time.process_time() - started)
    return least[0] * 1e3, least[1] * 1e3


def _stack(unit: Unit, weight: mx.array) -> Any:
    return raw(weight).reshape(unit.slices, *unit.shape[-2:])


def _of_svd(weight: Any, rank: int) -> tuple[float, float, float]:
    values = np.linalg.svd(weight, compute_uv=False)[:rank]
    squares, top = values**2, max(1, rank // 10)
    energy = float(np.square(weight, dtype=np.float64).sum())
    return energy / squares[0], float(squares[top:].sum() / squares.sum()), float(np.log10(values[0] / values[-1]))


if __name__ == "__main__":
    main()
