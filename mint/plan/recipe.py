"""The request: a `Recipe` for a model, and a `Budget` for its size.

The command line, the service, its page, its client and Python all build these records. Every default stands here, or is
a name from the room that owns it. A record is checked once, when it is made. This file imports nothing heavy, and the
tables of devices and loaders only for a record that names one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType
from typing import TYPE_CHECKING, Any, Self

from mint.core.errors import MintError
from mint.core.sizes import MAX_SHARD_BYTES, Amount, parse_budget, parse_size, parse_tokens
from mint.formats.format import Format
from mint.formats.rounding import DEFAULT_ROUNDING, ROUNDINGS, parse_rounding
from mint.plan.objectives import objective
from mint.plan.rules import MAX_BITS, VETO_DB, Rules, parse_formats, parse_lock

if TYPE_CHECKING:
    from mint.analysis.analysis import Analysis
    from mint.analysis.probes.probe_file import Probed
    from mint.plan.problem import Problem

DTYPES = ("float16", "bfloat16", "float32")  # for mlx_lm to cast to
LOADERS = TEXT, VISION = "mlx_lm", "mlx_vlm"  # packages of model classes: for text alone, and with towers
# of a recipe; they decide what is measured
ANALYSIS_FIELDS = ("rounding", "dtype", "loader", "requantize", "probe")
_KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "a list of texts",
    NoneType: "a whole number or nothing",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Plain:
    """A record whose fields are plain values with defaults."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Read plain values, defaults for the rest. Raises `MintError` for an unknown key or a wrong type."""
        defaults = {field.name: field.default for field in fields(cls)}
        if unknown := sorted(set(record) - set(defaults)):
            raise MintError(f"unknown options: {', '.join(unknown)}; needed some of {', '.join(defaults)}")
        return cls(**{name: _value(name, value, defaults[name]) for name, value in record.items()})


@dataclass(frozen=True, slots=True)
class Recipe(_Plain):
    """The requested model, for any budget. Raises `MintError` for a value that no model can have."""

    rounding: str = DEFAULT_ROUNDING
    dtype: str = ""  # empty: the config's own
    loader: str = ""  # TEXT or VISION; empty: towers are kept if mlx_vlm is installed and knows the model
    requantize: bool = False  # accept a model that MLX has quantized
    probe: bool = False  # measure the sensitivities first
    objective: str = "output"
    veto_db: float = VETO_DB
    min_bits: int = 0
    max_bits: int = MAX_BITS
    formats: tuple[str, ...] = ()  # terms such as 3,4,8@64; empty: those of the objective
    lock: tuple[str, ...] = ()  # PATTERN=FORMAT
    ignore_floors: tuple[str, ...] = ()  # patterns of units whose floor, set by the model itself, does not count
    compat: str = ""  # a loader; empty: the current mlx_lm
    prefer_speed: float = 0.0
    ignore_probe: bool = False
    max_shard_size: str = f"{MAX_SHARD_BYTES >> 30}GiB"

    def __post_init__(self) -> None:
        for name in ("formats", "lock", "ignore_floors"):
            if isinstance(getattr(self, name), str):  # it would be taken for a list of its letters
                raise MintError(f"{name} is a text; needed: a list of texts, such as [{getattr(self, name)!r}]")
        parse_rounding(self.rounding)
        if self.dtype not in ("", *DTYPES):
            raise MintError(f"dtype {self.dtype!r}; needed {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
        if self.loader not in ("", *LOADERS):
            raise MintError(f"loader {self.loader!r}; needed {TEXT} (text only) or {VISION} (with towers)")
        if self.prefer_speed < 0:
            raise MintError(f"prefer_speed {self.prefer_speed:g} is negative; needed 0 or more")
        objective(self.objective)
        parse_size(self.max_shard_size)
        _ = self.rules

    @property
    def rules(self) -> Rules:
        """The limits of what a plan may choose."""
        locks = tuple(map(parse_lock, self.lock))
        return Rules(self.veto_db, self.min_bits, self.max_bits, self._formats(), locks, self.ignore_floors)

    def _formats(self) -> tuple[Format, ...]:
        formats = parse_formats(self.formats)
        if not self.compat:
            return formats
        from mint.targets.loaders import compatible_formats, loader

        if not loader(self.compat).mixed:
            raise MintError(
                f"--compat {self.compat}: that loader reads one format for all modules, so no plan of several; "
                "needed a newer one (mint devices --loaders), or mlx_lm.convert for a uniform model"
            )
        readable = compatible_formats(self.compat)
        formats = tuple(format for format in formats or objective(self.objective).formats if format in readable)
        if not formats:
            raise MintError(f"--compat {self.compat} reads none of the requested formats; widen --formats")
        return formats

    @property
    def opening(self) -> dict[str, Any]:
        """The options of `open_source` that it decides."""
        return {"dtype": self.dtype, "loader": self.loader, "requantize": self.requantize}

    @property
    def analysis(self) -> "Recipe":
        """The part that decides what is measured, defaults for the rest."""
        return Recipe(**{name: getattr(self, name) for name in ANALYSIS_FIELDS})

    def problem(self, analysis: "Analysis", probed: "Probed | None" = None) -> "Problem":
        """The choices for a model, by its analysis and its probes."""
        from mint.plan.problem import Problem

        return Problem(
            analysis,
            objective(self.objective),
            self.rules,
            probed=None if self.ignore_probe else probed,
            prefer_speed=self.prefer_speed,
            max_shard_bytes=parse_size(self.max_shard_size),
        )

    @property
    def probes_unasked(self) -> bool:
        """True if probes are worth their time though nobody asks for them: the rounding runs the model anyway."""
        return objective(self.objective).probes and not self.ignore_probe and ROUNDINGS[self.rounding].needs_model


@dataclass(frozen=True, slots=True)
class Room(_Plain):
    """Memory of a device that is not for weights: the cache of a context, and a reserve for everything else."""

    context: str = "8k"  # tokens
    kv_bits: int | None = None  # of a quantized cache
    reserve: str = "1GB"  # or 0

    def __post_init__(self) -> None:
        _ = self.tokens, self.reserve_bytes

    @property
    def tokens(self) -> int:
        """The longest context that has to fit."""
        return parse_tokens(self.context)

    @property
    def reserve_bytes(self) -> int:
        """Bytes for everything but weights and cache."""
        return 0 if self.reserve.strip() == "0" else parse_size(self.reserve)


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory for a model's weight files: an amount, or what the device `device` leaves beside `room`.

    Raises `MintError` for an unknown device, and unless exactly one of the two is given.
    """

    amount: Amount | None = None
    device: str = ""
    room: Room = Room()

    def __post_init__(self) -> None:
        if bool(self.amount) == bool(self.device):
            raise MintError(f"found {self.amount} and the device {self.device!r}; needed an amount or a device")
        if self.device:
            from mint.targets.devices import device as device_named

            device_named(self.device)

    @classmethod
    def of(cls, budget: "int | str | Budget") -> "Budget":
        """A budget from bytes, or from text such as `18GB`, `4.5bpw`, `0.3x`, `min` or `max`."""
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, int):
            return cls(Amount.of_bytes(budget))
        if not isinstance(budget, str):
            raise MintError(f"{budget!r} is no budget; needed a whole number of bytes, or a text such as 4.5bpw or 6GB")
        try:
            return cls(parse_budget(budget))
        except MintError as error:
            from mint.targets.devices import devices

            if budget in {device.name for device in devices()}:
                raise MintError(f"{budget} is a device; needed: --device {budget}") from error
            raise

    def __str__(self) -> str:
        return str(self.amount or self.device)

    def nbytes(self, problem: "Problem") -> int:
        """Bytes that the weight files of a model may take; `MintError` for a device that is too small for it."""
        if self.amount is None:
            from mint.plan.device_fit import room_for_weights
            from mint.targets.devices import device as device_named

            return room_for_weights(problem, device_named(self.device), self.room)
        if self.amount.unit == "min":
            return problem.smallest_bytes
        if self.amount.unit == "max":
            return problem.largest_bytes
        return self.amount.nbytes(problem.weights, problem.analysis.source_nbytes)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, as JSON has them."""
        return {"amount": str(self.amount or ""), "device": self.device, **self.room.to_dict()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The budget of plain values. Raises `MintError` naming a key that is wrong."""
        own = {name: _value(name, record[name], "") for name in ("amount", "device") if name in record}
        room = Room.from_dict({name: value for name, value in record.items() if name not in own})
        return cls(parse_budget(own["amount"]) if own.get("amount") else None, own.get("device", ""), room)


def _value(name: str, value: Any, default: Any) -> Any:
    """A value of the type of its default."""
    if isinstance(default, tuple) and isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        return tuple(value)
    if isinstance(default, float) and type(value) in (int, float):
        return float(value)
    if type(value) is type(default) or (default is None and type(value) is int):
        return value
    raise MintError(f"{name}: found {value!r}, needed {_KINDS[type(default)]}")
