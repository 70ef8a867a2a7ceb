"""The `mint` command: one function a command, each a thin rim around one verb.

stdout carries the answer (or, with --json, exactly one object), stderr everything else. Exit codes: 0 done,
1 a mistake the user can mend, 2 usage, 3 a bug, 130 interrupted.
"""

import errno
import gc
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mint import __version__
from mint.budget import parse_size
from mint.errors import MintError
from mint.log import configure_logging
from mint.show import Screen

app = typer.Typer(
    name="mint",
    help="Give it a language model and a memory budget, get the best MLX model that fits.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a mistake you can mend, 2 usage, 3 a bug, 130 interrupted.",
)

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a Hugging Face model in safetensors format.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write; must not exist. It is built in OUTPUT.partial.")
]
Budget = Annotated[
    str,
    typer.Option(
        "--budget",
        "-b",
        metavar="SIZE",
        help="What all weight files together may take: 90MB, 16.5GiB (kB MB GB: powers of 1000, KiB MiB GiB: of 1024).",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(help="Cast weights to float16, bfloat16 or float32 instead of the config's own torch_dtype."),
]
Veto = Annotated[
    float, typer.Option(metavar="DB", help="Never choose a format whose signal-to-noise ratio is below this.")
]
ShardSize = Annotated[str, typer.Option(metavar="SIZE", help="Largest weight file to write.")]
KeepNonfinite = Annotated[
    bool,
    typer.Option("--keep-nonfinite", help="Keep units with NaN or infinite weights unquantized instead of stopping."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]

# a disk or a folder that the user can do something about
_MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
VETO_DB = 9.0
SHARD_SIZE = "5GiB"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mint {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every unit of work on stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """MINT: memory-informed N-bit tuning, without calibration data."""
    configure_logging(verbose=verbose)


@app.command()
def quantize(
    model: Model,
    budget: Budget,
    output: Output,
    analysis: Annotated[
        Path | None, typer.Option(help="Keep the analysis here; default: a cache, so the next budget is quick.")
    ] = None,
    dtype: Dtype = "",
    veto: Veto = VETO_DB,
    max_shard_size: ShardSize = SHARD_SIZE,
    keep_nonfinite: KeepNonfinite = False,
    as_json: Json = False,
) -> None:
    """Write the best MLX model that fits: analyze, allocate, assemble, verify.

    Interrupted or killed, the same command goes on where it stopped.

    Example: mint quantize models/Qwen3-8B --budget 6GB --output Qwen3-8B-6GB
    """
    budget_bytes, shard_bytes = parse_size(budget), parse_size(max_shard_size)
    from mint.quantize import quantize as run

    with Screen(as_json) as screen:
        done = run(
            model,
            budget_bytes,
            output,
            analysis=analysis,
            dtype=_dtype(dtype),
            veto_db=veto,
            keep_nonfinite=keep_nonfinite,
            max_shard_bytes=shard_bytes,
            on_progress=screen.on_progress,
        )
    screen.answer(screen.quantized(done))


@app.command()
def inspect(model: Model, dtype: Dtype = "", as_json: Json = False) -> None:
    """Show what a model is made of: units, roles, sizes, smallest and largest possible model. Reads headers only."""
    from mint.source import open_source

    with Screen(as_json) as screen:
        source = open_source(model, dtype=_dtype(dtype))
    screen.answer(screen.source(source))


@app.command()
def analyze(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: NAME.mint in this folder.")
    ] = None,
    dtype: Dtype = "",
    keep_nonfinite: KeepNonfinite = False,
    as_json: Json = False,
) -> None:
    """Measure what every format would do to every unit. Killed at any point, the same command goes on."""
    from mint.analyze import analyze as run
    from mint.source import open_source

    path = output or Path(f"{model.resolve().name}.mint")
    with Screen(as_json) as screen:
        source = open_source(model, dtype=_dtype(dtype))
        analysis = run(source, path, keep_nonfinite=keep_nonfinite, on_progress=screen.on_progress)
    screen.answer(screen.analysis(analysis, path))


@app.command()
def allocate(
    analysis: Annotated[Path, typer.Argument(metavar="ANALYSIS", help="A file that `mint analyze` wrote.")],
    budget: Budget,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan here as JSON; default: only show it.")
    ] = None,
    veto: Veto = VETO_DB,
    max_shard_size: ShardSize = SHARD_SIZE,
    as_json: Json = False,
) -> None:
    """Choose a format for every unit: the least predicted loss that fits the budget. Takes a moment."""
    budget_bytes, shard_bytes = parse_size(budget), parse_size(max_shard_size)
    import time

    from mint.allocate import allocate as run
    from mint.analysis import read_analysis
    from mint.plan import write_plan

    started = time.perf_counter()
    with Screen(as_json) as screen:
        plan = run(read_analysis(analysis), budget_bytes, veto_db=veto, max_shard_bytes=shard_bytes)
        if output:
            if output.exists():
                raise MintError(f"{output} exists; nothing is ever overwritten. Choose another --output")
            write_plan(plan, output)
    screen.answer(screen.plan(plan, output, time.perf_counter() - started))


@app.command()
def assemble(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A file that `mint allocate` wrote; edited formats count.")
    ],
    model: Annotated[Path, typer.Option("--model", "-m", help="Folder of the model that was analyzed.")],
    output: Output,
    as_json: Json = False,
) -> None:
    """Write the model that a plan describes. Killed at any point, the same command goes on."""
    from mint.assemble import assemble as run
    from mint.plan import read_plan
    from mint.source import open_source

    with Screen(as_json) as screen:
        chosen = read_plan(plan)
        for path in chosen.edited:
            screen.note(f"{path}: format changed by hand")
        manifest = run(chosen, open_source(model, dtype=chosen.dtype), output, on_progress=screen.on_progress)
    screen.answer(screen.manifest(manifest, output))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that mint wrote.")],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Also measure the error of every unit against this model.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check sizes, digests, tensors and config, load the model with mlx_lm, and compare its logits."""
    from mint.manifest import PLAN_NAME
    from mint.plan import read_plan
    from mint.source import open_source
    from mint.verify import verify as run

    with Screen(as_json) as screen:
        source = open_source(model, dtype=read_plan(folder / PLAN_NAME).dtype) if model else None
        verification = run(folder, source, on_progress=screen.on_progress)
    screen.answer(screen.verification(verification))
    if not verification.passed:
        raise typer.Exit(1)


def _dtype(name: str) -> str:
    if name not in ("", "float16", "bfloat16", "float32"):
        raise typer.BadParameter(f"found {name!r}, needed float16, bfloat16 or float32", param_hint="--dtype")
    return name


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # imports leave a million objects that live to the end: looking through them again and again takes half a second
    gc.set_threshold(100_000)
    code = run_command(sys.argv[1:] if arguments is None else arguments)
    gc.freeze()
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Run the command line; its exit code. With --json an error is one object on stdout too."""
    try:
        code = app(arguments, standalone_mode=False)
    except MintError as error:
        return _fail(arguments, str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(arguments, "interrupted; nothing is lost, the same command goes on", 130)
    except Exception as error:
        if (usage := _usage_code(error)) is not None:
            return usage
        if isinstance(error, OSError) and error.errno in _MENDABLE:
            where = f"{error.filename}: " if error.filename else ""
            return _fail(arguments, f"{where}{error.strerror}; mend that and run the same command again", 1)
        import traceback

        traceback.print_exc()
        return _fail(arguments, f"this is a bug in mint, please report it: {error!r}", 3)
    return int(code or 0)


def _usage_code(error: Exception) -> int | None:
    """The exit code of an error of the command line's own usage, which is shown; None for any other error."""
    show = getattr(error, "show", None)
    if show is None:
        return None
    from typer import rich_utils

    rich_utils.rich_format_error(error)  # type: ignore[arg-type]
    return int(getattr(error, "exit_code", 2))


def _fail(arguments: list[str], message: str, code: int) -> int:
    if "--json" in arguments:
        print(json.dumps({"error": message, "exit_code": code}))
    print(f"mint: {message}", file=sys.stderr)
    return code
