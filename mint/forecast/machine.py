"""The rates of this machine that decide how long a request takes, measured once for each processor and version."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from mint.core.cache import cached_path, keep, recall
from mint.core.progress import OnProgress
from mint.core.records import typed
from mint.forecast.rates import Rates
from mint.kernels.ready import ready_kernels
from mint.kernels.warmup import MEASURE, WRITE, processor
from mint.run.blas import multiplies_slowly
from mint.run.device_kind import device_kind, versions

SCHEMA = 2
_READ_BYTES = 8 << 20


def machine_rates(rounding: str, on_progress: OnProgress) -> Rates:
    """The rates of this machine for a rounding, from the cache or measured; compiles the kernels once."""
    chip = processor(), os.cpu_count(), device_kind(), multiplies_slowly()
    path = cached_path("rates", ".json", SCHEMA, rounding, *chip, versions())
    if rates := recall(path, _rates):
        return rates
    ready_kernels(rounding, on_progress, (MEASURE, WRITE), ("BF16",))
    from mint.forecast.benchmark import measured_rates

    rates = measured_rates(rounding)
    keep(path, json.dumps(asdict(rates)).encode())
    return rates


def _rates(text: bytes) -> Rates:
    """The rates of a file, which are more than nothing."""
    rates = typed(Rates(**json.loads(text)))
    if not all(rate > 0 for rate in asdict(rates).values()):
        raise ValueError(f"found {rates}")
    return rates


def read_rate(path: Path) -> float:
    """Bytes per second that this machine reads from a file, by its first bytes; the system may have cached them."""
    with path.open("rb", buffering=0) as file:
        started = time.perf_counter()
        count = len(file.read(_READ_BYTES))
        return count / max(time.perf_counter() - started, 1e-6)
