"""How sensitive the model's output is to each unit, measured without data.

    alpha = KL(model || model with this unit alone stored coarsely) / NRMSE^2

on sequences that the model itself writes, or on random tokens. The KL divergence is the mean over tokens, in nats.
Every probe stands for itself: they are kept as they come, resumed after a kill, and independent of their order.

A model that does not fit in memory at full precision is probed around a base: all units are stored in 8 bits or fewer
(`mint/base.py`), the probed one alone is replaced by its coarse form, and `model` above is the base model.
"""

# S sequences, L tokens, V vocabulary

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from mint.analysis import Analysis
from mint.base import AUTO, BASES, check_base, chosen_base, describe_base, open_base
from mint.device import device_kind, versions
from mint.errors import MintError
from mint.execute import Executor, in_process
from mint.formats import Format, admissible, parse_format
from mint.journal import Journal, frame
from mint.log import log
from mint.logits import fusing_nothing, logits_of, vocabulary_size
from mint.probed import FULL, MAGIC, SCHEMA, Probe, Probed, probe_of, read_probed, write_probed
from mint.progress import OnProgress, Progress, ignore
from mint.replay import Replay
from mint.roles import layer_path
from mint.sequences import Wanted, own_sequences
from mint.source import Source
from mint.units import Unit

OWN, RANDOM = "own", "random"
COARSE = tuple(map(parse_format, ("3/64", "3/32", "3/128", "4/32", "mxfp4", "nvfp4")))  # the first that a unit admits
SEQUENCES, LENGTH = 8, 64
_BLOCK = 1 << 22  # weights that are made coarse at once
_NOTHING = 1e-6  # KL per token of a replay that changes nothing: float32 noise


@dataclass(frozen=True, slots=True)
class Probing:
    """What the model sees: who writes it (`own` or `random`), how many sequences of how many tokens, the seed.

    `most` bounds the number of units that are probed: the largest. `base` is what all other units are stored in
    meanwhile: `full`, the bits of a smaller base, or `auto` for what fits in this machine's memory.
    """

    written: str = OWN
    sequences: int = SEQUENCES
    length: int = LENGTH
    seed: int = 0
    most: int | None = None
    base: str = AUTO

    def __str__(self) -> str:
        who = "written by the model" if self.written == OWN else "drawn at random"
        return f"{self.sequences} x {self.length} tokens {who}, seed {self.seed}"

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    def check(self) -> None:
        """Raise `MintError` for what cannot be."""
        if self.written not in (OWN, RANDOM):
            raise MintError(f"{self.written!r} writes no tokens; needed {OWN} or {RANDOM}")
        if self.sequences < 1 or self.length < 2:
            raise MintError(f"{self.sequences} x {self.length} tokens; needed 1 sequence or more of 2 tokens or more")
        check_base(self.base)
        if self.most is not None and self.most < 1:
            raise MintError(f"{self.most} probes; needed 1 or more")


def probe(
    source: Source,
    analysis: Analysis,
    output: Path,
    *,
    probing: Probing = Probing(),
    executor: Executor = in_process,
    on_progress: OnProgress = ignore,
) -> Probed:
    """Probe the units of `source` that may be quantized and write `output`.

    Goes on where a killed run stopped. Raises `MintError` when the analysis is of another model or `output` of
    something else.
    """
    if analysis.model != source.identity:
        raise MintError(f"the analysis is of another model than {source.folder}; analyze this one first")
    probing.check()
    units = probed_units(source.units, probing.most)
    header: dict[str, Any] = {
        "schema": SCHEMA,
        "model": source.identity,
        "dtype": source.dtype,
        "tokens": str(probing),
        "base": probing.base,
        "device": device_kind(),
        "versions": versions(),
        "units": [unit.path for unit in units],
    }
    partial = output.with_name(output.name + ".partial")
    if probing.base == AUTO:
        header["base"] = _begun(header, (output, partial)) or chosen_base(source, AUTO, probing.tokens)
    if output.exists():
        if not output.read_bytes().startswith(MAGIC + frame(header)):
            raise MintError(
                f"{output}: holds other probes ({_described(read_probed(output))}); move it away to probe anew"
            )
        return read_probed(output)
    with Journal(partial, MAGIC, header) as journal, fusing_nothing():
        probes = {record["path"]: probe_of(record) for record in journal.records}
        pending = [unit for unit in units if unit.path not in probes]
        if pending:
            chosen = replace(probing, base=header["base"])
            for found in _probes(source, chosen, pending, len(probes), executor, on_progress):
                journal.append(asdict(found))
                probes[found.path] = found
        write_probed(output, header, probes)
        journal.path.unlink()
    return read_probed(output)


def _begun(header: Mapping[str, Any], paths: Iterable[Path]) -> str:
    """The base of finished or unfinished probes with the same header otherwise; empty if there are none."""
    starts = {base: MAGIC + frame(dict(header) | {"base": base}) for base in (FULL, *BASES)}
    texts = [path.read_bytes() for path in paths if path.exists()]
    return next((base for base, start in starts.items() for text in texts if text.startswith(start)), "")


def _described(probed: Probed) -> str:
    return f"{probed.tokens}, {describe_base(probed.base)}"


def probed_units(units: Sequence[Unit], most: int | None) -> tuple[Unit, ...]:
    """The units worth a probe, in their order: all that may be quantized, or the largest of them."""
    possible = [unit for unit in units if not unit.keep_reason and coarse_format(unit)]
    if most is None or most >= len(possible):
        return tuple(possible)
    chosen = {unit.path for unit in sorted(possible, key=lambda unit: -unit.size)[:most]}
    return tuple(unit for unit in possible if unit.path in chosen)


def coarse_format(unit: Unit) -> Format | None:
    """The format that a unit is probed in; None when it admits none."""
    return next(iter(admissible(unit.shape, unit.dtype, COARSE)), None)


def _probes(
    source: Source, probing: Probing, units: Sequence[Unit], done: int, executor: Executor, on_progress: OnProgress
) -> Iterator[Probe]:
    total = done + len(units)
    prober = Prober(source, probing, on_progress)
    on_progress(Progress("probe", done, total, prober.estimate(units)))
    started = perf_counter()
    for count, (unit, found) in enumerate(executor(source, prober, units), start=1):
        seconds, started = perf_counter() - started, perf_counter()
        log.debug("unit.probed", unit=unit.path, kl=found.kl, alpha=found.alpha, seconds=round(seconds, 3))
        on_progress(Progress("probe", done + count, total, unit.path))
        yield found


class Prober:
    """A model in memory with what it predicts, ready to be asked about any of its units."""

    def __init__(self, source: Source, probing: Probing, on_progress: OnProgress) -> None:
        self._model = open_base(source, chosen_base(source, probing.base, probing.tokens))
        self._modules: dict[str, Module] = dict(self._model.named_modules())
        mx.eval(self._model.parameters())
        self._tokens = mx.array(_sequences(self._model, source.folder, probing, on_progress))
        self._replay = Replay(self._model, {layer_path(unit.path) for unit in source.units if unit.layer >= 0})
        started = perf_counter()
        with self._replay.recording():
            self._expected = self._logits()
        self._normalizer = mx.logsumexp(self._expected, axis=-1)
        self._probabilities = mx.exp(self._expected - self._normalizer[..., None])
        mx.eval(self._probabilities)
        self._seconds_of_all = perf_counter() - started
        self._check_replay()
        self._seconds_of_none = perf_counter() - started - self._seconds_of_all  # all replayed: only the output

    @property
    def replays(self) -> bool:
        """Whether layers before a change answer from memory."""
        return self._replay.share_before(None) > 0

    def compute_everything(self) -> None:
        """Replay no layer any more."""
        self._replay.forget()

    def estimate(self, units: Sequence[Unit]) -> str:
        """About how long these probes take, as people read it."""
        seconds = sum(
            self._seconds_of_none
            + (self._seconds_of_all - self._seconds_of_none) * (1 - self._replay.share_before(self._start(unit)))
            for unit in units
        )
        return f"about {seconds / 60:.0f} min" if seconds > 90 else f"about {seconds:.0f} s"

    def __call__(self, unit: Unit, weight: mx.array) -> Probe:
        """The probe of `unit`, whose evaluated weight is given."""
        format = coarse_format(unit)
        assert format
        coarse, error = _coarse(weight, format)
        module = self._modules[unit.path]
        kept = module.get("weight")  # none where it is held packed
        module["weight"] = coarse
        try:
            with self._replay.before(self._start(unit)):
                kls = self._kls()
        finally:
            if kept is None:
                module.pop("weight")
            else:
                module["weight"] = kept
        return Probe(unit.path, kls, error)

    def _start(self, unit: Unit) -> str | None:
        """The layer from which on a change of the unit can show; everything is computed for what lies outside."""
        return layer_path(unit.path) if unit.layer >= 0 else None if unit.role == "head" else ""

    def _kls(self) -> tuple[float, ...]:
        """(S,) the mean KL(expected || found) over the tokens of every sequence, in nats.

        sum_v p_v (log p_v - log q_v) = log Z_q - log Z_p - sum_v p_v (logit q_v - logit p_v): one exponential a logit.
        """
        found = self._logits()
        change = (self._probabilities[..., None, :] @ (found - self._expected)[..., None]).squeeze((-2, -1))
        kl = mx.logsumexp(found, axis=-1) - self._normalizer - change
        return tuple(np.asarray(kl, dtype=np.float64).mean(axis=-1).tolist())

    def _logits(self) -> mx.array:
        """(S, L, V) in float32."""
        logits = logits_of(self._model, self._tokens).astype(mx.float32)
        mx.eval(logits)
        return logits

    def _check_replay(self) -> None:
        """Replay only where that changes nothing."""
        if self._replay.possible:
            with self._replay.before(None):
                if max(map(abs, self._kls())) < _NOTHING:
                    return
        log.warning("layers.not_replayed", reason="they are not called once each in a row")
        self._replay.forget()


def _sequences(model: Module, folder: Path, probing: Probing, on_progress: OnProgress) -> Any:
    vocabulary = vocabulary_size(folder)
    if probing.written == OWN:
        size = Wanted(probing.sequences, probing.length)
        return own_sequences(model, folder, vocabulary, size, probing.seed, on_progress)
    random = np.random.default_rng(probing.seed)
    return random.integers(0, vocabulary, (probing.sequences, probing.length), dtype=np.int32)


def _coarse(weight: mx.array, format: Format) -> tuple[mx.array, float]:
    """The weight (..., R, C) as `format` stores it, in float32, and its squared relative error.

    Some rows at a time: beside the weight and the answer, next to nothing is held.
    """
    rows = weight.reshape(-1, weight.shape[-1])
    coarse = mx.zeros(rows.shape, mx.float32, stream=mx.cpu)  # written through numpy's view
    mx.eval(coarse)
    written = np.asarray(coarse)
    dequantize: Any = mx.dequantize  # its stub knows no unpacked arguments
    squared = energy = 0.0
    step = max(1, _BLOCK // rows.shape[-1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        stored = dequantize(*mx.quantize(block, **format.parameters()), **format.parameters(), dtype=mx.float32)
        wide = block.astype(mx.float32)
        squared += _total(mx.square(stored - wide))
        energy += _total(mx.square(wide))
        written[start : start + step] = np.asarray(stored)
    return coarse.reshape(weight.shape), squared / energy if energy else 0.0


def _total(values: mx.array) -> float:
    """The sum of many float32: of each row in float32, of the rows in float64."""
    return float(np.asarray(values.sum(axis=-1), dtype=np.float64).sum())
