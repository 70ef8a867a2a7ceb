"""Options that several commands share, and what they mean: which budgets, which rules.

Everything heavy is imported inside functions, so that `--help` answers at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from mint.core.errors import MintError
from mint.core.sizes import parse_budget, parse_size, parse_tokens

if TYPE_CHECKING:
    from mint.analysis.analysis import Analysis
    from mint.analysis.probes.probe_file import Probed
    from mint.client.client import Client
    from mint.plan.problem import Problem
    from mint.plan.rules import Rules

VETO_DB = 9.0
SHARD_SIZE = "5GiB"
CONTEXT = "8k"
RESERVE = "1GB"

# a str: `Path` would take the `./` away that tells a folder from an id of the hub
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder of a Hugging Face model in safetensors format, or an id of the hub (owner/name, "
        "owner/name@revision), which is downloaded if need be.",
    ),
]
AnalysisFile = Annotated[Path, typer.Argument(metavar="ANALYSIS", help="A file that `mint analyze` wrote.")]
PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A file that `mint allocate` wrote, or a folder that mint wrote.")
]
Dtype = Annotated[
    str,
    typer.Option(help="Cast weights to float16, bfloat16 or float32 instead of the config's own torch_dtype."),
]
Rounding = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="nearest, as mlx rounds; search: scales of less error, same bytes; compensate: closest by far, weights "
        "make up for each other's errors too, on text that the model writes: it has to run for that.",
    ),
]
KeepNonfinite = Annotated[
    bool,
    typer.Option("--keep-nonfinite", help="Keep units with NaN or infinite weights unquantized instead of stopping."),
]
Features = Annotated[
    bool,
    typer.Option(
        "--features",
        help="Also describe every unit: spectrum, kurtosis of its groups, noise at its output. For reports; no plan "
        "uses them.",
    ),
]
Cluster = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Work on all nodes of this Ray cluster (HOST:PORT), or 'local': a Ray of this machine alone.",
    ),
]
Share = Annotated[
    bool,
    typer.Option(
        "--share",
        help="With --cluster: units whose shards are not all on one node are done too, with missing bytes read from "
        "the nodes that have them.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]
Reused = Annotated[
    list[Path],
    typer.Option(
        "--reuse", metavar="FOLDER", help="Copy units whose format did not change from this folder. May be repeated."
    ),
]


@dataclass(frozen=True)
class Wishes:
    """What the plan may be made of."""

    objective: Annotated[
        str, typer.Option(metavar="NAME", help="What to minimize: output, mint or energy.", rich_help_panel="Rules")
    ] = "output"
    veto: Annotated[
        float,
        typer.Option(
            metavar="DB", help="Never choose a format whose signal-to-noise ratio is below.", rich_help_panel="Rules"
        ),
    ] = VETO_DB
    min_bits: Annotated[int, typer.Option(metavar="BITS", help="Fewest bits of a unit.", rich_help_panel="Rules")] = 0
    max_bits: Annotated[
        int,
        typer.Option(
            metavar="BITS", help="Most bits of a unit; below 16, units stay as they are only if nothing else fits.",
            rich_help_panel="Rules",
        ),
    ] = 64  # fmt: skip
    formats: Annotated[
        list[str],
        typer.Option(
            metavar="LIST", help="Choose only from these: 3,4,8@64,128 or mxfp4,4/32. May be repeated.",
            rich_help_panel="Rules",
        ),
    ] = field(default_factory=list)  # fmt: skip
    keep: Annotated[
        list[str],
        typer.Option(metavar="PATTERN", help="Keep units as they are: '*.v_proj'.", rich_help_panel="Rules"),
    ] = field(default_factory=list)
    set: Annotated[
        list[str],
        typer.Option(metavar="PATTERN=FORMAT", help="Fix a format: '*.down_proj=6/64'.", rich_help_panel="Rules"),
    ] = field(default_factory=list)
    locks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='Fix formats by a JSON file: {"lm_head": "8/64"}.', rich_help_panel="Rules"),
    ] = None
    compat: Annotated[
        str,
        typer.Option(
            metavar="LOADER", help="Only formats that this loader reads: see mint devices --loaders.",
            rich_help_panel="Rules",
        ),
    ] = ""  # fmt: skip
    prefer_speed: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Trade closeness for speed: at 1, 1 % of decoding time is worth 1 % of the loss of uniform 4 bit.",
            rich_help_panel="Rules",
        ),
    ] = 0.0
    ignore_probe: Annotated[
        bool,
        typer.Option(
            "--ignore-probe", help="Use the prior sensitivities although the model was probed.", rich_help_panel="Rules"
        ),
    ] = False
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest weight file to write.", rich_help_panel="Rules")
    ] = SHARD_SIZE

    def rules(self) -> Rules:
        """The rules of these options."""
        from mint.formats.format import KEEP
        from mint.plan.rules import Rules, parse_formats, parse_lock, read_locks
        from mint.targets.loaders import compatible_formats, loader

        formats = parse_formats(self.formats)
        if self.compat:
            from mint.plan.objectives import objective

            if not loader(self.compat).mixed:
                raise MintError(
                    f"--compat {self.compat}: that loader reads one format for all modules, so no plan of several; "
                    "needed a newer one (mint devices --loaders), or mlx_lm.convert for a uniform model"
                )
            readable = compatible_formats(self.compat)
            formats = tuple(format for format in formats or objective(self.objective).formats if format in readable)
            if not formats:
                raise MintError(f"--compat {self.compat} reads none of the formats asked for; widen --formats")
        locks = [(pattern, KEEP) for pattern in self.keep] + [parse_lock(text) for text in self.set]
        if self.locks:
            locks += read_locks(self.locks)
        return Rules(self.veto, self.min_bits, self.max_bits, formats, tuple(locks))

    def told(self) -> dict[str, Any]:
        """These options as a service takes them; raises `MintError` for rules that cannot be."""
        from mint.plan.rules import read_locks

        self.rules()
        locks = [f"{pattern}={format}" for pattern, format in (read_locks(self.locks) if self.locks else ())]
        return {
            "objective": self.objective,
            "veto_db": self.veto,
            "min_bits": self.min_bits,
            "max_bits": self.max_bits,
            "formats": list(self.formats),
            "lock": [*(f"{pattern}=keep" for pattern in self.keep), *self.set, *locks],
            "compat": self.compat,
            "prefer_speed": self.prefer_speed,
            "ignore_probe": self.ignore_probe,
            "max_shard_size": self.max_shard_size,
        }

    def problem(self, analysis: Analysis, probed: Probed | None) -> Problem:
        """The problem that these options make of an analysis and the probes of its model."""
        from mint.plan.objectives import objective
        from mint.plan.problem import Problem

        if self.prefer_speed < 0:
            raise MintError(f"--prefer-speed {self.prefer_speed:g} is negative; needed 0 or more")
        return Problem(
            analysis,
            objective(self.objective),
            self.rules(),
            probed=None if self.ignore_probe else probed,
            prefer_speed=self.prefer_speed,
            max_shard_bytes=parse_size(self.max_shard_size),
        )


@dataclass(frozen=True)
class Room:
    """How much memory there is."""

    budget: Annotated[
        list[str],
        typer.Option(
            "--budget", "-b", metavar="SIZE",
            help="What all weight files together may take: 90MB, 16.5GiB (kB MB GB: powers of 1000, KiB MiB GiB: of "
            "1024), 4.5bpw (bits per weight), 0.3x (of the source), min or max. Repeated: one plan each.",
            rich_help_panel="Memory",
        ),
    ] = field(default_factory=list)  # fmt: skip
    device: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Instead of a budget: what this device leaves for weights (see mint devices; 'this' is this machine).",
            rich_help_panel="Memory",
        ),
    ] = field(default_factory=list)
    context: Annotated[
        str,
        typer.Option(metavar="TOKENS", help="With --device: the context to leave room for.", rich_help_panel="Memory"),
    ] = CONTEXT
    kv_bits: Annotated[
        int | None,
        typer.Option(metavar="BITS", help="With --device: bits of a quantized KV cache.", rich_help_panel="Memory"),
    ] = None
    reserve: Annotated[
        str,
        typer.Option(metavar="SIZE", help="With --device: memory for everything else.", rich_help_panel="Memory"),
    ] = RESERVE

    def check(self) -> None:
        """Raise `MintError` for what can be told to be wrong before any work."""
        if not self.budget and not self.device:
            raise MintError("no budget; needed --budget SIZE, such as 4GB or 4.5bpw, or --device NAME (mint devices)")
        names = [*map(parse_budget, self.budget), *self.device]
        if len(set(map(str, names))) < len(names):
            raise MintError("a budget is given twice; give each one once")
        if self.device:
            from mint.targets.devices import device

            for name in self.device:
                device(name)
        parse_tokens(self.context)
        _reserve_bytes(self.reserve)

    @property
    def names(self) -> list[str]:
        """Every budget and device as it was given."""
        return [*self.budget, *self.device]

    def told(self) -> dict[str, Any]:
        """What a device is to leave room for, as a service takes it."""
        return {"context": self.context, "kv_bits": self.kv_bits, "reserve": self.reserve} if self.device else {}

    def outputs(self, output: Path) -> dict[str, Path]:
        """Where the result of each budget goes: `output` itself for one, `output-NAME` for several."""
        if len(self.names) == 1:
            return {self.names[0]: output}
        return {name: output.with_name(f"{output.stem}-{name.replace(' ', '')}{output.suffix}") for name in self.names}

    def budget_of(self, name: str) -> Callable[[Problem], int]:
        """The bytes of a budget or device, once the model is known."""

        def nbytes(problem: Problem) -> int:
            if name not in self.device:
                from mint.plan.allocate import budget_bytes

                return budget_bytes(name, problem)
            from mint.plan.device_fit import room_for_weights
            from mint.targets.devices import device

            return room_for_weights(
                problem,
                device(name),
                tokens=parse_tokens(self.context),
                kv_bits=self.kv_bits,
                reserve_bytes=_reserve_bytes(self.reserve),
            )

        return nbytes


@dataclass(frozen=True)
class Server:
    """Which service, and who asks."""

    server: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Or in MINT_SERVER; https://... with TLS.", rich_help_panel="Service"),
    ] = ""
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What mint token create printed; or in MINT_TOKEN.", rich_help_panel="Service"
        ),
    ] = None
    ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Authorities that vouch for the service.", rich_help_panel="Service"),
    ] = None
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Send the token in the clear, over plain HTTP.", rich_help_panel="Service"),
    ] = False

    def client(self) -> Client:
        """A connection to it; raises `MintError` when none is named, or the token must not be sent there."""
        from mint.client.client import Client
        from mint.client.http import token_of

        return Client(self.server, token_of(self.token_file), ca=self.ca, insecure=self.insecure)


def _reserve_bytes(text: str) -> int:
    return 0 if text.strip() == "0" else parse_size(text)


def checked_dtype(name: str) -> str:
    """The dtype that was asked for, which is one of those that mlx_lm casts to, or none."""
    if name not in ("", "float16", "bfloat16", "float32"):
        raise typer.BadParameter(f"found {name!r}, needed float16, bfloat16 or float32", param_hint="--dtype")
    return name


def takes(*groups: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a command take the options of `groups`, each handed over as one record named after its class."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        names = {group.__name__.lower(): group for group in groups}
        signature = inspect.signature(command)
        hints = get_type_hints(command, include_extras=True)
        parameters = []
        for name, parameter in signature.parameters.items():
            if name in names:
                parameters += _parameters(names[name])
            else:
                parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

        @wraps(command)
        def taking(**options: Any) -> Any:
            for name, group in names.items():
                options[name] = group(**{each.name: options.pop(each.name) for each in fields(group)})
            return command(**options)

        taking.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        taking.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return taking

    return decorate


def _parameters(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default if each.default_factory is not list else [],
            annotation=hints[each.name],
        )
        for each in fields(group)
    ]
