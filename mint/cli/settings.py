"""The settings of a user: the variables MINT_*, and `mint.toml` in the configuration folder.

In `mint.toml` the top level sets variables by their names without MINT_ (`cache = "/big/mint"`), and a section sets
the options of a command (`[quantize]`, `rounding = "compensate"`). The environment goes before the file, and options
before both. Only the user's own folder is looked into: a file beside a downloaded model must not choose a server.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer import Typer
from typer.core import TyperGroup
from typer.main import get_command

from mint.core.cache import config_folder
from mint.core.errors import MintError
from mint.core.files import read_text

FILE_NAME = "mint.toml"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the environment, its meaning, and its value where it is not set."""

    name: str
    meaning: str
    default: str = "none"


VARIABLES = (
    Variable("MINT_CACHE", "folder of analyses and compiled kernels", "the user's cache folder"),
    Variable("MINT_KERNELS", "folder of compiled kernels alone", "kernels in MINT_CACHE"),
    Variable("MINT_CONFIG", "folder of mint.toml and of tokens and certificates", "the user's configuration folder"),
    Variable("MINT_PROGRESS", "progress of every command: bar, plain, json or none", "auto"),
    Variable("MINT_QUALITY", "quality of every command: fast, good or best (mint recipes)", "good"),
    Variable("MINT_SERVER", "address of a lab's service"),
    Variable("MINT_TOKEN", "token for that service"),
    Variable("MINT_DATABASE", "database of mint serve", "SQLite in its data folder"),
)
_IN_FILE = tuple(v.name.removeprefix("MINT_").lower() for v in VARIABLES if v.name not in ("MINT_CONFIG", "MINT_TOKEN"))


def settings_file() -> Path:
    """The user's `mint.toml`; it need not exist."""
    return config_folder() / FILE_NAME


def option_defaults(app: Typer) -> dict[str, Any]:
    """The defaults of options by command, from `mint.toml`; its variables go to the environment.

    Raises `MintError` for a file that is no TOML, and for names that mint does not know.
    """
    record, path = _read(), settings_file()
    sections = {name: value for name, value in record.items() if isinstance(value, dict)}
    for name, value in record.items():
        if name in sections:
            continue
        if name not in _IN_FILE or not isinstance(value, str):
            raise MintError(
                f"{path}: {name} is unknown or no text; needed: a [COMMAND] section, or one of {', '.join(_IN_FILE)}"
            )
        os.environ.setdefault(f"MINT_{name.upper()}", value)
    if not sections:
        return {}
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return {name: _options_of(group, name, section) for name, section in sections.items()}


def values_in_file(option: str) -> list[Any]:
    """The values that the sections of `mint.toml` give to this option."""
    return [section[option] for section in _read().values() if isinstance(section, dict) and option in section]


def _read() -> dict[str, Any]:
    import tomllib

    path = settings_file()
    try:
        return tomllib.loads(read_text(path, "TOML")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise MintError(f"{path}: cannot be read ({error}); fix or remove it") from error


def _options_of(group: TyperGroup, command: str, section: dict[str, Any]) -> dict[str, Any]:
    """The values of a section by the names of the parameters."""
    path = settings_file()
    if command not in group.commands:
        raise MintError(f"{path}: [{command}] is no command; needed one of {', '.join(group.commands)}")
    names = {
        option.removeprefix("--"): parameter.name
        for parameter in group.commands[command].params
        for option in parameter.opts
        if option.startswith("--")
    }
    if unknown := sorted(set(section) - set(names)):
        raise MintError(f"{path}: [{command}] has no option {', '.join(unknown)}; needed some of {', '.join(names)}")
    return {str(names[name]): value for name, value in section.items()}
