"""Predicts a request: its steps, and the minutes, memory and disk that they take on this machine.

Seconds are amounts of work over the rates of the machine. A matrix (R, C) multiplies T rows in 2 T R C operations. Its
compensation takes the time of R C weights, and 7 R C (C - 1536) operations more where it is wider than the measured
one; new inputs take 2 T C^2 and the C^3 of a factor.
"""

# T rows of inputs, R rows, C columns

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint.analysis.probes.own_text import SEED, STREAMED, text_base, text_path
from mint.analysis.probes.packed_base import BASES, fitting_base, needed_bytes
from mint.analysis.probes.prober import Probing
from mint.core.memory import PROCESSES_BYTES, memory_bytes
from mint.core.progress import OnProgress
from mint.core.sizes import format_seconds, format_size
from mint.forecast.machine import machine_rates, read_rate
from mint.forecast.memory import SHARED, TEXT, gradient_bytes, matrices_per_token, needed_memory
from mint.forecast.rates import COLUMNS, Rates
from mint.formats.rounding import ROUNDINGS, learns
from mint.formats.units import Unit
from mint.kernels.coupling import MOST_ROWS
from mint.model.passes.tuning import SEQUENCES, STEPS
from mint.model.roles import TOWER
from mint.model.source import Source
from mint.quality.sequences import CALIBRATION, JUDGED, TRAINING

DOWNLOAD = "download"  # the step
_START_SECONDS = 1.0  # imports and the opening of the model
_VERIFY_SECONDS = 2.0  # to load stock mlx_lm beside it
_VERIFY_PASSES = 12  # over all weights: digests, decoding, and products with few rows
_BESIDE_PRODUCTS = 1.6  # times as long: attention and all else of a pass, measured on SmolLM2
_BACK = 3.0  # times the operations of a pass: forth, and back to the outputs alone, with little else at once
_TRAINED = 8.0  # times a pass: forth, back to all weights, these from their codes; measured on SmolLM2
_PRODUCTS = 7  # operations of a compensated and refined weight for each column of its matrix
_UNIT_SECONDS = 0.002  # to take one up, in any step


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the work."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected work of a request."""

    steps: tuple[Step, ...]
    memory: dict[str, int]  # bytes at most, by step
    disk_bytes: int  # of the results, and of temporary files
    machine_bytes: int  # of memory
    download_bytes: int  # of weights that are not on this machine
    finished: int = 0  # models that exist and are only verified

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)

    @property
    def peak_bytes(self) -> int:
        """Memory of all processes at most."""
        return max(self.memory.values())

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "seconds": round(self.seconds, 1),
            "steps": [{"step": step.name, "seconds": round(step.seconds, 1)} for step in self.steps],
            "peak_memory_bytes": self.peak_bytes,
            "memory_bytes": dict(self.memory),
            "disk_bytes": self.disk_bytes,
            "download_bytes": self.download_bytes,
        }

    def __str__(self) -> str:
        steps = ", ".join(f"{step.name} {format_seconds(step.seconds)}" for step in self.steps if step.seconds >= 1)
        machine = f" (this machine has {format_size(self.machine_bytes)})"
        short = machine if self.peak_bytes > self.machine_bytes else ""
        download = f", {self.download}" if self.download else ""
        return (
            f"about {format_seconds(self.seconds)} ({steps}){self.verified}; up to {format_size(self.peak_bytes)} of "
            f"memory{short}, {format_size(self.disk_bytes)} of disk{download}"
        )

    @property
    def verified(self) -> str:
        """The finished outputs in words, after what the time is for; empty where all are to be written."""
        outputs = "the output exists and is" if self.finished == 1 else f"{self.finished} outputs exist and are"
        return f"; {outputs} only verified" if self.finished else ""

    @property
    def download(self) -> str:
        """The download in words, and if its time is known; empty where nothing is to be downloaded."""
        if not self.download_bytes:
            return ""
        is_timed = any(step.name == DOWNLOAD for step in self.steps)
        unknown = "" if is_timed else ", whose time is not known: nothing was downloaded here before"
        return f"{format_size(self.download_bytes)} to download{unknown}"


def forecast(
    source: Source,
    rounding: str,
    sizes: Sequence[int],
    *,
    kept: int = 0,
    finished: int = 0,
    analysis: Path,
    probing: Probing | None,
    memory: int | None,
    streamed_bytes: int = 0,
    download_bytes: int = 0,
    on_progress: OnProgress,
) -> Forecast:
    """The forecast for models of these `sizes` in bytes; steps whose results are in the cache or `analysis` are free.

    At `kept` of the sizes nothing is rounded, so no text is needed. Models that are `finished` have no size here and
    are only verified. `probing` is that of missing probes. `memory` bounds the model that writes text.
    `streamed_bytes` are the most weights on the disk of a model that is streamed from the hub. The `download_bytes` of
    weights take the time of this machine's last download, if there was one. The first forecast on a machine measures
    its rates, for a second or two.
    """
    rates = machine_rates(rounding, on_progress)
    shard = max(source.shards, key=lambda shard: shard.nbytes)
    reading = source.nbytes / read_rate(source.folder / shard.name)
    rounded = len(sizes) - kept
    method = ROUNDINGS[rounding if rounded else "nearest"]
    needs_model = method.needs_model
    base = text_base(source, TEXT, None if memory is None else memory - PROCESSES_BYTES) if needs_model else ""
    once = [Step("start", _START_SECONDS)]
    if download_bytes:
        from mint.model.hub_download import download_rate  # imports what asks a network

        if rate := download_rate():
            once.append(Step(DOWNLOAD, download_bytes / rate))
    if not analysis.exists():
        once.append(Step("analyze", max(reading, _weights(source) / rates.measured) + _overhead(source)))
    if needs_model and not text_path(source, TEXT, SEED, base).exists():
        readings = TEXT.window if base == STREAMED else 1
        once.append(Step("write text", readings * reading + _writing(source, rates)))
    if probing:
        once.append(Step("probe", reading + _probing(source, rates, probing)))
    passes = 3 if learns(method, 8 * min(sizes, default=0) / max(_weights(source), 1)) else 2
    compensating = _compensating(source, rates, reading, rounding, passes) if needs_model else ()
    each = [(rounded, step) for step in compensating]
    each += [(kept if needs_model else len(sizes), step) for step in _packing(source, rates, reading)]
    verifying = _VERIFY_SECONDS + _VERIFY_PASSES * _weights(source) / rates.packed + _overhead(source)
    each.append((len(sizes) + finished, Step("verify", verifying)))
    temporary = 2 * JUDGED * TEXT.window * source.vocabulary if needs_model else 0
    temporary += gradient_bytes(source) if method.needs_gradients else 0
    temporary += 2 * TRAINING * CALIBRATION.window * source.vocabulary if method.tunes else 0
    return Forecast(
        (*once, *(Step(step.name, step.seconds * count) for count, step in each if count)),
        needed_memory(source, method.name, base) | (_probing_memory(source, probing) if probing else {}),
        sum(sizes) + temporary + streamed_bytes,
        memory_bytes(),
        download_bytes,
        finished,
    )


def _probing_memory(source: Source, probing: Probing) -> dict[str, int]:
    base = fitting_base(source, probing.base, probing.tokens) or list(BASES)[-1]
    return {"probe": PROCESSES_BYTES + needed_bytes(source, base, probing.tokens)}


def _packing(source: Source, rates: Rates, reading: float) -> Iterator[Step]:
    yield Step("assemble", max(reading, _weights(source) / rates.packed) + _overhead(source))


def _compensating(source: Source, rates: Rates, reading: float, rounding: str, passes: int) -> Iterator[Step]:
    """Maybe the pass forth and back for gradients; the original's pass, so many of each layer, and the rounding.

    At last maybe the training: it compares predictions, takes steps, and measures the closeness thrice more.
    """
    coupled = ROUNDINGS[rounding].needs_gradients
    operations = _operations(source)
    judged, calibrated = JUDGED * TEXT.window, CALIBRATION.count * CALIBRATION.window
    differentiated = TRAINING * CALIBRATION.window
    compared = judged * source.vocabulary / rates.compared
    if coupled:
        logits = differentiated * source.vocabulary / rates.compared
        yield Step("take gradients", reading + _BACK * differentiated * operations / rates.forward + logits)
    walks = 1 if any(unit.role == "head" for unit in source.units) else 2  # with a tied table all is measured once more
    predicting = reading + judged * operations / rates.forward
    uniform = predicting + _weights(source) / rates.packed + compared  # a pass of uniform 4-bit beside
    yield Step("predict", walks * (predicting + compared / 2) + uniform)
    walked = (passes * calibrated + (1 + walks) * judged) * _BESIDE_PRODUCTS * operations / rates.forward
    calls = matrices_per_token(source)
    rounds = sum(_rounding(unit, rates, calibrated * calls[unit.path]) for unit in _units(source))
    rounds += sum(_coupling(unit, rates, differentiated) for unit in _units(source)) if coupled else 0
    yield Step("assemble", passes * reading + walked + rounds + compared / 2 + _overhead(source))
    if ROUNDINGS[rounding].tunes:
        trained = STEPS * SEQUENCES * CALIBRATION.window
        tokens = _TRAINED * trained + differentiated + 4 * judged
        logits = (trained + differentiated + 4 * judged) * source.vocabulary / rates.compared
        yield Step("tune", 3 * reading + tokens * operations / rates.forward + logits)


def _rounding(unit: Unit, rates: Rates, rows: int) -> float:
    """Seconds to compensate a unit whose matrices have so many rows of inputs together."""
    if unit.role == "embedding":
        return unit.size / rates.packed
    columns = unit.shape[-1]
    wider = max(0, columns - COLUMNS)
    seconds = unit.size / rates.compensated + _PRODUCTS * unit.size * wider / rates.products
    if unit.role in SHARED and unit.slices == 1:
        return seconds
    return seconds + 2 * rows * columns**2 / rates.products + unit.slices * columns**3 / rates.factored


def _coupling(unit: Unit, rates: Rates, gradients: int) -> float:
    """Seconds to couple the rows of a unit, beside compensating them."""
    rows = unit.shape[-2]
    if unit.layer < 0 or rows > MOST_ROWS:
        return 0.0
    products = 2 * gradients * rows**2 + rows * unit.size
    return products / rates.products + rows**3 / rates.factored


def _writing(source: Source, rates: Rates) -> float:
    """Seconds in which the model writes a text: every position reads all weights."""
    tokens = TEXT.count * TEXT.window
    return _BESIDE_PRODUCTS * tokens * _operations(source) / rates.written + tokens * source.vocabulary / rates.sampled


def _probing(source: Source, rates: Rates, probing: Probing) -> float:
    """Seconds to change one unit after the other; a pass begins at its layer, so half of one on average."""
    tokens = probing.sequences * probing.length
    passes = tokens * (_operations(source) / rates.forward + source.vocabulary / rates.compared)
    return len(source.units) * passes / 2 + _writing(source, rates)


def _operations(source: Source) -> float:
    """Operations of the products of one token."""
    calls = matrices_per_token(source)
    units = [unit for unit in _units(source) if unit.role not in ("position", "layer_embedding")]
    tied = not any(unit.role == "head" for unit in units)
    products = (calls[unit.path] * (unit.size // unit.slices) for unit in units if unit.role != "embedding" or tied)
    return 2.0 * sum(products)


def _units(source: Source) -> list[Unit]:
    return [unit for unit in source.units if unit.role != TOWER]


def _weights(source: Source) -> int:
    return sum(unit.size for unit in source.units)


def _overhead(source: Source) -> float:
    return _UNIT_SECONDS * len(source.units)
