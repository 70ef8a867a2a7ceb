"""The whole `mint quantize` beside `mlx_lm.convert -q --q-bits 4`, as processes that run in turns.

    python -m tools.bench.convert MODEL [--rounding nearest] [--runs 5]
    python -m tools.bench.convert MODEL --cold     the first run on a machine (no compiled kernels) beside a later one

Machines are noisy: read the ratios. CPU seconds include those of all child processes. No analysis is cached.
"""

import argparse
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint.formats.rounding import ROUNDINGS

_SET_CHILD_SUBREAPER = 36  # of Linux's prctl


@dataclass(frozen=True, slots=True)
class Run:
    """Wall and CPU seconds of a process with its children, and its peak memory; `answer` is mint's JSON."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    answer: dict[str, Any]


def main() -> None:
    """Run the selected benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a full-precision model")
    parser.add_argument("--rounding", choices=ROUNDINGS, default="nearest")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs (default %(default)s)")
    parser.add_argument(
        "--cold", action="store_true", help="compare the first run of mint on a machine with a later one"
    )
    options = parser.parse_args()
    adopt_orphans()
    compare = first_use if options.cold else pairs
    print(json.dumps({"cores": os.cpu_count(), **compare(options.model, options.rounding, options.runs)}, indent=2))


def pairs(model: Path, rounding: str, runs: int) -> dict[str, Any]:
    """Medians of `mint quantize` and of `mlx_lm.convert`, and of their ratios; kernels are compiled before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "MINT_CACHE": str(folder / "cache")}
        run(quantizing(model, folder / "model", rounding), environment)  # compiles the kernels
        ours, theirs = [], []
        for _ in range(runs):  # in turns: load of the machine affects both
            shutil.rmtree(folder / "model")
            shutil.rmtree(folder / "cache" / "analyses")
            ours.append(run(quantizing(model, folder / "model", rounding), environment))
            theirs.append(run(converting(model, folder / "converted"), environment))
            shutil.rmtree(folder / "converted")
    stages = [run.answer["seconds"] for run in ours]
    return {
        "stage_seconds": {stage: statistics.median(seconds[stage] for seconds in stages) for stage in stages[0]},
        **compared("mint", ours, "convert", theirs),
    }


def first_use(model: Path, rounding: str, runs: int) -> dict[str, Any]:
    """Medians of `mint quantize` without compiled kernels and with them, and of their ratios."""
    first: list[Run] = []
    later: list[Run] = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            environment = {**os.environ, "MINT_CACHE": str(folder / "cache")}
            for results in (first, later):
                results.append(run(quantizing(model, folder / "model", rounding), environment))
                shutil.rmtree(folder / "cache" / "analyses")
                shutil.rmtree(folder / "model")
    return compared("first", first, "later", later)


def compared(one: str, ones: Sequence[Run], other: str, others: Sequence[Run]) -> dict[str, Any]:
    """Medians of both, and median, least and greatest ratio of their pairs, for every quantity."""
    record: dict[str, Any] = {}
    for quantity in ("seconds", "cpu_seconds", "peak_mb"):
        values = [[getattr(run, quantity) for run in runs] for runs in (ones, others)]
        ratios = sorted(a / b for a, b in zip(*values, strict=True))
        record[quantity] = {
            one: round(statistics.median(values[0]), 2),
            other: round(statistics.median(values[1]), 2),
            "ratio": round(statistics.median(ratios), 3),
            "range": [round(ratios[0], 3), round(ratios[-1], 3)],
        }
    return record


def quantizing(model: Path, output: Path, rounding: str) -> list[str]:
    """The command that makes a model of 0.28 times the size, as 4 bits in groups of 64 would be."""
    budget = int(sum(file.stat().st_size for file in model.glob("*.safetensors")) * 0.28)
    command = [sys.executable, "-m", "mint", "quantize", str(model), "--budget", f"{budget}B"]
    return [*command, "--output", str(output), "--rounding", rounding, "--json"]


def converting(model: Path, output: Path) -> list[str]:
    """The command of mlx_lm."""
    command = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", str(model), "--mlx-path", str(output)]
    return [*command, "-q", "--q-bits", "4"]


def adopt_orphans() -> None:
    """Inherit children that outlive their parent, so that their CPU time counts; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run(command: Sequence[str], environment: dict[str, str]) -> Run:
    """Run a process to its end, and its children to theirs; mint's peak includes that of the verifying child."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        before, started = _children_cpu_seconds(), time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        with suppress(ChildProcessError):
            while True:
                os.wait()
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command[-8:])} failed: {errors.read().decode()[-2000:]}")
        output.seek(0)
        answer = json.load(output) if "--json" in command else {}
    peak = answer.get("peak_rss_bytes", usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)) / 1e6
    return Run(seconds, _children_cpu_seconds() - before, peak, answer)


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
