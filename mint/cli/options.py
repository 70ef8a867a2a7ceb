"""Options that several commands share, and the recipe, budgets and client that they stand for.

A command takes each option as a parameter of its own and passes `locals()` to the function that reads the options of
one subject. Everything heavy is imported inside functions, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint.core.errors import MintError
from mint.core.sizes import parse_budget
from mint.plan.recipe import DTYPES, Budget, Recipe, Room

if TYPE_CHECKING:
    from mint.client.client import Client

RECIPE, ROOM = Recipe(), Room()  # the defaults of the options
NONE: list[Any] = []  # of an option that may be repeated; typer copies it
# options whose field of a recipe has another name; several may add to one field
FIELDS = {"veto": "veto_db", "keep": "lock", "set": "lock", "locks": "lock"}

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


Probe = Annotated[
    bool, typer.Option("--probe", help="Measure how sensitive the output is to each unit first (see mint probe).")
]

# rules of the plan

Objective = Annotated[
    str, typer.Option(metavar="NAME", help="What to minimize: output, mint or energy.", rich_help_panel="Rules")
]
Veto = Annotated[
    float,
    typer.Option(
        metavar="DB", help="Never choose a format whose signal-to-noise ratio is below.", rich_help_panel="Rules"
    ),
]
MinBits = Annotated[int, typer.Option(metavar="BITS", help="Fewest bits of a unit.", rich_help_panel="Rules")]
MaxBits = Annotated[
    int,
    typer.Option(
        metavar="BITS", help="Most bits of a unit; below 16, units stay as they are only if nothing else fits.",
        rich_help_panel="Rules",
    ),
]  # fmt: skip
Formats = Annotated[
    list[str],
    typer.Option(
        metavar="LIST", help="Choose only from these: 3,4,8@64,128 or mxfp4,4/32. May be repeated.",
        rich_help_panel="Rules",
    ),
]  # fmt: skip
Keep = Annotated[
    list[str],
    typer.Option(metavar="PATTERN", help="Keep units as they are: '*.v_proj'.", rich_help_panel="Rules"),
]
Set = Annotated[
    list[str],
    typer.Option(metavar="PATTERN=FORMAT", help="Fix a format: '*.down_proj=6/64'.", rich_help_panel="Rules"),
]
Locks = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='Fix formats by a JSON file: {"lm_head": "8/64"}.', rich_help_panel="Rules"),
]
Compat = Annotated[
    str,
    typer.Option(
        metavar="LOADER", help="Only formats that this loader reads: see mint devices --loaders.",
        rich_help_panel="Rules",
    ),
]  # fmt: skip
PreferSpeed = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="Trade closeness for speed: at 1, 1 % of decoding time is worth 1 % of the loss of uniform 4 bit.",
        rich_help_panel="Rules",
    ),
]
IgnoreProbe = Annotated[
    bool,
    typer.Option(
        "--ignore-probe", help="Use the prior sensitivities although the model was probed.", rich_help_panel="Rules"
    ),
]
MaxShardSize = Annotated[
    str, typer.Option(metavar="SIZE", help="Largest weight file to write.", rich_help_panel="Rules")
]

# memory

Budgets = Annotated[
    list[str],
    typer.Option(
        "--budget", "-b", metavar="SIZE",
        help="What all weight files together may take: 90MB, 16.5GiB (kB MB GB: powers of 1000, KiB MiB GiB: of "
        "1024), 4.5bpw (bits per weight), 0.3x (of the source), min or max. Repeated: one plan each.",
        rich_help_panel="Memory",
    ),
]  # fmt: skip
Devices = Annotated[
    list[str],
    typer.Option(
        metavar="NAME",
        help="Instead of a budget: what this device leaves for weights (see mint devices; 'this' is this machine).",
        rich_help_panel="Memory",
    ),
]
Context = Annotated[
    str,
    typer.Option(metavar="TOKENS", help="With --device: the context to leave room for.", rich_help_panel="Memory"),
]
KvBits = Annotated[
    int | None,
    typer.Option(metavar="BITS", help="With --device: bits of a quantized KV cache.", rich_help_panel="Memory"),
]
Reserve = Annotated[
    str,
    typer.Option(metavar="SIZE", help="With --device: memory for everything else.", rich_help_panel="Memory"),
]

# the service

Server = Annotated[
    str,
    typer.Option(metavar="HOST:PORT", help="Or in MINT_SERVER; https://... with TLS.", rich_help_panel="Service"),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What mint token create printed; or in MINT_TOKEN.", rich_help_panel="Service"),
]
Authorities = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Authorities that vouch for the service.", rich_help_panel="Service"),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Send the token in the clear, over plain HTTP.", rich_help_panel="Service"),
]


def recipe_of(options: Mapping[str, Any]) -> Recipe:
    """The recipe that a command's options stand for; raises `MintError` for one that nothing can be made of."""
    from mint.plan.rules import read_locks

    checked_rounding(options.get("rounding", RECIPE.rounding))
    checked_dtype(options.get("dtype", RECIPE.dtype))
    fields = {FIELDS.get(name, name): value for name, value in options.items()}
    path = options.get("locks")
    fields["lock"] = [
        *(f"{pattern}=keep" for pattern in options.get("keep", ())),
        *options.get("set", ()),
        *(f"{pattern}={format}" for pattern, format in (read_locks(path) if path else ())),
    ]
    return Recipe.from_dict({name: fields[name] for name in RECIPE.to_dict() if name in fields})


def budgets_of(options: Mapping[str, Any]) -> list[Budget]:
    """The budgets that a command's options stand for; raises `MintError` unless there is one, and each given once."""
    room = Room(options["context"], options["kv_bits"], options["reserve"])
    budgets = [Budget(parse_budget(text), room=room) for text in options["budget"]]
    budgets += [Budget(device=name, room=room) for name in options["device"]]
    if not budgets:
        raise MintError("no budget; needed --budget SIZE, such as 4GB or 4.5bpw, or --device NAME (mint devices)")
    if len(set(map(str, budgets))) < len(budgets):
        raise MintError("a budget is given twice; give each one once")
    return budgets


def outputs_of(budgets: list[Budget], output: Path) -> list[Path]:
    """Where the result of each budget goes: `output` itself for one, `output-BUDGET` for several."""
    if len(budgets) == 1:
        return [output]
    names = [str(budget).replace(" ", "") for budget in budgets]
    return [output.with_name(f"{output.stem}-{name}{output.suffix}") for name in names]


def client_of(options: Mapping[str, Any]) -> Client:
    """A connection to the service; raises `MintError` when none is named, or the token must not be sent there."""
    from mint.client.client import Client
    from mint.client.http import token_of

    token = token_of(options["token_file"])
    return Client(options["server"], token, ca=options["ca"], insecure=options["insecure"])


def checked_dtype(name: str) -> str:
    """The dtype that was asked for, which is one of those that mlx_lm casts to, or none."""
    if name not in ("", *DTYPES):
        needed = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
        raise typer.BadParameter(f"found {name!r}, needed {needed}", param_hint="--dtype")
    return name


def checked_rounding(name: str) -> str:
    """The rounding that was asked for, which has to be one that exists."""
    from mint.formats.rounding import ROUNDINGS

    if name not in ROUNDINGS:
        raise typer.BadParameter(f"found {name!r}, needed {' or '.join(ROUNDINGS)}", param_hint="--rounding")
    return name
