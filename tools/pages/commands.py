"""The page of commands, from the program's own declarations."""

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from typer.core import TyperGroup
from typer.main import get_command

from mint.cli.main import app

HEAD = """# Commands

Generated from the program by `python -m tools.pages`. With `--help`, a command shows the same on the terminal.
"""


def commands_page() -> str:
    """A section for every command, with a table of its arguments and options."""
    return "\n".join([HEAD, *(_section(path, command) for path, command in commands().items())])


def commands() -> dict[str, Any]:
    """Every command by its words, those of installed packages and groups included."""
    main = get_command(app)
    assert isinstance(main, TyperGroup)
    plugins = {point.name: get_command(point.load()) for point in entry_points(group="mint.commands")}
    return dict(_leaves("mint", {**main.commands, **plugins}))


def _leaves(prefix: str, children: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, command in children.items():
        path = f"{prefix} {name}"
        if isinstance(command, TyperGroup):
            yield from _leaves(path, command.commands)
        else:
            yield path, command


def _section(path: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    words = [path, *(_argument(argument) for argument in arguments), *(["[OPTIONS]"] if options else [])]
    rows = [f"| {_name(p)} | {_help(p)} |" for p in [*arguments, *options]]
    table = ["| argument, option | meaning |", "|---|---|", *rows] if rows else []
    return "\n".join([f"## {path}", "", f"`{' '.join(words)}`", "", _description(command.help), "", *table, ""])


def _argument(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    name = f"{name}..." if argument.nargs != 1 and not name.endswith("...") else name
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_argument(parameter)}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    value = "" if parameter.is_flag else f" `{parameter.metavar or parameter.name.upper()}`"
    return (names + value).replace("|", "\\|")


def _help(parameter: Any) -> str:
    text = " ".join((getattr(parameter, "help", "") or "").split())
    default = "" if getattr(parameter, "is_flag", False) or callable(parameter.default) else parameter.default
    shown = f" Default: `{default}`." if default not in ("", None, [], ()) else ""
    return f"{text}{shown}".replace("|", "\\|").replace("<", "&lt;").strip()


def _description(text: str) -> str:
    """The help text in one paragraph; an example follows as code."""
    words, _, example = " ".join(text.split()).partition(" Example: ")
    return f"{words}\n\nExample: `{example}`" if example else words
