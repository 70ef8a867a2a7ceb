"""What the options and the budget of a wish mean: the same for the runner that makes a model and for a plan before it.

Only options that differ from their defaults, and that matter to what is asked for, are part of a wish: who writes a
default out asks for the same thing as who does not.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from mint.core.errors import MintError
from mint.core.sizes import UNITS, parse_budget, parse_size, parse_tokens
from mint.formats.rounding import parse_rounding
from mint.targets.devices import DEVICES, device

if TYPE_CHECKING:
    from mint.analysis.analysis import Analysis
    from mint.analysis.probes.probe_file import Probed
    from mint.cli.options import Wishes
    from mint.plan.problem import Problem

ANALYSIS: dict[str, Any] = {"rounding": "nearest", "dtype": "", "probe": False}
RULES: dict[str, Any] = {
    "objective": "output",
    "veto_db": 9.0,
    "min_bits": 0,
    "max_bits": 64,
    "formats": [],  # as of --formats
    "lock": [],  # PATTERN=FORMAT
    "compat": "",
    "prefer_speed": 0.0,
    "ignore_probe": False,
    "max_shard_size": "5GiB",
}
ROOM: dict[str, Any] = {"context": "8k", "kv_bits": None, "reserve": "1GB"}  # of a device
DEFAULTS: dict[str, Any] = {**ANALYSIS, **RULES, **ROOM}
DEVICE_NAMES = frozenset(each.name for each in DEVICES)
_GROWTH = 4
DTYPES = ("", "float16", "bfloat16", "float32")


def checked_options(budget: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say something about this budget; raises `MintError` for one that nothing could be made of."""
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise MintError(f"unknown options: {', '.join(unknown)}; needed some of {', '.join(DEFAULTS)}")
    matters = {**ANALYSIS, **(RULES if budget else {}), **(ROOM if budget in DEVICE_NAMES else {})}
    wanted = {name: value for name, value in options.items() if name in matters and value != DEFAULTS[name]}
    parse_rounding(option(wanted, "rounding"))
    if option(wanted, "dtype") not in DTYPES:
        raise MintError(f"dtype {option(wanted, 'dtype')!r}; needed float16, bfloat16 or float32")
    if wanted.keys() & {"formats", "lock", "compat"}:
        _wishes(wanted).rules()  # not always: the rules of formats need numpy, which a server else does without
    if budget:
        parse_size(option(wanted, "max_shard_size"))
    if budget in DEVICE_NAMES:
        parse_tokens(option(wanted, "context"))
        if option(wanted, "reserve").strip() != "0":
            parse_size(option(wanted, "reserve"))
    return wanted


def option(options: Mapping[str, Any], name: str) -> Any:
    """The value of an option, or its default."""
    return options.get(name, DEFAULTS[name])


def checked_budget(text: str) -> str:
    """The one way to write a budget or the name of a device: 4000MB and 4 GB are both 4GB."""
    text = text.strip()
    if text in DEVICE_NAMES:
        return text
    budget = parse_budget(text)
    if budget.unit == "B":
        return min((_written(int(budget.amount), unit) for unit in reversed(UNITS)), key=len)
    return budget.unit if budget.unit in ("min", "max") else f"{_plain(budget.amount)}{budget.unit}"


def most_bytes(budget: str, source_bytes: int) -> int:
    """About the most that the answer takes, before anything is measured: for a quota.

    A relative budget is one of the source, which few results outgrow; no result has more than four times its bytes
    (4 bits that become 16), however large the device.
    """
    if not budget:
        return 0
    if budget in DEVICE_NAMES:
        return min(device(budget).working_set_bytes, _GROWTH * source_bytes)
    asked = parse_budget(budget)
    if asked.unit == "B":
        return min(int(asked.amount), _GROWTH * source_bytes)
    return min(int(asked.amount * source_bytes), source_bytes) if asked.unit == "x" else source_bytes


def _written(nbytes: int, unit: str) -> str:
    amount = Decimal(nbytes) / UNITS[unit]
    exact = amount * UNITS[unit] == nbytes and amount >= 1
    return f"{_plain(amount)}{unit}" if exact else f"{nbytes}B"


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def problem_of(options: Mapping[str, Any], analysis: "Analysis", probed: "Probed | None") -> "Problem":
    """The problem that the options make of an analysis and its probes."""
    return _wishes(options).problem(analysis, probed)


def budget_bytes_of(budget: str, options: Mapping[str, Any], problem: "Problem") -> int:
    """The bytes that a budget, or a device with room for a context, means for a problem."""
    from mint.cli.options import Room

    is_device = budget in DEVICE_NAMES
    room = Room(
        budget=[] if is_device else [budget],
        device=[budget] if is_device else [],
        context=option(options, "context"),
        kv_bits=option(options, "kv_bits"),
        reserve=option(options, "reserve"),
    )
    return room.budget_of(budget)(problem)


def _wishes(options: Mapping[str, Any]) -> "Wishes":
    """The options as the command line has them, which knows what they mean."""
    from mint.cli.options import Wishes

    return Wishes(
        objective=option(options, "objective"),
        veto=option(options, "veto_db"),
        min_bits=option(options, "min_bits"),
        max_bits=option(options, "max_bits"),
        formats=list(option(options, "formats")),
        set=list(option(options, "lock")),
        compat=option(options, "compat"),
        prefer_speed=option(options, "prefer_speed"),
        ignore_probe=option(options, "ignore_probe"),
        max_shard_size=option(options, "max_shard_size"),
    )
