"""The configuration file of `mint serve`: TOML with the names and the meaning of its options.

Paths are relative to the file, so that the service starts from any folder.
"""

import tomllib
from pathlib import Path
from typing import Any

import typer

from mint.core.errors import MintError
from mint.core.files import read_text


def read_defaults(file: Path, context: typer.Context) -> dict[str, Any]:
    """The values in a file by the names of the command's parameters; raises `MintError` with the file and the key."""
    try:
        record = tomllib.loads(read_text(file, "TOML"))
    except (OSError, ValueError, RecursionError) as error:
        raise MintError(f"--config {file}: {error}; needed: TOML, such as the line: port = 8420") from error
    parameters = {
        option.removeprefix("--"): parameter
        for parameter in context.command.params
        for option in parameter.opts
        if option not in ("--config", "--help", "-h")
    }
    defaults: dict[str, Any] = {}
    for key, value in record.items():
        if key not in parameters:
            raise MintError(f"--config {file}: {key} is no option; needed some of {', '.join(sorted(parameters))}")
        defaults[str(parameters[key].name)] = _checked(file, key, value, parameters[key], context)
    return defaults


def _checked(file: Path, key: str, value: Any, parameter: Any, context: typer.Context) -> Any:
    """The value as the option takes it."""
    is_flag, is_many = getattr(parameter, "is_flag", False), parameter.multiple
    wanted: type | tuple[type, ...] = bool if is_flag else list if is_many else (str, int, float)
    if not isinstance(value, wanted) or (isinstance(value, bool) and not is_flag):
        kind = "true or false" if is_flag else 'a list, such as ["a", "b"]' if is_many else "one text or number"
        raise MintError(f"--config {file}: {key} = {value!r}; needed: {kind}")
    try:
        parsed = parameter.process_value(context, value)
    except typer.BadParameter as error:
        raise MintError(f"--config {file}: {key} = {value!r}: {error.message}") from error
    is_path = getattr(getattr(parameter, "type", None), "name", "") == "path"  # typer 0.27 returns text
    parts = [
        _beside(file, Path(part)) if is_path or isinstance(part, Path) else part
        for part in (parsed if is_many else [parsed])
    ]
    if is_many:
        return parts
    return parts[0] if is_path or isinstance(parsed, Path) else value


def _beside(file: Path, path: Path) -> str:
    return str(file.parent.absolute() / path.expanduser())
