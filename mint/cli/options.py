"""Options that several commands share, and groups of options with the objects that they stand for.

A group is a function: its parameters are the options, and a command that takes the group receives its result (see
`mint.cli.command`). Everything heavy is imported inside functions, so that `--help` answers at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import mint
from mint.cli import completion
from mint.cli.settings import values_in_file
from mint.cli.terminal.screen import PROGRESS, Screen
from mint.core.errors import MintError
from mint.core.log import configure_logging, is_verbose
from mint.core.sizes import parse_budget, parse_size
from mint.formats.quality import parse_quality
from mint.formats.rounding import ROUNDINGS
from mint.plan.recipe import DTYPES, TEXT, VISION, Budget, Recipe, Room
from mint.plan.rules import read_locks

if TYPE_CHECKING:
    from mint.client.client import Client
    from mint.model.source import Source
    from mint.run.executor import Executor

RECIPE, ROOM = Recipe(), Room()  # the defaults of the options
NONE: list[Any] = []  # of an option that may be repeated; typer copies it


def option(metavar: str, help: str, *names: str, panel: str | None = None, **settings: Any) -> Any:
    """An option of a command; without `metavar` the type is shown, without `names` it is called as its parameter."""
    return typer.Option(*names, metavar=metavar or None, help=help, rich_help_panel=panel, **settings)


def flag(help: str, *names: str, panel: str | None = None) -> Any:
    """An option without a value; typer would show `<bool>`."""
    return typer.Option(*names, metavar="", help=help, rich_help_panel=panel)


def argument(metavar: str, help: str, **settings: Any) -> Any:
    """An argument of a command."""
    return typer.Argument(metavar=metavar, help=help, **settings)


# headings of a help; options that most people need stand before them
_DEVICE, METHOD, _MODEL, _RULES, _WORK, _SERVICE = (
    "With --device", "Method", "Model", "Rules of the plan", "Where the work runs", "Service"
)  # fmt: skip
_rule, _service = partial(option, panel=_RULES), partial(option, panel=_SERVICE)


def _checked_dtype(name: str) -> str:
    if name not in ("", *DTYPES):
        raise typer.BadParameter(f"found {name!r}, needed {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    return name


def _checked_rounding(name: str) -> str:
    if name and name not in ROUNDINGS:
        raise typer.BadParameter(f"found {name!r}, needed {' or '.join(ROUNDINGS)}")
    return name


def _checked_progress(kind: str) -> str:
    if kind not in PROGRESS:
        raise typer.BadParameter(f"found {kind!r}, needed {', '.join(PROGRESS[:-1])} or {PROGRESS[-1]}")
    return kind


# a str: `Path` would remove the `./` that tells a folder from an id of the hub
Model = Annotated[
    str, argument("MODEL", "Folder of a Hugging Face model in safetensors format, a GGUF file, or an id of the hub "
                           "(owner/name, owner/name@revision), which is downloaded if need be.",
                  autocompletion=completion.models),
]  # fmt: skip
PlanFile = Annotated[Path, argument("PLAN", "A file that `mint allocate` wrote, or a folder that mint wrote.")]
Dtype = Annotated[
    str,
    option(
        "",
        "Cast weights to float16, bfloat16 or float32; default: the config's own.",
        callback=_checked_dtype,
        autocompletion=completion.dtypes,
        panel=_MODEL,
    ),
]
Requantize = Annotated[
    bool,
    flag(
        "Accept a model that MLX has quantized; its errors stay, and new ones are added.", "--requantize", panel=_MODEL
    ),
]
Rounding = Annotated[
    str,
    option(
        "NAME", "Instead of --quality: nearest, as mlx rounds; search: scales with less error, same bytes; "
        "compensate: least error by far, the model then has to run, on text that it writes itself; couple: less still, "
        "by gradients of that text, with the whole model in memory; tune: then scales are trained on it too.",
        callback=_checked_rounding, autocompletion=completion.roundings, panel=METHOD,
    ),
]  # fmt: skip
Vision = Annotated[
    bool | None,
    flag("Keep the vision and audio towers of a multimodal model, or write its text model alone; default: keep "
        "them if mlx-vlm is installed and knows the model.", "--vision/--text-only", panel=_MODEL,
    ),
]  # fmt: skip
Quality = Annotated[
    str,
    option(
        "fast|good|best",
        "fast: seconds; good: much closer, minutes; best: closer still (mint recipes). Sets --rounding; default: good.",
        autocompletion=completion.qualities,
    ),
]  # fmt: skip
KeepNonfinite = Annotated[
    bool, flag("Keep units with NaN or infinite weights unquantized.", "--keep-nonfinite", panel=_MODEL)
]
Cluster = Annotated[
    str, option("ADDRESS", "Work on this Ray cluster (HOST:PORT), or on a 'local' Ray of this machine.", panel=_WORK)
]
Share = Annotated[bool, flag("With --cluster: nodes read missing shards from other nodes.", "--share", panel=_WORK)]
Json = Annotated[bool, flag("Print one JSON object on stdout, everything else on stderr.", "--json")]
Verbose = Annotated[bool, flag("Show every detail, and log every unit of work.", "--verbose", "-v")]
ProgressKind = Annotated[
    str,
    option("KIND", "Progress on stderr: bar, plain (lines), json (an object a line) or none.", envvar="MINT_PROGRESS",
           callback=_checked_progress),
]  # fmt: skip
DryRun = Annotated[
    bool,
    flag("Print the expected minutes, memory, disk and download, and stop. No weights are downloaded.", "--dry-run"),
]
LowDisk = Annotated[
    bool,
    flag("Of a model of the hub, keep no more than a shard on the disk: weights come when they are needed, twice in "
        "all. With --quality fast.", "--low-disk", panel=_WORK,
    ),
]  # fmt: skip
MemoryLimit = Annotated[
    int | None,
    option(
        "SIZE", "Memory that the work may take, such as 8GB; too little is refused at the start. Default: all.",
        "--memory", parser=parse_size, panel=_WORK,
    ),
]  # fmt: skip
Force = Annotated[bool, flag("Move an existing output aside (to OUTPUT.old) instead of refusing.", "--force")]
Reused = Annotated[
    list[Path], option("FOLDER", "Copy units of the same format from here. May be repeated.", "--reuse", panel=METHOD)
]
Probe = Annotated[
    bool,
    flag(
        "Measure the sensitivity of every unit first (see mint probe). mint quantize with good and best does so by "
        "itself, on one machine whose memory holds the model.",
        "--probe",
        panel=METHOD,
    ),
]


def screen_of(as_json: Json = False, verbose: Verbose = False, progress: ProgressKind = PROGRESS[0]) -> Screen:
    """The screen that the options of the output ask for."""
    if verbose:
        configure_logging(level="debug")
    return Screen(as_json, progress=progress, is_verbose=verbose or is_verbose())


def rules(
    objective: Annotated[
        str, _rule("NAME", "The quantity to minimize: output, mint or energy.", autocompletion=completion.objectives)
    ] = RECIPE.objective,
    veto_db: Annotated[float, _rule("DB", "Least signal-to-noise ratio of a format.", "--veto")] = RECIPE.veto_db,
    min_bits: Annotated[int, _rule("BITS", "Fewest bits of a unit.")] = RECIPE.min_bits,
    max_bits: Annotated[
        int, _rule("BITS", "Most bits of a unit; below 16, units stay as they are only if nothing else fits.")
    ] = RECIPE.max_bits,
    formats: Annotated[
        list[str], _rule("LIST", "Choose only from these: 3,4,8@64,128 or mxfp4,4/32. May be repeated.")
    ] = NONE,
    keep: Annotated[list[str], _rule("PATTERN", "Keep units as they are: '*.v_proj'.")] = NONE,
    set: Annotated[list[str], _rule("PATTERN=FORMAT", "Fix a format: '*.down_proj=6/64'.")] = NONE,
    locks: Annotated[Path | None, _rule("FILE", 'Fix formats by a JSON file: {"lm_head": "8/64"}.')] = None,
    ignore_floors: Annotated[
        list[str],
        _rule("PATTERN", "Allow fewer bits than the model or the role asks for: '*.gate'.", "--ignore-floors"),
    ] = NONE,
    compat: Annotated[
        str, _rule("LOADER", "Only formats of this loader (mint devices --loaders).", autocompletion=completion.loaders)
    ] = RECIPE.compat,
    prefer_speed: Annotated[
        float, _rule("X", "Trade quality for speed: at 1, 1 % of decoding time is worth 1 % of the loss of 4/64.")
    ] = RECIPE.prefer_speed,
    ignore_probe: Annotated[
        bool, flag("Use the default sensitivities: no probe is made or used.", "--ignore-probe", panel=_RULES)
    ] = RECIPE.ignore_probe,
    max_shard_size: Annotated[str, _rule("SIZE", "Largest weight file to write.")] = RECIPE.max_shard_size,
) -> Recipe:
    """The recipe with these limits of a plan."""
    fields = {name: value for name, value in locals().items() if name not in ("keep", "set", "locks")}
    lock = [*(f"{pattern}=keep" for pattern in keep), *set, *(read_locks(locks) if locks else ())]
    return Recipe.from_dict({**fields, "lock": lock})


RuleOptions = Annotated[Recipe, rules]


def recipe(
    rules: RuleOptions,
    dtype: Dtype = "",
    vision: Vision = None,
    requantize: Requantize = False,
    quality: Quality = "",
    rounding: Rounding = "",
    probe: Probe = False,
) -> Recipe:
    """The whole recipe; raises `MintError` for one that no model can have."""
    rounding = rounding or parse_quality(quality).rounding
    return replace(rules, dtype=dtype, loader=loader(vision), requantize=requantize, rounding=rounding, probe=probe)


def loader(vision: bool | None) -> str:
    """The package of model classes that `--vision` and `--text-only` name."""
    return "" if vision is None else VISION if vision else TEXT


def devices(
    device: Annotated[
        list[str],
        option("NAME", "The room that a device has for a model, such as m4-pro-24 ('this': this machine; see mint "
               "devices). May be repeated.", autocompletion=completion.devices),
    ] = NONE,
    context: Annotated[str, option("TOKENS", "The context to leave room for.", panel=_DEVICE)] = ROOM.context,
    kv_bits: Annotated[int | None, option("BITS", "Bits of a quantized KV cache.", panel=_DEVICE)] = ROOM.kv_bits,
    reserve: Annotated[str, option("SIZE", "Memory for everything else.", panel=_DEVICE)] = ROOM.reserve,
) -> list[Budget]:  # fmt: skip
    """The budgets of devices; raises `MintError` for room without a device."""
    room = Room(context, kv_bits, reserve)
    given = {"context": (context, ROOM.context), "kv-bits": (kv_bits, ROOM.kv_bits), "reserve": (reserve, ROOM.reserve)}
    typed = any(value not in (default, *values_in_file(name)) for name, (value, default) in given.items())
    if typed and not device:
        raise MintError("--context, --kv-bits and --reserve are for --device; a budget is the size of the files alone")
    return [Budget(device=_device_name(name), room=room) for name in device]


Devices = Annotated[list[Budget], devices]


def budgets(
    budget: Annotated[
        list[str],
        option(
            "SIZE", "Size of all weight files together (or use --device): 90MB, 16.5GiB (kB MB GB: powers of 1000, "
            "KiB MiB GiB: of 1024), 4.5bpw (bits per weight), 0.3x (of the source), min or max. Repeated: one plan "
            "each.",
            "--budget", "-b",
        ),
    ] = NONE,
    devices: Devices = NONE,
) -> list[Budget]:  # fmt: skip
    """The budgets; raises `MintError` if one is given twice."""
    room = devices[0].room if devices else ROOM
    budgets = [*(replace(Budget.of(text), room=room) for text in budget), *devices]
    if len(set(map(str, budgets))) < len(budgets):
        raise MintError("a budget is given twice; give each one once")
    return budgets


def _device_name(text: str) -> str:
    """The name of a device; `MintError` names the right option for a size."""
    try:
        parse_budget(text)
    except MintError:
        return text
    raise MintError(f"{text} is a size, no device; needed: --budget {text}")


def required_budgets(budgets: Annotated[list[Budget], budgets]) -> list[Budget]:
    """The budgets; raises `MintError` if there is none."""
    if not budgets:
        raise MintError("no budget; needed --budget SIZE, such as 4GB or 4.5bpw, or --device NAME (mint devices)")
    return budgets


def _connection(
    server: Annotated[str, _service("HOST:PORT", "Or in MINT_SERVER; https://... with TLS.")] = "",
    token_file: Annotated[Path | None, _service("FILE", "The token of mint token create; or in MINT_TOKEN.")] = None,
    ca: Annotated[Path | None, _service("FILE", "Certificate authorities of the service.")] = None,
    insecure: Annotated[
        bool, flag("Send the token unencrypted, over plain HTTP.", "--insecure", panel=_SERVICE)
    ] = False,
) -> dict[str, Any]:
    return {"server": server, "token_file": token_file, "ca": ca, "insecure": insecure}


def service(connection: Annotated[dict[str, Any], _connection]) -> "Client":
    """A client of the service; raises `MintError` if none is named, or the token must not be sent there."""
    from mint.client.http import token_of

    return mint.Client(token=token_of(connection.pop("token_file")), **connection)


def optional_service(connection: Annotated[dict[str, Any], _connection]) -> "Client | None":
    """A client of the service that --server names, if it does."""
    return service(connection) if connection["server"] else None


RecipeOptions = Annotated[Recipe, recipe]
AnyBudgets = Annotated[list[Budget], budgets]
Budgets = Annotated[list[Budget], required_budgets]
Service = Annotated["Client", service]
OptionalService = Annotated["Client | None", optional_service]


@contextmanager
def opened(
    screen: Screen,
    model: str,
    dtype: str,
    cluster: str,
    *,
    loader: str = "",
    share: bool = False,
    requantize: bool = False,
) -> "Iterator[tuple[Source, Executor]]":
    """The source of a model and the executor for it; the nodes of a cluster are free again at the end."""
    from mint.run.executor import executing

    opening: dict[str, Any] = {"loader": loader, "requantize": requantize}
    work: dict[str, Any] = {"on_progress": screen.on_progress, "on_note": screen.note}
    with executing(cluster, model, dtype, share=share, **opening, **work) as (folder, executor):
        source = mint.open_source(folder, dtype=dtype, **opening)
        for notice in source.notices:
            screen.note(notice)
        yield source, executor
