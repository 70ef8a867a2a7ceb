"""Makes single probes (see `probe.py`): a model in memory, and any of its units stored coarsely alone.

A probe runs the whole model on the tokens, so its node needs both: the jobs prepare them where an executor puts them.
"""

# S sequences, L tokens, V vocabulary

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, astuple, dataclass, field
from functools import partial
from itertools import repeat
from time import perf_counter
from typing import Any, Self

import mlx.core as mx
import msgpack
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module

from mint.analysis.probes.packed_base import AUTO, BASES, chosen_base, needed_bytes, open_base
from mint.analysis.probes.packed_weight import PackedWeight, Parts
from mint.analysis.probes.probe_file import FULL, Probe
from mint.analysis.probes.replay import Replay
from mint.core.errors import MintError
from mint.core.log import log
from mint.core.progress import OnProgress, Progress, ignore
from mint.formats.format import Format, admissible, parse_format
from mint.formats.units import Unit
from mint.kernels.oracle import pack
from mint.kernels.storage import numpy_view
from mint.model.hooks import hooked
from mint.model.passes.logits import logits_of
from mint.model.roles import layer_path
from mint.model.source import Source
from mint.quality.divergence import Tokens
from mint.quality.forward import fusing_nothing, vocabulary_size
from mint.quality.sequences import TextSize, own_sequences
from mint.run.job import BlockJob, Blocks, PortableJob

OWN, RANDOM = "own", "random"
COARSE = tuple(map(parse_format, ("3/64", "3/32", "3/128", "4/32", "mxfp4", "nvfp4")))  # the first that a unit admits
SEQUENCES, LENGTH = 8, 64
_BLOCK = 1 << 22  # weights that are made coarse at once
_NOTHING = 1e-6  # KL per token of a replay that changes nothing: float32 noise


@dataclass(frozen=True, slots=True)
class Probing:
    """The input of the model: its origin (`own` or `random`), number and length of the sequences, and the seed.

    `most` limits the probes to the largest units. `base` is the storage of all other units: `full`, the bits of a
    smaller base, or `auto` for the largest that fits in this machine's memory.
    """

    written: str = OWN
    sequences: int = SEQUENCES
    length: int = LENGTH
    seed: int = 0
    most: int | None = None
    base: str = AUTO

    def __str__(self) -> str:
        origin = "written by the model" if self.written == OWN else "drawn at random"
        return f"{self.sequences} x {self.length} tokens {origin}, seed {self.seed}"

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    def check(self) -> None:
        """Raise `MintError` for impossible settings."""
        if self.written not in (OWN, RANDOM):
            raise MintError(f"{self.written!r} writes no tokens; needed {OWN} or {RANDOM}")
        if self.sequences < 1 or self.length < 2:
            raise MintError(f"{self.sequences} x {self.length} tokens; needed 1 sequence or more of 2 tokens or more")
        if self.base not in (AUTO, FULL, *BASES):
            raise MintError(f"{self.base!r} is not a base; needed one of: {', '.join((AUTO, FULL, *BASES))}")
        if self.most is not None and self.most < 1:
            raise MintError(f"{self.most} probes; needed 1 or more")


# before a compensation: plans for two small models were as close as with four times the tokens (docs/benchmarks.md)
BRIEF = Probing(sequences=2)


def coarse_format(unit: Unit) -> Format | None:
    """The format of a unit's probe; None if it admits none."""
    return next(iter(admissible(unit.shape, unit.dtype, COARSE)), None)


@dataclass(eq=False)
class TextJob(PortableJob[Tokens]):
    """The tokens (S, L) of all probes: the model is opened where the job runs, and writes them once.

    Every sequence begins with `prefix`. `model` and `tokens` are used if given.
    """

    name = "text"
    whole_model = True
    source: Source
    probing: Probing
    prefix: Sequence[int]
    _: KW_ONLY
    model: Module | None = None
    tokens: Tokens | None = None
    on_progress: OnProgress = ignore

    def ready(self, units: Sequence[Unit]) -> None:
        """Open the model and write the tokens, before the weights of `units` take memory."""
        with fusing_nothing():
            self.opened()
            self.written()

    def opened(self) -> Module:
        """The model, in memory."""
        if self.model is None:
            self.model = open_base(self.source, chosen_base(self.source, self.probing.base, self.probing.tokens))
            mx.eval(self.model.parameters())
        return self.model

    def written(self) -> Tokens:
        """The tokens: written by the model, or drawn at random."""
        if self.tokens is None:
            probing, vocabulary = self.probing, vocabulary_size(self.source.folder, self.source.loader)
            size = TextSize(probing.sequences, probing.length)
            if probing.written == OWN:
                model = self.opened()
                self.tokens = own_sequences(
                    repeat(model), self.prefix, vocabulary, size, probing.seed, self.on_progress
                )
            else:
                random = np.random.default_rng(probing.seed)
                self.tokens = random.integers(0, vocabulary, astuple(size), dtype=np.int32)
        return self.tokens

    def __call__(self, unit: Unit, weight: mx.array) -> Tokens:
        """The tokens, whatever the unit."""
        return self.written()

    def to_dict(self) -> dict[str, Any]:
        tokens = {} if self.tokens is None else {"tokens": b"".join(self.encode(self.tokens))}
        return {"probing": asdict(self.probing), "prefix": list(self.prefix), **tokens}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Source) -> Self:
        job = cls(source, Probing(**fields["probing"]), fields["prefix"])
        if "tokens" in fields:
            job.tokens = job.decode(None, fields["tokens"])
        return job

    def prepare(self, previous: PortableJob[Any] | None) -> None:
        """Take over the model of the previous job if that is the same: opening a large one takes long."""
        text = previous.text if isinstance(previous, ProbeJob) else previous
        if isinstance(text, TextJob) and text._opens() == self._opens():
            self.model = text.model

    def _opens(self) -> tuple[str, str, str, str]:
        """The model of this job and its base."""
        return self.source.identity, self.source.dtype, self.source.loader, self.probing.base

    def encode(self, result: Tokens) -> Iterable[bytes]:
        """The tokens row by row, as little-endian int32."""
        return (result.astype("<i4").tobytes(),)

    def decode(self, unit: Unit | None, data: bytes | memoryview) -> Tokens:
        return np.frombuffer(data, "<i4").reshape(self.probing.sequences, self.probing.length)

    def memory_bytes(self, source: Source) -> int:
        return needed_bytes(source, self.probing.base, self.probing.tokens)


@dataclass(eq=False)
class ProbeJob(BlockJob[Probe], PortableJob[Probe]):
    """The probe of a unit, on the model and the tokens of `text`; `done` counts earlier probes, for progress."""

    name = "probe"
    whole_model = True

    text: TextJob
    done: int = 0
    _prober: "Prober | None" = field(default=None, init=False)

    def ready(self, units: Sequence[Unit]) -> None:
        """Write the text and compute the expected output, before the weights of `units` take memory."""
        if self._prober is None:
            with fusing_nothing():
                self._prober = Prober(self.text.source, self.text.opened(), self.text.written())
            total = self.done + len(units)
            self.text.on_progress(Progress("probe", self.done, total, self._prober.estimate(units)))

    def of_blocks(self, unit: Unit, blocks: Blocks) -> Probe:
        """The probe of `unit`, whose weight comes in `blocks`."""
        assert self._prober is not None, "get ready first"
        with fusing_nothing():
            return self._prober.of_blocks(unit, blocks)

    def to_dict(self) -> dict[str, Any]:
        assert self.text.tokens is not None, "write the text first: all nodes probe on the same"
        return self.text.to_dict()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Source) -> Self:
        return cls(TextJob.from_dict(fields, source))

    def prepare(self, previous: PortableJob[Any] | None) -> None:
        self.text.prepare(previous)

    def encode(self, result: Probe) -> Iterable[bytes]:
        return (msgpack.packb(asdict(result)),)

    def decode(self, unit: Unit, data: memoryview) -> Probe:
        return Probe.from_record(msgpack.unpackb(data))

    def memory_bytes(self, source: Source) -> int:
        return self.text.memory_bytes(source)


class Prober(BlockJob[Probe]):
    """A model in memory, its output on `tokens`, and the probes of its units."""

    def __init__(self, source: Source, model: Module, tokens: Tokens) -> None:
        self._model, self._tokens = model, mx.array(tokens)
        self._modules: dict[str, Module] = dict(model.named_modules())
        layers = {layer_path(unit.path) for unit in source.units if unit.layer >= 0}
        self._replay = Replay(model, layers, self._tokens)
        started = perf_counter()
        with self._replay.recording():
            self._expected = self._logits()
        self._normalizer = mx.logsumexp(self._expected, axis=-1)
        self._probabilities = mx.exp(self._expected - self._normalizer[..., None])
        mx.eval(self._probabilities)
        computed = perf_counter()
        self._check_replay()
        # of a pass that computes all layers, and of one that replays them all
        self._seconds = computed - started, perf_counter() - computed

    def estimate(self, units: Sequence[Unit]) -> str:
        """The approximate time of these probes, in words."""
        computed, replayed = self._seconds
        shares = [1 - self._replay.share_before(self._start(unit)) for unit in units]
        seconds = sum(replayed + (computed - replayed) * share for share in shares)
        return f"about {seconds / 60:.0f} min" if seconds > 90 else f"about {seconds:.0f} s"

    def of_blocks(self, unit: Unit, blocks: Blocks) -> Probe:
        """The probe of `unit`, whose weight comes in `blocks`."""
        format = coarse_format(unit)
        assert format
        coarse, error = _coarse(unit, blocks, format)
        with hooked(self._modules, {unit.path: coarse.call}), self._replay.before(self._start(unit)):
            return Probe(unit.path, self._kls(), error)

    def _start(self, unit: Unit) -> str | None:
        """The first layer that a change of the unit affects; None for none (head), "" for all (other outer units)."""
        return layer_path(unit.path) if unit.layer >= 0 else None if unit.role == "head" else ""

    def _kls(self) -> tuple[float, ...]:
        """(S,) the mean KL(expected || logits) over the tokens of every sequence, in nats.

        sum_v p_v (log p_v - log q_v) = log Z_q - log Z_p - sum_v p_v (logit q_v - logit p_v): one exponential a logit.
        """
        logits = self._logits()
        change = (self._probabilities[..., None, :] @ (logits - self._expected)[..., None]).squeeze((-2, -1))
        kl = mx.logsumexp(logits, axis=-1) - self._normalizer - change
        return tuple(numpy_view(kl).astype(np.float64).mean(axis=-1).tolist())

    def _logits(self) -> mx.array:
        """(S, L, V) in float32."""
        logits = logits_of(self._model, self._tokens).astype(mx.float32)
        mx.eval(logits)
        return logits

    def _check_replay(self) -> None:
        """Replay only if that changes nothing: neither all calls, nor all but the last layer's."""
        for path in (None, *self._replay.order[-1:]):
            with self._replay.before(path):
                if max(map(abs, self._kls())) >= _NOTHING:
                    log.warning("layers.not_replayed", reason="replaying them changes the output")
                    self._replay.forget()
                    return


def _coarse(unit: Unit, blocks: Blocks, format: Format) -> tuple[PackedWeight, float]:
    """The weight (..., R, C) as `format` stores it, and its squared relative error.

    Sums are in float32 within a row and in float64 over rows, in an order that no division into blocks changes.
    """
    columns = unit.shape[-1]
    step = max(1, _BLOCK // columns)
    unpack = partial(_unpacked, format)
    packed, squares, energies = [], [], []
    for block in blocks():
        parts = []
        for rows in mx.split(block.reshape(-1, columns), list(range(step, block.size // columns, step))):
            parts.append(pack(rows, format))
            wide = rows.astype(mx.float32)
            squares.append(_row_sums(mx.square(unpack(parts[-1]) - wide)))
            energies.append(_row_sums(mx.square(wide)))
        joined = (mx.concatenate(list(pieces)) for pieces in zip(*parts, strict=True))
        packed.append(tuple(part.reshape(-1, *unit.shape[1:-1], part.shape[-1]) for part in joined))
        mx.eval(packed[-1])
    squared, energy = (_total(sums, step) for sums in (squares, energies))
    return PackedWeight(tuple(packed), unpack), squared / energy if energy else 0.0


def _unpacked(format: Format, parts: Parts) -> mx.array:
    dequantize: Any = mx.dequantize  # its stub knows no unpacked arguments
    weight: mx.array = dequantize(*parts, **format.parameters(), dtype=mx.float32)
    return weight


def _row_sums(values: mx.array) -> npt.NDArray[np.float64]:
    """The sums of rows (N, C), each in float32."""
    return numpy_view(values.sum(axis=-1)).astype(np.float64)


def _total(sums: Sequence[npt.NDArray[np.float64]], step: int) -> float:
    """The sum of the sums of rows, `step` rows at a time."""
    rows = np.concatenate(sums)
    return sum(float(rows[start : start + step].sum()) for start in range(0, len(rows), step))
