"""Cost and gain of `--rounding search` beside rounding to nearest, with the fused kernel on random weights.

    python -m tools.bench.rounding              one 4096 x 4096 bf16 matrix on one core, side by side in one run
    python -m tools.bench.rounding --students   heavier tails (Student's t of 4 degrees) instead of Gaussian weights

Machines are noisy: both roundings take turns, times are CPU times, and ratios are medians over pairs of runs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mint.formats.format import AFFINE, MXFP4, NVFP4, Format, parse_format
from mint.kernels import cpu

_PACKED = tuple(map(parse_format, ("3/64", "4/64", "8/128", "mxfp4", "nvfp4")))
_DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix (default 4096)")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs per figure (default 5)")
    parser.add_argument("--dtype", choices=_DTYPES, default="BF16")
    parser.add_argument("--students", action="store_true", help="Student-t weights instead of Gaussian ones")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    weight = made(options.size, options.dtype, students=options.students)
    record = {
        "pack": {str(format): packing(weight, options.dtype, format, options.runs) for format in _PACKED},
        "errors": {"18 affine formats": measuring(weight, options.dtype, options.runs)},
        "gain": gains(weight[:, : min(options.size, 512)], options.dtype),
    }
    print(json.dumps(record, indent=2) if options.json else _table(record))


def made(size: int, dtype: str, *, students: bool) -> Any:
    """(1, size, size) random weights of spread 0.02, as raw storage."""
    random = np.random.default_rng(0)
    shape = (1, size, size)
    values = random.standard_t(4, shape) if students else random.standard_normal(shape, np.float32)
    weight = mx.array((values * 0.02).astype(np.float32)).astype(_DTYPES[dtype])
    return np.array(weight if dtype == "F32" else weight.view(mx.uint16))


def packing(weight: Any, dtype: str, format: Format, runs: int) -> dict[str, float]:
    """Nanoseconds a weight of packing, on one core."""
    return _compared(weight, runs, lambda search: cpu.pack(weight, dtype, format, search=search, threads=1))


def measuring(weight: Any, dtype: str, runs: int) -> dict[str, float]:
    """Nanoseconds a weight of measuring the 18 affine formats, on one core."""
    return _compared(weight, runs, lambda search: cpu.errors(weight, dtype, AFFINE, search=search, threads=1))


def gains(weight: Any, dtype: str) -> dict[str, float]:
    """Reduction of NRMSE by the search in each format, in percent."""
    formats = (*AFFINE, MXFP4, NVFP4)
    plain, searched = (cpu.errors(weight, dtype, formats, search=search).squared.sum(0) for search in (False, True))
    return {
        str(format): round(100 * (1 - float(ratio)), 2)
        for format, ratio in zip(formats, np.sqrt(searched / plain), strict=True)
    }


def _compared(weight: Any, runs: int, work: Callable[[bool], object]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {"nearest": [], "search": []}
    for rounding in seconds:
        work(rounding == "search")  # compile
    for _ in range(runs):
        for rounding, taken in seconds.items():
            started = time.thread_time()
            work(rounding == "search")
            taken.append(time.thread_time() - started)
    pairs = zip(seconds["search"], seconds["nearest"], strict=True)
    return {
        "nearest_ns_per_weight": statistics.median(seconds["nearest"]) / weight.size * 1e9,
        "search_ns_per_weight": statistics.median(seconds["search"]) / weight.size * 1e9,
        "search_over_nearest": statistics.median(searched / plain for searched, plain in pairs),
    }


def _table(record: dict[str, Any]) -> str:
    lines = ["one core, ns per weight    nearest   search   ratio"]
    for title in ("pack", "errors"):
        for name, row in record[title].items():
            nearest, search, ratio = row.values()
            lines.append(f"{title} {name:<20} {nearest:>8.2f} {search:>8.2f} {ratio:>7.2f}")
    lines.append("NRMSE reduced by")
    lines += [f"  {name:<8} {percent:>6.2f} %" for name, percent in record["gain"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
