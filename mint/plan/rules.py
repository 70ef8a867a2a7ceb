"""The limits of a plan: formats, bits, the veto, and locks (units whose format is set).

Patterns are shell patterns (`*` and `?`) that match the whole path of a unit: `model.layers.0.*`, `*.down_proj`.
A pattern that matches nothing is an error, and so are two patterns that set different formats for one unit. A lock
obeys the model's own floor, unless the rules ignore it. It overrides the veto and the floor of a role, because the
user asks for it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint.core.errors import MintError
from mint.core.files import read_json
from mint.formats.format import AFFINE, ITEMSIZE, KEEP, MXFP4, NVFP4, Format, known_formats, parse_format
from mint.formats.units import KEEP_BITS, Unit
from mint.model.roles import role_floor

if TYPE_CHECKING:
    from mint.analysis.analysis import Measurement


VETO_DB = 9.0  # the published floor: below it a matrix is mostly noise
MAX_BITS = 64  # no weight has more bits
NONFINITE = "weights are NaN or infinite"  # ends the reason to keep such a unit
LOSSLESS = 1e-7  # squared relative error: that of rounding to float16
# 4 bits of normal weights have a ratio of 21.7 dB, each bit has 6 dB; real weights have up to 2 dB less
OVERHEAD_DB = 4.5
# the limits that keep a format from a unit
VETO, FLOORS, LOCKS, BITS, FORMATS, OBJECTIVE = "veto", "floors", "locks", "bits", "formats", "objective"


def is_usually_vetoed(format: Format, veto_db: float) -> bool:
    """True if usual weights have a lower ratio in this format than the veto permits."""
    return 10 * log10(4) * format.bits - OVERHEAD_DB < veto_db


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of what an allocation may choose."""

    veto_db: float = VETO_DB
    min_bits: int = 0
    max_bits: int = MAX_BITS
    formats: tuple[Format, ...] = ()  # empty: the formats of the objective
    locks: tuple[tuple[str, Format], ...] = ()  # pattern, format
    ignored_floors: tuple[str, ...] = ()  # patterns of units whose floor, of the model or the role, does not count

    def permits(self, format: Format, default: Sequence[Format]) -> bool:
        """True for a format within the limits of bits and among the rules' formats, or `default` if they name none."""
        return format in (self.formats or default) and self.min_bits <= format.bits <= self.max_bits

    def permits_lossless(self, format: Format) -> bool:
        """True for a format that may store a unit without loss: few bits and the objective's formats do not matter."""
        return format.bits <= self.max_bits and (not self.formats or format in self.formats)

    def permits_keep(self, dtype: str) -> bool:
        """True if a weight of this dtype may stay as it is although a format fits it."""
        return 8 * ITEMSIZE[dtype] <= self.max_bits

    def without(self, limit: str) -> Rules:
        """The rules with one limit relaxed."""
        relaxed: dict[str, dict[str, Any]] = {
            VETO: {"veto_db": -inf},
            FLOORS: {"ignored_floors": ("*",)},
            LOCKS: {"locks": ()},
            BITS: {"min_bits": 0},
            FORMATS: {"formats": (*AFFINE, MXFP4, NVFP4)},
            OBJECTIVE: {"formats": (*AFFINE, MXFP4, NVFP4)},
        }
        return replace(self, **relaxed[limit])

    def named(self, limit: str) -> str:
        """A limit in words, with the options that move it."""
        words = {
            VETO: f"the veto of {self.veto_db:g} dB (--veto)",
            FLOORS: "the floors of the model or of roles (--ignore-floors)",
            LOCKS: "the formats set or kept (--set, --keep, --locks)",
            BITS: f"--min-bits {self.min_bits}",
            FORMATS: "the chosen formats (--formats, --compat)",
            OBJECTIVE: "the objective's formats (--formats)",
        }
        return words[limit]

    def to_dict(self) -> dict[str, Any]:
        """The rules as the JSON of a plan."""
        names = [str(format) for format in self.formats]
        locks = [[pattern, str(format)] for pattern, format in self.locks]
        return {**asdict(self), "formats": names, "locks": locks, "ignored_floors": list(self.ignored_floors)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Rules:
        """The rules in the JSON of a plan."""
        return cls(
            veto_db=float(record["veto_db"]),
            min_bits=int(record["min_bits"]),
            max_bits=int(record["max_bits"]),
            formats=tuple(map(parse_format, record["formats"])),
            locks=tuple((pattern, parse_format(name)) for pattern, name in record["locks"]),
            ignored_floors=tuple(map(str, record["ignored_floors"])),
        )


@dataclass(frozen=True, slots=True)
class Allowed:
    """The formats that a unit may have, the measured formats under the veto, and the reason."""

    formats: tuple[Format, ...]
    vetoed: tuple[Format, ...]
    reason: str


class Allowance:
    """Rules applied to the units of one model; `MintError` for rules that contradict each other or match nothing.

    A unit has the floor of the model's own rule or that of its role, whichever has more bits; the latter binds no
    unit in `measured`. Units of one kind with the same vetoes share one `Allowed`: a large model has few kinds.
    """

    def __init__(
        self, rules: Rules, units: Sequence[Unit], formats: Sequence[Format], measured: Collection[str] = ()
    ) -> None:
        self._measured = measured
        self._rules = rules
        self._locks = _locks(rules.locks, units)
        paths = [unit.path for unit in units]
        self._floorless = {path for pattern in rules.ignored_floors for path in matching(pattern, paths)}
        self._max_error = 10 ** (-rules.veto_db / 10)  # a squared relative error
        candidates = rules.formats or formats
        self._formats = {format for format in candidates if rules.permits(format, candidates)}
        if not self._formats:
            raise MintError(
                f"no format has from {rules.min_bits} to {rules.max_bits} bits among "
                f"{', '.join(map(str, candidates))}; widen --min-bits, --max-bits, --formats or --compat"
            )
        self._kinds: dict[tuple[int, int, str, str, tuple[bool, ...], tuple[Format, ...]], Allowed] = {}

    def floor(self, unit: Unit) -> int:
        """The fewest bits that the model or the unit's role asks for, unless the rules ignore that."""
        if unit.path in self._floorless:
            return 0
        return max(unit.min_bits, 0 if unit.path in self._measured else role_floor(unit.role))

    def _own_floor(self, unit: Unit) -> int:
        return 0 if unit.path in self._floorless else unit.min_bits

    def keeps(self, unit: Unit) -> bool:
        """True for a unit that stays as it is: by its nature, or since the model's class does not quantize it."""
        return bool(unit.stays) or self._own_floor(unit) >= KEEP_BITS

    def binding(self, unit: Unit, format: Format) -> str:
        """The limit that keeps a measured format from a unit."""
        if unit.path in self._locks:
            return LOCKS
        if format.bits < self.floor(unit):
            return FLOORS
        if format not in self._formats:
            return BITS if format.bits < self._rules.min_bits else FORMATS if self._rules.formats else OBJECTIVE
        return VETO

    def of(self, unit: Unit, measurement: Measurement) -> Allowed:
        """The formats that may be chosen for a measured unit."""
        keep_reason = _keep_reason(unit, measurement)
        if unit.path in self._locks:
            return self._locked(unit, keep_reason)
        if keep_reason or self.keeps(unit):
            return Allowed((KEEP,), (), f"kept: {keep_reason or unit.kept}")
        limit = self._max_error
        vetoes = tuple([worst > limit for worst in measurement.worst_errors])
        lossless = self._lossless(measurement)
        floored = unit.role if self.floor(unit) > self._own_floor(unit) else ""
        kind = (id(measurement.formats), self.floor(unit), floored, unit.dtype, vetoes, lossless)
        if kind not in self._kinds:
            vetoed = tuple(format for format, veto in zip(measurement.formats, vetoes, strict=True) if veto)
            self._kinds[kind] = self._of_kind(unit, measurement.formats, vetoed, lossless)
        return self._kinds[kind]

    def conceivable(self, unit: Unit) -> tuple[Format, ...]:
        """The formats that a unit might get, before it is measured; raises `MintError` for an impossible lock."""
        if unit.path in self._locks:
            return self._locked(unit, unit.stays).formats
        formats = tuple(format for format in unit.formats if format != KEEP and self._rules.permits_lossless(format))
        return (KEEP,) if self.keeps(unit) else (*formats, KEEP)

    def expected(self, unit: Unit) -> tuple[Format, ...]:
        """The formats that a unit of usual weights gets under the veto; raises `MintError` for an impossible lock."""
        if unit.path in self._locks or self.keeps(unit):
            return self.conceivable(unit)
        formats = tuple(
            format
            for format in unit.formats
            if format in self._formats
            and format.bits >= self.floor(unit)
            and not is_usually_vetoed(format, self._rules.veto_db)
        )
        return (*formats, KEEP) if self._rules.permits_keep(unit.dtype) or not formats else formats

    def _lossless(self, measurement: Measurement) -> tuple[Format, ...]:
        """The formats that store a unit without loss and are not ruled out by name."""
        if min(measurement.worst_errors) > LOSSLESS:
            return ()
        pairs = zip(measurement.formats, measurement.worst_errors, strict=True)
        return tuple(format for format, error in pairs if error <= LOSSLESS and self._rules.permits_lossless(format))

    def _of_kind(
        self, unit: Unit, measured: Sequence[Format], vetoed: tuple[Format, ...], lossless: tuple[Format, ...]
    ) -> Allowed:
        possible = [
            format
            for format in measured
            if (format in self._formats and format.bits >= self.floor(unit)) or format in lossless
        ]
        safe = [format for format in possible if format not in vetoed]
        floor = f"below {self._rules.veto_db:g} dB"
        if not safe:
            bits = f" in {self.floor(unit)} bits or more" if self.floor(unit) else ""
            reason = (
                f"every format is {floor}" if possible else f"none of the formats that the rules leave fits it{bits}"
            )
            return Allowed((KEEP,), vetoed, f"kept: {reason}")
        keep = (KEEP,) if self._rules.permits_keep(unit.dtype) else ()
        reason = "least loss"
        if self.floor(unit):
            origin = "the model's own rule" if self.floor(unit) == self._own_floor(unit) else f"unprobed {unit.role}"
            reason += f"; at least {self.floor(unit)} bits ({origin})"
        if lossless:
            reason += f"; {', '.join(map(str, lossless))} without loss"
        if len(safe) < len(possible):
            reason += f"; {len(possible) - len(safe)} formats {floor}"
        return Allowed((*safe, *keep), vetoed, reason)

    def _locked(self, unit: Unit, keep_reason: str) -> Allowed:
        pattern, format = self._locks[unit.path]
        if format == KEEP:
            return Allowed((KEEP,), (), f"kept: asked for by {pattern}")
        if keep_reason:
            obstacle = f"it must be kept ({keep_reason}); narrow the pattern"
        elif not format.admits(unit.shape, unit.dtype):
            needed = ", ".join(map(str, unit.formats))
            obstacle = f"that does not divide its last axis of {unit.shape[-1]}; needed one of {needed}"
        elif format.bits < self._own_floor(unit):
            floor = f"the model itself asks for at least {unit.min_bits} bits"
            obstacle = f"{floor}; narrow the pattern, give more bits, or ignore its floor with --ignore-floors"
        else:
            return Allowed((format,), (), f"set to {format} by {pattern}")
        raise MintError(f"{pattern} sets {unit.path} to {format}, but {obstacle}")


def _keep_reason(unit: Unit, measurement: Measurement) -> str:
    if measurement.nonfinite:
        return f"{measurement.nonfinite} {NONFINITE}"
    return unit.stays


def _locks(locks: Sequence[tuple[str, Format]], units: Sequence[Unit]) -> dict[str, tuple[str, Format]]:
    """Pattern and format of every locked unit, by path."""
    by_path: dict[str, tuple[str, Format]] = {}
    for pattern, format in locks:
        for path in matching(pattern, [unit.path for unit in units]):
            first, set_format = by_path.setdefault(path, (pattern, format))
            if set_format != format:
                raise MintError(
                    f"{path} is set to {set_format} by {first} and to {format} by {pattern}; make the patterns disjoint"
                )
    return by_path


def matching(pattern: str, paths: Sequence[str]) -> list[str]:
    """The paths that match a pattern; `MintError` if none does."""
    match = re.compile(fnmatch.translate(pattern)).match
    matches = [path for path in paths if match(path)]
    if not matches:
        examples = ", ".join(paths[: len(paths) // 2 + 1 : max(1, len(paths) // 2)])
        raise MintError(f"{pattern!r} matches no unit; needed a path, or a pattern of paths, such as {examples}")
    return matches


def parse_formats(terms: Iterable[str]) -> tuple[Format, ...]:
    """The formats of terms such as `3,4,8@64,128` (bits at group sizes), `4` (all its groups) or `mxfp4,4/32`."""
    formats: set[Format] = set()
    for term in terms:
        names, at, groups = term.partition("@")
        for name in filter(None, (part.strip() for part in names.split(","))):
            if name.isascii() and name.isdecimal():
                formats |= _affine(term, int(name), {group.strip() for group in groups.split(",")} if at else set())
            elif at:
                raise MintError(f"{term!r}: {name!r} is not a number of bits; needed bits, such as 3,4,8@64,128")
            else:
                formats.add(parse_format(name))
    return tuple(format for format in known_formats() if format in formats)


def _affine(term: str, bits: int, groups: set[str]) -> set[Format]:
    formats = {format for format in AFFINE if format.bits == bits and (not groups or str(format.group_size) in groups)}
    if not formats or len(formats) < len(groups):
        bit_widths, sizes = (sorted({getattr(format, name) for format in AFFINE}) for name in ("bits", "group_size"))
        raise MintError(f"{term!r}: no such formats; MLX has {bit_widths} bits at groups of {sizes}")
    return formats


def parse_lock(text: str) -> tuple[str, Format]:
    """The pattern and the format of `PATTERN=FORMAT`."""
    pattern, _, name = text.rpartition("=")
    if not pattern:
        raise MintError(f"{text!r}: found no format; needed PATTERN=FORMAT, such as '*.down_proj=6/64'")
    return pattern, parse_format(name)


def read_locks(path: Path) -> tuple[str, ...]:
    """The locks of a JSON file, an object of patterns and formats, each as `PATTERN=FORMAT`."""
    example = '{"*.v_proj": "8/64", "lm_head": "keep"}'
    try:
        record = read_json(path, f"needed JSON like {example}")
    except OSError as error:
        raise MintError(f"{path}: {error.strerror}; needed JSON like {example}") from error
    if not isinstance(record, dict) or not all(isinstance(name, str) for name in record.values()):
        raise MintError(f"{path}: not a set of locks; needed JSON like {example}")
    return tuple(f"{pattern}={parse_format(name)}" for pattern, name in record.items())
