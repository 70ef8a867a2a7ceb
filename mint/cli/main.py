"""The `mint` command: registers the commands of this folder, and turns errors into exit codes.

stdout carries the answer (with --json, exactly one object), stderr everything else. Exit codes: 0 done, 1 an error that
the user can fix, 2 wrong usage, 3 a bug, 130 interrupted.
"""

import gc
import os
import signal
import sys
from typing import Annotated

import typer
from typer.core import TyperGroup
from typer.main import get_command

from mint.cli import jobs, machine, model, plan, quality
from mint.cli.command import command
from mint.cli.settings import option_defaults
from mint.cli.terminal.foreign import visible_lines
from mint.cli.terminal.hints import hints
from mint.cli.terminal.interruption import Interrupted, interruption
from mint.core.cache import cache_folder
from mint.core.errors import MintError, fixable
from mint.core.log import configure_logging
from mint.core.version import __version__, install_command
from mint.run.blas import allow_restart

INTERRUPTED = 130  # the exit code after Ctrl-C

app = typer.Typer(
    name="mint",
    help="Give it a language model and a memory budget, get the best MLX model that fits.\n\n"
    "Example: mint quantize Qwen/Qwen3-8B --budget 6GB",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 an error you can fix, 2 wrong usage, 3 a bug, 130 interrupted.",
)


def _show_version(is_given: bool) -> None:
    if is_given:
        print(f"mint {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every unit of work on stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """MINT: memory-informed N-bit tuning, without calibration data."""
    configure_logging(level="debug" if verbose else "warning")


_SERVICE, _SERVER, _MACHINES = "Use a lab's service", "Run a lab's service", "Machines and settings"
# by heading of the help
_FUNCTIONS = {
    "Make a model": (model.quantize, quality.evaluate, plan.show, model.verify, model.upload),
    "Choose": (model.inspect, plan.devices, plan.recipes),
    "Step by step": (
        model.analyze, quality.probe, plan.curve, plan.allocate, plan.explain, plan.diff, plan.report, model.assemble,
        plan.export_predicate,
    ),
    _MACHINES: (machine.doctor, machine.config),
    _SERVICE: (jobs.submit, jobs.jobs, jobs.cancel, jobs.pause, jobs.resume, jobs.download),
}  # fmt: skip
for _panel, _functions in _FUNCTIONS.items():
    for _function in _functions:
        app.command(rich_help_panel=_panel)(command(_function))

# commands of packages that are installed beside mint: name, heading, extra that installs it, help
_PLUGINS = (
    ("cluster", _MACHINES, "cluster", "Use several machines as one, for --cluster: start, join and inspect nodes."),
    ("serve", _SERVER, "service", "Run a lab's quantization service: submit models, follow jobs, download results."),
    ("service", _SERVER, "service", "Back up, restore and check the data of the service."),
    ("service-file", _SERVER, "service", "Print a service file that starts mint serve at boot (launchd, systemd)."),
    ("token", _SERVER, "service", "Create, list and revoke tokens for the service of this machine."),
)
_RUN_AS_THEY_ARE = ("serve", "service-file")  # others show their help without arguments


def _add_plugin(name: str, panel: str | None = None, extra: str = "", help: str = "") -> None:
    @app.command(
        name,
        help=help,
        rich_help_panel=panel,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        add_help_option=False,
        options_metavar="[COMMAND] [OPTIONS]",
    )
    def run(context: typer.Context) -> None:
        from importlib.metadata import entry_points  # slow to import

        points = entry_points(group="mint.commands", name=name)
        if not points:
            raise MintError(f"mint {name}: no installed package has this command; needed: {install_command(extra)}")
        arguments = context.args or ([] if name in _RUN_AS_THEY_ARE else ["--help"])
        raise typer.Exit(next(iter(points)).load()(arguments, prog_name=f"mint {name}", standalone_mode=False))


for _plugin in _PLUGINS:
    _add_plugin(*_plugin)


def _add_outside_command(arguments: list[str]) -> None:
    """Register a command that another installed package offers, if `arguments` begin with its name."""
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    if name in {"", *(known.name or getattr(known.callback, "__name__", "") for known in app.registered_commands)}:
        return
    from importlib.metadata import entry_points

    if entry_points(group="mint.commands", name=name):
        _add_plugin(name)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # imports leave a million objects for the whole run; collecting them repeatedly takes half a second
    gc.set_threshold(100_000)
    allow_restart()
    code = run_command(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the answer is out: nothing is left to interrupt
    if code == INTERRUPTED:  # Python itself would end by a signal if the interrupt came within an `exec`
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    gc.freeze()
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Run the command line and return its exit code. With --json an error is one object on stdout too."""
    try:
        _add_outside_command(arguments)
        code = app(arguments, standalone_mode=False, default_map=option_defaults(app))
    except MintError as error:
        return _fail(arguments, error.typed, 1)
    except Interrupted as error:
        return _fail(arguments, interruption(arguments, error.stage), INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(arguments, interruption(arguments), INTERRUPTED)
    except Exception as error:
        if hasattr(error, "show"):  # wrong usage
            return _refuse(arguments, error)
        if message := fixable(error):
            return _fail(arguments, message, 1)
        import traceback

        traceback.print_exc()
        return _fail(
            arguments, f"this is a bug in mint, please report it with the output of mint doctor --json: {error!r}", 3
        )
    if code == INTERRUPTED:  # typer's way to say that a command was interrupted
        return _fail(arguments, interruption(arguments), INTERRUPTED)
    return int(code or 0)


def _refuse(arguments: list[str], error: Exception) -> int:
    """Say what is wrong with the usage, and how mint says what other tools call otherwise."""
    context, message = getattr(error, "ctx", None), getattr(error, "format_message", error.__str__)()
    if message:
        path = f". See {context.command_path} --help" if context else ""
        text = visible_lines(message).rstrip(".")
        print(f"mint: {text}{path.removeprefix('.') if text.endswith('?') else path}", file=sys.stderr)
    for hint in hints(arguments, _options_of_commands()):
        print(f"mint: {hint}", file=sys.stderr)
    return int(getattr(error, "exit_code", 2))


def _options_of_commands() -> dict[str, frozenset[str]]:
    """The options of every command, as they are typed."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return {
        name: frozenset(word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts))
        for name, command in group.commands.items()
    }


def _fail(arguments: list[str], message: str, code: int) -> int:
    if "--json" in arguments:
        import json

        print(json.dumps({"error": message, "exit_code": code}))
    hint = " (the cache; MINT_CACHE names another folder)" if str(cache_folder()) in message else ""
    print(f"mint: {visible_lines(message)}{hint}", file=sys.stderr)
    return code
